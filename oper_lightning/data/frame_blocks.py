"""Adds frames to those that were recorded, a few steps of several copies of an environment at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from oper_lightning.data.frame_writer import laid_out, moved_up
from oper_lightning.data.frames import Frames

BLOCK = 1024  # frames that are taken at a time, in long runs


class FrameBlocks:
    """Puts frames of E copies behind the recorded ones. Each copy has a block of its own, so that frames of steps that
    follow each other lie side by side; where a block is full, the stack with which the next one begins is repeated.

    Args:
        frames: the recorded ones.
        copies: number E of copies.
        room: steps of a copy that will come.
    """

    def __init__(self, frames: Frames, copies: int, room: int) -> None:
        self.frames = frames
        self.block = min(BLOCK, max(room // 4, 16 * frames.stack))
        self.place = [0] * copies
        """number of the next frame of each copy"""
        self.left = [0] * copies
        """frames that there is still room for in its block"""

    def put(
        self, copy: int, observation: np.ndarray, following: np.ndarray, begins: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Keeps the frames of the next steps of a copy.

        Args:
            copy: its number.
            observation: images ``[n, C, ...]``.
            following: the next ones.
            begins: whether a step is the first one of an episode, bool ``[n]``.

        Returns:
            numbers of the first frames of observations and next ones, int64 ``[n]`` each.
        """
        (channels, *sides), stack = self.frames.data.shape[1:], self.frames.stack
        moves = moved_up(observation, following, channels)
        needed = int(np.where(moves, 1, stack).sum() + stack * begins.sum())
        if needed > self.left[copy]:
            needed += 0 if begins[0] else stack
            begins = np.append(True, begins[1:])
            self.left[copy] = max(needed, self.block)
            self.place[copy] = self.frames.take_room(self.left[copy])
        place = self.place[copy]
        made, numbers = laid_out(
            observation, following, begins, moves, channels, lambda count: np.empty((count, channels, *sides), np.uint8)
        )
        self.frames.data[place : place + needed] = torch.from_numpy(made)
        self.place[copy] += needed
        self.left[copy] -= needed
        first, after = torch.from_numpy(numbers + place).unbind()
        return first, after
