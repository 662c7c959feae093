"""Flat numpy archives: NeoRL-2's names, D4RL's names, or names of your own."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from oper_lightning.data.sources.columns import mapping
from oper_lightning.data.sources.flat import FlatEpisodes, FlatFile
from oper_lightning.data.sources.source import GIVEN, Bound, Origin, action_box, given_reference
from oper_lightning.errors import InputError
from oper_lightning.files import existing, fits_memory, place, plausibly_packed

Choose = Callable[[list[str], Callable[[str], str]], dict[str, str]]


class Npz(FlatFile):
    """A numpy .npz archive with one row per step.

    Args:
        path: the file.
        names: what the file calls its arrays, if neither by D4RL's names nor by NeoRL-2's; keys are observations,
            actions, rewards, terminals, timeouts, next_observations, episode_terminals, masks.
        environment: Gymnasium id of the environment that the data were recorded in, if there is one.
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
            environment=self.environment,
            action_low=self.box[0],
            action_high=self.box[1],
            reference=self.reference,
            reference_from=GIVEN,
        )

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
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise
        with open(file, "rb") as opened:
            hdf5 = opened.read(4) == b"\x89HDF"
        raise InputError(
            f"{path}: an HDF5 file; read it with the source D4RL"
            if hdf5
            else f"{path}: not a whole .npz archive of plain arrays of numbers"
        ) from error


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
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        start = file.tell()
    if dtype.hasobject:
        raise InputError(f"{path}: array {name!r} holds Python objects; save it as an array of numbers")
    size = math.prod(shape) * dtype.itemsize
    if start + size != info.file_size:
        raise InputError(
            f"{path}: array {name!r} announces {size:,} bytes, but the archive holds {info.file_size - start:,} for it"
        )
    plausibly_packed(info.compress_size, size, path, f"array {name!r}")
    return Announced(shape, size)
