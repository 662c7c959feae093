"""OPER-A's weights from advantages. Yue et al. 2023, arXiv 2306.05412."""

from __future__ import annotations

import torch
from torch import Tensor

from oper_lightning.errors import note
from oper_lightning.priorities.priority import mean_one, rescale_std


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
