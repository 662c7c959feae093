"""Priorities from the returns of trajectories: OPER-R, the best x %, and trajectory weighting (AW, RW).

OPER-R: Yue et al. 2022, arXiv 2210.09241; 2023, arXiv 2306.05412. AW and RW: Hong et al. 2023, arXiv 2306.13085.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.transitions import episode_of, has_frames, has_returns, returns_of
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


Returns = Literal["sum", "per_step", "rank"]


def scores(transitions: TensorDict, returns: Returns) -> tuple[Tensor, Tensor]:
    """What a trajectory of E is taken to be worth, float64 ``[N]``, one number for each of its transitions; and ends.

    With G the sum of a trajectory's raw rewards and T its number of transitions: ``sum`` is G, ``per_step`` is G / T,
    and ``rank`` is (r - 1) / (E - 1), where r is the place of G in ascending order, from 1; equal G share the mean of
    their places. Of trajectories that were not recorded whole G is what the recording says.

    Raises:
        InputError: if a return per step is asked for, and trajectories were not recorded whole.
    """
    ends = transitions["next", "done"]
    total = returns_of(transitions)
    if returns == "sum":
        return total, ends
    if returns == "per_step" and has_returns(transitions):
        raise InputError("returns per_step: episodes were not recorded whole, so that their lengths are not known")
    episode = episode_of(ends)
    if returns == "per_step":
        return total / torch.bincount(episode)[episode], ends
    _, place, count = total[ends].unique(return_inverse=True, return_counts=True)
    middle = count.cumsum(0) - (count + 1) / 2  # mean place of equal values, from 0
    share = middle.double() / max(int(ends.sum()) - 1, 1)
    return share[place][episode], ends


class ByReturn(Priority):
    """A priority that is computed from the returns of trajectories.

    Args:
        returns: what a trajectory is worth: sum (of its rewards), per_step (the sum over its number of steps; for
            lengths that differ for other reasons than skill) or rank (the place of the sum among all trajectories, from
            0 to 1; for data in which a few trajectories returned far more or less than the rest). Papers: sum.
    """

    def __init__(self, returns: Returns) -> None:
        self.returns: Returns = returns

    def scores(self, transitions: TensorDict) -> tuple[Tensor, Tensor]:
        """What each transition's trajectory is worth, float64 ``[N]``, and ends, bool ``[N]``."""
        return scores(transitions, self.returns)


class OperR(ByReturn):
    """OPER-R: the weight of a transition is the return of its trajectory, min-max normalised.

    Args:
        p_base: added to the normalised return; 0 gives the worst trajectory weight 0. Paper: 0, antmaze 0.2.
        returns: what a trajectory is worth: sum (of its rewards), per_step (the sum over its number of steps) or rank
            (the place of the sum among all trajectories). Paper: sum.
    """

    def __init__(self, p_base: float = 0.0, returns: Returns = "sum") -> None:
        super().__init__(returns)
        if p_base < 0:
            raise InputError(f"OperR: p_base {p_base} is negative; 0 or more is right")
        self.p_base = p_base

    def __call__(self, transitions: TensorDict) -> Tensor:
        return oper_r(self.scores(transitions)[0], self.p_base)


class TopFraction(ByReturn):
    """Top-x %: the best part of the data by return; the rest is never drawn.

    Args:
        fraction: share of the data that is kept, in (0, 1].
        by: transitions ranks transitions by their trajectory's return and keeps ties; trajectories keeps whole
            trajectories.
        returns: what a trajectory is worth: sum (of its rewards), per_step (the sum over its number of steps) or rank
            (which orders as sum does). Paper: sum.
    """

    def __init__(
        self,
        fraction: float = 0.1,
        by: Literal["transitions", "trajectories"] = "transitions",
        returns: Returns = "sum",
    ) -> None:
        super().__init__(returns)
        if not 0 < fraction <= 1:
            raise InputError(f"TopFraction: fraction {fraction} is not in (0, 1]; 0.1 keeps the best 10 %")
        self.fraction = fraction
        self.by = by

    def __call__(self, transitions: TensorDict) -> Tensor:
        values, ends = self.scores(transitions)
        if self.by == "transitions":
            return top_transitions(values, self.fraction)
        return top_trajectories(values, ends, self.fraction)


class ReturnWeighting(ByReturn):
    """RW: softmax of the trajectory's return, min-max normalised.

    Args:
        temperature: divides the normalised return; lower is greedier. Paper: 0.1.
        returns: what a trajectory is worth: sum (of its rewards), per_step (the sum over its number of steps) or rank
            (the place of the sum among all trajectories). Paper: sum.
    """

    def __init__(self, temperature: float = 0.1, returns: Returns = "sum") -> None:
        super().__init__(returns)
        _check_temperature(self, temperature)
        self.temperature = temperature

    def __call__(self, transitions: TensorDict) -> Tensor:
        return softmax_weights(self.scores(transitions)[0], self.temperature, "RW")


class AdvantageWeighting(ByReturn):
    """AW: softmax of the trajectory's return minus the return that a linear fit expects from its first observation.

    Args:
        temperature: divides the normalised advantage; lower is greedier. Paper: 0.1.
        returns: what a trajectory is worth: sum (of its rewards), per_step (the sum over its number of steps) or rank
            (the place of the sum among all trajectories). Paper: sum.
    """

    def __init__(self, temperature: float = 0.1, returns: Returns = "sum") -> None:
        super().__init__(returns)
        _check_temperature(self, temperature)
        self.temperature = temperature

    def __call__(self, transitions: TensorDict) -> Tensor:
        if has_frames(transitions):
            raise InputError(
                "AdvantageWeighting: a linear fit to images says nothing; take OperR, TopFraction or ReturnWeighting"
            )
        values, ends = self.scores(transitions)
        starts = ends.roll(1)  # the last row of all is an end, so the first one is a start
        advantage = advantage_of_trajectories(values, transitions["observation"][starts], ends)
        return softmax_weights(advantage, self.temperature, "AW")


def _check_temperature(priority: Priority, temperature: float) -> None:
    if temperature <= 0:
        raise InputError(f"{type(priority).__name__}: temperature {temperature} is not positive; the paper has 0.1")


# What is doubtful -------------------------------------------------------------------------------------------------

MOST = 0.75  # of the transitions
ALIKE = 0.01  # by which share of the larger their weights differ at most,
ALIKE_BY_SOFTMAX = 0.1  # and those of a softmax, whose published temperature stretches differences tenfold


def doubts(priority: object, transitions: TensorDict, weights: Tensor) -> list[str]:
    """What a person should know before they believe weights by return, a line each; nothing for other priorities.

    Args:
        priority: what made the weights.
        transitions: TensorDict ``[N]`` with raw rewards.
        weights: ``[N]``, mean 1.
    """
    if not isinstance(priority, ByReturn):
        return []
    found = []
    name = type(priority).__name__
    softmax = isinstance(priority, ReturnWeighting | AdvantageWeighting)
    if alike := _squeezed(weights, ALIKE_BY_SOFTMAX if softmax else ALIKE):
        share, low, high = alike
        found.append(
            f"{name}: {share:.0%} of the transitions weigh nearly the same ({low:.4g} to {high:.4g}), because a few "
            f"trajectories returned far more or less than the rest; set the priority's returns to rank"
        )
    if priority.returns == "sum" and (long := _by_length(transitions)):
        shortest, longest, by_length, by_step = long
        kind = "long" if by_length > 0 else "short"
        found.append(
            f"{name}: returns go with the length of trajectories ({shortest:,} to {longest:,} steps, correlation "
            f"{by_length:.2f}), hardly with the reward per step ({by_step:.2f}): {kind} ones "
            f"are preferred, not good ones; if length is no merit, set the priority's returns to per_step"
        )
    return found


def _squeezed(weights: Tensor, within: float) -> tuple[float, float, float] | None:
    """Share, lowest and highest of the weights ``[N]`` that lie together within a share without being equal."""
    ordered = weights.double().sort().values
    most = math.ceil(MOST * len(ordered))
    low, high = ordered[: len(ordered) - most + 1], ordered[most - 1 :]
    width = (high - low) / high.clamp(min=1e-12)
    first = int(width.argmin())
    if not 0 < width[first] <= within or ordered[-1] - ordered[0] <= within * ordered[-1]:
        return None
    middle = ordered[first + most // 2]
    inside = ordered[(ordered - middle).abs() <= within * middle]
    return len(inside) / len(ordered), inside[0].item(), inside[-1].item()


def _by_length(transitions: TensorDict) -> tuple[int, int, float, float] | None:
    """Shortest and longest, and how returns correlate with length and with reward per step; None if not doubtful."""
    ends = transitions["next", "done"]
    if has_returns(transitions):
        return None
    total, per_step = (scores(transitions, how)[0][ends].cpu() for how in ("sum", "per_step"))
    length = torch.bincount(episode_of(ends)).double().cpu()
    if len(length) < 3 or length.max() <= 2 * length.min() or _all_equal(total):
        return None
    by_length = torch.corrcoef(torch.stack([total, length]))[0, 1].item()
    by_step = 0.0 if _all_equal(per_step) else torch.corrcoef(torch.stack([total, per_step]))[0, 1].item()
    if abs(by_length) <= 0.8 or by_step >= 0.5:
        return None
    return int(length.min()), int(length.max()), by_length, by_step
