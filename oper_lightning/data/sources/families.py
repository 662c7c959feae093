"""What becomes of the records of RL Unplugged's Atari data: frames side by side, and rows of a fixed size.

Two families of shards exist, and the first record tells which one it is:

* episodes, one to a record, in order: T single frames, actions, rewards and discounts. Where the last discount is 0 the
  game was over after the last action, and T transitions come of it; the last one has no next observation of its own,
  needs none, and is given its newest frame once more. Else the last step, whose outcome was not recorded, is left out.
  The stack of the first observation repeats the first frame.
* transitions, one to a record, with both stacks of four frames, in no particular order as far as is known. Where one
  does follow from the one before, they are joined.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from oper_lightning.data.sources.pictures import SIDE, frame
from oper_lightning.data.sources.tfexample import BYTES, FLOATS, INTEGERS, Malformed, example

STACK = 4
ROW = np.dtype(
    [
        ("first", "<i8"),  # number of the first frame of the observation's stack
        ("following", "<i8"),  # and of the next observation's
        ("action", "<i8"),
        ("clipped", "<f4"),
        ("unclipped", "<f4"),
        ("episode_return", "<f4"),
        ("terminated", "u1"),
    ]
)
SIZE = SIDE * SIDE
FRAMES, ROWS = "frames.u8", "rows.bin"
EPISODE = {
    b"observations": BYTES,
    b"actions": INTEGERS,
    b"unclipped_rewards": FLOATS,
    b"clipped_rewards": FLOATS,
    b"discounts": FLOATS,
    b"episode_return": FLOATS,
}
TRANSITION = {
    b"o_t": BYTES,
    b"a_t": INTEGERS,
    b"r_t": FLOATS,
    b"d_t": FLOATS,
    b"o_tp1": BYTES,
    b"episode_id": INTEGERS,
    b"episode_return": FLOATS,
}
Example = dict[bytes, list[Any]]


class Writer:
    """Frames and rows, added at the ends of their files.

    Args:
        folder: where the files are.
        frames: how many frames to keep of what is there.
        rows: how many rows.
    """

    def __init__(self, folder: Path, frames: int, rows: int) -> None:
        self.frames, self.rows, self.following = frames, rows, 0
        """how many there are, and ``following`` of the last row"""
        files = folder / FRAMES, folder / ROWS
        if rows:
            last = np.fromfile(files[1], ROW, 1, offset=(rows - 1) * ROW.itemsize)
            self.following = int(last["following"][0])
        for file, size in zip(files, (frames * SIZE, rows * ROW.itemsize), strict=True):
            file.touch()
            os.truncate(file, size)
        self.files = [file.open("ab", buffering=1 << 20) for file in files]
        self.waiting: list[tuple[Any, ...]] = []

    def keep(self, pixels: list[np.ndarray]) -> int:
        """Adds frames; returns the number of the first."""
        for image in pixels:
            self.files[0].write(image.data)
        self.frames += len(pixels)
        return self.frames - len(pixels)

    def row(self, first: int, following: int, *values: Any) -> None:
        """Adds a row, in the order of :data:`ROW`."""
        self.waiting.append((first, following, *values))
        self.rows += 1
        self.following = following

    def take_back(self, frames: int, rows: int) -> None:
        """Forgets what was added since there were so many frames and rows, and progress was noted."""
        self.files[0].flush()
        os.truncate(self.files[0].name, frames * SIZE)
        del self.waiting[len(self.waiting) - (self.rows - rows) :]
        self.frames, self.rows = frames, rows

    def flush(self) -> None:
        """Makes sure that all is on the disk."""
        self.files[1].write(np.array(self.waiting, dtype=ROW).tobytes())
        self.waiting.clear()
        for file in self.files:
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.close()


# What records become ---------------------------------------------------------------------------------------------


class Episodes:
    """Records that are whole episodes."""

    wanted = EPISODE

    def recall(self, example: Example) -> None:
        """Episodes do not depend on each other."""

    def add(self, example: Example, to: Writer) -> None:
        pngs, actions = _values(example, b"observations"), _values(example, b"actions")
        unclipped, discounts = _values(example, b"unclipped_rewards"), _values(example, b"discounts")
        clipped = example.get(b"clipped_rewards") or [max(-1.0, min(1.0, reward)) for reward in unclipped]
        steps = len(pngs)
        if {len(actions), len(unclipped), len(clipped), len(discounts)} != {steps}:
            raise Malformed(
                f"{steps:,} observations, {len(actions):,} actions, {len(unclipped):,} and {len(clipped):,} rewards, "
                f"{len(discounts):,} discounts; one of each for every step is needed"
            )
        total = _one(example, b"episode_return")
        _check_finite(total, *clipped, *unclipped)
        terminated = discounts[-1] == 0
        rows = steps if terminated else steps - 1
        if rows == 0:
            return
        last, pixels = b"", frame(pngs[0])
        first = to.keep([pixels] * (STACK - 1))
        for png in pngs:
            if png != last:  # a game that stands still repeats its picture
                last, pixels = png, frame(png)
            to.keep([pixels])
        if terminated:
            to.keep([pixels])
        for row in range(rows):
            over = terminated and row == rows - 1
            to.row(first + row, first + row + 1, _action(actions[row]), clipped[row], unclipped[row], total, over)


class Transitions:
    """Records that are transitions, joined where one follows from the one before."""

    wanted = TRANSITION

    def __init__(self) -> None:
        self.before: tuple[list[bytes], int] | None = None  # next observation and episode of the record before
        self.known: dict[bytes, np.ndarray] = {}  # frames of the record before

    def recall(self, example: Example) -> None:
        over = _one(example, b"d_t") == 0
        self.before = None if over else (_stack(example, b"o_tp1"), _one(example, b"episode_id"))

    def add(self, example: Example, to: Writer) -> None:
        now, after, episode = _stack(example, b"o_t"), _stack(example, b"o_tp1"), _one(example, b"episode_id")
        action, reward = _action(_one(example, b"a_t")), _one(example, b"r_t")
        over, total = _one(example, b"d_t") == 0, _one(example, b"episode_return")
        _check_finite(total, reward)
        pixels: dict[bytes, np.ndarray] = {}
        for png in (*now, *after):
            if png not in pixels:
                pixels[png] = self.known[png] if png in self.known else frame(png)
        joined = self.before == (now, episode)
        first = to.following if joined else to.keep([pixels[png] for png in now])
        newest = to.frames == first + STACK  # else frames of another record lie behind the observation's
        if newest and all(a == b or (pixels[a] == pixels[b]).all() for a, b in zip(now[1:], after, strict=False)):
            following = to.keep([pixels[after[-1]]]) - STACK + 1
        else:
            following = to.keep([pixels[png] for png in after])
        to.row(first, following, action, reward, math.nan, total, over)
        self.before, self.known = None if over else (after, episode), pixels


def family_of(data: bytes) -> Episodes | Transitions:
    """What a record is one of."""
    found = example(data, EPISODE | TRANSITION)
    if b"observations" in found:
        return Episodes()
    if b"o_t" in found:
        return Transitions()
    raise Malformed("neither 'observations' nor 'o_t', which RL Unplugged's Atari data have")


def _values(example: Example, name: bytes) -> list[Any]:
    if not (values := example.get(name)):
        raise Malformed(f"no {name.decode()!r}")
    return values


def _one(example: Example, name: bytes) -> Any:
    values = _values(example, name)
    if len(values) != 1:
        raise Malformed(f"{len(values):,} values of {name.decode()!r}; one is needed")
    return values[0]


def _stack(example: Example, name: bytes) -> list[bytes]:
    values = _values(example, name)
    if len(values) != STACK:
        raise Malformed(f"{len(values):,} frames in {name.decode()!r}; {STACK} are needed")
    return values


def _check_finite(*rewards: float) -> None:
    if not all(map(math.isfinite, rewards)):
        raise Malformed("a reward or return that is not finite")


def _action(number: int) -> int:
    if not 0 <= number < 18:
        raise Malformed(f"action {number}; Atari's are 0 to 17")
    return number
