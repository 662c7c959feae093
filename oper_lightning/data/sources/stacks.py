"""Stacks of frames, and the single frames that they are made of."""

from __future__ import annotations

import numpy as np

from oper_lightning.errors import InputError

DEEPEST = 256  # frames of a stack; a larger number cannot be meant


def stacked(frames: np.ndarray, stack: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations and next observations ``[T, S, ...]`` of an episode: its last S frames at every step.

    The first frame stands for those before it. Both are views of the same memory.

    Args:
        frames: the episode's T + 1 frames ``[T + 1, ...]``.
        stack: S.
    """
    padded = np.concatenate([np.repeat(frames[:1], stack - 1, 0), frames])
    windows = np.lib.stride_tricks.sliding_window_view(padded, stack, axis=0, writeable=True)
    windows = np.moveaxis(windows, -1, 1)
    return windows[:-1], windows[1:]


def single_frames(observation: np.ndarray, next_observation: np.ndarray) -> np.ndarray | None:
    """The frames ``[T + 1, ...]`` from which :func:`stacked` makes these stacks ``[T, S, ...]``; None if none do."""
    begins_alike = (observation[0] == observation[0, :1]).all()
    moves_on = (observation[:, 1:] == next_observation[:, :-1]).all()
    if begins_alike and moves_on and follows(observation, next_observation):
        return np.concatenate([observation[:, -1], next_observation[-1:, -1]])
    return None


def follows(observation: np.ndarray, next_observation: np.ndarray) -> bool:
    """Whether every step of an episode begins where the step before ended; both ``[T, ...]``."""
    return bool((observation[1:] == next_observation[:-1]).all())


def depth(stack: object, origin: object, name: str) -> int:
    """A number of frames as a file says it.

    Raises:
        InputError: if it is none.
    """
    if isinstance(stack, int | np.integer) and not isinstance(stack, bool) and 1 <= stack <= DEEPEST:
        return int(stack)
    raise InputError(f"{origin}: {name} is {str(stack)[:60]!r}; a number of frames from 1 to {DEEPEST} is needed")
