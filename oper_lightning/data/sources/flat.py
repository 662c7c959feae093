"""Episodes out of flat arrays, one row per step, as D4RL and most logs have them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from tensordict import TensorDict

from oper_lightning.data.sources.columns import FLAGS, OPTIONAL, REQUIRED
from oper_lightning.data.sources.source import Source
from oper_lightning.data.transitions import transitions_from, wrong_flag
from oper_lightning.errors import InputError, note
from oper_lightning.files import fits_memory

ROWS_AT_A_TIME = 1 << 14
BYTES_AT_A_TIME = 1 << 26
FLAG_BYTES = 32  # per row, while episode ends are worked out
COPIES = 6  # of a part of the rows, while it is turned into transitions

Columns = Mapping[str, Any]
"""D4RL's columns by name: numpy arrays or h5py datasets"""


class FlatFile(Source):
    """A file whose columns fit into memory, where they are until the storage has them.

    A subclass reads them, and says what to call the file: ``path``.
    """

    path: str

    def __str__(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return len(self._held[1])

    def episodes(self) -> Iterator[TensorDict]:
        columns, flat = self._held
        yield from flat.episodes(columns)
        vars(self).pop("_held", None)  # the storage has them now

    @cached_property
    def _held(self) -> tuple[Columns, FlatEpisodes]:
        return self._read()

    @abstractmethod
    def _read(self) -> tuple[Columns, FlatEpisodes]:
        """D4RL's columns, and where their episodes are."""


class FlatEpisodes:
    """Where the episodes are in D4RL's columns; keeps flags and row numbers, not the columns.

    An episode ends at a terminal, at a timeout, and with the last row. Where timeouts are missing or never set it also
    ends after ``max_episode_steps``, and where the next observation is not the one of the following row. With
    ``episode_terminals`` (d3rlpy) only a terminal at such an end counts; with ``masks`` (OGBench) ``terminals`` are
    ends of trajectories and a mask of 0 is a termination. A row without a next observation of its own (no such column,
    and the episode ends there by timeout) is left out.

    Args:
        columns: the required columns and any of the optional ones.
        origin: what to call the data in messages.
        max_episode_steps: where episodes were cut, if known.
        qlearning_rows: keep exactly the rows of D4RL's ``qlearning_dataset``: no timeout step, not the last row.

    Raises:
        InputError: if a column is missing, has the wrong rank, length or type, a flag is neither 0 nor 1, there are no
            rows, or they need more memory than is free.
    """

    def __init__(
        self, columns: Columns, origin: str, max_episode_steps: int | None = None, qlearning_rows: bool = False
    ) -> None:
        self.origin = origin
        if max_episode_steps is not None and max_episode_steps < 1:
            raise InputError(f"{origin}: max_episode_steps is {max_episode_steps}; at least 1 is needed")
        count = self._check(columns)
        fits_memory(count * FLAG_BYTES, origin, f"flags of its {count:,} rows")
        self.own_next = "next_observations" in columns and not qlearning_rows
        if qlearning_rows:
            terminated = self._flag(columns, "terminals")
            if "timeouts" not in columns and max_episode_steps is not None:
                timeout = cut_as_d4rl(terminated, max_episode_steps)
            else:
                timeout = self._timeouts(columns, terminated, max_episode_steps, as_d4rl=True)
        else:
            terminated, timeout = self._ends(columns, max_episode_steps)
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
            note(
                f"{origin}: {dropped:,} rows have no next observation (end of an episode by timeout); they are left "
                f"out, and not counted where rows are numbered below"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def episodes(self, columns: Columns) -> Iterator[TensorDict]:
        """Whole episodes, many at a time, out of the columns that were given before."""
        ends = np.nonzero(self.terminated | self.truncated)[0] + 1
        start, part = 0, _part(columns["observations"])
        while start < len(self.rows):
            stop = int(ends[np.searchsorted(ends, min(start + part, len(self.rows)))])
            yield self._read(columns, start, stop)
            start = stop

    def _read(self, columns: Columns, start: int, stop: int) -> TensorDict:
        rows = self.rows[start:stop]
        span = slice(int(rows[0]), int(rows[-1]) + 1)
        width = sum(_row_bytes(columns[name]) for name in ("observations", "actions"))
        fits_memory(COPIES * width * (span.stop - span.start), self.origin, f"rows {span.start:,} to {span.stop:,}")
        inside = slice(None) if len(rows) == span.stop - span.start else rows - span.start
        observation = self._floats(columns, "observations", span)
        terminated = self.terminated[start:stop]
        if self.own_next:
            following = self._floats(columns, "next_observations", span)[inside]
        else:
            beyond = columns["observations"][span.stop : span.stop + 1]
            shifted = np.concatenate([observation[1:], beyond if len(beyond) else observation[-1:]])[inside]
            # The row after a terminal belongs to the next episode. Its observation is not used; hide it all the same.
            mask = terminated.reshape(-1, *[1] * (observation.ndim - 1))
            following = np.where(mask, observation[inside], shifted)
        return transitions_from(
            observation[inside],
            self._floats(columns, "actions", span)[inside],
            self._floats(columns, "rewards", span).reshape(-1)[inside],
            following,
            terminated,
            self.truncated[start:stop],
        )

    def _floats(self, columns: Columns, name: str, span: slice) -> np.ndarray:
        """Rows of a column, all finite."""
        values = np.asarray(columns[name][span])
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row, *place = np.argwhere(~np.isfinite(values))[0]
            column = f", column {', '.join(map(str, place))}" if place else ""
            raise InputError(
                f"{self.origin}: {name!r} is {values[(row, *place)]} at row {span.start + row:,}{column}, the first of "
                f"{_broken(columns[name]):,} such rows; repair or remove their episodes"
            )
        return values

    def _check(self, columns: Columns) -> int:
        """Shapes and types; gives the number of rows."""
        for name in REQUIRED:
            if name not in columns:
                raise InputError(f"{self.origin}: no column {name!r}; it has {', '.join(columns) or 'nothing'}")
        rows = columns["observations"].shape[0] if columns["observations"].shape else 0
        if rows == 0:
            raise InputError(f"{self.origin}: empty dataset: 'observations' has no rows")
        for name in (*REQUIRED, *OPTIONAL):
            if name not in columns or (name == "masks" and not _has_masks(columns)):
                continue
            column = columns[name]
            shape = column.shape
            if column.dtype.kind not in "fiub":
                raise InputError(f"{self.origin}: column {name!r} holds {column.dtype}; real numbers are needed")
            if len(shape) == 0 or shape[0] != rows:
                length = shape[0] if shape else 1
                raise InputError(f"{self.origin}: {name!r} has {length:,} rows but 'observations' has {rows:,}")
            flat = name in ("rewards", *FLAGS)
            if flat and shape not in ((rows,), (rows, 1)):
                raise InputError(f"{self.origin}: {name!r} has shape {shape}; one number per row is needed")
            discrete = name == "actions" and len(shape) == 1 and column.dtype.kind in "iub"
            if not (flat or discrete) and (len(shape) < 2 or 0 in shape):
                hint = ""
                if name == "actions" and len(shape) == 1:
                    hint = "; save amounts as actions[:, None], and with an integer type for discrete ones"
                raise InputError(f"{self.origin}: {name!r} has shape {shape}; [rows, size] is needed{hint}")
        if "next_observations" in columns:
            shape, needed = columns["next_observations"].shape, columns["observations"].shape
            if shape != needed:
                raise InputError(f"{self.origin}: 'next_observations' has shape {shape} but 'observations' {needed}")
        return int(rows)

    def _flag(self, columns: Columns, name: str) -> np.ndarray:
        """A column of flags as bool ``[N]``."""
        values = self._floats(columns, name, slice(0, None)).reshape(-1)
        if (row := wrong_flag(values)) is not None:
            raise InputError(f"{self.origin}: {name!r} is {values[row]} at row {row:,}; a flag is 0 or 1")
        return values.astype(bool)

    def _ends(self, columns: Columns, max_episode_steps: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Rows after which an episode ended by termination, and rows after which it was cut."""
        terminals = self._flag(columns, "terminals")
        if _has_masks(columns):
            terminated = ~self._flag(columns, "masks")
            cut = terminals | self._flag(columns, "timeouts") if "timeouts" in columns else terminals
        elif "episode_terminals" in columns:
            cut = self._flag(columns, "episode_terminals")
            terminated = terminals & cut
            if stray := int((terminals & ~cut).sum()):
                note(f"{self.origin}: {stray:,} terminals lie where no episode ends (episode_terminals); ignored")
        else:
            return terminals, self._timeouts(columns, terminals, max_episode_steps)
        if not (terminated | cut).any():
            self._endless(len(cut))
        return terminated, cut & ~terminated

    def _timeouts(
        self, columns: Columns, terminated: np.ndarray, max_episode_steps: int | None, as_d4rl: bool = False
    ) -> np.ndarray:
        """Rows whose episode was cut after them."""
        if "timeouts" in columns:
            flagged = self._flag(columns, "timeouts")
            if as_d4rl or flagged.any():
                return flagged
        cut = np.zeros(len(terminated), dtype=bool)
        if self.own_next:
            cut[:-1] = _jumps(columns) & ~terminated[:-1]
        if max_episode_steps is not None:
            row = np.arange(len(terminated))
            fresh = np.append(True, (terminated | cut)[:-1])
            step = row - np.maximum.accumulate(np.where(fresh, row, 0))
            cut |= step % max_episode_steps == max_episode_steps - 1
        if not (cut | terminated).any():
            self._endless(len(cut))
        elif "timeouts" in columns and cut.any():
            note(
                f"{self.origin}: 'timeouts' is never set; {int(cut.sum()):,} episodes are cut by max_episode_steps, or "
                f"where the next row is not the next observation"
            )
        return cut

    def _endless(self, rows: int) -> None:
        note(
            f"{self.origin}: no flag marks the end of an episode: all {rows:,} rows count as one episode; "
            f"say with max_episode_steps where episodes were cut"
        )


def _has_masks(columns: Columns) -> bool:
    """Whether there is one mask for each row; masks of other shapes have another meaning."""
    return "masks" in columns and columns["masks"].size == columns["observations"].shape[0]


def _jumps(columns: Columns) -> np.ndarray:
    """For each row but the last, whether the next row's observation differs from the row's next observation."""
    rows, part = columns["observations"].shape[0], _part(columns["observations"])
    jumps = np.zeros(rows - 1, dtype=bool)
    for start in range(0, rows - 1, part):
        stop = min(start + part, rows - 1)
        following = np.asarray(columns["next_observations"][start:stop])
        observed = np.asarray(columns["observations"][start + 1 : stop + 1])
        if following.dtype == observed.dtype == np.uint8:  # images: no copies in floating point
            jumps[start:stop] = (following != observed).reshape(stop - start, -1).any(1)
            continue
        following, observed = following.astype(np.float64), observed.astype(np.float64)
        jumps[start:stop] = np.linalg.norm((following - observed).reshape(stop - start, -1), axis=1) > 1e-6
    return jumps


def _part(column: Any) -> int:
    """How many rows of a column are looked at together."""
    return max(1, min(ROWS_AT_A_TIME, BYTES_AT_A_TIME // max(_row_bytes(column), 1)))


def _broken(column: Any) -> int:
    """How many rows of a column hold a value that is not finite."""
    parts = (np.asarray(column[start : start + ROWS_AT_A_TIME]) for start in range(0, column.shape[0], ROWS_AT_A_TIME))
    return sum(int((~np.isfinite(part)).reshape(len(part), -1).any(1).sum()) for part in parts)


def _row_bytes(column: Any) -> int:
    image = column.dtype == np.uint8 and len(column.shape) > 2  # which stays as it is; all else becomes float32
    return int(np.prod(column.shape[1:], dtype=np.int64)) * (1 if image else max(column.dtype.itemsize, 4))


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
