"""Datasets whose steps a task judges anew, against a loop over rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import REACH, Arrays, columns, oper
from tensordict import TensorDict
from torch import Tensor

from oper_lightning import D4RL
from oper_lightning.data.sources.relabelled import Relabelled
from oper_lightning.data.sources.source import Origin
from oper_lightning.data.storage import fill, transitions_in
from oper_lightning.envs.tasks import CheetahRun
from oper_lightning.errors import InputError
from oper_lightning.spec import Task


class Far(Task):
    """Paid by all three arguments; ends where the first entry is high."""

    def reward(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        return observation[:, 0] + 10 * action[:, 1] + 100 * next_observation[:, 2]

    def terminated(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        return next_observation[:, 0] > 1


def read(source: Any) -> TensorDict:
    return transitions_in(fill(source, torch.device("cpu")))


@pytest.mark.parametrize("bound", [None, 0.3])
def test_every_step_is_judged(bound: float | None) -> None:
    arrays = columns([30, 1, 25, 40, 2, 17], 4, 2)
    kept = {name: array.copy() for name, array in arrays.items()}
    box = None if bound is None else np.full(2, bound, np.float32)
    source = Relabelled(
        Arrays(arrays, Origin("mine", action_low=None if box is None else -box, action_high=box)), Far()
    )
    assert len(source) == 115
    table = read(source)
    for row in range(115):
        now, action, after = (arrays[name][row] for name in ("observations", "actions", "next_observations"))
        taken = action if bound is None else action.clip(-bound, bound)
        assert table["next", "reward"][row].item() == pytest.approx(now[0] + 10 * taken[1] + 100 * after[2], rel=1e-4)
        ends = bool(after[0] > 1)
        assert table["next", "terminated"][row] == ends
        assert table["next", "truncated"][row] == ((arrays["terminals"][row] or arrays["timeouts"][row]) and not ends)
        assert np.array_equal(table["action"][row], action)
    assert 0 < table["next", "terminated"].sum() < 115
    following = torch.cat(list(source.episodes()))["next"]
    assert torch.equal(following["done"], following["terminated"] | following["truncated"])
    assert all(np.array_equal(arrays[name], kept[name]) for name in arrays)


def test_what_is_known_of_it() -> None:
    known = Origin("replay", "HalfCheetah-v5", {"a": 1}, reference=(0.0, 1.0), d4rl=True)
    origin = Relabelled(Arrays(columns([5]), known), CheetahRun(), "bremen/CheetahRun-v0").origin()
    assert (origin.dataset, origin.environment) == ("replay, for CheetahRun", "bremen/CheetahRun-v0")
    assert (origin.environment_options, origin.reference, origin.d4rl) == ({}, None, False)
    assert Relabelled(Arrays(columns([5]), known), CheetahRun()).origin().environment is None
    assert known.d4rl


class Column(Task):
    """With rewards in a column."""

    def reward(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        return observation[:, :1]


class Amounts(Far):
    """With ends that are no bools."""

    def terminated(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        return next_observation[:, 0]


class Undefined(Far):
    """With rewards that are no numbers."""

    def reward(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        return observation[:, 0] / 0


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Column(), r"Column: rewards \[5, 1\] and ends \[5\]"),
        (Amounts(), r"Amounts: .*torch.float32.* one bool"),
        (Undefined(), "reward"),
        (CheetahRun(), r"the task CheetahRun knows observations of 17 columns; those of Arrays have 4"),
    ],
)
def test_tasks_that_do_not_judge(task: Task, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(Relabelled(Arrays(columns([5], 4, 2)), task))


def test_by_name(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = shared / "halfcheetah-replay.hdf5"
    named = ["--source=Relabelled", "--source.source=D4RL", f"--source.source.path={recording}"]
    named += ["--source.environment=bremen/CheetahRun-v0"]
    assert oper("inspect", *named, "--source.task=CheetahRun", "--output=looked") == 0
    page = Path("looked/inspect.md").read_text()
    assert "halfcheetah-replay, for CheetahRun" in page
    assert "bremen/CheetahRun-v0" in page
    assert oper("inspect", *named, "--source.task=CheetaRun", "--output=other") == 1
    assert "no class 'CheetaRun' of that kind; did you mean 'CheetahRun'?" in capsys.readouterr().err
    recorded = read(D4RL(str(recording)))
    mean = (recorded["observation"][:, 8].clamp(0, 10) / 10).reshape(-1, 1000).sum(1).mean()
    assert f"{mean:.2f}" in page


def test_a_task_of_ones_own_is_named_again(small_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("reaching.py").write_text(REACH)
    monkeypatch.syspath_prepend(Path.cwd())
    named = ["--data.source=Relabelled", "--data.source.task=reaching.Reach", "--data.source.task.scale=2"]
    inner = f"--data.source.source={{class_path: D4RL, init_args: {{path: {small_file}}}}}"
    short = ["--data.source.environment=Reacher-v5", "--trainer.max_steps=2", "--data.updates_per_epoch=2"]
    assert oper("fit", "--model=BC", *named, inner, *short, "--data.rollouts.episodes=1", "--output=run") == 0
    validate = [sys.executable, "-m", "oper_lightning", "validate", "--ckpt_path=run"]  # which knows no such class yet
    done = subprocess.run(validate, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "run/config.yaml: data.source.task names 'reaching.Reach', no class that is known here" in done.stderr
    assert "--data.source.task=reaching.Reach" in done.stderr
    done = subprocess.run([*validate, "--data.source.task=reaching.Reach"], capture_output=True, text=True, check=False)
    assert "over 1 episodes" in done.stdout, done.stderr
