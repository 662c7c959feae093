"""Images, stored frame by frame: what neighbouring transitions share is stored once.

An observation of images ``[C, ...]`` is taken for S frames of c channels each (C = S·c), one after another in time;
single images are stacks of one. Of two observations that follow each other only the newest frame differs, so that an
episode of T transitions takes S + T frames. Each transition knows its ``first`` frame, and in ``("next", "first")``
that of its next observation, as a rule the one after. Where a recording says something else (a last observation that
was not kept, rows in any order) all S frames are stored: what comes out is what went in.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.rl import TensorStorage, spawning, stored
from oper_lightning.errors import InputError, first_line
from oper_lightning.files import fits_memory, read_json

FILE, ABOUT = "frames.u8", "frames.json"
LARGE = 1 << 20  # bytes of a draw whose memory is used again,
SPARE = 4  # of so many draws at most
FEWER = "set data.updates_per_block or data.batch_size lower"
HELD = 2  # references to a buffer that nobody else has: a variable, and the question itself


def stacked(frames: np.ndarray, stack: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations and next observations of an episode, for sources that read single frames.

    Both are views of one copy of the frames; the first one is repeated at the beginning.

    Args:
        frames: all T + 1 frames of the episode, uint8 ``[T + 1, H, W]`` or ``[T + 1, c, H, W]``.
        stack: number S of frames in an observation.

    Returns:
        Two arrays ``[T, S, H, W]`` or ``[T, S * c, H, W]``.
    """
    padded = np.concatenate([np.repeat(frames[:1], stack - 1, 0), frames])
    *channels, height, width = frames.shape[1:]
    shape = (len(frames), stack * math.prod(channels), height, width)
    views = np.lib.stride_tricks.as_strided(padded, shape, (padded.strides[0], height * width, width, 1))
    return views[:-1], views[1:]


class Frames:
    """Frames side by side, and stacks of them.

    Args:
        data: the frames, uint8 ``[F, c, ...]``, with room for others behind them.
        stack: number S of frames in an observation.
        digest: SHA-256 of the frames that were recorded.
        path: the file that they are mapped from, if any.
        count: number of frames without the room; by default there is none.
    """

    def __init__(
        self, data: Tensor, stack: int, digest: str, path: Path | None = None, count: int | None = None
    ) -> None:
        self.data = data
        self.stack = stack
        self.digest = digest
        self.path = path
        self.count = len(data) if count is None else count
        self.spare: list[np.ndarray] = []

    @classmethod
    def mapped(cls, folder: Path) -> Frames:
        """Opens what :class:`oper_lightning.data.frame_writer.FrameWriter` left in a folder.

        Raises:
            InputError: if it is not whole.
        """
        path, about = folder / FILE, read_json(folder / ABOUT)
        shape = tuple(about["shape"])
        return cls(_mapped(path, shape), about["stack"], about["digest"], path, about["count"])

    def part(self, first: Tensor, following: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The frames ``[F', c, ...]`` that some observations and next ones need, the numbers of these among them, and
        the number S.

        Args:
            first: numbers of the first frames of observations, int64 ``[...]``.
            following: of the next ones.
        """
        steps = torch.arange(self.stack, device=first.device)
        used = (torch.stack([first, following]).reshape(-1, 1) + steps).unique()
        numbers = torch.searchsorted(used, first), torch.searchsorted(used, following)
        return self.data.index_select(0, used), *numbers, torch.tensor(self.stack)

    def take_room(self, count: int) -> int:
        """Number of the first of ``count`` frames, behind those that there are, which the caller then writes.

        Raises:
            InputError: if there is no room, and no memory or disk for more.
        """
        first = self.count
        if first + count > len(self.data):
            self._grow(max(count, len(self.data) // 8))
        self.count += count
        return first

    def _grow(self, count: int) -> None:
        """Adds room for so many frames; rarely needed, where episodes are short."""
        shape = (len(self.data) + count, *self.data.shape[1:])
        if self.path is not None:
            try:
                lengthened(self.path, math.prod(shape))
            except OSError as error:
                raise InputError(
                    f"{self.path}: no room for more images ({error.strerror}); free some space, then go "
                    f"on with --ckpt_path=last"
                ) from None
            self.data = _mapped(self.path, shape)
            return
        if self.data.device.type == "cpu":
            fits_memory(math.prod(shape), "data.location", "all images, for which more room is needed,")
        self.data = torch.cat([self.data, self.data.new_empty(count, *shape[1:])])

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape ``(C, ...)`` of an observation."""
        return (self.stack * self.data.shape[1], *self.data.shape[2:])

    def take(self, first: Tensor, count: int) -> Tensor:
        """The frames from ``first`` ``[...]`` on, ``count`` of each, joined: uint8 ``[..., count * c, ...]``."""
        shape = (*first.shape, count * self.data.shape[1], *self.data.shape[2:])
        number = (first.reshape(-1, 1) + torch.arange(count, device=first.device)).reshape(-1)
        if self.data.device.type != "cpu":
            with _fitting():
                return self.data.index_select(0, number).reshape(shape)
        frames = self.data.flatten(1).numpy()
        drawn = self._room(len(number) * frames.shape[1]).reshape(len(number), frames.shape[1])
        np.take(frames, number.numpy(), axis=0, out=drawn, mode="clip")  # "raise" would copy once more
        return torch.from_numpy(drawn).reshape(shape)

    def _room(self, size: int) -> np.ndarray:
        """Memory of so many bytes: an earlier draw's if nobody holds it any more.

        To get new memory takes longer than to fill it.

        Raises:
            InputError: if fewer are free.
        """
        if size < LARGE:
            return np.empty(size, dtype=np.uint8)
        for _ in range(len(self.spare)):
            try:
                buffer = self.spare.pop(0)  # other threads do not see it meanwhile
            except IndexError:
                break
            free = size <= buffer.size <= 2 * size and sys.getrefcount(buffer) == HELD
            room = buffer[:size] if free else None
            self.spare.append(buffer)
            if room is not None:
                return room
        fits_memory(size, FEWER, "the images of a draw")
        buffer = np.empty(size, dtype=np.uint8)
        self.spare = [*self.spare[1 - SPARE :], buffer]
        return buffer[:]

    def pair(self, first: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Observations and next observations ``[..., C, ...]`` by the numbers ``[...]`` of their first frames."""
        on_device = first.device.type != "cpu"  # asking there would wait for it
        if on_device or not bool((following == first + 1).all()):
            return self.take(first, self.stack), self.take(following, self.stack)
        window, channels = self.take(first, self.stack + 1), self.data.shape[1]
        return (
            window.narrow(first.dim(), 0, self.stack * channels),
            window.narrow(first.dim(), channels, self.stack * channels),
        )

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: the frames without the room behind them; of mapped ones where they lie."""
        shape = tuple(self.data.shape)
        data = self.data if self.count == len(self.data) else self.data[: self.count].clone()
        return {**self.__dict__, "spare": [], "data": data if self.path is None else shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.path is not None:
            self.data = _mapped(self.path, state["data"])


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Frames in a file, uint8 of this shape."""
    size = math.prod(shape)
    if not path.is_file() or path.stat().st_size != size:
        raise InputError(f"{path}: not the {size:,} bytes of frames that {ABOUT} names; remove the folder")
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8).view(shape)


def lengthened(path: Path, size: int) -> None:
    """Makes a file longer, and takes the place on the disk: on a full one, writing to a map would end the process."""
    with open(path, "r+b") as file:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


class FrameStorage(TensorStorage):  # type: ignore[misc]
    """A storage whose observations are put together from frames when they are asked for.

    Args:
        table: the transitions in TED layout, with ``first`` in place of each observation.
        frames: the frames.
    """

    def __init__(self, table: TensorDict, frames: Frames) -> None:
        with spawning():
            super().__init__(table)
        self.frames = frames

    def get(self, index: Any) -> TensorDict:
        """Transitions in TED layout with uint8 observations ``[..., C, ...]``.

        Raises:
            InputError: if so many are asked for that they do not fit into memory.
        """
        part = super().get(index).clone(recurse=False)
        part["next"] = part["next"].clone(recurse=False)
        size = 2 * part.numel() * int(np.prod(self.frames.observation_shape))
        if size > 1 << 30 and self.frames.data.device.type == "cpu":
            fits_memory(size, "data.storage", f"the images of {part.numel():,} transitions")
        first, following = part.pop("first"), part["next"].pop("first")
        part["observation"], part["next", "observation"] = self.frames.pair(first, following)
        return part


def storage_of(table: TensorDict, frames: Frames | None) -> TensorStorage:
    """A storage of transitions in TED layout, without a copy; of images if there are frames."""
    return stored(table) if frames is None else FrameStorage(table, frames)


def held(storage: TensorStorage) -> tuple[TensorDict, Frames | None]:
    """The memory of a storage as :func:`storage_of` takes it."""
    if isinstance(storage, FrameStorage):
        return TensorStorage.get(storage, slice(None)), storage.frames
    return storage[:], None


def observation_shape(transitions: TensorDict, frames: Frames | None) -> tuple[int, ...]:
    """Shape of one observation of transitions ``[N]``, which may lie in frames."""
    return tuple(transitions["observation"].shape[1:]) if frames is None else frames.observation_shape


def moved(part: TensorDict, device: torch.device) -> TensorDict:
    """Transitions on another device; where observations and next ones share frames, these travel once.

    Raises:
        InputError: if they do not fit there.
    """
    observation, following = part["observation"], part["next", "observation"]
    ahead = following.storage_offset() - observation.storage_offset()
    shares = observation.untyped_storage().data_ptr() == following.untyped_storage().data_ptr()
    dim, size = part.dim(), observation[(0,) * (part.dim() + 1)].numel()
    shares = shares and observation.stride() == following.stride() and ahead > 0 and ahead % size == 0
    with _fitting():
        if not shares or observation.device == device:
            return part.to(device, non_blocking=True)
        channels = observation.shape[dim]
        shape = (*observation.shape[:dim], channels + ahead // size, *observation.shape[dim + 1 :])
        window = observation.as_strided(shape, observation.stride()).to(device, non_blocking=True)
        rest = part.exclude("observation", ("next", "observation")).to(device, non_blocking=True)
    rest["observation"] = window.narrow(dim, 0, channels)
    rest["next", "observation"] = window.narrow(dim, ahead // size, channels)
    return rest


@contextmanager
def _fitting() -> Iterator[None]:
    """Says in a line what to do if a draw does not fit into a device's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(f"{FEWER}: what is drawn at once does not fit ({first_line(error)})") from None
