"""Replay buffers that Tianshou saved with ``save_hdf5``, of any version since 0.4; nothing in them is unpickled.

Weng et al. 2022, JMLR 23(267). A file holds one buffer, or several side by side, each a ring of rows. Of the file only
the numbers are read: ``/buffers`` and ``/_random_state``, which are pickles, are never looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tensordict import TensorDict

from oper_lightning.data.frames import stacked
from oper_lightning.data.sources import hdf5
from oper_lightning.data.sources.recorded import attributes_of
from oper_lightning.data.sources.source import GIVEN, Bound, Origin, Source, action_box, given_reference
from oper_lightning.data.sources.tianshou_files import DATA, Columns, joined, row_bytes, take
from oper_lightning.data.transitions import transitions_from
from oper_lightning.errors import InputError, note
from oper_lightning.files import existing, fits_memory, place

ROW_BYTES = 64  # per row, while their order is worked out
COPIES = 6  # of a part of the rows, while it is turned into transitions


class Rows(NamedTuple):
    """The N transitions of a file in order: of each sub-buffer from its oldest row to its newest."""

    row: np.ndarray
    """where each lies in the file, int64 ``[N]``"""
    following: np.ndarray
    """row whose observation comes after it, int64 ``[N]``; of no use where it terminated"""
    terminated: np.ndarray
    truncated: np.ndarray


class Tianshou(Source):
    """A replay buffer that Tianshou saved as HDF5, of any version since 0.4.

    Sub-buffers are read one after another, each from its oldest row. Frames that were stored singly are stacked as the
    buffer would stack them. The attributes env_id, ref_min_score and ref_max_score of the file are used.

    Args:
        path: the file.
        environment: Gymnasium id of the environment that the data were recorded in; by default what the file says.
        observation_keys: for observations of several entries, those to join into one vector, in this order; a/b names
            entry b of entry a.
        skip_stumps: whether to leave out the oldest episode of a sub-buffer that was written round, whose beginning is
            lost: its return is not that of a whole episode.
        action_low: lowest action that may be taken: one number, or a list with one for each column; by default what the
            environment says, else what the data show.
        action_high: highest action that may be taken, in the same form.
        reference: the two returns that score 0 and 100; by default what the file says, else D4RL's for the robot of the
            environment.
    """

    def __init__(
        self,
        path: str,
        environment: str | None = None,
        observation_keys: list[str] | None = None,
        skip_stumps: bool = True,
        action_low: Bound | None = None,
        action_high: Bound | None = None,
        reference: tuple[float, float] | None = None,
    ) -> None:
        self.path = path
        self.environment = environment
        self.observation_keys = tuple(observation_keys or ())
        self.skip_stumps = skip_stumps
        self.box = action_box(action_low, action_high, path)
        self.reference = given_reference(reference, path)

    def origin(self) -> Origin:
        return self._origin

    def __str__(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return len(self._rows.row)

    def episodes(self) -> Iterator[TensorDict]:
        rows = self._rows
        ends = np.nonzero(rows.terminated | rows.truncated)[0] + 1
        with hdf5.opened(existing(self.path)) as file:
            columns = Columns(file, self.observation_keys)
            start = 0
            while start < len(rows.row):
                limit = start + (1 if columns.stack > 1 else columns.rows_at_a_time)
                stop = int(ends[np.searchsorted(ends, min(limit, len(rows.row)))])
                yield _transitions(columns, Rows(*(array[start:stop] for array in rows)))
                start = stop
        vars(self).pop("_rows", None)  # the storage has them now

    @cached_property
    def _origin(self) -> Origin:
        with hdf5.opened(existing(self.path)) as file:
            environment, recorded = attributes_of(file, self)
        return Origin(
            dataset=place(self.path).stem,
            environment=environment if self.environment is None else self.environment,
            observation_keys=self.observation_keys,
            action_low=self.box[0],
            action_high=self.box[1],
            reference=self.reference or recorded,
            reference_from=GIVEN if self.reference else Origin.reference_from,
        )

    @cached_property
    def _rows(self) -> Rows:
        with hdf5.opened(existing(self.path)) as file:
            return _in_order(Columns(file, self.observation_keys), self.skip_stumps)


def is_replay_buffer(path: str | Path) -> bool:
    """Whether a file is a replay buffer of Tianshou, as far as its groups show."""
    try:
        with hdf5.opened(path) as file:
            return file.group(DATA) is not None
    except InputError:
        return False


def _transitions(columns: Columns, rows: Rows) -> TensorDict:
    """Transitions of whole episodes; of one episode, if its frames are to be stacked."""
    width = sum(map(row_bytes, columns.observation)) + row_bytes(columns.action)  # stacks are views of single frames
    fits_memory(COPIES * width * len(rows.row), columns.origin, f"{len(rows.row):,} rows")
    action = take(columns.action, rows.row)
    if action.ndim == 1 and action.dtype.kind == "f":
        action = action[:, None]
    if columns.stack > 1:
        frames = take(columns.observation[0], np.append(rows.row, rows.following[-1:]))
        if columns.next:
            frames[-1:] = take(columns.next[0], rows.row[-1:])
        observation, following = stacked(frames, columns.stack)
    else:
        observation = joined(columns.observation, rows.row)
        following = joined(columns.next, rows.row) if columns.next else joined(columns.observation, rows.following)
    reward = take(columns.reward, rows.row).reshape(-1)
    return transitions_from(observation, action, reward, following, rows.terminated, rows.truncated)


def _in_order(columns: Columns, skip_stumps: bool) -> Rows:
    """Works out which rows of a file are transitions, in which order, and where episodes end."""
    fits_memory(columns.count * ROW_BYTES, columns.origin, f"order of its {columns.count:,} rows")
    parts = [(rows, round_) for rows, round_ in columns.parts() if len(rows)]
    if not parts:
        raise InputError(f"{columns.origin}: an empty replay buffer: no row is in use")
    row = np.concatenate([rows for rows, _ in parts])
    stops = np.cumsum([len(rows) for rows, _ in parts])
    newest = np.zeros(len(row), dtype=bool)
    newest[stops - 1] = True
    terminated, done = _ends(columns, row)
    ends = done | newest
    truncated = ends & ~terminated
    following = np.where(terminated | newest, row, np.append(row[1:], row[-1:]))
    keep = np.ones(len(row), dtype=bool)
    last = np.nonzero(ends)[0]
    stumps = [
        slice(stop - len(rows), int(last[np.searchsorted(last, stop - len(rows))]) + 1)
        for stop, (rows, written_round) in zip(stops, parts, strict=True)
        if written_round
    ]
    if stumps:
        for stump in stumps if skip_stumps else ():
            keep[stump] = False
        done_to = "left out; skip_stumps=false keeps them" if skip_stumps else "kept, with a partial return"
        note(
            f"{columns.origin}: {len(stumps):,} episodes of {sum(s.stop - s.start for s in stumps):,} rows lost their "
            f"beginning when the buffer was written round: {done_to}"
        )
    if open_ := int((newest & ~done & keep).sum()):
        note(f"{columns.origin}: {open_:,} unfinished episodes count as truncated")
    if not columns.next:  # a row whose next observation was not recorded is no transition
        if dropped := int((truncated & keep).sum()):
            note(
                f"{columns.origin}: {dropped:,} rows have no next observation (end of an episode by truncation); they "
                f"are left out"
            )
        keep &= ~truncated
        truncated = np.append(truncated[1:] & ~ends[:-1], False)
    if not keep.any():
        what = "; skip_stumps=false keeps episodes without a beginning" if stumps and skip_stumps else ""
        raise InputError(f"{columns.origin}: no transition left{what}")
    return Rows(row[keep], following[keep], terminated[keep], truncated[keep])


def _ends(columns: Columns, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows ended their episode for good, and which ended it at all, bool ``[N]`` each."""
    found = {name: columns.marks(name, row) for name in columns.flags}
    done, terminated, timed_out = found["done"], found["terminated"], found["timed out"]
    assert done is not None
    if terminated is None:  # before 0.4.10
        terminated = done & ~timed_out if timed_out is not None else done
    for more in (terminated, found["truncated"]):
        if more is not None:
            done = done | more
    return terminated, done
