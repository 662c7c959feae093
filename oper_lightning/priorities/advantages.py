"""OPER-A's weights from advantages. Yue et al. 2023, arXiv 2306.05412."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.errors import InputError, note
from oper_lightning.priorities.priority import Priority, mean_one, rescale_std
from oper_lightning.spec import Role


def next_weights(weights: Tensor, advantage: Tensor) -> Tensor:
    """Multiplies weights ``[S, N]`` by the advantages' distance from the worst; float64, mean 1 over transitions."""
    worst = advantage.amin(-1, keepdim=True)
    factor = advantage.double() - worst
    if not factor.any(-1).all():
        note("OPER-A: all advantages of a seed are equal: its weights stay as they are")
        factor = torch.where(factor.any(-1, keepdim=True), factor, 1.0)
    return mean_one(weights.double() * factor, "OPER-A")


def stretch_std(weights: Tensor, std: float, floor: float) -> Tensor:
    """Stretches weights ``[S, N]`` whose standard deviation is below ``std`` to it, floored; mean 1."""
    narrow = weights.std(-1, correction=0, keepdim=True) < std
    stretched = mean_one(rescale_std(weights, std).clamp(min=floor), "OPER-A")
    return torch.where(narrow, stretched, weights)


class BanditAdvantages(Priority):
    """OPER-A without a network, for data whose episodes are single steps and whose observations mean nothing.

    The value of an action is its reward. The value of the observation is the mean of the rewards under the weights.

    Args:
        iterations: number of times that weights are multiplied by advantages.
    """

    roles: tuple[Role, ...] = ("improvement", "constraint")

    def __init__(self, iterations: int = 5) -> None:
        if iterations < 1:
            raise InputError(f"BanditAdvantages: iterations {iterations} must be at least 1")
        self.iterations = iterations

    def __call__(self, transitions: TensorDict) -> Tensor:
        if not transitions["next", "terminated"].all():
            raise InputError("BanditAdvantages: episodes of more than one step; OPER-A's stage 1 is for those")
        reward = transitions["next", "reward"].double()
        weights = torch.ones_like(reward)
        for _ in range(self.iterations):
            weights = next_weights(weights[None], (reward - (weights * reward).mean())[None])[0]
        return weights
