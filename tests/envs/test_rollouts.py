from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from helpers import Arrays, columns
from lightning.pytorch import Trainer

from oper_lightning import D4RL, OfflineDataModule, OperR
from oper_lightning.algorithms.bc import BC
from oper_lightning.data.matching import make_world
from oper_lightning.data.sources.source import Origin
from oper_lightning.envs.rollouts import Rollouts, World
from oper_lightning.errors import InputError

GAINS = torch.tensor([[0.5, -0.2]])


def act(observation: torch.Tensor) -> torch.Tensor:
    """A fixed policy for Reacher."""
    return (observation[:, 4:6] * 5 + observation[:, 8:10]).clamp(-1, 1) * GAINS


def alone(seed: int) -> tuple[float, int]:
    """One episode in one plain environment."""
    env = gymnasium.make("Reacher-v5")
    observation, _ = env.reset(seed=seed)
    total, steps, over = 0.0, 0, False
    while not over:
        action = act(torch.as_tensor(observation[None], dtype=torch.float32))[0].numpy()
        observation, reward, terminated, truncated, _ = env.step(action)
        total, steps, over = total + float(reward), steps + 1, terminated or truncated
    return total, steps


@pytest.mark.parametrize("parallel", [1, 3, 10])
def test_every_seed_is_one_episode_whatever_the_width(parallel: int) -> None:
    seeds = list(range(7))
    returns, lengths = World("Reacher-v5", {}, parallel=parallel).rollouts(act, seeds)
    expected = [alone(seed) for seed in seeds]
    np.testing.assert_allclose(returns, [value for value, _ in expected], rtol=1e-5)
    assert lengths.tolist() == [steps for _, steps in expected]


def test_episodes_of_unequal_length_are_not_mixed() -> None:
    """In CartPole an episode ends when the pole falls, at another step for every seed."""
    world = World("CartPole-v1", {}, parallel=4)
    returns, lengths = world.rollouts(lambda rows: (rows[:, 2] > 0).long(), list(range(11)))
    assert returns.equal(lengths)
    assert len(lengths.unique()) > 3
    again, _ = world.rollouts(lambda rows: (rows[:, 2] > 0).long(), list(range(11)))
    assert again.equal(returns)


def test_actions_are_kept_within_the_space() -> None:
    world = World("Pendulum-v1", {})
    wild, _ = world.rollouts(lambda rows: torch.full((len(rows), 1), 99.0), [0])
    full, _ = world.rollouts(lambda rows: torch.full((len(rows), 1), 2.0), [0])
    assert wild.equal(full)


def test_seeds_of_test_and_validation_differ() -> None:
    rollouts = Rollouts(episodes=5)
    assert len(rollouts.seeds()) == 5
    assert not set(rollouts.seeds()) & set(rollouts.seeds(test=True))
    with pytest.raises(InputError, match="at least 1"):
        Rollouts(episodes=0)


def test_a_trainer_of_ones_own_judges_after_training(small_file: Path) -> None:
    """One datamodule through validate, fit, validate and fit again; validate returns the numbers."""
    data = OfflineDataModule(
        D4RL(str(small_file)),
        OperR(),
        batch_size=32,
        updates_per_epoch=10,
        rollouts=Rollouts(episodes=3, parallel=2),
    )
    trainer = Trainer(
        max_steps=10, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    model = BC(hidden_sizes=(8,))
    trainer.validate(model, datamodule=data, verbose=False)
    assert data.weights is None  # nobody has needed them
    trainer.fit(model, datamodule=data)
    assert data.weights is not None
    trained = trainer.callback_metrics["eval/return"].item()
    (numbers,) = trainer.validate(model, datamodule=data, verbose=False)
    assert numbers["eval/return"] == pytest.approx(trained)
    assert numbers["eval/episodes"] == 3
    (numbers,) = trainer.test(model, datamodule=data, verbose=False)
    assert numbers["test/return"] != pytest.approx(trained)
    trainer.fit(model, datamodule=data)


def test_environments_that_cannot_be_made() -> None:
    with pytest.raises(InputError, match=r"'Hoper-v5' is not registered with Gymnasium; did you mean 'Hopper-v5'"):
        World("Hoper-v5", {})
    if importlib.util.find_spec("gymnasium_robotics") is None:
        with pytest.raises(InputError, match=r"'AdroitHandDoor-v1' .*; pip install 'oper-lightning\[robotics\]'"):
            World("AdroitHandDoor-v1", {})
    with pytest.raises(InputError, match="cannot be made"):
        World("Hopper-v5", {"no_such_option": 1})


class Faulty(gymnasium.Env[np.ndarray, np.ndarray]):
    """Ends no episode, and goes wrong at step 3 of episodes with an odd seed."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, fault: str, ends: bool = True) -> None:
        self.fault, self.ends = fault, ends

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        assert seed is not None
        self.odd, self.step_number = bool(seed % 2), 0
        if self.odd and self.fault == "reset":
            raise RuntimeError("the arm is stuck")
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        observation, reward = np.zeros(2, np.float32), 1.0
        if self.odd and self.step_number == 3:
            if self.fault == "raises":
                raise OSError("no answer from the robot")
            reward = {"nan": np.nan, "infinite": np.inf}.get(self.fault, reward)
            observation = {"observation": observation * np.nan, "shape": np.zeros(3)}.get(self.fault, observation)
        return observation, reward, False, self.ends and self.step_number == 5, {}


gymnasium.register("Faulty-v0", Faulty, disable_env_checker=True)


@pytest.mark.parametrize(
    ("fault", "step", "said"),
    [
        ("reset", 0, "the arm is stuck"),
        ("raises", 3, "no answer from the robot"),
        ("nan", 3, "its reward is nan"),
        ("infinite", 3, "its reward is inf"),
        ("observation", 3, "its observation is not finite"),
        ("shape", 3, r"its observation has shape \(3,\) instead of \(2,\)"),
    ],
)
def test_an_environment_that_fails_is_named_with_seed_and_step(fault: str, step: int, said: str) -> None:
    world = World("Faulty-v0", {"fault": fault}, parallel=2)

    def still(observation: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(observation), 1)

    returns, _ = world.rollouts(still, [2, 4, 6])
    assert returns.tolist() == [5, 5, 5]
    with pytest.raises(InputError, match=rf"'Faulty-v0' failed in the episode of seed 7 at step {step}: {said}"):
        world.rollouts(still, [2, 4, 6, 7, 8])


def test_an_episode_that_never_ends_is_cut_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def still(observation: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(observation), 1)

    monkeypatch.setattr("oper_lightning.envs.rollouts.LONGEST", 200)
    endless = World("Faulty-v0", {"fault": "none", "ends": False})
    with pytest.raises(InputError, match=r"seed 2 at step 200: the episode does not end; .*data.rollouts.steps"):
        endless.rollouts(still, [2])
    data = OfflineDataModule(
        Arrays(columns([25] * 4, 2, 1), Origin(environment="Faulty-v0", environment_options={"fault": "none"})),
        rollouts=Rollouts(episodes=1, steps=4),
    )
    world = make_world(data.source, data.rollouts)
    assert world is not None
    assert world.rollouts(still, [2])[1].tolist() == [4]
    with pytest.raises(InputError, match="steps 0 must be between"):
        Rollouts(steps=0)
