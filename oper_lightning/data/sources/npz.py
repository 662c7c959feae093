"""Flat numpy archives: NeoRL-2's names, D4RL's names, or names of your own."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from tensordict import TensorDict

from oper_lightning.data.sources.flat import OPTIONAL, REQUIRED, FlatEpisodes
from oper_lightning.data.sources.source import Bound, Origin, Source, action_box
from oper_lightning.errors import InputError, nearest

NEORL2 = {
    "observations": "obs",
    "actions": "action",
    "rewards": "reward",
    "terminals": "done",
    "timeouts": "truncated",
    "next_observations": "next_obs",
}


class Npz(Source):
    """A numpy .npz archive with one row per step.

    Args:
        path: the file.
        names: what the file calls its arrays, where it is neither D4RL's name nor NeoRL-2's: keys out of observations,
            actions, rewards, terminals, timeouts, next_observations.
        environment: Gymnasium id of the environment it was recorded in, if there is one.
        max_episode_steps: steps after which episodes were cut, for files without timeouts.
        reference: returns that score 0 and 100.
        action_low: lowest action that may be taken, one number or one for each column, where the environment does not
            say it or is not at hand.
        action_high: highest action likewise.
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
        self.reference = reference
        self.box = action_box(action_low, action_high, path)

    def origin(self) -> Origin:
        return Origin(
            dataset=Path(self.path).stem,
            environment=self.environment,
            action_low=self.box[0],
            action_high=self.box[1],
            reference=self.reference,
        )

    def __str__(self) -> str:
        return self.path

    def __len__(self) -> int:
        return len(self._flat)

    def episodes(self) -> Iterator[TensorDict]:
        yield from self._flat.episodes()
        del self._flat  # the storage has them now

    @cached_property
    def _flat(self) -> FlatEpisodes:
        if not Path(self.path).is_file():
            raise InputError(f"{self.path}: no such file")
        columns = {}
        try:
            archive = np.load(self.path, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{self.path}: a single array; a .npz archive of named arrays is needed")
            with archive:
                for ours, theirs in self._mapping(list(archive)).items():
                    columns[ours] = _array(archive, theirs, self.path)
        except InputError:
            raise
        except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError):
            hdf5 = Path(self.path).read_bytes()[:4] == b"\x89HDF"
            raise InputError(
                f"{self.path}: an HDF5 file; read it with the source D4RL"
                if hdf5
                else f"{self.path}: not a whole .npz archive of plain arrays of numbers"
            ) from None
        return FlatEpisodes(columns, self.path, self.max_episode_steps)

    def _mapping(self, present: list[str]) -> dict[str, str]:
        """For each of our names that the file has, the file's name."""
        for ours, theirs in (self.names or {}).items():
            if ours not in (*REQUIRED, *OPTIONAL):
                raise InputError(f"{self.path}: names has {ours!r}; {nearest(ours, (*REQUIRED, *OPTIONAL))}")
            if theirs not in present:
                raise InputError(f"{self.path}: no array {theirs!r} (for {ours}); {nearest(theirs, present)}")
        names = NEORL2 if "obs" in present else {name: name for name in (*REQUIRED, *OPTIONAL)}
        names = {**names, **(self.names or {})}
        for ours in REQUIRED:
            if names[ours] not in present:
                raise InputError(
                    f"{self.path}: no array {names[ours]!r}; it has {', '.join(present)}; "
                    f"say with the source's names which is which"
                )
        return {ours: theirs for ours, theirs in names.items() if theirs in present}


def _array(archive: np.lib.npyio.NpzFile, name: str, path: str) -> np.ndarray:
    try:
        array: np.ndarray = archive[name]
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise InputError(f"{path}: array {name!r} holds Python objects; save it as an array of numbers") from None
        raise
    return array
