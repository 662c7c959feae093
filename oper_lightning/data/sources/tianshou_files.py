"""The columns of a replay buffer that Tianshou saved, and where in them the rows of its sub-buffers lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from oper_lightning.data.sources import hdf5
from oper_lightning.data.sources.hdf5 import Hdf5
from oper_lightning.data.sources.recorded import frames_of_a_stack
from oper_lightning.data.transitions import wrong_flag
from oper_lightning.errors import InputError, nearest, note

DATA = "_meta"  # the group that holds the columns
PART = 64 << 20  # bytes of observations that are read at a time; a longer episode is read as a whole
ROWS = 1 << 14  # rows that are read at a time
GAP = 64  # rows that are read for nothing rather than in two goes


class Columns:
    """The columns of an open file, checked."""

    def __init__(self, file: Hdf5, keys: tuple[str, ...]) -> None:
        self.file, self.origin = file, file.origin
        if file.group(DATA) is None:
            raise InputError(
                f"{self.origin}: no group {DATA!r}, so no replay buffer of Tianshou; it has "
                f"{', '.join(file.arrays()[:12]) or 'no arrays'}"
            )
        self.count = self._whole("maxsize", 0)
        if self.count == 0:
            raise InputError(f"{self.origin}: empty: a replay buffer for no rows")
        self.action, self.reward = self.needed("act"), self.needed("rew")
        self.flags = {name: self.optional(name) for name in ("done", "terminated", "truncated")}
        self.flags["timed out"] = self.optional("info/TimeLimit.truncated")
        if self.flags["done"] is None:
            self.needed("done")
        self.observation = self._entries("obs", keys)
        self.next = self._entries("obs_next", keys) if self._is_there("obs_next") else []
        for name, array in (("rew", self.reward), *self.flags.items()):
            if array is not None and array.shape not in ((self.count,), (self.count, 1)):
                raise InputError(f"{self.origin}: {name!r} has shape {array.shape}; one number per row is needed")
        shapes = [[array.shape for array in entries] for entries in (self.observation, self.next or self.observation)]
        if shapes[0] != shapes[1]:
            raise InputError(f"{self.origin}: 'obs_next' has shape {shapes[1]} but 'obs' {shapes[0]}")
        self.stack = self._stack()

    def _stack(self) -> int:
        """How many frames an observation is made of that are stored singly."""
        stack = frames_of_a_stack(self.file.attribute("stack_num"), self.origin, "stack_num")
        last_only = bool(self.file.attribute("_save_only_last_obs"))
        first = self.observation[0]
        frames = len(self.observation) == 1 and first.dtype == np.uint8
        frames = frames and len(first.shape) in ((3, 4) if last_only else (3,))
        if stack > 1 and not frames:
            if last_only:
                raise InputError(
                    f"{self.origin}: the last of {stack} observations of shape {first.shape[1:]} and {first.dtype} was "
                    f"stored; only frames of bytes, [height, width] or with channels before, are stacked again"
                )
            note(f"{self.origin}: stack_num is {stack}; observations are handed out singly, as they are stored")
            return 1
        return stack

    @property
    def rows_at_a_time(self) -> int:
        """How many rows are read together."""
        return max(1, min(ROWS, PART // max(1, sum(map(row_bytes, self.observation)))))

    def _whole(self, name: str, low: int) -> int:
        """An attribute that is a whole number."""
        value = self.file.attribute(name)
        if value is None:
            raise InputError(f"{self.origin}: no attribute {name!r}, which replay buffers of Tianshou have")
        if not isinstance(value, int | np.integer) or value < low:
            raise InputError(f"{self.origin}: {name} is {str(value)[:60]!r}; a whole number from {low} is needed")
        return int(value)

    def _is_there(self, name: str) -> bool:
        group = self.file.group(DATA)
        return group is not None and group.has(name)

    def optional(self, name: str) -> Any | None:
        """A column of numbers, with a row for each place of the buffer; None if it is not there."""
        array = self.file.array(f"{DATA}/{name}")
        if array is None:
            return None
        kind = Hdf5(array, self.origin).attribute("__data_type__")
        if kind not in (None, "ndarray", "Tensor"):
            raise InputError(f"{self.origin}: {name!r} is stored as {str(kind)[:40]}; an array of numbers is needed")
        if array.dtype.kind not in "fiub":
            raise InputError(f"{self.origin}: {name!r} holds {array.dtype}; real numbers are needed")
        if not array.shape or array.shape[0] != self.count or 0 in array.shape:
            raise InputError(f"{self.origin}: {name!r} has shape {array.shape}, but maxsize is {self.count:,} rows")
        hdf5.check_written(array, name, self.origin)
        return array

    def needed(self, name: str) -> Any:
        """As :meth:`optional`, but it must be there."""
        array = self.optional(name)
        if array is None:
            group = self.file.group(DATA)
            present = ", ".join(group.arrays()[:12]) if group else ""
            raise InputError(f"{self.origin}: no column {name!r}; it has {present or 'none: an empty replay buffer'}")
        return array

    def _entries(self, name: str, keys: tuple[str, ...]) -> list[Any]:
        """The column of observations, or those of its entries that are named."""
        group = self.file.group(f"{DATA}/{name}")
        if group is None:
            if keys:
                raise InputError(f"{self.origin}: observation_keys given, but {name!r} has no entries")
            return [self.needed(name)]
        present = group.arrays()
        if not keys:
            raise InputError(
                f"{self.origin}: observations of several entries; name those to join, in order, in the source's "
                f"observation_keys, of: {', '.join(present[:24]) or 'none'}"
            )
        for key in keys:
            if key not in present:
                raise InputError(f"{self.origin}: no entry {key!r} of {name!r}; {nearest(key, present)}")
        entries = [self.needed(f"{name}/{key}") for key in keys]
        for key, entry in zip(keys, entries, strict=True):
            if len(entry.shape) > 2:
                raise InputError(
                    f"{self.origin}: entry {key!r} of {name!r} has shape {entry.shape}; only vectors can be joined"
                )
        return entries

    def marks(self, name: str, rows: np.ndarray) -> np.ndarray | None:
        """A flag of these rows, bool; None if the file has none of that name."""
        if (array := self.flags[name]) is None:
            return None
        values = array[()].reshape(-1)[rows]
        if (wrong := wrong_flag(values)) is not None:
            raise InputError(f"{self.origin}: {name!r} is {values[wrong]} at row {rows[wrong]:,}; a flag is 0 or 1")
        marks: np.ndarray = values.astype(bool)
        return marks

    def parts(self) -> Iterator[tuple[np.ndarray, bool]]:
        """The rows of each sub-buffer, oldest first, and whether it was written round, so that older ones are lost."""
        for begin, end, length, oldest in self._rings():
            if not 0 <= length <= end - begin or not 0 <= oldest < max(1, length):
                raise InputError(
                    f"{self.origin}: the sub-buffer of rows {begin:,} to {end:,} says that it holds {length:,} rows, "
                    f"the oldest at its place {oldest:,}"
                )
            # Where the oldest row is the first one, it may have been written round too, but nothing says so.
            yield begin + (oldest + np.arange(length)) % max(1, length), oldest > 0

    def _rings(self) -> Iterator[tuple[int, int, int, int]]:
        """First row, row after the last, number of rows in use, and place of the oldest, for each sub-buffer."""
        if not self.file.has("_lengths"):
            length = self._whole("_size", 0)
            counter = "_insertion_idx" if self.file.attribute("_insertion_idx") is not None else "_index"
            written = self._whole(counter, 0)
            # Where the next row would go, the oldest lies; last_index is wrong in buffers that were made of arrays.
            yield 0, self.count, length, written if length == self.count else 0
            return
        edges, lengths, newest = (self._places(name) for name in ("_extend_offset", "_lengths", "last_index"))
        if len(edges) != len(lengths) + 1 or len(newest) != len(lengths):
            raise InputError(
                f"{self.origin}: {len(edges):,} edges, {len(lengths):,} lengths and {len(newest):,} newest rows of "
                f"sub-buffers; they do not fit each other"
            )
        if edges[0] != 0 or edges[-1] != self.count or (np.diff(edges) < 0).any():
            raise InputError(f"{self.origin}: '_extend_offset' does not rise from 0 to maxsize {self.count:,}")
        for begin, end, length, last in zip(
            *(a.tolist() for a in (edges[:-1], edges[1:], lengths, newest)), strict=True
        ):
            if length and not (begin <= last < end if length == end - begin else last == begin + length - 1):
                raise InputError(
                    f"{self.origin}: the sub-buffer of rows {begin:,} to {end:,} says that it holds {length:,} rows, "
                    f"the newest at row {last:,}"
                )
            yield begin, end, length, (last - begin + 1) % length if length == end - begin and length else 0

    def _places(self, name: str) -> np.ndarray:
        array = self.file.array(name)
        if array is None or array.dtype.kind not in "iu" or len(array.shape) != 1 or array.shape[0] > self.count + 1:
            raise InputError(f"{self.origin}: no list of whole numbers {name!r}, which tells where its rows lie")
        hdf5.check_written(array, name, self.origin)
        return np.asarray(array[()], dtype=np.int64)


def row_bytes(array: Any) -> int:
    return int(np.prod(array.shape[1:], dtype=np.int64)) * max(
        array.dtype.itemsize, 4 if array.dtype != np.uint8 else 1
    )


def joined(entries: list[Any], rows: np.ndarray) -> np.ndarray:
    """Rows of an observation, its entries side by side."""
    if len(entries) == 1 and len(entries[0].shape) > 1:
        return take(entries[0], rows)
    return np.concatenate([take(entry, rows).reshape(len(rows), -1) for entry in entries], axis=1)


def take(array: Any, rows: np.ndarray) -> np.ndarray:
    """Rows of an h5py dataset, read in as few goes as their order allows."""
    step = np.diff(rows)
    cuts = np.nonzero((step < 0) | (step > GAP))[0] + 1
    parts = [array[part[0] : part[-1] + 1][part - part[0]] for part in np.split(rows, cuts)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
