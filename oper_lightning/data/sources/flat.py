"""Episodes out of flat arrays, one row per step, as D4RL and most logs have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tensordict import TensorDict

from oper_lightning.data.transitions import transitions_from
from oper_lightning.errors import InputError, note

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")
ROWS_AT_A_TIME = 1 << 14


class FlatEpisodes:
    """Reads D4RL's columns (numpy arrays or HDF5 datasets) as episodes.

    An episode ends at a terminal, at a timeout, and with the last row. Without a ``timeouts`` column it also ends
    after ``max_episode_steps``, and where the next observation is not the one of the following row. A row without a
    next observation of its own (no such column, and the episode ends there by timeout) is left out.

    Args:
        columns: the required columns and any of the optional ones.
        origin: what to call the data in messages.
        max_episode_steps: where episodes were cut, if known.
        qlearning_rows: keep exactly the rows of D4RL's ``qlearning_dataset``: no timeout step, not the last row.

    Raises:
        InputError: if a column is missing, has the wrong rank, length or type, or there are no rows.
    """

    def __init__(
        self,
        columns: Mapping[str, Any],
        origin: str,
        max_episode_steps: int | None = None,
        qlearning_rows: bool = False,
    ) -> None:
        self.columns = columns
        self.origin = origin
        self._check()
        self.own_next = "next_observations" in columns and not qlearning_rows
        terminated = self._flag("terminals")
        if qlearning_rows and "timeouts" not in columns and max_episode_steps is not None:
            timeout = cut_as_d4rl(terminated, max_episode_steps)
        else:
            timeout = self._timeouts(terminated, max_episode_steps)
        keep = np.ones(len(terminated), dtype=bool)
        if not self.own_next:
            # The next observation of a row is the following row's, which after an end belongs to another episode.
            keep = ~timeout if qlearning_rows else terminated | ~timeout
            keep[-1] = terminated[-1] and not qlearning_rows
        if not keep.any():
            raise InputError(f"{origin}: no transition left: every row lacks a next observation")
        self.rows = np.nonzero(keep)[0]
        follows = np.append(np.diff(self.rows) > 1, True)  # the row after this one was left out
        self.terminated = terminated[self.rows]
        self.truncated = (follows | timeout[self.rows]) & ~self.terminated
        if not (terminated[-1] or timeout[-1]):
            note(f"{origin}: the last episode is unfinished; it counts as truncated")
        dropped = len(keep) - len(self.rows)
        if dropped and not qlearning_rows:
            note(f"{origin}: {dropped:,} rows have no next observation (end of an episode by timeout); left out")

    def __len__(self) -> int:
        return len(self.rows)

    def episodes(self) -> Iterator[TensorDict]:
        """Whole episodes, many at a time."""
        ends = np.nonzero(self.terminated | self.truncated)[0] + 1
        start = 0
        while start < len(self.rows):
            stop = int(ends[np.searchsorted(ends, min(start + ROWS_AT_A_TIME, len(self.rows)))])
            yield self._read(start, stop)
            start = stop

    def _read(self, start: int, stop: int) -> TensorDict:
        rows = self.rows[start:stop]
        span = slice(int(rows[0]), int(rows[-1]) + 1)
        inside = slice(None) if len(rows) == span.stop - span.start else rows - span.start
        observation = self._floats("observations", span)
        terminated = self.terminated[start:stop]
        if self.own_next:
            following = self._floats("next_observations", span)[inside]
        else:
            beyond = self.columns["observations"][span.stop : span.stop + 1]
            shifted = np.concatenate([observation[1:], beyond if len(beyond) else observation[-1:]])[inside]
            # What follows a terminal is the next episode; nobody looks at it, but nobody should see it either.
            mask = terminated.reshape(-1, *[1] * (observation.ndim - 1))
            following = np.where(mask, observation[inside], shifted)
        return transitions_from(
            observation[inside],
            self._floats("actions", span)[inside],
            self._floats("rewards", span).reshape(-1)[inside],
            following,
            terminated,
            self.truncated[start:stop],
        )

    def _floats(self, name: str, span: slice) -> np.ndarray:
        """Rows of a column, all finite."""
        values = np.asarray(self.columns[name][span])
        if not np.isfinite(values).all():
            row, *place = np.argwhere(~np.isfinite(values))[0]
            column = f", column {', '.join(map(str, place))}" if place else ""
            raise InputError(
                f"{self.origin}: {name!r} is {values[(row, *place)]} at row {span.start + row:,}{column}, the first of "
                f"{self._broken(name):,} such rows; repair or remove their episodes"
            )
        return values

    def _broken(self, name: str) -> int:
        """How many rows of a column hold a value that is not finite."""
        rows = self.columns[name].shape[0]
        parts = (
            np.asarray(self.columns[name][start : start + ROWS_AT_A_TIME]) for start in range(0, rows, ROWS_AT_A_TIME)
        )
        return sum(int((~np.isfinite(part)).reshape(len(part), -1).any(1).sum()) for part in parts)

    def _check(self) -> None:
        for name in REQUIRED:
            if name not in self.columns:
                raise InputError(f"{self.origin}: no column {name!r}; it has {', '.join(self.columns) or 'nothing'}")
        rows = self.columns["observations"].shape[0] if self.columns["observations"].shape else 0
        if rows == 0:
            raise InputError(f"{self.origin}: empty dataset: 'observations' has no rows")
        for name in (*REQUIRED, *OPTIONAL):
            if name not in self.columns:
                continue
            column = self.columns[name]
            if column.dtype.kind not in "fiub":
                raise InputError(f"{self.origin}: column {name!r} holds {column.dtype}; numbers are needed")
            if len(column.shape) == 0 or column.shape[0] != rows:
                length = column.shape[0] if column.shape else 1
                raise InputError(f"{self.origin}: {name!r} has {length:,} rows but 'observations' has {rows:,}")
            flat = name in ("rewards", "terminals", "timeouts")
            if flat and column.shape not in ((rows,), (rows, 1)):
                raise InputError(f"{self.origin}: {name!r} has shape {column.shape}; one number per row is needed")
            if not flat and len(column.shape) < 2:
                raise InputError(f"{self.origin}: {name!r} has shape {column.shape}; [rows, size] is needed")
        if "next_observations" in self.columns:
            shape, needed = self.columns["next_observations"].shape, self.columns["observations"].shape
            if shape != needed:
                raise InputError(f"{self.origin}: 'next_observations' has shape {shape} but 'observations' {needed}")

    def _flag(self, name: str) -> np.ndarray:
        return self._floats(name, slice(0, None)).reshape(-1).astype(bool)

    def _timeouts(self, terminated: np.ndarray, max_episode_steps: int | None) -> np.ndarray:
        """Rows whose episode was cut after them."""
        if "timeouts" in self.columns:
            return self._flag("timeouts")
        cut = np.zeros(len(terminated), dtype=bool)
        if self.own_next:
            cut[:-1] = self._jumps() & ~terminated[:-1]
        if max_episode_steps is not None:
            row = np.arange(len(terminated))
            fresh = np.append(True, (terminated | cut)[:-1])
            step = row - np.maximum.accumulate(np.where(fresh, row, 0))
            cut |= step % max_episode_steps == max_episode_steps - 1
        if not cut.any() and not terminated.any():
            note(f"{self.origin}: no 'timeouts' and no terminal: all {len(cut):,} rows count as one episode")
        return cut

    def _jumps(self) -> np.ndarray:
        """Whether each row but the last is followed by another observation than its next observation."""
        rows = self.columns["observations"].shape[0]
        jumps = np.zeros(rows - 1, dtype=bool)
        for start in range(0, rows - 1, ROWS_AT_A_TIME):
            stop = min(start + ROWS_AT_A_TIME, rows - 1)
            following = np.asarray(self.columns["next_observations"][start:stop], dtype=np.float64)
            observed = np.asarray(self.columns["observations"][start + 1 : stop + 1], dtype=np.float64)
            jumps[start:stop] = np.linalg.norm((following - observed).reshape(stop - start, -1), axis=1) > 1e-6
        return jumps


def cut_as_d4rl(terminated: np.ndarray, max_episode_steps: int) -> np.ndarray:
    """Rows that ``qlearning_dataset`` takes for cut by time where no timeouts are recorded, bool ``[N]``.

    Its counter stands at 1, not 0, in the first row after a terminal, so that an episode is cut one step early.
    """
    cut = np.zeros(len(terminated), dtype=bool)
    start = counter = 0
    for end in np.append(np.nonzero(terminated)[0], len(terminated) - 1):
        if counter < max_episode_steps:
            cut[start + max_episode_steps - 1 - counter : end + 1 : max_episode_steps] = True
        counter = 0 if cut[end] else 1
        start = end + 1
    return cut
