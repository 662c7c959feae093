"""The idea of a priority, and the numbers that describe one."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.errors import InputError, note
from oper_lightning.spec import ROLES, Role

MEAN_ROUNDING = 1e-9  # by how much the mean of weights in float64 may miss 1


class Priority(ABC):
    """How much each transition matters."""

    roles: tuple[Role, ...] = ROLES
    """the loss terms that see the priority unless ``prioritise`` says otherwise, as published"""

    @abstractmethod
    def __call__(self, transitions: TensorDict) -> Tensor:
        """Weights of the transitions, ``[N]``: one non-negative number each, as a tensor or a numpy array.

        The priorities of this package return float64 with mean 1. The datamodule converts the weights of others.

        Args:
            transitions: TensorDict ``[N]`` with raw rewards, see :mod:`oper_lightning.data.transitions`; to be read
                only.
        """


def mean_one(weights: Tensor, origin: str) -> Tensor:
    """Checks weights ``[..., N]`` and scales them to mean 1 over the last dimension, float64.

    Raises:
        InputError: if a weight is negative, NaN or infinite, or all are zero; names ``origin``.
    """
    weights = weights.double()
    bad = ~weights.isfinite()
    if bad.any():
        row = int(torch.nonzero(bad)[0, -1])
        raise InputError(f"{origin}: weight {weights[bad][0].item()} at row {row}; weights must be finite")
    if (weights < 0).any():
        row = int(torch.nonzero(weights < 0)[0, -1])
        raise InputError(f"{origin}: weight {weights[weights < 0][0].item():.4g} at row {row} (the first) is negative")
    total = weights.sum(-1, keepdim=True)
    if (total == 0).any():
        raise InputError(f"{origin}: all weights are zero; at least one transition must matter")
    return weights * (weights.shape[-1] / total)


def checked(weights: object, rows: int, origin: str) -> Tensor:
    """Checks weights ``[N]``, a tensor or an array, and returns them as float64 with mean 1.

    Args:
        weights: what was given.
        rows: number N of transitions.
        origin: the name of what gave them, for messages.

    Raises:
        InputError: if they are not one number per transition, or :func:`mean_one` refuses them.
    """
    wanted = f"one number for each of the {rows:,} transitions, shape [{rows}], is needed"
    try:
        given = torch.as_tensor(weights).detach()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{origin}: weights are of type {type(weights).__name__}; {wanted}") from None
    if given.is_complex():
        raise InputError(f"{origin}: weights are complex; {wanted}")
    if given.shape != (rows,):
        same = given.numel() == rows and rows > 1
        remedy = "flatten them with .reshape(-1)" if same else "they were made for other data"
        raise InputError(f"{origin}: weights have shape {list(given.shape)}; {wanted}: {remedy}")
    scaled = mean_one(given, origin)
    # Weights whose mean is 1 already stay as they are to the last bit, and so do the draws made by them.
    return given.double() if abs(given.double().mean().item() - 1) < MEAN_ROUNDING else scaled


def rescale_std(weights: Tensor, std: float) -> Tensor:
    """Stretches mean-1 weights ``[..., N]`` about 1 to a population standard deviation; equal weights stay equal."""
    spread = weights.std(-1, correction=0, keepdim=True)
    return torch.where(spread > 0, 1 + (weights - 1) * (std / spread), 1.0)


def in_percent(share: float) -> str:
    """A share that is not nothing as a person reads it: "62%", "0.2%"."""
    return f"{share:.0%}" if share >= 0.01 else f"{100 * share:.1g}%"


def statistics(weights: Tensor) -> dict[str, float]:
    """What a person wants to know of mean-1 weights ``[N]``.

    ``ess`` is the effective sample size (sum w)^2 / sum w^2 as a share of N, ``at_floor`` the share of transitions
    that have the smallest weight.
    """
    weights = weights.double()
    low = weights.min()
    return {
        "std": weights.std(correction=0).item(),
        "ess": (weights.sum() ** 2 / weights.square().sum() / len(weights)).item(),
        "min": low.item(),
        "max": weights.max().item(),
        "at_floor": (weights <= low * (1 + 1e-6)).double().mean().item(),
    }


def uniform(rows: int, why: str) -> Tensor:
    """Weights of 1, with a note why the priority could not tell the transitions apart."""
    note(f"{why}: every transition weighs the same")
    return torch.ones(rows, dtype=torch.float64)
