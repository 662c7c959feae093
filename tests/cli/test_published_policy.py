"""BREMEN's published policies as checkpoints: the same actions, from both kinds of files, and what they earn."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import oper
from tf_bundles import write_bundle

from oper_lightning import BC
from oper_lightning.cli.published_policy import read_layers
from oper_lightning.envs.rollouts import World
from oper_lightning.errors import InputError

SIZES = {"bremen/Ant-v0": (27, 8), "bremen/Hopper-v0": (11, 3), "Pendulum-v1": (3, 1)}
HOPPER = "--environment=bremen/Hopper-v0"


def layers(observations: int = 11, actions: int = 3, widths: tuple[int, ...] = (20, 30)) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    sizes = [observations, *widths, 2 * actions]
    found = {}
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        found[f"layer_{number}_w"] = generator.normal(size=(inputs, outputs)).astype(np.float32) / 3
        found[f"layer_{number}_b"] = generator.normal(size=outputs).astype(np.float32)
    return found


def normal(size: int = 11) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {"mean": generator.normal(size=size), "std": generator.uniform(0.1, 3, size)}


def literally(stored: dict[str, np.ndarray], statistics: dict[str, np.ndarray], observation: np.ndarray) -> np.ndarray:
    """What the published description says that the policy does."""
    hidden = (observation - statistics["mean"]) / statistics["std"]
    count = len(stored) // 2
    for number in range(count):
        hidden = hidden @ stored[f"layer_{number}_w"] + stored[f"layer_{number}_b"]
        if number < count - 1:
            hidden = np.maximum(hidden, 0)
    return np.tanh(hidden[:, : hidden.shape[1] // 2])


@pytest.mark.parametrize("kind", ["npz", "bundle"])
@pytest.mark.parametrize("environment", SIZES)
@pytest.mark.parametrize("widths", [(20, 30), (40,)])
def test_it_acts_as_published(kind: str, environment: str, widths: tuple[int, ...]) -> None:
    observations, actions = SIZES[environment]
    stored, statistics = layers(observations, actions, widths), normal(observations)
    np.savez("norm.npz", **statistics)
    if kind == "npz":
        np.savez("policy.npz", **stored)
    else:
        write_bundle(Path("policy.ckpt"), {f"policy/{name[:7]}/{name[8:]}": array for name, array in stored.items()})
    name = "policy.npz" if kind == "npz" else "policy.ckpt"
    words = ["--to=checkpoint", "--statistics=norm.npz", f"--environment={environment}", "--output=runs/published"]
    assert oper("convert", name, *words) == 0
    model = BC.load_from_checkpoint("runs/published/last.ckpt", map_location="cpu", weights_only=True)
    seen = 3 * np.random.default_rng(2).normal(size=(50, observations))
    expected = literally(stored, statistics, seen) * (2 if environment == "Pendulum-v1" else 1)  # whose torques are ±2
    assert np.allclose(model.act(torch.from_numpy(seen)).numpy(), expected, atol=1e-5)
    assert sorted(path.name for path in Path("runs/published").iterdir()) == ["config.yaml", "last.ckpt"]
    assert [path.name for path in Path("runs").iterdir()] == ["published"]


def test_other_verbs_take_it(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("policy.npz", **layers())
    np.savez("norm.npz", **normal())
    assert oper("convert", "policy.npz", "--to=checkpoint", "--statistics=norm.npz", HOPPER, "--output=mine") == 0
    assert oper("validate", "--ckpt_path=mine", "--data.rollouts.episodes=2") == 0
    assert "over 2 episodes (bremen/Hopper-v0)" in capsys.readouterr().out
    # Before the random steps of a mix are taken.
    assert oper("collect", "mine", "--mix=eps1", "--explore=true", "--steps=50", "--output=d/mixed-v0") == 1
    assert "last.ckpt holds BC, which has no policy that explores: leave out explore" in capsys.readouterr().err
    assert not Path("d").exists()
    assert oper("collect", "mine", "--episodes=2", "--output=gathered-v0") == 0
    assert oper("fit", "--model=BC", "--data.source=Minari", "--data.source.id=gathered-v0", "--ckpt_path=mine",
                "--trainer.max_steps=2", "--output=run") == 1  # fmt: skip
    assert "only the same data can go on" in capsys.readouterr().err


def other(change: dict[str, Any], of: Any = layers) -> dict[str, np.ndarray]:
    return {name: array for name, array in {**of(), **change}.items() if array is not None}


@pytest.mark.parametrize(
    ("policy", "statistics", "words", "said"),
    [
        (layers(), normal(), ["--statistics=norm.npz"], "environment must be given"),
        (layers(), normal(), [HOPPER], "statistics must be given"),
        (layers(), normal(), ["--statistics=norm.npz", "--environment=bremen/Hoper-v0"], "did you mean 'bremen/Hopper"),
        (layers(17, 6), normal(), ["--statistics=norm.npz", HOPPER],
         "policy.npz: a policy for 17 observations and 6 actions; environment 'bremen/Hopper-v0' has [11]"),
        (layers(11, 4), normal(), ["--statistics=norm.npz", HOPPER], "and 4 actions"),
        (layers(4, 2), normal(), ["--statistics=norm.npz", "--environment=CartPole-v1"], "CartPole-v1' has [4] and"),
        ({"a": np.ones(3)}, normal(), [], "policy.npz: no published policy: no array 'layer_0_w'"),
        (other({"layer_1_b": None}), normal(), [], "policy.npz: it has no weights and biases of layer"),
        (other({"layer_0_w": None, "layer_0_b": None}), normal(), [], "no weights and biases of layer 0"),
        (other({"layer_2_b": None}), normal(), [], "policy.npz: it has no weights and biases of layer 2"),
        (other({"layer_7_w": np.ones((3, 3))}), normal(), [], "policy.npz: it has no weights and biases of layer 3"),
        (other({"layer_1_b": np.ones(31)}), normal(), [], "policy.npz: layer 1 has weights float32 [20, 30]"),
        (other({"layer_1_w": np.ones((21, 30))}), normal(), [], "layer 0 has 20 outputs, layer 1 21 inputs"),
        (other({"layer_1_w": np.ones((20, 30), int)}), normal(), [], "layer 1 has weights int64"),
        (other({"layer_1_b": np.full(30, np.nan)}), normal(), [], "policy.npz: layer 1 is not finite"),
        (other({"layer_1_w": np.full((20, 30), -1e300)}), normal(), [], "policy.npz: layer 1 is not finite"),
        (other({"layer_1_b": np.array([{}] * 30)}), normal(), [], "policy.npz: array 'layer_1_b' holds Python objects"),
        (layers(), normal(12), [], "norm.npz: 'mean' is float64 [12]; 11 finite numbers are needed"),
        (layers(), other({"std": None}, normal), [], "norm.npz: no array 'std'; it has mean"),
        (layers(), other({"std": np.zeros(11)}, normal), [], "norm.npz: 'std' is 0 at least; above 0.001 is needed"),
        (layers(), other({"mean": np.full(11, 1e300)}, normal), [], "norm.npz: 'mean' is float64 [11]; 11 finite"),
        (layers(), normal(), ["--fraction=0.5"], "name one policy, and neither --source nor --fraction"),
    ],
)  # fmt: skip
def test_what_is_refused(
    policy: dict[str, Any], statistics: dict[str, Any], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("policy.npz", **policy)
    np.savez("norm.npz", **statistics)
    words = words or ["--statistics=norm.npz", HOPPER]
    assert oper("convert", "policy.npz", "--to=checkpoint", "--output=mine", *words) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["norm.npz", "policy.npz"]


def test_layers_that_lie_at_the_same_bytes() -> None:
    def change(records: dict[bytes, bytes]) -> None:
        for number in range(3000):
            for kind in (b"w", b"b"):
                records[b"policy/layer_%d/%s" % (number, kind)] = records[b"policy/layer_0/" + kind]

    stored = {"policy/layer_0/b": np.zeros(9, np.float32), "policy/layer_0/w": np.zeros((9, 9), np.float32)}
    write_bundle(Path("policy"), stored, change=change)
    with pytest.raises(InputError, match=r"policy.index: two tensors lie at byte 0 of shard 0"):
        read_layers("policy")


def test_what_is_not_for_policies(capsys: pytest.CaptureFixture[str]) -> None:
    assert oper("convert", "x.hdf5", "--to=minari", "--output=y-v0", "--statistics=z.npz") == 1
    assert "statistics is for a policy: --to=checkpoint" in capsys.readouterr().err
    np.savez("policy.npz", **layers())
    Path("mine").mkdir()
    assert oper("convert", "policy.npz", "--to=checkpoint", "--statistics=norm.npz", HOPPER, "--output=mine") == 1
    assert "mine: exists already" in capsys.readouterr().err
    assert oper("convert", "policy.npz", "--to=checkpoint", "--statistics=norm.npz", HOPPER, "--output=mine") == 1
    assert oper("convert", "no.npz", "--to=checkpoint", "--statistics=norm.npz", HOPPER, "--output=other") == 1
    assert "no.npz: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "median", "worst"), [("Ant", 3000, 2000), ("HalfCheetah", 5000, 3500), ("Hopper", 900, 700)]
)
def test_what_they_earn(shared: Path, name: str, median: float, worst: float) -> None:
    folder = shared / "bremen"
    words = [f"--statistics={folder / name}_fitted_norm.npz", f"--environment=bremen/{name}-v0", "--output=mine"]
    assert oper("convert", str(folder / f"{name}.npz"), "--to=checkpoint", *words) == 0
    model = BC.load_from_checkpoint("mine/last.ckpt", map_location="cpu", weights_only=True)
    returns, _ = World(f"bremen/{name}-v0", {}, parallel=5).rollouts(model.act, range(10_000, 10_005))
    # Single episodes end in a fall, and which ones the last bits of a processor decide.
    assert returns.median() > median
    assert returns.mean() > worst
