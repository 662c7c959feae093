"""Losses without reduction: one number per element, in the shape of their inputs."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Element-wise squared difference.

    Raises:
        ValueError: if the shapes differ (``[B] - [B, 1]`` would silently become ``[B, B]``).
    """
    if prediction.shape != target.shape:
        raise ValueError(f"shapes differ: {tuple(prediction.shape)} and {tuple(target.shape)}")
    return (prediction - target).square()


def expectile_error(prediction: Tensor, target: Tensor, expectile: float) -> Tensor:
    """Asymmetric squared error: ``expectile`` where the target is above the prediction, 1 - ``expectile`` below."""
    error = squared_error(prediction, target)
    return torch.where(target < prediction, 1 - expectile, expectile) * error
