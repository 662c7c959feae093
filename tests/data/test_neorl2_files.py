"""Files of NeoRL-2 are known by the steps in them: environment and references, under any name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import columns, oper

from oper_lightning import Npz
from oper_lightning.data.matching import reference_of
from oper_lightning.data.sources.columns import NEORL2
from oper_lightning.data.sources.npz import first_rows
from oper_lightning.envs.rollouts import World

REFERENCES = {"DMSD": (30.60, 849.51), "SafetyHalfCheetah": (-283, 2507)}
PUBLISHED = {"DMSD": 56.64, "SafetyHalfCheetah": 73.56}  # mean score of the recorded episodes
FAST = np.append(5.0, np.zeros(8))


def play(task: str, **options: Any) -> dict[str, np.ndarray]:
    """Random steps of a task, under NeoRL-2's names."""
    world = World(task, options)
    world.copies[0].action_space.seed(0)
    rows: list[tuple[Any, ...]] = []
    for episode in range(2):
        seen = world.reset(0, episode)
        if options:  # HalfCheetah-v5
            world.copies[0].unwrapped.set_state(np.zeros(9), FAST)
            seen = np.concatenate([np.zeros(9), FAST])
        for step in range(60):
            action = world.action_space.sample()
            following, reward, *_ = world.step(0, action)
            rows.append((seen, action, reward, 0.0, float(step == 59), following))
            seen = following
    arrays = [np.array(column, dtype=np.float32) for column in zip(*rows, strict=True)]
    return dict(zip(NEORL2.values(), arrays, strict=True))


@pytest.mark.parametrize("task", REFERENCES)
def test_published_files_under_any_name(task: str, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        shutil.copyfile(shared / f"neorl2-{task}-{split}.npz", "some.npz")
        origin = Npz("some.npz").origin()
        assert origin.environment == f"oper/{task}-v0"
        assert reference_of(origin, origin.environment) == (REFERENCES[task], "NeoRL-2's")
    with np.load(shared / f"neorl2-{task}-train.npz") as file:
        mean = float(file["reward"].astype(float).sum() / file["truncated"].sum())
    low, high = REFERENCES[task]
    assert 100 * (mean - low) / (high - low) == pytest.approx(PUBLISHED[task], abs=0.02)


@pytest.mark.parametrize("task", REFERENCES)
def test_steps_of_the_environment_are_known(task: str) -> None:
    arrays = play(f"oper/{task}-v0")
    np.savez("played.npz", **arrays)
    np.savez_compressed("packed.npz", **arrays)
    for file in ("played.npz", "packed.npz"):
        assert Npz(file).origin().environment == f"oper/{task}-v0"


@pytest.mark.parametrize("change", ["obs", "action", "reward"])
def test_other_steps_of_these_sizes_are_not(change: str) -> None:
    for task in REFERENCES:
        arrays = play(f"oper/{task}-v0")
        arrays[change][30] += 0.05  # one row of another kind is enough
        np.savez("other.npz", **arrays)
        assert Npz("other.npz").origin().environment is None
    shapes = {"next_obs": arrays["next_obs"][:, :17]}
    np.savez("other.npz", **{**play("oper/DMSD-v0"), **shapes})
    assert Npz("other.npz").origin().environment is None
    np.savez("zeros.npz", **{name: np.zeros_like(array) for name, array in arrays.items()})
    assert Npz("zeros.npz").origin().environment is None


@pytest.mark.parametrize("name", ["obs", "action", "reward", "next_obs"])
@pytest.mark.parametrize("kind", ["f4", "f8", "c16", "S1", "M8[s]"])
@pytest.mark.parametrize("value", [np.inf, np.nan, 1e38])
def test_numbers_that_are_none_belong_to_no_task(
    name: str, kind: str, value: float, recwarn: pytest.WarningsRecorder
) -> None:
    arrays = play("oper/DMSD-v0")
    arrays[name][3] = value
    arrays[name] = np.zeros(arrays[name].shape, kind) if kind[0] in "SM" else arrays[name].astype(kind)
    np.savez("odd.npz", **arrays)
    assert Npz("odd.npz").origin().environment is None
    assert not recwarn.list


def test_a_cheetah_without_a_limit_is_another_task() -> None:
    arrays = play("HalfCheetah-v5", exclude_current_positions_from_observation=False)
    assert arrays["reward"].max() > 3.3
    np.savez("fast.npz", **arrays)
    assert Npz("fast.npz").origin().environment is None


def test_what_a_person_says_counts() -> None:
    arrays = play("oper/DMSD-v0")
    np.savez("played.npz", **arrays)
    named = Npz("played.npz", environment="Reacher-v5").origin()
    assert named.environment == "Reacher-v5"
    assert reference_of(named, named.environment) == (None, "")
    given = Npz("played.npz", reference=(0.0, 1.0)).origin()
    assert reference_of(given, given.environment) == ((0.0, 1.0), "given as the source's reference")
    assert given.environment == "oper/DMSD-v0"
    np.savez("theirs.npz", **{name: arrays[key] for name, key in NEORL2.items()})
    assert Npz("theirs.npz").origin().environment is None  # D4RL's names


def test_files_that_cannot_be_read_have_no_environment() -> None:
    whole = Path("whole.npz")
    np.savez(whole, **play("oper/DMSD-v0"))
    Path("cut.npz").write_bytes(whole.read_bytes()[:300])
    for name in ("cut.npz", "nothing.npz"):
        assert Npz(name).origin().environment is None


def test_only_the_first_rows_are_unpacked() -> None:
    arrays = columns([5, 4])
    wide, across = np.zeros((9, 1000)), np.asfortranarray(arrays["observations"])
    np.savez_compressed("a.npz", **{**arrays, "observations": across, "actions": wide})
    names = {name: name for name in ("observations", "actions", "rewards", "next_observations", "missing")}
    found = first_rows("a.npz", names, 3)
    assert [*found] == ["rewards", "next_observations"]
    for name, rows in found.items():
        np.testing.assert_array_equal(rows, arrays[name][:3])
    assert len(first_rows("a.npz", names, 100)["rewards"]) == 9


def test_a_run_is_scored_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("played.npz", **play("oper/DMSD-v0"))
    words = ["--model=BC", "--model.hidden_sizes=[8]", "--data.source=Npz", "--data.source.path=played.npz"]
    sizes = ["--data.batch_size=16", "--data.updates_per_epoch=5", "--trainer.max_steps=5"]
    assert oper("fit", *words, *sizes, "--data.rollouts.episodes=2", "--output=run") == 0
    assert "normalised from 30.6 to 849.51 (NeoRL-2's)" in capsys.readouterr().err
    assert oper("validate", "--ckpt_path=run/last.ckpt") == 0
    assert "(references: NeoRL-2's) (oper/DMSD-v0)" in capsys.readouterr().out
