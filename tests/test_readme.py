"""The README's Python runs as it stands."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import columns, oper, write_hdf5

TEXT = (Path(__file__).resolve().parents[1] / "README.md").read_text()
SOURCE, LOOP, USE, ALGORITHM = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def log(small_file: Path) -> Path:
    return write_hdf5(small_file.with_name("log.hdf5"), columns([25] * 40, 10, 2), env_id="Reacher-v5")


def test_a_loop_of_ones_own(log: Path) -> None:
    exec(LOOP, {})


def test_a_trained_policy(log: Path) -> None:
    words = ["--data.source=D4RL", f"--data.source.path={log}", "--data.updates_per_epoch=10", "--trainer.max_steps=10"]
    assert oper("fit", "--model=TD3BC", *words, "--data.rollouts=null", "--output=runs/policy") == 0
    names: dict[str, torch.Tensor] = {}
    exec(USE, names)
    assert names["action"].shape == (2,)


def test_a_source_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pumps.py").write_text(SOURCE)
    Path("logs").mkdir()
    for day in range(3):
        np.savetxt(f"logs/{day}.csv", np.random.default_rng(day).uniform(0, 10, (100, 8)), delimiter=",")
    monkeypatch.setattr(sys, "path", list(sys.path))
    importlib.invalidate_caches()
    words = ["--data.source=pumps.PumpLog", "--data.source.folder=logs", "--data.priority=OperR"]
    words += ["--data.updates_per_epoch=10", "--trainer.max_steps=10", "--output=own"]
    assert oper("fit", "--model=BC", *words) == 0
    assert torch.load("own/last.ckpt", weights_only=True)["spec"]["rows"] == 297


def test_an_algorithm_of_ones_own(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("linear.py").write_text(ALGORITHM)
    monkeypatch.setattr(sys, "path", list(sys.path))
    importlib.invalidate_caches()
    words = ["--data.source=D4RL", f"--data.source.path={log}", "--data.updates_per_epoch=10", "--trainer.max_steps=10"]
    assert oper("fit", "--model=linear.LinearBC", *words, "--data.rollouts.episodes=2", "--output=own") == 0
    assert oper("validate", "--ckpt_path=own/last.ckpt") == 0
