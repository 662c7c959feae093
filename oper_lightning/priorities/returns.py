"""Priorities from the returns of trajectories: OPER-R, the best x %, and trajectory weighting (AW, RW).

OPER-R: Yue et al. 2022, arXiv 2210.09241; 2023, arXiv 2306.05412. AW and RW: Hong et al. 2023, arXiv 2306.13085.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.transitions import episode_of, episode_returns
from oper_lightning.errors import InputError
from oper_lightning.priorities.priority import Priority, mean_one, uniform


def min_max(values: Tensor) -> Tensor:
    """Maps values linearly onto [0, 1], smallest to 0 and largest to 1, float64."""
    values = values.double()
    low, high = values.min(), values.max()
    return (values - low) / (high - low)


def _all_equal(values: Tensor) -> bool:
    """Whether values differ by no more than rounding."""
    return bool(values.max() - values.min() <= 1e-6 * values.abs().max().clamp(min=1e-6))


def oper_r(returns: Tensor, p_base: float) -> Tensor:
    """Weights proportional to the min-max normalised return of the trajectory, plus ``p_base``; float64 ``[N]``."""
    if _all_equal(returns):
        return uniform(len(returns), "OPER-R: all episodes have the same return")
    return mean_one(min_max(returns) + p_base, "OPER-R")


def top_transitions(returns: Tensor, fraction: float) -> Tensor:
    """Keeps transitions whose trajectory's return reaches the (1 - fraction) quantile over transitions; ties stay."""
    threshold = np.quantile(returns.cpu().numpy(), 1 - fraction)
    return mean_one(returns >= threshold, "top fraction")


def top_trajectories(returns: Tensor, ends: Tensor, fraction: float) -> Tensor:
    """Keeps the best ``int(fraction * trajectories)`` trajectories (at least one) whole."""
    per_episode = returns[ends]
    kept = torch.zeros(len(per_episode), dtype=torch.bool)
    best = torch.argsort(per_episode.cpu(), descending=True, stable=True)
    kept[best[: max(1, int(fraction * len(kept)))]] = True
    return mean_one(kept[episode_of(ends.cpu())], "top fraction")


def softmax_weights(scores: Tensor, temperature: float, name: str) -> Tensor:
    """Weights proportional to exp(score / temperature), the scores first mapped onto [0, 1]; float64 ``[N]``."""
    if _all_equal(scores):
        return uniform(len(scores), f"{name}: all trajectories score the same")
    return mean_one(torch.softmax(min_max(scores) / temperature, 0), name)


def advantage_of_trajectories(returns: Tensor, initial_observations: Tensor, ends: Tensor) -> Tensor:
    """Return of each transition's trajectory minus a linear fit of returns on initial observations, float64 ``[N]``.

    Args:
        returns: ``[N]``, one return per transition.
        initial_observations: ``[E, ...]``, one per episode.
        ends: ``[N]``.
    """
    per_episode = returns[ends].double().cpu().numpy()
    flat = initial_observations.double().cpu().flatten(1).numpy()
    features = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
    solution, *_ = np.linalg.lstsq(features, per_episode, rcond=None)
    advantage = per_episode - features @ solution
    advantage[np.abs(advantage) <= 1e-6 * np.abs(per_episode).max()] = 0  # what is left of an exact fit is rounding
    return torch.from_numpy(advantage)[episode_of(ends.cpu())]


def _returns(transitions: TensorDict) -> tuple[Tensor, Tensor]:
    ends = transitions["next", "done"]
    return episode_returns(transitions["next", "reward"], ends), ends


class OperR(Priority):
    """OPER-R: a transition weighs as much as its trajectory returned, min-max normalised.

    Args:
        p_base: added to the normalised return; 0 gives the worst trajectory weight 0. Paper: 0, antmaze 0.2.
    """

    def __init__(self, p_base: float = 0.0) -> None:
        if p_base < 0:
            raise InputError(f"OperR: p_base {p_base} is negative; 0 or more is right")
        self.p_base = p_base

    def __call__(self, transitions: TensorDict) -> Tensor:
        returns, _ = _returns(transitions)
        return oper_r(returns, self.p_base)


class TopFraction(Priority):
    """The best part of the data, by return; the rest is never drawn.

    Args:
        fraction: share that is kept, in (0, 1].
        by: whether to rank transitions by their trajectory's return (ties stay) or to keep whole trajectories.
    """

    def __init__(self, fraction: float = 0.1, by: Literal["transitions", "trajectories"] = "transitions") -> None:
        if not 0 < fraction <= 1:
            raise InputError(f"TopFraction: fraction {fraction} is not in (0, 1]; 0.1 keeps the best 10 %")
        self.fraction = fraction
        self.by = by

    def __call__(self, transitions: TensorDict) -> Tensor:
        returns, ends = _returns(transitions)
        if self.by == "transitions":
            return top_transitions(returns, self.fraction)
        return top_trajectories(returns, ends, self.fraction)


class ReturnWeighting(Priority):
    """RW: softmax of the trajectory's return, min-max normalised.

    Args:
        temperature: divides the normalised return; lower is greedier. Paper: 0.1.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        _check_temperature(self, temperature)
        self.temperature = temperature

    def __call__(self, transitions: TensorDict) -> Tensor:
        return softmax_weights(_returns(transitions)[0], self.temperature, "RW")


class AdvantageWeighting(Priority):
    """AW: softmax of the trajectory's return minus what its first observation lets one expect (a linear fit).

    Args:
        temperature: divides the normalised advantage; lower is greedier. Paper: 0.1.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        _check_temperature(self, temperature)
        self.temperature = temperature

    def __call__(self, transitions: TensorDict) -> Tensor:
        returns, ends = _returns(transitions)
        starts = ends.roll(1)  # the last row of all is an end, so the first one is a start
        advantage = advantage_of_trajectories(returns, transitions["observation"][starts], ends)
        return softmax_weights(advantage, self.temperature, "AW")


def _check_temperature(priority: Priority, temperature: float) -> None:
    if temperature <= 0:
        raise InputError(f"{type(priority).__name__}: temperature {temperature} is not positive; the paper has 0.1")
