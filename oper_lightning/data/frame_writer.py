"""Takes single frames out of recorded observations, and writes them side by side."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tensordict import TensorDict

from oper_lightning.data.frames import ABOUT, FILE, Frames, lengthened
from oper_lightning.errors import InputError
from oper_lightning.files import fits_memory

PART = 1 << 24  # bytes of observations that are looked at together
LOOKED_AT = 100  # transitions by which stacks are recognised


class FrameWriter:
    """Takes frames out of whole episodes, in order, and puts them side by side.

    How many channels a frame has is read off the first transitions: as many as observations seem to move up by with
    every step. If that was a coincidence, more frames than necessary are stored.

    Args:
        episodes: the first ones.
        rows: number of transitions that will come.
        later: number of transitions that will be gathered, for whose frames there is to be room.
        origin: where they come from, for messages.
        device: where the frames are to be in the end.
        folder: writes them to a file in this folder instead.

    Raises:
        InputError: if they certainly do not fit.
    """

    def __init__(
        self, episodes: TensorDict, rows: int, later: int, origin: object, device: torch.device, folder: Path | None
    ) -> None:
        length = int(torch.nonzero(episodes["next", "done"].reshape(-1))[:1].sum()) + 1
        some = episodes[: min(length, LOOKED_AT)]
        shape = episodes["observation"].shape[1:]
        self.channels = _channels(some["observation"].numpy(), some["next", "observation"].numpy())
        self.shape = (self.channels, *shape[1:])
        self.stack = shape[0] // self.channels
        self.origin = origin
        self.device = device
        self.folder = folder
        self.later = later + later // 8  # episodes of more than a few steps need no more
        self.count = 0
        self.digest = hashlib.sha256()
        self.file: BinaryIO | None = None
        self.array = np.empty((0, *self.shape), dtype=np.uint8)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = open(folder / FILE, "wb")  # noqa: SIM115 (closed by close)
        else:
            self._fits_device(rows + self.stack + self.later)
            self._fits_memory(rows + self.stack + self.later)
            self.array = np.empty(
                (rows + self.stack + self.later, *self.shape), dtype=np.uint8
            )  # memory, yet untouched

    def put(self, episodes: TensorDict) -> TensorDict:
        """Keeps the frames of episodes; returns the transitions with ``first`` in place of observations."""
        observation, following = episodes["observation"].numpy(), episodes["next", "observation"].numpy()
        begins = episodes["next", "done"].reshape(-1).numpy().copy()
        begins[:] = np.append(True, begins[:-1])
        first = np.empty((2, len(begins)), dtype=np.int64)
        part = max(1, PART // math.prod(observation.shape[1:]))
        for start in range(0, len(begins), part):
            rows = slice(start, start + part)
            first[:, rows] = self._append(observation, following, begins, rows)
        table = episodes.exclude("observation", ("next", "observation"))
        table["first"], table["next", "first"] = torch.from_numpy(first).unbind(0)
        return table

    def _append(self, observation: np.ndarray, following: np.ndarray, begins: np.ndarray, rows: slice) -> np.ndarray:
        """Keeps the frames of some rows; gives the first frames of their observations and next ones, ``[2, M]``."""
        now, after, starts = observation[rows], following[rows], begins[rows]
        moves = np.ones(len(now), dtype=bool)
        if not self._overlap(observation, following):
            moves = moved_up(now, after, self.channels)
            # The first row of an episode begins a run of frames in any case.
            inside = slice(max(rows.start, 1), rows.stop)
            earlier = slice(inside.start - 1, inside.start - 1 + len(observation[inside]))
            starts[inside.start - rows.start :] |= ~_alike(observation[inside], following[earlier])
        frames, numbers = laid_out(now, after, starts, moves, self.channels, self._room)
        numbers += self.count
        self.digest.update(frames.reshape(-1).data)
        if self.file is not None:
            self.file.write(frames.reshape(-1).data)
        self.count += len(frames)
        return numbers

    def _overlap(self, observation: np.ndarray, following: np.ndarray) -> bool:
        """Whether both are views of the same frames, as :func:`stacked` makes them: then nothing is to be compared."""
        step, places = observation.strides[0], (observation.ctypes.data, following.ctypes.data)
        moved_up = observation.strides == following.strides and places[1] - places[0] == step
        return moved_up and step == self.channels * observation.strides[1]

    def _room(self, count: int) -> np.ndarray:
        """Where so many more frames are to be written."""
        if self.file is not None:
            return np.empty((count, *self.shape), dtype=np.uint8)
        if self.count + count > len(self.array):
            self._grow(max(count, len(self.array) // 16))
        return self.array[self.count : self.count + count]

    def _fits_memory(self, count: int) -> None:
        fits_memory(count * math.prod(self.shape), self.origin, "its images")

    def _grow(self, count: int) -> None:
        self._fits_memory(count)
        # In place: the system moves pages, so that there are never two copies.
        self.array.resize((len(self.array) + count, *self.shape), refcheck=False)

    def _fits_device(self, count: int) -> None:
        if self.device.type != "cuda":
            return
        size, free = count * int(np.prod(self.shape)), torch.cuda.mem_get_info(self.device)[0]
        if size > free:
            raise InputError(
                f"{self.origin}: its frames take {size / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free on "
                f"{self.device}: set data.location to memory or memmap"
            )

    def close(self) -> Frames:
        """All that was kept; no more will come."""
        digest = self.digest.hexdigest()
        total = self.count + self.later
        if self.file is not None and self.folder is not None:
            self.file.close()
            lengthened(self.folder / FILE, total * math.prod(self.shape))
            about = {"shape": [total, *self.shape], "count": self.count, "stack": self.stack, "digest": digest}
            (self.folder / ABOUT).write_text(json.dumps(about))
            return Frames.mapped(self.folder)
        self._fits_device(total)
        if not self.later:
            self.array.resize((self.count, *self.shape), refcheck=False)
        data = torch.from_numpy(self.array)
        if self.device.type != "cpu":
            data = torch.empty((total, *self.shape), dtype=torch.uint8, device=self.device)
            data[: self.count] = torch.from_numpy(self.array[: self.count])
        return Frames(data, self.stack, digest, count=self.count)


def laid_out(
    observation: np.ndarray,
    following: np.ndarray,
    starts: np.ndarray,
    moves: np.ndarray,
    channels: int,
    room: Callable[[int], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Writes what is new in observations and next observations ``[M, C, ...]`` as frames behind each other.

    Args:
        observation: of rows that follow each other.
        following: the next ones.
        starts: whether a row's observation is another than the one that the row before led to; bool ``[M]``. Where the
            first row's is not, the frames that it shares with the row before lie just before the room.
        moves: whether the next observation is the same one moved up by a frame; bool ``[M]``.
        channels: of a frame.
        room: gives the place for so many frames, ``[count, channels, ...]``.

    Returns:
        the place, and where in it observations and next ones begin, int64 ``[2, M]``.
    """
    stack = observation.shape[1] // channels
    added = np.where(moves, 1, stack)
    end = np.cumsum(added + stack * starts)
    frames, steps = room(int(end[-1])), np.arange(stack)
    frames[end - 1] = following[:, -channels:]
    for which, images, begin in ((starts, observation, end - added - stack), (~moves, following, end - stack)):
        if which.any():
            frames[begin[which, None] + steps] = images[which].reshape(-1, stack, *frames.shape[1:])
    return frames, np.stack([end - added - stack, end - stack])


def moved_up(observation: np.ndarray, following: np.ndarray, channels: int) -> np.ndarray:
    """Which next observations ``[M, C, ...]`` are the observations moved up by a frame of ``channels``; ``[M]``."""
    return _alike(observation[:, channels:], following[:, :-channels])


def _channels(observation: np.ndarray, following: np.ndarray) -> int:
    """By how many channels most next observations ``[M, C, ...]`` are the observations moved up; C if by none."""
    count = observation.shape[1]
    for channels in range(1, count):
        if count % channels == 0 and _alike(observation[:, channels:], following[:, :-channels]).mean() > 0.5:
            return channels
    return count


def _alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which rows of two arrays are the same, bool ``[M]``."""
    return (first == second).reshape(len(first), first[:1].size).all(1)
