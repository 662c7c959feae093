"""What an online run has gathered, on disk: files of consecutive steps, each written once and whole."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from oper_lightning.data.frames import Frames
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
FRAMES = ("frames", "first", "next_first", "stack")
"""what files of images have in place of observations and next ones: every frame once, ``[F, c, ...]``; the numbers of
the first ones of each, ``[E, n]``; and how many make an observation"""
PART = 1 << 26  # bytes of observations that are put together at a time
LARGEST = 1 << 26  # bytes of a file's frames, as they are written here


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
        columns: those of :data:`COLUMNS`; of images :data:`FRAMES` in place of observations.
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
        types = {key: part.get_dtype() for key, part in parts.items()}
        if "frames" in shapes:
            _images(path, shapes, types, int(file.get_tensor("stack")))
        whole = all(shape[:2] == (copies, last - first) for shape in shapes.values())
        if about.get("format") != FORMAT or not whole or copies < 1 or shapes.keys() != {*COLUMNS}:
            raise InputError(f"{path}: no file of an online run's log")
        kinds = {key: (types[key], shapes[key][2:]) for key in COLUMNS}
        if any(kinds[key] != ("BOOL", ()) for key in FLAGS):
            raise InputError(f"{path}: {' and '.join(FLAGS)} must be of type bool, one for each step")
        if kinds["reward"][1] or kinds["observation"] != kinds["next_observation"]:
            raise InputError(f"{path}: rewards must be one for each step, and both observations alike")
        return Head(copies, kinds, about)


def _images(path: Path, shapes: dict[str, tuple[int, ...]], types: dict[str, str], stack: int) -> None:
    """Puts shape and type of the observations in place of those of frames.

    Raises:
        InputError: if there can be no such frames.
    """
    count, *frame = shapes.pop("frames")
    steps = [(types.pop(key), shapes.pop(key)) for key in FRAMES[1:3]]
    kind = (types.pop("frames"), types.pop("stack"), shapes.pop("stack"))
    wanted = ("I64", shapes.get("reward"))
    if kind != ("U8", "I64", ()) or steps != [wanted, wanted] or not 1 <= stack <= count or not frame:
        raise InputError(f"{path}: frames must be bytes, and the numbers of each step's first ones whole numbers")
    for key in ("observation", "next_observation"):
        types[key], shapes[key] = "U8", (*shapes["reward"], stack * frame[0], *frame[1:])


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Columns ``[E, n, ...]`` of a file of a log, see :data:`COLUMNS` and :data:`FRAMES`; and what it says about the
    environment.

    Raises:
        InputError: if it is something else.
    """
    head(path)
    columns, about = load_tensors(path)
    for key in FRAMES[1:3] if "frames" in columns else ():
        if columns[key].min() < 0 or columns[key].max() > len(columns["frames"]) - int(columns["stack"]):
            raise InputError(f"{path}: {key} has numbers of frames that are not there")
    return columns, about


def steps(columns: dict[str, Tensor], where: Any) -> dict[str, Tensor]:
    """The columns of some steps ``[E, n][where]`` of :func:`read`; images are put together."""
    part = {key: columns[key][where] for key in COLUMNS if key in columns}
    if "frames" in columns:
        images = Frames(columns["frames"], int(columns["stack"]), "")
        seen = images.pair(columns["first"][where], columns["next_first"][where])
        part["observation"], part["next_observation"] = seen
    return part


def part(columns: dict[str, Tensor], copy: int, where: slice) -> dict[str, Tensor]:
    """Some steps ``[n']`` of one copy, in the form of :func:`read`."""
    own = {key: columns[key][copy, where] for key in COLUMNS if key in columns}
    if "frames" in columns:
        frames, first, following, stack = (columns[key] for key in FRAMES)
        some = Frames(frames, int(stack), "").part(first[copy, where], following[copy, where])
        own |= dict(zip(FRAMES, some, strict=True))
    return own


def up_to(folder: Path, count: int, like: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The columns of the first ``count`` steps of a log, some at a time.

    Args:
        folder: of the log.
        count: number of steps of each copy.
        like: columns of the same types and shapes, in the form of :func:`read`.

    Raises:
        InputError: if there are fewer, or they are of another kind.
    """
    like, reached = steps(like, slice(None)), 0
    for first, last, path in files(folder):
        if first >= count:
            break
        (columns, _), (copies, kinds, _) = read(path), head(path)
        together = max(1, PART // (2 * copies * math.prod(kinds["observation"][1])))
        reached = min(last, count)
        for begin in range(0, reached - first, together):
            some = steps(columns, (slice(None), slice(begin, min(begin + together, reached - first))))
            _check(some, like, path)
            yield some
    if reached < count:
        raise InputError(
            f"{folder}: it holds {reached:,} steps of each copy of the environment, and the checkpoint has seen "
            f"{count:,}: the checkpoint cannot go on without them"
        )


def _check(columns: dict[str, Tensor], like: dict[str, Tensor], path: Path) -> None:
    for key, value in columns.items():
        kinds = [(part.dtype, part.shape[:1] + part.shape[2:]) for part in (value, like[key])]
        if kinds[0] != kinds[1] or (value.is_floating_point() and not value.isfinite().all()):
            raise InputError(f"{path}: {key} is not finite, or of another type or shape than in this run")


def forget(folder: Path, steps: int) -> None:
    """Removes what came after so many steps, from the end, and what is half written: a run makes it anew."""
    for left in folder.glob("*.part"):
        left.unlink()
    for first, _, path in reversed(files(folder)):
        if first >= steps:
            path.unlink()


def bring(source: Path, folder: Path) -> None:
    """Puts the files of one log into the folder of another, which has none; without a copy where the disk allows it.

    Raises:
        InputError: if they cannot be written there; nothing is left of them then.
    """
    if source.resolve() == folder.resolve() or not source.is_dir() or folder.is_dir():
        return
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for _, _, path in files(source):
            try:
                os.link(path, part / path.name)
            except OSError:
                shutil.copyfile(path, part / path.name)
        os.rename(part, folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise InputError(f"{folder}: cannot copy {source} there ({error.strerror}); name another folder") from None
