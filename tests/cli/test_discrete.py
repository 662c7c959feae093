"""Discrete actions on the command line: a CartPole file from looking at it to playing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from helpers import columns, oper, write_hdf5
from safetensors.torch import load_file

QUICK = ["--model.hidden_sizes=[32]", "--data.batch_size=64", "--data.updates_per_epoch=40"]
DATA = ["--data.source=D4RL", "--data.source.path=cart.hdf5"]
FIT = ["fit", "--model=DiscreteBC", "--model.learning_rate=0.01", *QUICK, *DATA, "--data.rollouts.episodes=2"]


def cartpole(episodes: int = 12) -> dict[str, np.ndarray]:
    """Steps of a controller that balances, with every fifth action at random."""
    env, generator, rows = gymnasium.make("CartPole-v1", max_episode_steps=60), np.random.default_rng(0), []
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        over = False
        while not over:
            action = int(observation[2] + 0.5 * observation[3] > 0)
            action = int(generator.integers(2)) if generator.random() < 0.2 else action
            following, reward, terminated, truncated, _ = env.step(action)
            rows.append((observation, action, reward, following, terminated, truncated))
            observation, over = following, terminated or truncated
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    return {name: np.array(part) for name, part in zip(names, zip(*rows, strict=True), strict=True)}


@pytest.fixture(autouse=True)
def _file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_hdf5(Path("cart.hdf5"), cartpole(), env_id="CartPole-v1")


def test_from_a_file_to_a_policy_and_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert oper(*FIT, "--output=run", "--trainer.max_steps=80") == 0
    said = capsys.readouterr().err
    assert "2 discrete actions; drawn uniformly" in said
    assert "without a normalised score, as no reference is known (data.source.reference)" in said
    assert oper("validate", "--ckpt_path=run/last.ckpt") == 0
    assert "over 2 episodes (CartPole-v1)" in capsys.readouterr().out
    assert oper("predict", "--ckpt_path=run/last.ckpt") == 0
    actions = load_file("run/predictions.safetensors")["action"]
    recorded = cartpole()["actions"]
    assert (actions.dtype, actions.shape) == (torch.int64, recorded.shape)
    assert (actions.numpy() == recorded).mean() > 0.8
    assert oper("test", "--ckpt_path=run/last.ckpt") == 0
    assert json.loads(Path("run/test.json").read_text())["return"] > 30


def test_a_checkpoint_alone_needs_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert oper(*FIT, "--output=run", "--trainer.max_steps=40") == 0
    Path("run/last.ckpt").rename("alone.ckpt")
    capsys.readouterr()
    assert oper("predict", "--ckpt_path=alone.ckpt") == 1
    assert "alone.ckpt and no config.yaml beside it: data: source must be given" in capsys.readouterr().err
    for verb in ("validate", "test", "predict"):
        assert oper(verb, "--ckpt_path=alone.ckpt", *DATA, "--data.rollouts.episodes=1") == 0
    assert Path("predictions.safetensors").is_file()


def test_a_run_goes_on_as_if_it_had_not_stopped() -> None:
    words = [*FIT, "--data.priority=OperR", "--data.location=memory"]
    assert oper(*words, "--output=whole", "--trainer.max_steps=80") == 0
    assert oper(*words, "--output=halves", "--trainer.max_steps=40") == 0
    assert oper(*words, "--output=halves", "--trainer.max_steps=80", "--ckpt_path=last") == 0
    whole, halves = (torch.load(f"{run}/last.ckpt", weights_only=True) for run in ("whole", "halves"))
    assert whole["state_dict"].keys() == halves["state_dict"].keys()
    assert all(value.equal(halves["state_dict"][key]) for key, value in whole["state_dict"].items())


@pytest.mark.parametrize("critic", ["doublev", "vq"])
def test_oper_a_then_a_policy(critic: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--model=OperA", f"--model.critic={critic}", *QUICK, *DATA, "--data.rollouts=null"]
    assert oper(*words, "--model.iterations=2", "--trainer.max_steps=80", "--output=weights") == 0
    priority = ["--data.priority=WeightsFile", "--data.priority.path=weights/weights.safetensors"]
    assert oper(*FIT, *priority, "--output=policy", "--trainer.max_steps=40") == 0
    capsys.readouterr()
    assert oper("inspect", "policy", "weights") == 0
    out = capsys.readouterr().out
    assert "OPER-A, as used" in out
    assert "| action is 1" in out


def test_what_is_refused_names_the_file_and_the_remedy(refused: Callable[..., str]) -> None:
    line = refused("fit", "--model=BC", *QUICK, *DATA, "--output=out", "--trainer.max_steps=40")
    assert line.startswith("cart.hdf5: discrete actions")
    assert "which BC is not for; take one of " in line
    assert "DiscreteBC" in line


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda actions: actions * 10**12, "lie outside the action space [0, 1] (first at row"),
        (lambda actions: actions + 1, "lie outside the action space [0, 1] (first at row"),
        (lambda actions: actions[:, None] * 0.5, "of an integer type, one to a row), which DiscreteBC is not for"),
        (lambda actions: actions * 0.5, "save amounts as actions[:, None], and with an integer type for discrete ones"),
        (lambda actions: np.stack([actions] * 2, 1), "of an integer type, one to a row), which DiscreteBC is not for"),
    ],
    ids=["huge", "none of them", "amounts", "flat amounts", "two columns"],
)
def test_odd_actions(change: Callable[[np.ndarray], np.ndarray], expected: str, refused: Callable[..., str]) -> None:
    arrays = cartpole()
    write_hdf5(Path("odd.hdf5"), {**arrays, "actions": change(arrays["actions"])}, env_id="CartPole-v1")
    line = refused(*FIT, "--data.source.path=odd.hdf5", "--output=out", "--trainer.max_steps=40")
    assert line.startswith("odd.hdf5: ")
    assert expected in line


def test_a_checkpoint_for_other_actions_is_refused(refused: Callable[..., str]) -> None:
    assert oper(*FIT, "--output=run", "--trainer.max_steps=40") == 0
    write_hdf5(Path("three.hdf5"), columns([20] * 5, 4, 3, discrete=True))
    write_hdf5(Path("amounts.hdf5"), columns([20] * 5, 4, 1))
    predict = ["predict", "--ckpt_path=run/last.ckpt", "--data.source=D4RL"]
    line = refused(*predict, "--data.source.path=three.hdf5")
    assert line == "run/last.ckpt was made for other data (cart): 2 actions against 3"
    line = refused(*predict, "--data.source.path=amounts.hdf5")
    assert line.startswith("amounts.hdf5: continuous actions (discrete ones must be saved as whole numbers")
