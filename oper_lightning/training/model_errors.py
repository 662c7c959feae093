"""How well a model of the dynamics foretells recorded steps: one at a time, and many in a row."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.transitions import episode_of
from oper_lightning.errors import InputError
from oper_lightning.nn.dynamics import Dynamics

HORIZONS = (1, 10, 50, 250)  # steps after which open-loop predictions are looked at
WINDOWS = ((1, 10), (41, 60), (241, 250))  # steps whose observations are compared as a crowd
STARTS = 200  # rows from which predictions begin
SAMPLES = 600  # observations of a crowd


@dataclass
class Errors:
    """What there is to know of a model from held-out rows. Errors of steps are in normalised units: 1 is no better than
    the mean change.
    """

    rows: int
    members: Tensor
    """mean squared error of each member, ``[M]``"""
    columns: Tensor
    """the members' mean squared error in each column of the observation, ``[O]``"""
    episodes: Tensor
    """the members' mean squared error in each episode, ``[E]``"""
    error_of_mean: float
    """of what members expect on average"""
    reward_r2: float | None
    """share of the variance of rewards that a member explains, on average over members"""
    spread: float
    """standard deviation of the members' predictions, in standard deviations of the observations"""
    missed: float
    """root mean square error of a member in the same units"""
    horizons: list[int]
    open_loop: list[float] = field(default_factory=list)
    """root mean square errors after so many recorded actions, in standard deviations of the observations"""
    standing_still: list[float] = field(default_factory=list)
    """those of saying that nothing changes"""
    energy: dict[str, tuple[float, float]] = field(default_factory=dict)
    """by window of steps: energy distance of imagined and recorded observations, and of two recorded halves"""
    episode: tuple[Tensor, Tensor] | None = None
    """one stretch: a column of the observation as recorded, ``[T]``, and as imagined by each member, ``[M, T]``"""
    column: int = 0
    """which one it is: the one that errs most over the whole stretch"""

    @classmethod
    @torch.no_grad()
    def of(cls, model: Dynamics, rows: TensorDict, ends: Tensor) -> Errors:
        """Judges a model.

        Args:
            model: the ensemble.
            rows: transitions ``[N]`` in recording order, with raw observations and actions in [-1, 1].
            ends: where episodes end, bool ``[N]``.
        """
        observation, action, following = rows["observation"], rows["action"], rows["next", "observation"]
        targets = model.targets(observation, following, rows["next", "reward"])
        mean = torch.cat([model.heads(part)[0] for part in model.inputs(observation, action).split(10_000)], 1)
        size = observation.shape[-1]
        square = (mean - targets).square()
        explained = None
        if model.reward:
            variance = targets[:, size].var(correction=0)
            explained = float((1 - square[..., size].mean(1) / variance).mean()) if variance > 0 else 0.0
        scale = model.target_std[:size] / model.observation_std
        found = cls(
            rows=len(rows),
            members=square.mean((1, 2)),
            columns=square[..., :size].mean((0, 1)),
            episodes=_by_episode(square.mean((0, 2)), ends),
            error_of_mean=float((mean.mean(0) - targets).square().mean()),
            reward_r2=explained,
            spread=float((mean[..., :size].var(0, correction=0) * scale.square()).mean().sqrt()),
            missed=float((square[..., :size] * scale.square()).mean().sqrt()),
            horizons=[],
        )
        found._look_ahead(model, rows, ends)
        return found

    def _look_ahead(self, model: Dynamics, rows: TensorDict, ends: Tensor) -> None:
        """Imagines under recorded actions from evenly spread rows, each rollout with one member throughout."""
        count = len(rows)
        last = torch.where(ends, torch.arange(count, device=ends.device), count - 1)
        last = last.flip(0).cummin(0).values.flip(0)
        left = last - torch.arange(count, device=ends.device) + 1  # steps of the episode from here on
        self.horizons = [steps for steps in HORIZONS if bool((left >= steps).any())]
        longest = self.horizons[-1]
        starts = torch.nonzero(left >= longest).squeeze(1)
        starts = starts[torch.linspace(0, len(starts) - 1, min(STARTS, len(starts))).long()]
        steps = torch.arange(longest, device=starts.device)
        path = starts.unsqueeze(1) + steps
        recorded = (rows["next", "observation"][path] - model.observation_mean) / model.observation_std
        begun = (rows["observation"][starts] - model.observation_mean) / model.observation_std
        imagined = self._imagine(model, rows["observation"][starts], rows["action"][path])
        imagined = (imagined - model.observation_mean) / model.observation_std  # [M, S, T, O]
        for horizon in self.horizons:
            after = recorded[:, horizon - 1]
            self.open_loop.append(_rms(imagined[:, :, horizon - 1] - after))
            self.standing_still.append(_rms(begun - after))
        own = torch.arange(len(starts), device=starts.device)
        mixed = imagined[own % model.members, own]
        for first, final in WINDOWS:
            if final <= longest:
                crowd, others = mixed[:, first - 1 : final], recorded[:, first - 1 : final]
                halves = energy_distance(others[::2], others[1::2]) if len(others) > 1 else 0.0
                self.energy[f"{first} to {final}"] = energy_distance(crowd, others), halves
        self.column = int((imagined - recorded).square().mean((0, 1, 2)).argmax())
        std, centre = model.observation_std[self.column], model.observation_mean[self.column]
        middle = len(starts) // 2
        self.episode = (
            recorded[middle, :, self.column] * std + centre,
            imagined[:, middle, :, self.column] * std + centre,
        )

    @staticmethod
    def _imagine(model: Dynamics, observation: Tensor, actions: Tensor) -> Tensor:
        """What each member makes of starts ``[S, O]`` under actions ``[S, T, A]``: observations ``[M, S, T, O]``."""
        state = observation.expand(model.members, *observation.shape)
        path = []
        for action in actions.unbind(1):
            state = model.every(state, action.expand(model.members, *action.shape)).observation
            path.append(state)
        return torch.stack(path, 2)

    def numbers(self) -> dict[str, float]:
        """All of it but the columns and the stretch."""
        numbers = {
            "error": float(self.members.mean()),
            "error_min": float(self.members.min()),
            "error_max": float(self.members.max()),
            "error_of_mean": self.error_of_mean,
            "spread": self.spread,
            "missed": self.missed,
        }
        if self.reward_r2 is not None:
            numbers["reward_r2"] = self.reward_r2
        for steps, error, still in zip(self.horizons, self.open_loop, self.standing_still, strict=True):
            numbers |= {f"open_loop_{steps}": error, f"standing_still_{steps}": still}
        for window, (distance, halves) in self.energy.items():
            name = window.replace(" ", "_")
            numbers |= {f"energy_{name}": distance, f"energy_of_halves_{name}": halves}
        return numbers


def _by_episode(errors: Tensor, ends: Tensor) -> Tensor:
    """Means ``[E]`` over the rows ``[N]`` of each episode."""
    number = episode_of(ends)
    total, rows = sums_by_episode(errors.unsqueeze(0), number, int(number[-1]) + 1)
    return total / rows


def sums_by_episode(values: Tensor, number: Tensor, episodes: int) -> Tensor:
    """Sums over episodes of K values of rows ``[K, N]``, and behind them the numbers of rows; float64 ``[K + 1, E]``.

    Args:
        values: of the rows.
        number: the episode of each row, int64 ``[N]``, below ``episodes``.
        episodes: how many there are, E.
    """
    sums = torch.zeros(len(values) + 1, episodes, dtype=torch.float64, device=values.device)
    return sums.index_add_(1, number, torch.cat([values, torch.ones_like(values[:1])]).double())


def _rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


def energy_distance(first: Tensor, second: Tensor) -> float:
    """How far two crowds of points ``[..., O]`` are from being one (Székely and Rizzo 2013), of up to 600 points each.

    Twice the mean distance between a point of one and a point of the other, less the mean distances within each; about
    0, and sometimes below, for crowds from the same distribution.
    """
    crowds = []
    for crowd in (first.flatten(0, -2), second.flatten(0, -2)):
        index = torch.linspace(0, len(crowd) - 1, min(SAMPLES, len(crowd)), device=crowd.device).long()
        crowds.append(crowd[index].double())
    one, other = crowds
    if min(len(one), len(other)) < 2:
        raise InputError("an energy distance needs two points on either side")
    within = [torch.cdist(crowd, crowd).sum() / (len(crowd) * (len(crowd) - 1)) for crowd in crowds]
    return float(2 * torch.cdist(one, other).mean() - within[0] - within[1])
