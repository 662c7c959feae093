"""Shards of RL Unplugged's Atari data (Gulcehre et al. 2020, arXiv 2006.13888), converted once for being read by rows.

A converted shard is a folder: all frames side by side (``frames.u8``), a fixed number of bytes for each transition
(``rows.bin``), and ``done.json``, which is written last. Until then ``progress.json`` says how much of the first two is
whole, so that a conversion that was killed goes on from there.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oper_lightning.data.progress import progress
from oper_lightning.data.sources.families import FRAMES, ROW, ROWS, SIZE, Writer, family_of
from oper_lightning.data.sources.tfexample import Malformed, example
from oper_lightning.data.sources.tfrecord import Broken, broken, opened, records
from oper_lightning.errors import InputError, note
from oper_lightning.files import existing, plausibly_packed, read_json, whole

EVERY = 8192  # rows after which progress is noted
VERSION = 1
DONE, PROGRESS = "done.json", "progress.json"


def convert(shard: Path, folder: Path, origin: object, keep_broken: bool) -> None:
    """Converts a shard into a folder, unless that was done; goes on where an earlier conversion was stopped.

    Args:
        shard: the file; may be missing if it was converted.
        folder: where to write.
        origin: what messages call the shard.
        keep_broken: whether to be content with the records before one that cannot be read.

    Raises:
        InputError: if a record cannot be read, or the folder cannot be written.
    """
    try:
        if not is_done(shard, folder, keep_broken):
            existing(shard)
            with _alone(folder, origin):
                if not is_done(shard, folder, keep_broken):
                    _convert(shard, folder, origin, keep_broken)
    except OSError as error:
        raise InputError(
            f"{origin}: cannot convert it into {folder} ({error.strerror or error}); set $RLU_DATASET_DIR to another "
            f"folder"
        ) from None
    done = read_about(folder / DONE)
    if done["broken"]:
        note(f"{done['broken']}; only the {done['rows']:,} transitions before it are used")


def is_done(shard: Path, folder: Path, keep_broken: bool) -> bool:
    """Whether a shard was converted, and has not been replaced since."""
    if not (folder / DONE).is_file():
        return False
    done = read_about(folder / DONE)
    same = not shard.is_file() or done["shard"] == _identity(shard)
    return same and (keep_broken or not done["broken"])


def read_about(file: Path) -> dict[str, Any]:
    """What a conversion noted in ``done.json`` or ``progress.json``.

    Raises:
        InputError: if no conversion of this version did.
    """
    about = read_json(file)
    numbers = ("record", "offset", "frames", "rows")
    if (
        not isinstance(about, dict)
        or about.get("version") != VERSION
        or not all(type(about.get(name)) is int and 0 <= about[name] < 1 << 48 for name in numbers)
    ):
        raise InputError(f"{file}: not from a conversion by this version; remove {file.parent}")
    return {"broken": None, "shard": None, **about}


def _identity(shard: Path) -> list[int]:
    """By what a file that was replaced is told from the one before."""
    found = shard.stat()
    return [found.st_size, found.st_mtime_ns]


@contextmanager
def _alone(folder: Path, origin: object) -> Iterator[None]:
    """Keeps other processes from converting the same shard; waits for one that does."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(f"{origin}: another process is converting it; waiting for that")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _noted(shard: Path, folder: Path) -> dict[str, Any] | None:
    """How far an earlier conversion of this very file came, if one was stopped."""
    if not (folder / PROGRESS).is_file():
        return None
    about = read_about(folder / PROGRESS)
    sizes = (about["frames"] * SIZE, about["rows"] * ROW.itemsize)
    if about["shard"] != _identity(shard) or any(
        not (folder / name).is_file() or (folder / name).stat().st_size < size
        for name, size in zip((FRAMES, ROWS), sizes, strict=True)
    ):
        return None
    return about


def _convert(shard: Path, folder: Path, origin: object, keep_broken: bool) -> None:
    (folder / DONE).unlink(missing_ok=True)
    noted = _noted(shard, folder)
    record, offset, frames, rows = (noted[key] for key in ("record", "offset", "frames", "rows")) if noted else [0] * 4
    note(f"converting {origin} once, into {folder}" + (f", from row {rows:,} on" if noted else ""))
    with Writer(folder, frames, rows) as to:

        def write_down(name: str, why: str | None = None) -> None:
            to.flush()
            about = {"version": VERSION, "shard": _identity(shard), "record": record, "offset": offset}
            with whole(folder / name) as file:
                file.write(json.dumps({**about, "frames": to.frames, "rows": to.rows, "broken": why}).encode())

        why, family, again, written = None, None, noted is not None, rows
        try:
            with opened(shard, origin) as (packed, unpacked), progress(folder.name, shard.stat().st_size) as show:
                # The last record whose rows are written is read again: the next one may follow from it.
                for number, place, data in records(unpacked, origin, record, offset):
                    plausibly_packed(packed.tell(), place + len(data), origin, "the shard")
                    before = to.frames, to.rows
                    try:
                        family = family or family_of(data)
                        values = example(data, family.wanted)
                        family.recall(values) if again else family.add(values, to)
                    except Malformed as error:
                        to.take_back(*before)
                        raise broken(origin, number, place, str(error)) from None
                    record, offset, again = number, place, False
                    if to.rows - written >= EVERY:
                        write_down(PROGRESS)
                        written = to.rows
                        show(packed.tell())
        except Broken as error:
            why = str(error)
        if not to.rows:
            raise InputError(why or f"{origin}: no transitions in it")
        if why:
            write_down(PROGRESS)
        if why and not keep_broken:
            raise InputError(
                f"{why}; replace or remove {shard}, or set the source's keep_broken to true to use the "
                f"{to.rows:,} transitions before it"
            )
        write_down(DONE, why)
    if not why:
        (folder / PROGRESS).unlink(missing_ok=True)
