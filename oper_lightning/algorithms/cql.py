"""CQL: Kumar et al. 2020, "Conservative Q-Learning for Offline Reinforcement Learning", arXiv 2006.04779.

As in JaxCQL (github.com/young-geng/JaxCQL): all losses are taken at one snapshot of the parameters, then all networks
move. Prioritised by OPER's roles, arXiv 2306.05412, which has no public code for CQL: the Bellman error is evaluation,
the penalty constraint, the actor improvement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.data.transitions import n_step
from oper_lightning.errors import InputError
from oper_lightning.nn import ranks
from oper_lightning.nn.losses import squared_error
from oper_lightning.nn.networks import EnsembleMLP, SquashedPolicy, lecun, orthogonal
from oper_lightning.nn.optim import adam, frozen_copy, polyak
from oper_lightning.spec import Batch, DataSpec, ValueBounds, bounds_of_values

LARGEST_ACTION = 0.999  # recorded actions are clipped: a tanh reaches 1 nowhere
LARGEST_LAGRANGE = 1e6


class CQL(OfflineAlgorithm):
    """CQL: a soft actor-critic whose critics value the policy's actions lower than the recorded ones.

    Args:
        cql_weight: weight of the penalty relative to the Bellman errors.
        cql_temperature: temperature of the logsumexp in the penalty.
        sampled_actions: number of actions that the penalty samples from each of three: the uniform distribution, the
            policy at the next observation, the policy at the observation.
        importance_sampling: whether the logsumexp divides by the densities of the sampled actions; if false, it also
            includes the recorded action.
        lagrange_gap: the weight of the penalty rises while the penalty is above this number, and falls while it is
            below; null keeps the weight fixed. Here and in JaxCQL and CORL the penalty counts before cql_weight; the
            paper's code, d3rlpy and NeoRL-2 compare the weighted one with their threshold: divide that by cql_weight.
        initial_lagrange: what that weight is multiplied by at first. JaxCQL and CORL: e; paper's code and d3rlpy: 1.
        max_target_backup: whether the target takes the best of the sampled actions instead of one of them.
        backup_entropy: whether the target counts the policy's entropy.
        difference_min: lower bound of the penalty of one transition; null for none.
        difference_max: upper bound of the penalty of one transition; null for none.
        bc_updates: number of updates at the start in which the policy clones the data instead of searching.
        entropy_temperature: weight of the policy's entropy; null tunes it to target_entropy.
        target_entropy: entropy that the policy is tuned to; null is minus the number of action dimensions.
        discount: factor of future rewards, per step.
        tau: share of the online critics that moves into the targets with each update.
        policy_hidden_sizes: widths of the policy's hidden layers.
        critic_hidden_sizes: widths of the critics' hidden layers.
        orthogonal_init: whether layers are initialised orthogonally (gain sqrt 2, the last 0.01), as in CORL.
        normalise_features: whether what goes into the critics' last layers is brought to length 1.
        value_bounds: lowest and highest value that targets bootstrap from; data takes what the recorded rewards allow;
            null for no bounds.
        policy_learning_rate: learning rate of policy and entropy temperature (Adam).
        critic_learning_rate: learning rate of critics and Lagrange multiplier (Adam).
        normalise_observations: whether the networks see observations with mean 0 and standard deviation 1.
    """

    def __init__(
        self,
        cql_weight: float = 5.0,
        cql_temperature: float = 1.0,
        sampled_actions: int = 10,
        importance_sampling: bool = True,
        lagrange_gap: float | None = None,
        initial_lagrange: float = math.e,
        max_target_backup: bool = False,
        backup_entropy: bool = False,
        difference_min: float | None = None,
        difference_max: float | None = None,
        bc_updates: int = 0,
        entropy_temperature: float | None = None,
        target_entropy: float | None = None,
        discount: float = 0.99,
        tau: float = 0.005,
        policy_hidden_sizes: Sequence[int] = (256, 256),
        critic_hidden_sizes: Sequence[int] = (256, 256),
        orthogonal_init: bool = False,
        normalise_features: bool = False,
        value_bounds: ValueBounds = None,
        policy_learning_rate: float = 3e-4,
        critic_learning_rate: float = 3e-4,
        normalise_observations: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(normalise_observations, **options)
        if sampled_actions < 1:
            raise InputError(f"CQL: sampled_actions {sampled_actions} must be at least 1")
        if entropy_temperature is not None and entropy_temperature <= 0:
            raise InputError(f"CQL: entropy_temperature {entropy_temperature} must be positive; null tunes it")
        if not 0 < initial_lagrange <= LARGEST_LAGRANGE:
            raise InputError(f"CQL: initial_lagrange {initial_lagrange} must be positive, and at most 1e6")
        self.cql_weight = cql_weight
        self.cql_temperature = cql_temperature
        self.sampled_actions = sampled_actions
        self.importance_sampling = importance_sampling
        self.lagrange_gap = lagrange_gap
        self.initial_lagrange = initial_lagrange
        self.max_target_backup = max_target_backup
        self.backup_entropy = backup_entropy
        self.difference_min = difference_min
        self.difference_max = difference_max
        self.bc_updates = bc_updates
        self.entropy_temperature = entropy_temperature
        self.target_entropy = target_entropy
        self.discount = discount
        self.tau = tau
        self.policy_hidden_sizes = policy_hidden_sizes
        self.critic_hidden_sizes = critic_hidden_sizes
        self.orthogonal_init = orthogonal_init
        self.normalise_features = normalise_features
        self.value_bounds = value_bounds
        self.policy_learning_rate = policy_learning_rate
        self.critic_learning_rate = critic_learning_rate

    def build(self, spec: DataSpec) -> None:
        observations, actions = spec.observation_size, spec.action_size
        self.policy = SquashedPolicy(observations, actions, self.policy_hidden_sizes)
        sizes = [observations + actions, *self.critic_hidden_sizes]
        self.critics = EnsembleMLP((2,), sizes, normalise_features=self.normalise_features)
        for network in (self.policy, self.critics):
            if self.orthogonal_init:
                orthogonal(network, last_gain=0.01)
            else:
                lecun(network, last_scale=0.01)
        self.target_critics = frozen_copy(self.critics)
        self.lowest, self.highest = bounds_of_values(self.value_bounds, spec, self.discount)
        self.wanted_entropy = -float(actions) if self.target_entropy is None else self.target_entropy
        fixed = self.entropy_temperature
        self.log_temperature = nn.Parameter(torch.tensor(0.0 if fixed is None else math.log(fixed)))
        self.log_lagrange = nn.Parameter(torch.tensor(math.log(self.initial_lagrange)))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.policy_optimiser = adam(self.policy.parameters(), self.policy_learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), self.critic_learning_rate)
        self.temperature_optimiser = adam([self.log_temperature], self.policy_learning_rate)
        self.lagrange_optimiser = adam([self.log_lagrange], self.critic_learning_rate)
        return [self.policy_optimiser, self.critic_optimiser, self.temperature_optimiser, self.lagrange_optimiser]

    def columns(self, transitions: TensorDict) -> TensorDict:
        return n_step(transitions, 1, self.discount)

    # Losses ------------------------------------------------------------------------------------------------------

    def bellman_error(self, batch: TensorDict, recorded: Tensor) -> Tensor:
        """Squared Bellman errors of both critics, summed, ``[B]``; ``recorded``: their values ``[2, B]``."""
        following = batch["next", "observation"]
        with torch.no_grad():
            action, log_density = self.policy.sample(following, self.sampled_actions if self.max_target_backup else 1)
            value, best = self.target_critics.several(following, action).amin(0).max(1)
            value = value.clamp(self.lowest, self.highest)
            if self.backup_entropy:
                value = value - self.log_temperature.exp() * log_density.gather(1, best.unsqueeze(1)).squeeze(1)
            target = batch["next", "reward"] + batch["discount"] * value
        return squared_error(recorded, target.expand_as(recorded)).sum(0)

    def difference(self, batch: TensorDict, recorded: Tensor) -> Tensor:
        """How far the critics' soft maximum over actions lies above the values of recorded actions, ``[2, B]``."""
        values, log_density = self.candidates(batch)
        values = values - log_density if self.importance_sampling else torch.cat([values, recorded.unsqueeze(-1)], -1)
        soft_maximum = self.cql_temperature * torch.logsumexp(values / self.cql_temperature, -1)
        difference = soft_maximum - recorded
        if self.difference_min is None and self.difference_max is None:
            return difference
        return difference.clamp(self.difference_min, self.difference_max)

    def candidates(self, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """Values ``[2, B, 3 n]`` of n uniform actions, n of the policy at the next observation and n of it at the
        observation; and their log densities ``[B, 3 n]``.
        """
        observation, count = batch["observation"], self.sampled_actions
        with torch.no_grad():
            now, now_density = self.policy.sample(observation, count)
            ahead, ahead_density = self.policy.sample(batch["next", "observation"], count)
            box = ranks.rand_like(now) * 2 - 1
            box_density = torch.full_like(now_density, -now.shape[-1] * math.log(2))
        values = self.critics.several(observation, torch.cat([box, ahead, now], 1))
        return values, torch.cat([box_density, ahead_density, now_density], 1)

    def policy_loss(self, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """Soft actor loss ``[B]``, and the policy's log density ``[B]`` at its own actions.

        In the first ``bc_updates`` updates the log density of the recorded action stands in place of the value.
        """
        observation = batch["observation"]
        action, log_density = self.policy.sample(observation, 1)
        log_density = log_density.squeeze(1)
        if self.branch:
            gain = self.policy.log_density(observation, self.recorded_action(batch))
        else:
            gain = self.critics.several(observation, action, frozen=True).amin(0).squeeze(1)
        return self.log_temperature.exp().detach() * log_density - gain, log_density

    def recorded_action(self, batch: TensorDict) -> Tensor:
        """Recorded actions, clipped to a little less than [-1, 1]."""
        return batch["action"].clamp(-LARGEST_ACTION, LARGEST_ACTION)

    def recorded_value(self, batch: TensorDict) -> Tensor:
        """The critics' values ``[2, B]`` of recorded actions."""
        value: Tensor = self.critics(torch.cat([batch["observation"], self.recorded_action(batch)], -1))
        return value

    # Update ------------------------------------------------------------------------------------------------------

    def prepare(self, number: int) -> bool:
        """Whether the policy still clones the data."""
        return number < self.bc_updates

    def update(self, batch: Batch) -> dict[str, Tensor]:
        evaluation, improvement, constraint = batch
        value = self.recorded_value(evaluation)
        bellman_error = (evaluation["weight"] * self.bellman_error(evaluation, value)).mean()
        held_down = value if constraint is evaluation else self.recorded_value(constraint)
        # The penalty before its weight, in the priority's measure.
        difference = (constraint["weight"] * self.difference(constraint, held_down)).mean(-1)
        policy_loss, log_density = self.policy_loss(improvement)
        policy_loss = (improvement["weight"] * policy_loss).mean()
        entropy = -log_density.detach().mean()

        optimisers = [self.policy_optimiser, self.critic_optimiser]
        penalty, multipliers_loss = self.cql_weight * difference, torch.zeros_like(policy_loss)
        if self.lagrange_gap is not None:
            lagrange = self.log_lagrange.exp().clamp(max=LARGEST_LAGRANGE)
            penalty = self.cql_weight * (difference - self.lagrange_gap)
            multipliers_loss = multipliers_loss - lagrange * penalty.detach().mean()
            penalty = lagrange.detach() * penalty
            optimisers.append(self.lagrange_optimiser)
        if self.entropy_temperature is None:
            multipliers_loss = multipliers_loss + self.log_temperature * (entropy - self.wanted_entropy)
            optimisers.append(self.temperature_optimiser)
        critic_loss = bellman_error + penalty.sum()
        # Each parameter is in one of these losses only, so that their sum has the gradients of all, at one snapshot.
        self.minimise(policy_loss + critic_loss + multipliers_loss, *optimisers)
        polyak(self.target_critics, self.critics, self.tau)
        results = {
            "critic_loss": critic_loss,
            "bellman_error": bellman_error,
            "difference": difference.mean(),
            "policy_loss": policy_loss,
            "entropy": entropy,
            "value": value.mean(),
            "entropy_temperature": self.log_temperature.exp(),
        }
        if self.lagrange_gap is not None:
            results["lagrange"] = lagrange
        return results

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        return self.to_environment(torch.tanh(self.policy(self.observe(observation)).mean))

    def explore(self, observation: Tensor) -> Tensor:
        """A sample of the policy."""
        return self.to_environment(self.policy.sample(self.observe(observation), 1)[0].squeeze(1))
