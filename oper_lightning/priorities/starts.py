"""A priority for where imagined rollouts begin: the first observations of episodes."""

from __future__ import annotations

from tensordict import TensorDict
from torch import Tensor

from oper_lightning.priorities.priority import Priority, checked, mean_one


class FirstObservations(Priority):
    """Only the first transitions of episodes matter, all alike or by another priority.

    For BREMEN (arXiv 2006.03647), whose imagined rollouts begin at recorded observations: with this priority they begin
    where episodes did.

    Args:
        of: how much each of them matters; by default all matter the same.
    """

    def __init__(self, of: Priority | None = None) -> None:
        self.of = of

    def __call__(self, transitions: TensorDict) -> Tensor:
        first = transitions["next", "done"].roll(1).double()
        first[0] = 1
        if self.of is not None:
            first = first * checked(self.of(transitions), len(first), type(self.of).__name__)
        return mean_one(first, "FirstObservations")
