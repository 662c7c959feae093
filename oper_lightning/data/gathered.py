"""The transitions that an online run gathers, in the rows behind the recorded ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.draws import Stretches
from oper_lightning.data.frame_blocks import FrameBlocks
from oper_lightning.data.log import COLUMNS, FRAMES, LARGEST
from oper_lightning.data.matching import scaled
from oper_lightning.data.table import Table
from oper_lightning.data.transitions import seen_as

Visible = Literal["step", "episode"]


class Gathered:
    """Transitions of E copies of an environment. Those of a copy lie one after another, in a stretch of rows of its
    own, so that episodes, windows of n steps and returns-to-go are what they are in recorded data.

    Args:
        table: the recorded rows, with room behind them.
        copies: number E of copies.
        columns: makes the algorithm's columns.
        visible: whether a row may be drawn at once, or when its episode has ended.
    """

    def __init__(
        self, table: Table, copies: int, columns: Callable[[TensorDict], TensorDict], visible: Visible
    ) -> None:
        self.table = table
        self.seen = seen_as(table.all)
        self.columns = columns
        self.visible = visible
        self.room = (len(table.all) - len(table)) // copies
        """steps that there is room for"""
        self.steps = 0
        """steps that each copy has taken"""
        self.episode = [0] * copies
        """number of the episode that each copy plays"""
        self.began = [0] * copies
        """steps that the copy had taken when that episode began"""
        self.starts = [len(table) + copy * self.room for copy in range(copies)]
        self.rows = Stretches(torch.tensor(self.starts, device=table.device))
        size = math.prod(table.observation_shape if table.frames is None else table.frames.data.shape[1:])
        self.together = max(1, LARGEST // (copies * size))
        """steps that are written into a file"""
        self.blocks = FrameBlocks(table.frames, copies, self.room) if table.frames is not None else None

    def part(self, copy: int, first: int, last: int) -> TensorDict:
        """Steps of a copy, TensorDict ``[n]`` of raw transitions, in the memory where they lie."""
        start = self.starts[copy]
        return self.table.all[start + first : start + last]

    def put(self, rows: dict[str, Tensor]) -> list[tuple[float, int]]:
        """Takes in the next steps of all copies.

        Args:
            rows: columns ``[E, n, ...]``, see :data:`oper_lightning.data.log.COLUMNS`.

        Returns:
            return and length of each episode that ended, in the order of steps.
        """
        first, last = self.steps, self.steps + rows["reward"].shape[1]
        ended = []
        for copy in range(len(self.starts)):
            own = {key: rows[key][copy] for key in COLUMNS}
            part = self.part(copy, first, last)
            done = own["terminated"] | own["truncated"]
            part["action"].copy_(own["action"])
            following = part["next"]
            for key in ("reward", "terminated", "truncated"):
                following[key].copy_(own[key])
            following["done"].copy_(done)
            observed, led_to = own["observation"], own["next_observation"]
            if self.blocks is not None:
                begins = torch.cat([torch.tensor([self.began[copy] == first]), done[:-1]])
                observed, led_to = self.blocks.put(copy, observed.numpy(), led_to.numpy(), begins.numpy())
            part[self.seen].copy_(observed)
            following[self.seen].copy_(led_to)
            ended += self._arrange(copy, last, first + torch.nonzero(done).squeeze(1) + 1)
        self.steps = last  # not before all rows are there: a signal may come in between, and what counts is written
        self._show()
        return [(earned, length) for _, earned, length in sorted(ended)]

    def _arrange(self, copy: int, last: int, ends: Tensor) -> list[tuple[int, float, int]]:
        """Makes what algorithms get of the steps from the beginning of the running episode on, up to ``last``.

        Returns the step at which each episode ended, its return and its length.
        """
        began, ended = self.began[copy], []
        part = scaled(self.part(copy, began, last), self.table.factor, self.table.scaling[1])
        part = part.clone(recurse=False)
        part["next"] = part["next"].clone(recurse=False)
        done = part["next", "done"].clone()
        done[-1] = True  # of a running episode we see as much as if it were cut here
        part["next", "done"] = done
        made = self.columns(part)
        if ("next", "row") in made.keys(include_nested=True):
            made["next", "row"] = made["next", "row"] + self.starts[copy] + began
        start = self.starts[copy] + began
        entries = self.table.entries[start : start + len(part)]
        entries["next", "reward"].copy_(part["next", "reward"])
        for key, column in made.items(include_nested=True, leaves_only=True):
            entries[key].copy_(column)
        for end in ends.tolist():
            reward = self.part(copy, self.began[copy], end)["next", "reward"]
            ended.append((end, float(reward.double().sum()), end - self.began[copy]))
            self.began[copy] = end
            self.episode[copy] += 1
        return ended

    def _show(self) -> None:
        shown = self.began if self.visible == "episode" else [self.steps] * len(self.starts)
        self.rows.reach(torch.tensor(shown))

    def cut(self, copies: Sequence[int]) -> None:
        """Ends the running episodes of some copies as if they had been cut off after the last step."""
        for copy in copies:
            last = self.part(copy, self.steps - 1, self.steps)["next"]
            last["truncated"][:] = last["done"][:] = True
            self._arrange(copy, self.steps, torch.tensor([self.steps]))
        self._show()

    def log(self, first: int, last: int) -> dict[str, Tensor]:
        """The steps from ``first`` to ``last`` as :func:`oper_lightning.data.log.write` takes them."""
        parts: TensorDict = torch.stack([self.part(copy, first, last) for copy in range(len(self.starts))])
        following = parts["next"]
        columns = {"action": parts["action"], **{key: following[key] for key in ("reward", "terminated", "truncated")}}
        if self.table.frames is None:
            return {**columns, "observation": parts["observation"], "next_observation": following["observation"]}
        images = self.table.frames.part(parts["first"], following["first"])
        return {**columns, **dict(zip(FRAMES, images, strict=True))}

    def running(self, copy: int) -> np.ndarray:
        """Actions of the episode that a copy plays, ``[n, ...]``."""
        return self.part(copy, self.began[copy], self.steps)["action"].cpu().numpy()

    def last(self) -> np.ndarray:
        """What each copy was led to by its last step, ``[E, *O]``."""
        numbers = torch.tensor(self.starts, device=self.table.device) + self.steps - 1
        following = self.table.all["next", self.seen][numbers]
        if self.table.frames is not None:
            following = self.table.frames.take(following, self.table.frames.stack)
        return following.cpu().numpy()
