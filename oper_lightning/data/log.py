"""What an online run has gathered, on disk: files of consecutive steps, each written once and whole."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oper_lightning.errors import InputError, reading
from oper_lightning.priorities.file import load_tensors, save_tensors

FOLDER = "replay"
"""of the log, in the folder of its run"""
FORMAT = "oper_lightning online log 1"
FLAGS = ("terminated", "truncated")
COLUMNS = ("observation", "action", "next_observation", "reward", *FLAGS)


def write(folder: Path, first: int, columns: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes the steps from ``first`` on, columns ``[E, n, ...]``, whole or not at all.

    Args:
        folder: of the log.
        first: number of steps that each copy had taken before.
        columns: those of :data:`COLUMNS`.
        about: what is to be known of the environment, see :class:`oper_lightning.data.sources.online_log.OnlineLog`.
    """
    last = first + columns["reward"].shape[1]
    save_tensors(folder / f"{first:09d}-{last:09d}.safetensors", columns, {"format": FORMAT, **about})


def files(folder: Path) -> list[tuple[int, int, Path]]:
    """First and last step, and path, of each file of a log, in order.

    Raises:
        InputError: if steps are missing between them.
    """
    found: list[tuple[int, int, Path]] = []
    at = 0
    for path in sorted(folder.glob("*.safetensors")):
        name = re.fullmatch(r"(\d{9,})-(\d{9,})", path.stem)
        if name is None:
            raise InputError(f"{path}: no file of an online run's log; remove it")
        first, last = int(name[1]), int(name[2])
        if first != at or last <= first:
            raise InputError(f"{path}: steps {at:,} to {first:,} of the log are missing before it")
        found.append((first, last, path))
        at = last
    return found


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Columns ``[E, n, ...]`` of a file of a log, and what it says about the environment.

    Raises:
        InputError: if it is something else.
    """
    columns, about = load_tensors(path)
    with reading(path, "a file of an online run's log"):
        first, last = (int(part) for part in path.stem.split("-"))
        shape = columns["reward"].shape
        whole = shape == (shape[0], last - first) and all(columns[key].shape[:2] == shape for key in COLUMNS)
        if about.get("format") != FORMAT or not whole or columns.keys() != {*COLUMNS}:
            raise InputError(f"{path}: no file of an online run's log")
        if any(columns[key].dtype is not torch.bool for key in FLAGS):
            raise InputError(f"{path}: {' and '.join(FLAGS)} must be of type bool")
    return columns, about


def up_to(folder: Path, steps: int) -> Iterator[dict[str, Tensor]]:
    """The columns of the first ``steps`` steps of a log, file by file.

    Raises:
        InputError: if there are fewer.
    """
    reached = 0
    for first, last, path in files(folder):
        if first < steps:
            columns, _ = read(path)
            yield {key: value[:, : steps - first] for key, value in columns.items()}
            reached = min(last, steps)
    if reached < steps:
        raise InputError(
            f"{folder}: it holds {reached:,} steps of each copy of the environment, and the checkpoint has seen "
            f"{steps:,}: the checkpoint cannot go on without them"
        )


def forget(folder: Path, steps: int) -> None:
    """Removes what came after so many steps: a run that goes on makes it anew."""
    for first, _, path in files(folder):
        if first >= steps:
            path.unlink()


def bring(source: Path, folder: Path) -> None:
    """Puts the files of one log into the folder of another, which has none; without a copy where the disk allows it."""
    if source.resolve() == folder.resolve() or not source.is_dir() or folder.is_dir():
        return
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for _, _, path in files(source):
        try:
            os.link(path, part / path.name)
        except OSError:
            shutil.copyfile(path, part / path.name)
    os.rename(part, folder)
