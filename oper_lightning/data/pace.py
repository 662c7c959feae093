"""How many steps of an environment pay for how many gradient updates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from oper_lightning.data.loaders import LARGEST_BLOCK
from oper_lightning.errors import InputError

MOST_STEPS = 10  # of a copy of the environment between two blocks, where the block is chosen here


@dataclass(frozen=True)
class Pace:
    """The pace of an online run.

    Args:
        updates_per_step: gradient updates for each step of an environment.
        copies: number E of copies of the environment.
        warmup: steps of environments, all copies together, before the first update.
    """

    updates_per_step: float
    copies: int
    warmup: int

    def steps(self, updates: int) -> float:
        """Steps of each copy that pay for so many updates."""
        return updates / self.updates_per_step / self.copies

    def block(self, updates: int) -> int:
        """The updates of a block, out of so many of an epoch: as many as small blocks may have.

        They are paid for by a whole number of steps, of which each copy takes few, so that the policy soon sees what
        came of them.
        """
        fit = [k for k in range(1, updates + 1) if updates % k == 0 and self.fits(k)]
        small = [k for k in fit if k <= LARGEST_BLOCK and self.steps(k) <= MOST_STEPS]
        return max(small) if small else min(fit, default=1)

    def fits(self, block: int) -> bool:
        """Whether a block of so many updates is paid for by a whole number of steps."""
        steps = self.steps(block)
        return round(steps) >= 1 and math.isclose(steps, round(steps), rel_tol=1e-9)

    def check(self, block: int) -> None:
        """Refuses blocks that are not paid for by a whole number of steps.

        Raises:
            InputError: if they are not.
        """
        if not self.fits(block):
            raise InputError(
                f"data.updates_per_block: {block} updates at data.updates_per_step {self.updates_per_step:g} are paid "
                f"for by {self.steps(block):g} steps of each of {self.copies} copies of the environment; it must be a "
                f"whole number"
            )

    @property
    def most_first(self) -> int:
        """Steps of each copy before the first block's own, at most."""
        return -(-self.warmup // self.copies)

    def first(self, block: int) -> int:
        """Steps of each copy before the first block's own, which count as warm-up too."""
        return max(self.most_first - round(self.steps(block)), 0)

    def taken(self, updates: int, block: int) -> int:
        """Steps of environments, all copies together, that have been taken when so many updates are done."""
        return self.copies * (self.first(block) + round(self.steps(updates)))

    def most(self, updates: int) -> int:
        """The same, however short blocks are."""
        return self.copies * (self.most_first + round(self.steps(updates)))
