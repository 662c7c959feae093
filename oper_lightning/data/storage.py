"""Copies transitions from a source into torchrl storage, and checks them on the way."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data import frames
from oper_lightning.data.frame_writer import FrameWriter
from oper_lightning.data.rl import TensorStorage
from oper_lightning.data.sources.source import Source
from oper_lightning.data.transitions import RETURN, Key, are_images, has_returns, missed_ends, squeezed
from oper_lightning.errors import InputError, first_line, note
from oper_lightning.files import beside, fits_memory

CHUNK = 1 << 14  # rows that are converted at a time
KEYS: tuple[Key, ...] = (
    "observation",
    "action",
    ("next", "observation"),
    ("next", "reward"),
    ("next", "terminated"),
    ("next", "truncated"),
    ("next", "done"),
)
OBSERVED: dict[Key, Key] = {"observation": "first", ("next", "observation"): ("next", "first")}
"""what tables of images have in place of these entries"""


def fill(
    source: Source,
    device: torch.device,
    folder: Path | None = None,
    look_at: Callable[[TensorDict], None] = lambda episodes: None,
    room: int = 0,
) -> TensorStorage:
    """Copies all transitions of a source into a storage of exactly its size, in TED layout; images as frames.

    Args:
        source: where the transitions come from.
        device: where the storage is to be.
        folder: keeps it memory-mapped in this folder instead.
        look_at: called with the first episodes, before memory is taken; may refuse them.
        room: number of rows, zeros, that are to follow, for transitions that will be gathered; of images also room for
            their frames. Of a source of no rows what it yields is an example of what will come, and is not kept.

    Raises:
        InputError: if a value is not finite, episodes do not fit each other, the last one has no end, or the storage
            would take more memory than is free.
    """
    table: TensorDict | None = None
    images: FrameWriter | None = None
    keys: tuple[Key, ...] = KEYS
    rows, start = len(source), 0
    for episodes in source.episodes():
        stop = start + len(episodes)
        if table is None:
            look_at(episodes)
            example = episodes[:0].clone()
            recorded = (*KEYS, RETURN) if has_returns(episodes) else KEYS
            keys = recorded
            if are_images(episodes["observation"]):
                images = FrameWriter(episodes, rows, room, source, device, folder)
                keys = tuple(OBSERVED.get(key, key) for key in recorded)
        if not rows:
            episodes, stop = episodes[:0], 0
        if stop > rows:
            raise InputError(f"{source}: more than the {rows:,} transitions that the source announced")
        if len(episodes) and not episodes["next", "done"][-1]:
            raise InputError(f"{source}: the episode that ends at row {stop - 1:,} is neither terminated nor truncated")
        for key in recorded:
            _check(episodes[key], example[key], key, source, start)
        columns = images.put(episodes) if images is not None else episodes
        if table is None:
            table = _allocate(source, columns.select(*keys), rows + room, device, folder)
        for key in keys:
            table[key][start:stop] = columns[key]
        start = stop
    if table is None or start != rows:
        raise InputError(f"{source}: {start:,} transitions came, but the source announced {rows:,}")
    if rows and len(missed := missed_ends(squeezed(table)[:rows])):
        first = ", ".join(f"{row:,}" for row in missed[:5].tolist()) + (", …" if len(missed) > 5 else "")
        note(
            f"{source}: ends of {len(missed):,} episodes seem to be unmarked: after rows {first} an observation is far "
            f"from where the step before led to"
        )
    return frames.storage_of(table, images.close() if images is not None else None)


def transitions_in(storage: TensorStorage) -> TensorDict:
    """The memory of a storage, see :func:`oper_lightning.data.transitions.squeezed`."""
    return squeezed(frames.held(storage)[0])


def _allocate(source: Source, example: TensorDict, rows: int, device: torch.device, folder: Path | None) -> TensorDict:
    empty = example.new_zeros(1).expand(rows)
    if folder is not None:
        return _reserved(empty, folder)
    size = sum(column.nbytes for column in empty.values(True, True))
    if device.type == "cpu":
        fits_memory(size, source, f"its {rows:,} transitions")
    keys = empty.keys(True, True)
    tensors = {key: torch.zeros(empty[key].shape, dtype=empty[key].dtype, device=device) for key in keys}
    return TensorDict(tensors, batch_size=[rows], device=device)


def _reserved(empty: TensorDict, folder: Path) -> TensorDict:
    """Memory-mapped tensors whose place on the disk is taken: on a full one, writing to them would end the process."""
    try:
        table = empty.memmap_like(prefix=folder)
    except RuntimeError as error:  # torch's, where a file cannot be made that long
        raise OSError(errno.EFBIG, first_line(error)) from None
    for path in folder.rglob("*.memmap") if hasattr(os, "posix_fallocate") else ():
        with open(path, "r+b") as file:
            if size := os.fstat(file.fileno()).st_size:
                os.posix_fallocate(file.fileno(), 0, size)
    return table


def _check(values: Tensor, column: Tensor, key: Key, source: Source, start: int) -> None:
    words = " ".join(key) if isinstance(key, tuple) else key
    if values.shape[1:] != column.shape[1:]:
        raise InputError(
            f"{source}: {words} of shape {tuple(values.shape[1:])} from row {start:,}, {tuple(column.shape[1:])} before"
        )
    if values.dtype != column.dtype:
        raise InputError(f"{source}: {words} of {values.dtype} from row {start:,}, {column.dtype} before")
    if values.dtype.is_floating_point and not values.isfinite().all():
        row, *place = torch.nonzero(~values.isfinite())[0].tolist()
        entry, value = f"{words}{place}" if column.shape[1:].numel() > 1 else words, values[(row, *place)]
        beyond = "" if value.isnan() else ", or more than float32 holds,"
        raise InputError(
            f"{source}: {entry} is {value.item()}{beyond} at row {start + row:,} (the first); repair or remove that "
            f"episode"
        )


def map_new(source: Source, folder: Path, look_at: Callable[[TensorDict], None], room: int = 0) -> None:
    """Writes a source memory-mapped into a folder, in place of what was there; see :func:`fill`.

    A process that has mapped the old rows keeps them.

    Raises:
        InputError: if other files lie there, or if it cannot be written.
    """
    new = beside(folder)
    try:
        if not all(_of_map(path) or not path.exists() for path in folder.rglob("*")):  # another run may remove them
            raise InputError(f"{folder}: holds other files than mapped transitions; name another data.memmap_folder")
        new.mkdir(parents=True, exist_ok=True)
        fill(source, torch.device("cpu"), new, look_at, room)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(new, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror}); name another data.memmap_folder") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _of_map(path: Path) -> bool:
    """Whether a path within a folder is what mapped transitions consist of."""
    return path.is_dir() or path.suffix == ".memmap" or path.name in ("meta.json", frames.FILE, frames.ABOUT)


def temporary_folder(owner: object) -> str:
    """A new folder that goes with its owner, or with this process."""
    folder = tempfile.mkdtemp(prefix="oper-")
    weakref.finalize(owner, _remove, folder, os.getpid())
    return folder


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # not one that was forked from it
        shutil.rmtree(folder, ignore_errors=True)


def load_mapped(folder: Path) -> TensorStorage:
    """Opens what :func:`fill` left memory-mapped in ``folder``."""
    images = frames.Frames.mapped(folder) if (folder / frames.ABOUT).is_file() else None
    return frames.storage_of(TensorDict.load_memmap(folder), images)


def observation_statistics(observations: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of observations ``[N, ...]``, accumulated in float64; float32."""
    total = torch.zeros(observations.shape[1:], dtype=torch.float64, device=observations.device)
    squares = torch.zeros_like(total)
    for chunk in observations.split(CHUNK):
        total += chunk.double().sum(0)
    mean = total / len(observations)
    for chunk in observations.split(CHUNK):
        squares += (chunk.double() - mean).square().sum(0)
    return mean.float(), (squares / len(observations)).sqrt().float()
