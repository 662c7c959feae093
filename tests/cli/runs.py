"""A small finished run for tests that take it apart."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers import columns, oper, write_hdf5

QUICK = ["--data.batch_size=32", "--data.updates_per_epoch=20", "--data.rollouts=null"]


def trained(folder: Path, model: str = "TD3BC", *words: str) -> Path:
    """Trains twenty updates on a small file in the folder; returns the run's folder."""
    file = write_hdf5(folder / "small.hdf5", columns([25] * 40, 10, 2), env_id="Reacher-v5")
    run = folder / "run"
    words = (f"--model={model}", "--model.hidden_sizes=[8]", "--trainer.max_steps=20", f"--output={run}", *words)
    assert oper("fit", "--data.source=D4RL", f"--data.source.path={file}", *QUICK, *words) == 0
    return run


def changed(run: Path, change: Callable[[dict[str, Any]], Any], name: str = "changed") -> Path:
    """A copy of a run in the current folder with another checkpoint; returns the checkpoint."""
    folder = Path(name)
    folder.mkdir()
    shutil.copy(run / "config.yaml", folder / "config.yaml")
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, folder / "last.ckpt")
    return folder / "last.ckpt"
