"""Optimisers, learning-rate schedules and target networks."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from oper_lightning.errors import InputError

Schedule = Literal["cosine", "linear", "none"]
Network = TypeVar("Network", bound=nn.Module)


def adam(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Adam:
    """Adam with PyTorch's other defaults, in its fused form.

    Raises:
        InputError: if the learning rate is not positive.
    """
    if not learning_rate > 0:
        raise InputError(f"learning_rate {learning_rate} is not positive")
    return torch.optim.Adam(parameters, lr=learning_rate, fused=True)


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Counts denormal numbers as zero: Adam's moments decay into them, and processors handle them slowly."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def reset_adam(optimiser: torch.optim.Optimizer) -> None:
    """Resets an Adam optimiser: moments and step count become zero, in place."""
    for state in optimiser.state.values():
        for value in state.values():
            value.zero_()


def settle(optimiser: torch.optim.Optimizer, recorded: bool) -> None:
    """Gives an optimiser the learning rate that it was made with, whatever a checkpoint brought.

    Args:
        optimiser: with Adam's options.
        recorded: whether CUDA graphs are to record its steps: it is told so, and its learning rate becomes a tensor.
    """
    rate = optimiser.defaults["lr"]
    for group in optimiser.param_groups:
        group["capturable"] = recorded
        group["lr"] = torch.tensor(rate, device=group["params"][0].device) if recorded else rate


def set_learning_rate(optimiser: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of all parameter groups."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


def schedule(name: Schedule, progress: float) -> float:
    """Factor of the learning rate at ``progress`` in [0, 1) of a run: 1 at the start; 0 at the end unless "none"."""
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if name == "linear" else 1.0


def frozen_copy(network: Network) -> Network:
    """A copy to serve as target network: same values, no gradients."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def polyak(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Moves the target's parameters towards the online ones: target <- (1 - tau) * target + tau * online."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)


@torch.no_grad()
def copy_to(target: nn.Module, online: nn.Module) -> None:
    """Gives the target's parameters the values of the online ones."""
    torch._foreach_copy_(list(target.parameters()), list(online.parameters()))
