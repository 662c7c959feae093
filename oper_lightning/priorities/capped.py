"""A priority that is mixed with equal weights and bounded: for what must stay right everywhere, such as a model."""

from __future__ import annotations

from tensordict import TensorDict
from torch import Tensor

from oper_lightning.errors import InputError
from oper_lightning.priorities.priority import Priority, checked, mean_one


class Capped(Priority):
    """Another priority's weights w, no larger than a bound, mixed with equal ones: (1 - share) + share * min(w, cap).

    For the dynamics of BREMEN (arXiv 2006.03647), which have to stay accurate off the good part of the data too.

    Args:
        of: the priority.
        share: how much of the weight is the priority's; 0 gives equal weights, 1 the priority's alone.
        cap: the largest weight that counts, where 1 is the mean.
    """

    def __init__(self, of: Priority, share: float = 0.5, cap: float = 10.0) -> None:
        if not 0 <= share <= 1:
            raise InputError(f"Capped: share is {share}; a number from 0 to 1 is needed")
        if not cap > 0:
            raise InputError(f"Capped: cap is {cap}; a weight above 0 is needed, where 1 is the mean")
        self.of, self.share, self.cap = of, share, cap
        self.roles = of.roles

    def __call__(self, transitions: TensorDict) -> Tensor:
        weights = checked(self.of(transitions), len(transitions), type(self.of).__name__)
        return mean_one((1 - self.share) + self.share * weights.clamp(max=self.cap), "Capped")
