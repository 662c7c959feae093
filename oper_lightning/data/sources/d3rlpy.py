"""HDF5 files that d3rlpy 2 dumps: an array for each column of each episode.

Version 1 of d3rlpy wrote flat columns with ``episode_terminals``, which the source D4RL reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from tensordict import TensorDict

from oper_lightning.data.sources import hdf5
from oper_lightning.data.sources.hdf5 import Hdf5
from oper_lightning.data.sources.source import GIVEN, Bound, Origin, Source, action_box, given_reference
from oper_lightning.data.transitions import transitions_from
from oper_lightning.errors import InputError, note
from oper_lightning.files import fits_memory, place

COLUMNS = ("observations", "actions", "rewards")
COPIES = 4  # of an episode, while it is turned into transitions


class Episode(NamedTuple):
    """One episode of a file."""

    steps: int
    """rows that were recorded"""
    terminated: bool
    """else it was cut, and its last row has no next observation"""

    @property
    def transitions(self) -> int:
        """Rows that have a next observation, or need none."""
        return self.steps if self.terminated else self.steps - 1


class D3rlpy(Source):
    """An HDF5 file of d3rlpy 2, as its ReplayBuffer.dump writes it.

    The last row of an episode that was cut has no next observation there; it is left out, with a note.

    Args:
        path: the file.
        environment: Gymnasium id of the environment that the data were recorded in, if there is one.
        reference: the two returns that score 0 and 100.
        action_low: lowest action that may be taken: one number, or a list with one for each column; by default what the
            environment says, else what the data show.
        action_high: highest action that may be taken, in the same form.
    """

    def __init__(
        self,
        path: str,
        environment: str | None = None,
        reference: tuple[float, float] | None = None,
        action_low: Bound | None = None,
        action_high: Bound | None = None,
    ) -> None:
        self.path = path
        self.environment = environment
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

    def __str__(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return sum(episode.transitions for episode in self._found)

    def episodes(self) -> Iterator[TensorDict]:
        with hdf5.opened(self.path) as file:
            for number, episode in enumerate(self._found):
                if episode.transitions:
                    yield self._read(file, number, episode)
        if cut := sum(not episode.terminated for episode in self._found):
            note(f"{self.path}: the last rows of {cut:,} episodes that were cut have no next observation; left out")

    def _read(self, file: Hdf5, number: int, episode: Episode) -> TensorDict:
        arrays = [_array(file, name, number) for name in COLUMNS]
        for array, name in zip(arrays, COLUMNS, strict=True):
            hdf5.check_written(array, f"{name}_{number}", self.path)
        size = COPIES * sum(array.size * array.dtype.itemsize for array in arrays)
        fits_memory(size, self.path, f"episode {number}")
        observations, actions, rewards = (np.asarray(array[()]) for array in arrays)
        kept = episode.transitions
        # Nothing comes after a termination; what stands there is not used.
        following = np.concatenate([observations[1:], observations[-1:]])[:kept]
        terminated, truncated = np.zeros(kept, dtype=bool), np.zeros(kept, dtype=bool)
        terminated[-1], truncated[-1] = episode.terminated, not episode.terminated
        return transitions_from(
            observations[:kept], actions[:kept], rewards.reshape(-1)[:kept], following, terminated, truncated
        )

    @cached_property
    def _found(self) -> list[Episode]:
        """The episodes of the file."""
        with hdf5.opened(self.path) as file:
            count = _scalar(file, "num_episodes")
            if count is None or not file.has("observations_0"):
                raise InputError(
                    f"{self.path}: no num_episodes and observations_0; a file that d3rlpy 2.1 or later dumped is "
                    f"needed; flat columns are read by the source D4RL"
                )
            found = [self._episode(file, number) for number in range(int(count))]
        if not any(episode.transitions for episode in found):
            raise InputError(f"{self.path}: empty dataset: no transition in {len(found):,} episodes")
        return found

    def _episode(self, file: Hdf5, number: int) -> Episode:
        observations, actions, rewards = (_array(file, name, number) for name in COLUMNS)
        terminated = _scalar(file, f"terminated_{number}")
        if terminated not in (0, 1):
            raise InputError(f"{self.path}: 'terminated_{number}' is {terminated}; a flag, 0 or 1, is needed")
        steps = len(rewards)
        if not len(observations) == len(actions) == steps or rewards.shape not in ((steps,), (steps, 1)) or not steps:
            shapes = ", ".join(str(array.shape) for array in (observations, actions, rewards))
            raise InputError(
                f"{self.path}: episode {number} has observations, actions and rewards of shapes {shapes}; as many rows "
                f"of each, and one reward a row, are needed"
            )
        return Episode(steps, bool(terminated))


def dumped_by_d3rlpy(path: str) -> bool:
    """Whether an HDF5 file has the layout of d3rlpy 2."""
    with hdf5.opened(path) as file:
        return is_dump(file)


def is_dump(file: Hdf5) -> bool:
    """Whether an open file has that layout."""
    return file.has("num_episodes") and file.has("observations_0")


def _array(file: Hdf5, name: str, number: int) -> Any:
    """A column of an episode.

    Raises:
        InputError: if it is missing, or is no array of real numbers.
    """
    array = file.array(f"{name}_{number}")
    if array is None:
        several = f"; observations of several parts ({name}_{number}_0) do not work" if name == COLUMNS[0] else ""
        raise InputError(f"{file.origin}: no array '{name}_{number}'{several}")
    if not array.shape or array.dtype.kind not in "fiub":
        raise InputError(
            f"{file.origin}: '{name}_{number}' is {array.dtype} {list(array.shape)}; rows of numbers needed"
        )
    return array


def _scalar(file: Hdf5, name: str) -> float | None:
    """A single number; None if there is none."""
    array = file.array(name) if file.has(name) else None
    if array is None or array.size != 1 or array.dtype.kind not in "fiub":
        return None
    return float(np.asarray(array[()]).reshape(()))
