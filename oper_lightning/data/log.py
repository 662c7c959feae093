"""What an online run has gathered, on disk: files of consecutive steps, each written once and whole."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from oper_lightning.errors import InputError, reading
from oper_lightning.files import existing, place
from oper_lightning.priorities.file import load_tensors, save_tensors

FOLDER = "replay"
"""of the log, in the folder of its run"""
NAME = re.compile(r"(\d{9,})-(\d{9,})")
"""of a file, without its ending: first step, and the one after its last"""
FORMAT = "oper_lightning online log 1"
FLAGS = ("terminated", "truncated")
COLUMNS = ("observation", "action", "next_observation", "reward", *FLAGS)


def folder_of(run: str | Path) -> Path:
    """The folder of a log, by the folder of its run or by itself."""
    found = place(run)
    return found / FOLDER if (found / FOLDER).is_dir() else found


def is_there(run: str | Path) -> bool:
    """Whether there is a file of a log in the folder of a run, or of its log."""
    return any(NAME.fullmatch(path.stem) for path in folder_of(run).glob("*.safetensors"))


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
        name = NAME.fullmatch(path.stem)
        if name is None:
            raise InputError(f"{path}: no file of an online run's log; remove it")
        first, last = int(name[1]), int(name[2])
        if first != at or last <= first:
            raise InputError(f"{path}: steps {at:,} to {first:,} of the log are missing before it")
        found.append((first, last, path))
        at = last
    return found


class Head(NamedTuple):
    """What a file of a log says before its columns are read."""

    copies: int
    """number E of copies of the environment"""
    kinds: dict[str, tuple[str, tuple[int, ...]]]
    """type and shape of one step, by column"""
    about: dict[str, Any]
    """what it says about the environment"""


def head(path: Path) -> Head:
    """Reads no more than the head of a file of a log.

    Raises:
        InputError: if it is something else.
    """
    from safetensors import safe_open

    with reading(path, "a file of an online run's log"), safe_open(existing(path), framework="pt") as file:
        about = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
        parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        shapes = {key: tuple(part.get_shape()) for key, part in parts.items()}
        first, last = (int(part) for part in path.stem.split("-"))
        copies, *_ = shapes.get("reward", (0,))
        whole = all(shape[:2] == (copies, last - first) for shape in shapes.values())
        if about.get("format") != FORMAT or not whole or copies < 1 or shapes.keys() != {*COLUMNS}:
            raise InputError(f"{path}: no file of an online run's log")
        kinds = {key: (parts[key].get_dtype(), shapes[key][2:]) for key in COLUMNS}
        if any(kinds[key] != ("BOOL", ()) for key in FLAGS):
            raise InputError(f"{path}: {' and '.join(FLAGS)} must be of type bool, one for each step")
        if kinds["reward"][1] or kinds["observation"] != kinds["next_observation"]:
            raise InputError(f"{path}: rewards must be one for each step, and both observations alike")
        return Head(copies, kinds, about)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Columns ``[E, n, ...]`` of a file of a log, and what it says about the environment.

    Raises:
        InputError: if it is something else.
    """
    head(path)
    return load_tensors(path)


def up_to(folder: Path, steps: int, like: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The columns of the first ``steps`` steps of a log, file by file.

    Args:
        folder: of the log.
        steps: number of steps of each copy.
        like: columns of the same types and shapes.

    Raises:
        InputError: if there are fewer, or they are of another kind.
    """
    reached = 0
    for first, last, path in files(folder):
        if first < steps:
            columns, _ = read(path)
            for key, value in columns.items():
                kinds = [(part.dtype, part.shape[:1] + part.shape[2:]) for part in (value, like[key])]
                if kinds[0] != kinds[1] or (value.is_floating_point() and not value.isfinite().all()):
                    raise InputError(f"{path}: {key} is not finite, or of another type or shape than in this run")
            yield {key: value[:, : steps - first] for key, value in columns.items()}
            reached = min(last, steps)
    if reached < steps:
        raise InputError(
            f"{folder}: it holds {reached:,} steps of each copy of the environment, and the checkpoint has seen "
            f"{steps:,}: the checkpoint cannot go on without them"
        )


def forget(folder: Path, steps: int) -> None:
    """Removes what came after so many steps, from the end: a run that goes on makes it anew."""
    for first, _, path in reversed(files(folder)):
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
