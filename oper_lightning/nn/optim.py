"""Optimisers, learning-rate schedules and target networks."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from oper_lightning.errors import InputError

Schedule = Literal["cosine", "linear", "none"]
Network = TypeVar("Network", bound=nn.Module)


class Adam(torch.optim.Adam):
    """PyTorch's fused Adam on a short way: a step is one call of its kernel, or formulas that a compiler can read.

    Around that kernel PyTorch's own step sorts the parameters by device and type and counts for each by itself, which
    takes about as long as the kernel where networks are small. Here all are of one device and type, always have
    gradients together, and share one count.

    Args:
        parameters: what it trains.
        learning_rate: its learning rate; other options are PyTorch's defaults.
    """

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float) -> None:
        super().__init__(parameters, lr=learning_rate, fused=True)
        self._begin()

    def state_dict(self) -> dict[str, Any]:
        """What PyTorch's own would give: moments, and a count for each parameter."""
        found = super().state_dict()
        found["state"] = {number: {**state, "step": state["step"].clone()} for number, state in found["state"].items()}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes moments and count from what :meth:`state_dict` gave, here or by PyTorch's own."""
        super().load_state_dict(state_dict)
        self._begin()

    def _begin(self) -> None:
        """Makes moments where there are none, and one count for all parameters."""
        parameters = self.param_groups[0]["params"]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] = self.state[parameters[0]]["step"]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves all parameters down their gradients."""
        (group,) = self.param_groups
        parameters, rate, (slow, slower) = group["params"], group["lr"], group["betas"]
        # The kernel goes through memory without a look at strides.
        gradients = [parameter.grad.contiguous() for parameter in parameters]
        states = [self.state[parameter] for parameter in parameters]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        count = states[0]["step"]
        count += 1
        if not torch.compiler.is_compiling():
            torch._fused_adam_(
                parameters,
                gradients,
                means,
                squares,
                [],
                [count] * len(parameters),
                lr=rate,
                beta1=slow,
                beta2=slower,
                weight_decay=0.0,
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
            return
        # Kingma & Ba 2014, arXiv 1412.6980, algorithm 1; corrections in double precision, as in the kernel.
        first, second = (1 - beta ** count.double() for beta in (slow, slower))
        length, root = (rate / first).to(means[0].dtype), second.sqrt().to(means[0].dtype)
        for parameter, gradient, mean, square in zip(parameters, gradients, means, squares, strict=True):
            mean.lerp_(gradient, 1 - slow)
            square.mul_(slower).addcmul_(gradient, gradient, value=1 - slower)
            parameter.sub_(length * mean / (square.sqrt() / root + group["eps"]))


def adam(parameters: Iterable[Tensor], learning_rate: float) -> Adam:
    """Adam with PyTorch's other defaults.

    Raises:
        InputError: if the learning rate is not positive.
    """
    if not learning_rate > 0:
        raise InputError(f"learning_rate {learning_rate} is not positive")
    return Adam(parameters, learning_rate)


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


def settle(optimiser: torch.optim.Optimizer, compiled: bool, recorded: bool) -> None:
    """Gives an optimiser the learning rate that it was made with, whatever a checkpoint brought.

    Args:
        optimiser: with Adam's options.
        compiled: whether its steps are compiled or recorded: its learning rate becomes a tensor, which may change.
        recorded: whether CUDA graphs record them: it is told so.
    """
    rate = optimiser.defaults["lr"]
    for group in optimiser.param_groups:
        group["capturable"] = recorded
        group["lr"] = torch.tensor(rate, device=group["params"][0].device) if compiled else rate


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
