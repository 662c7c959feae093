"""Losses without reduction: one number per element, in the shape of their inputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LARGEST_EXPONENT = 80.0  # infinity times a priority of zero would not be a number


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Element-wise squared difference.

    Raises:
        ValueError: if the shapes differ (``[B] - [B, 1]`` would silently become ``[B, B]``).
    """
    _alike(prediction, target)
    return (prediction - target).square()


def huber_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Element-wise Huber loss: half the squared difference, and beyond a difference of 1 its size less one half.

    Raises:
        ValueError: if the shapes differ.
    """
    _alike(prediction, target)
    return functional.smooth_l1_loss(prediction, target, reduction="none")


def _alike(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(f"shapes differ: {tuple(prediction.shape)} and {tuple(target.shape)}")


def expectile_error(prediction: Tensor, target: Tensor, expectile: float) -> Tensor:
    """Asymmetric squared error: ``expectile`` where the target is above the prediction, 1 - ``expectile`` below."""
    error = squared_error(prediction, target)
    return torch.where(target < prediction, 1 - expectile, expectile) * error


def advantage_weight(advantage: Tensor, temperature: float, priority: Tensor, largest: float) -> Tensor:
    """What recorded actions weigh in advantage-weighted regression, ``[B]``: exp(temperature * advantage) times the
    weight of a priority, ``largest`` at most (Kostrikov et al. 2021, arXiv 2110.06169, equation 7).

    The clip bounds the product. All arguments but the numbers are ``[B]``.
    """
    exponential = (temperature * advantage).clamp(max=LARGEST_EXPONENT).exp()
    return (priority * exponential).clamp(max=largest)


def quantile_error(quantiles: Tensor, target: Tensor) -> Tensor:
    """Quantile Huber loss ``[B]`` of N predicted quantiles ``[B, N]`` against M samples of a distribution ``[B, M]``.

    Dabney et al. 2018, arXiv 1710.10044, equation 10: the samples above the n-th quantile have weight (n - 1/2) / N,
    the others the rest of 1. Summed over the quantiles, averaged over the samples.

    Raises:
        ValueError: if the shapes are not ``[B, N]`` and ``[B, M]``.
    """
    if quantiles.dim() != 2 or target.dim() != 2 or len(quantiles) != len(target):
        raise ValueError(f"shapes {tuple(quantiles.shape)} and {tuple(target.shape)}; [B, N] and [B, M] are needed")
    rows, count = quantiles.shape
    level = ((torch.arange(count, device=quantiles.device) + 0.5) / count).unsqueeze(1)
    shape = (rows, count, target.shape[1])
    predicted, samples = quantiles.unsqueeze(2).expand(shape), target.unsqueeze(1).expand(shape)
    weight = torch.where(samples > predicted, level, 1 - level)
    return (weight * huber_error(predicted, samples)).sum(1).mean(1)
