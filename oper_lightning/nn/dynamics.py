"""An ensemble of models of an environment's dynamics, which imagines steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from oper_lightning.nn import ranks
from oper_lightning.nn.networks import EnsembleMLP, xavier

CONSTANT = 1e-6  # columns with a smaller standard deviation hold nothing to be learnt: they are not scaled
HIGHEST, LOWEST = 0.5, -10.0  # where the learnt bounds of log variances begin


class Step(NamedTuple):
    """What steps lead to."""

    observation: Tensor
    """next observations ``[B, O]``, or ``[M, B, O]``"""
    reward: Tensor | None
    """rewards ``[B]``, or ``[M, B]``; None where none are learnt"""
    left: Tensor
    """where the prediction left the widened range of the data, or was no number: bool ``[B]``, or ``[M, B]``"""


class Dynamics(nn.Module):
    """M networks, each of which predicts the change of the observation and, if wanted, the reward.

    Observations are raw and actions lie in [-1, 1]. Networks see inputs, and predict changes, with mean 0 and standard
    deviation 1 over the rows that :meth:`measure` was given. Predicted observations are kept within the range of those
    rows, widened by ``margin`` of its width at either side.

    Args:
        members: number M of networks.
        observations: length O of observations.
        actions: length A of actions.
        hidden_sizes: widths of the hidden layers.
        reward: whether the reward is predicted too.
        gaussian: whether networks predict a normal distribution, from which a step is drawn, or only its mean.
        margin: how far predictions may leave the range of the data, in widths of it.
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_mean: Tensor
    action_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        members: int,
        observations: int,
        actions: int,
        hidden_sizes: Sequence[int],
        reward: bool,
        gaussian: bool,
        margin: float,
    ) -> None:
        super().__init__()
        self.members = members
        self.reward = reward
        self.gaussian = gaussian
        self.sizes: dict[str, Any] = {
            "members": members,
            "observations": observations,
            "actions": actions,
            "hidden_sizes": [*hidden_sizes],
            "reward": reward,
            "gaussian": gaussian,
            "margin": margin,
        }
        """arguments that make another one like it; numbers and a list"""
        targets = observations + reward
        self.networks = EnsembleMLP(
            (members,), [observations + actions, *hidden_sizes], outputs=targets * (2 if gaussian else 1)
        )
        xavier(self.networks)
        if gaussian:
            self.most = nn.Parameter(torch.full((members, 1, targets), HIGHEST))
            self.least = nn.Parameter(torch.full((members, 1, targets), LOWEST))
        for name, size in (("observation", observations), ("action", actions), ("target", targets)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.register_buffer("low", torch.zeros(observations))
        self.register_buffer("high", torch.zeros(observations))

    # Statistics --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self, rows: TensorDict) -> None:
        """Takes means, standard deviations and ranges, in float64, from transitions ``[N]`` with scaled actions."""
        following = rows["next", "observation"]
        change = self._changes(rows["observation"], following, rows["next", "reward"])
        for name, columns in (("observation", rows["observation"]), ("action", rows["action"]), ("target", change)):
            std = columns.double().std(0, correction=0)
            getattr(self, f"{name}_mean").copy_(columns.double().mean(0))
            getattr(self, f"{name}_std").copy_(std.where(std > CONSTANT, 1.0))
        low = torch.minimum(rows["observation"].amin(0), following.amin(0))
        high = torch.maximum(rows["observation"].amax(0), following.amax(0))
        room = self.sizes["margin"] * (high - low)
        self.low.copy_(low - room)
        self.high.copy_(high + room)

    def _changes(self, observation: Tensor, following: Tensor, reward: Tensor) -> Tensor:
        change = following - observation
        return torch.cat([change, reward.unsqueeze(-1)], -1) if self.reward else change

    def inputs(self, observation: Tensor, action: Tensor) -> Tensor:
        """What networks see: normalised observations and actions, ``[..., O + A]``."""
        seen = (observation - self.observation_mean) / self.observation_std
        return torch.cat([seen, (action - self.action_mean) / self.action_std], -1)

    def targets(self, observation: Tensor, following: Tensor, reward: Tensor) -> Tensor:
        """What networks should say: normalised changes and, behind them, rewards, ``[..., T]``."""
        return (self._changes(observation, following, reward) - self.target_mean) / self.target_std

    # Predictions -------------------------------------------------------------------------------------------------

    def heads(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Means and log variances ``[M, B, T]`` of the targets for inputs ``[M, B, O + A]`` or ``[B, O + A]``.

        Log variances are kept between bounds that each member learns (Chua et al. 2018, arXiv 1805.12114, appendix A);
        None where there is no distribution.
        """
        return self._split(self.networks(inputs), slice(None))

    def _split(self, out: Tensor, members: slice | Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.gaussian:
            return out, None
        most, least = self.most[members], self.least[members]
        mean, log_variance = out.chunk(2, -1)
        log_variance = most - functional.softplus(most - log_variance)
        return mean, least + functional.softplus(log_variance - least)

    @torch.no_grad()
    def every(self, observation: Tensor, action: Tensor) -> Step:
        """What each member expects of observations ``[B, O]`` (or ``[M, B, O]``) and actions: ``[M, B, ...]``."""
        mean, _ = self.heads(self.inputs(observation, action))
        return self._step(observation, mean)

    @torch.no_grad()
    def step(self, observation: Tensor, action: Tensor, shared: bool = False) -> Step:
        """Imagined steps ``[B, ...]`` from observations ``[B, O]`` under actions ``[B, A]``, each by one member.

        Members are dealt like cards: of M neighbouring rows each member gets one, another at each step. R ranks deal as
        one process does if their number of rows is a multiple of M.

        Args:
            observation: raw.
            action: within [-1, 1].
            shared: whether one member, drawn anew at each step, takes all rows, as in the published code.
        """
        rows, members = len(observation), self.members
        inputs = self.inputs(observation, action)
        if shared:
            chosen = torch.randint(members, (1,), device=inputs.device)
            mean, log_variance = self._split(self.networks.some(inputs, chosen), chosen)
            back = torch.arange(rows, device=inputs.device)
        else:
            groups = -(-rows // members)
            inputs = functional.pad(inputs, (0, 0, 0, groups * members - rows))
            order = ranks.rand_like(inputs[:, 0].reshape(groups, members)).argsort(-1)
            # Place p of a group goes to member order[p]; where a member's row stands is the inverse.
            place = (order.argsort(-1) + torch.arange(groups, device=order.device).unsqueeze(1) * members).T
            mean, log_variance = self.heads(inputs[place])
            back = torch.empty_like(place).reshape(-1)
            back[place.reshape(-1)] = torch.arange(len(back), device=back.device)
        mean = mean.flatten(0, 1)[back[:rows]]
        if log_variance is not None:
            mean = mean + (log_variance.flatten(0, 1)[back[:rows]] / 2).exp() * ranks.randn_like(mean)
        return self._step(observation, mean)

    def _step(self, observation: Tensor, normalised: Tensor) -> Step:
        predicted = normalised * self.target_std + self.target_mean
        following = observation + predicted[..., : observation.shape[-1]]
        inside = (following >= self.low) & (following <= self.high)  # False for what is no number
        left = ~(inside.all(-1) & predicted.isfinite().all(-1))
        following = torch.where(following.isfinite(), following.clamp(self.low, self.high), observation)
        return Step(following, predicted[..., -1].nan_to_num() if self.reward else None, left)
