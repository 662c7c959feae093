"""Flat numpy archives: NeoRL-2's names, D4RL's names, or names of your own."""

from __future__ import annotations

import io
import lzma
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from oper_lightning.data.sources.columns import NEORL2, mapping
from oper_lightning.data.sources.flat import FlatEpisodes, FlatFile
from oper_lightning.data.sources.neorl2 import ROWS, task_of
from oper_lightning.data.sources.source import GIVEN, Bound, Origin, action_box, given_reference
from oper_lightning.errors import InputError
from oper_lightning.files import existing, fits_memory, place, plausibly_packed

Choose = Callable[[list[str], Callable[[str], str]], dict[str, str]]
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OSError,
    EOFError,
    NotImplementedError,
)
LONGEST_HEADER = 1 << 16  # bytes; numpy refuses headers of more than 10,000 characters
WIDEST = 1024  # bytes of a row that is looked at before all are read


class Npz(FlatFile):
    """A numpy .npz archive with one row per step.

    Args:
        path: the file.
        names: what the file calls its arrays, if neither by D4RL's names nor by NeoRL-2's; keys are observations,
            actions, rewards, terminals, timeouts, next_observations, episode_terminals, masks.
        environment: Gymnasium id of the environment that the data were recorded in, if there is one. NeoRL-2's DMSD and
            SafetyHalfCheetah are known by their steps.
        max_episode_steps: number of steps after which episodes were cut, for files without timeouts.
        reference: the two returns that score 0 and 100.
        action_low: lowest action that may be taken: one number, or a list with one for each column; by default what the
            environment says, else what the data show.
        action_high: highest action that may be taken, in the same form.
    """

    def __init__(
        self,
        path: str,
        names: dict[str, str] | None = None,
        environment: str | None = None,
        max_episode_steps: int | None = None,
        reference: tuple[float, float] | None = None,
        action_low: Bound | None = None,
        action_high: Bound | None = None,
    ) -> None:
        self.path = path
        self.names = names
        self.environment = environment
        self.max_episode_steps = max_episode_steps
        self.reference = given_reference(reference, path)
        self.box = action_box(action_low, action_high, path)

    def origin(self) -> Origin:
        return Origin(
            dataset=place(self.path).stem,
            environment=self.environment or self._task,
            action_low=self.box[0],
            action_high=self.box[1],
            reference=self.reference,
            reference_from=GIVEN,
        )

    @cached_property
    def _task(self) -> str | None:
        """The environment of NeoRL-2 whose steps are recorded; None if of none, or if the file cannot be read."""
        try:
            return task_of(first_rows(self.path, NEORL2, ROWS)) if self.names is None else None
        except UNREADABLE:  # what is wrong is said where all is read
            return None

    def _read(self) -> tuple[dict[str, np.ndarray], FlatEpisodes]:
        """Our columns, and where their episodes are."""
        columns = read_arrays(self.path, lambda present, described: mapping(present, self.names, self.path, described))
        return columns, FlatEpisodes(columns, self.path, self.max_episode_steps)


def read_arrays(path: str, choose: Choose) -> dict[str, np.ndarray]:
    """Reads arrays of a .npz archive, each of which must be what the archive announces.

    Args:
        path: the file.
        choose: gets the names in the archive, and ``described``, which shows one of them with its shape; gives names in
            the archive by what they are called here.

    Raises:
        InputError: if the file is no such archive, its arrays hold Python objects, or they do not fit into memory.
    """
    file = existing(path)
    try:
        return _read(file, path, choose)
    except UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        with open(file, "rb") as opened:
            hdf5 = opened.read(4) == b"\x89HDF"
        raise InputError(
            f"{path}: an HDF5 file; read it with the source D4RL"
            if hdf5
            else f"{path}: not a whole .npz archive of plain arrays of numbers"
        ) from error


def first_rows(path: str, names: Mapping[str, str], count: int) -> dict[str, np.ndarray]:
    """The first rows of arrays of a .npz archive, up to ``count``; only these are unpacked.

    Args:
        path: the file.
        names: names in the archive by what they are called here; arrays that are missing, are laid out by columns, or
            have rows of more than 1 KiB are left out.
        count: number of rows.

    Raises:
        InputError: if there is no such file, or an array is not what the archive announces.
        One of UNREADABLE: if it cannot be read.
    """
    found = {}
    with zipfile.ZipFile(existing(path)) as archive:
        for ours, theirs in names.items():
            if f"{theirs}.npy" not in archive.namelist():
                continue
            info = archive.getinfo(f"{theirs}.npy")
            head = _announced(archive, info, path)
            width = math.prod(head.shape[1:]) * head.dtype.itemsize
            if not head.shape or head.by_columns or width > WIDEST:
                continue
            rows = min(head.shape[0], count)
            with archive.open(info) as file:
                file.seek(head.start)
                found[ours] = np.frombuffer(file.read(rows * width), head.dtype).reshape(rows, *head.shape[1:])
    return found


def _read(file: Path, path: str, choose: Choose) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        announced = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

        def described(name: str) -> str:
            shown = name if name.isprintable() else repr(name)
            try:
                return f"{shown} {list(_announced(archive, announced[name], path).shape)}"
            except Exception:  # no array that can be read, which is not what the message is about
                return shown

        found = choose(list(announced), described)
        heads = {theirs: _announced(archive, announced[theirs], path) for theirs in found.values()}
    fits_memory(sum(head.size for head in heads.values()), path, "its arrays")
    with np.load(file, allow_pickle=False) as arrays:
        return {ours: arrays[theirs] for ours, theirs in found.items()}


class Announced(NamedTuple):
    """What the head of an array says."""

    shape: tuple[int, ...]
    size: int
    """in bytes"""
    dtype: np.dtype
    by_columns: bool
    start: int
    """bytes before the first number"""


def _announced(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str) -> Announced:
    """Reads the head of an array in a .npz archive, and compares it with the archive's directory.

    Raises:
        InputError: if it is encrypted, holds Python objects, announces another size than the directory, or unpacks to
            more than any recording would.
    """
    name = info.filename.removesuffix(".npy")
    if info.flag_bits & 1:
        raise InputError(f"{path}: array {name!r} is encrypted; unpack the archive and save its arrays anew")
    with archive.open(info) as file:
        head = io.BytesIO(file.read(LONGEST_HEADER))  # numpy reads a header whole, however long it says that it is
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, by_columns, dtype = read(head)
    except Exception as error:  # numpy parses a header as Python's literals, which fails in many ways
        raise InputError(f"{path}: array {name!r} has a header that cannot be read") from error
    start = head.tell()
    if any(extent < 0 for extent in shape):
        raise InputError(f"{path}: array {name!r} announces the shape {shape}; no extent may be negative")
    if dtype.hasobject:
        raise InputError(f"{path}: array {name!r} holds Python objects; save it as an array of numbers")
    size = math.prod(shape) * dtype.itemsize
    if start + size != info.file_size:
        raise InputError(
            f"{path}: array {name!r} announces {size:,} bytes, but the archive holds {info.file_size - start:,} for it"
        )
    plausibly_packed(info.compress_size, size, path, f"array {name!r}")
    return Announced(shape, size, dtype, by_columns, start)
