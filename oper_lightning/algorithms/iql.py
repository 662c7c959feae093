"""IQL: Kostrikov et al. 2021, "Offline Reinforcement Learning with Implicit Q-Learning", arXiv 2110.06169.

Prioritised as in OPER, arXiv 2306.05412: values and critics learn on the evaluation batch, the policy on the batch of
improvement and constraint, which are one loss here; its weight enters inside the clipped exponential.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Normal

from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.data.transitions import n_step
from oper_lightning.errors import InputError
from oper_lightning.nn.losses import advantage_weight, expectile_error, squared_error
from oper_lightning.nn.networks import DeterministicPolicy, EnsembleMLP, FixedStdPolicy, orthogonal, sample
from oper_lightning.nn.optim import Schedule, adam, frozen_copy, polyak, schedule, set_learning_rate
from oper_lightning.spec import Batch, DataSpec, ValueBounds, bounds_of_values

LARGEST_WEIGHT = 100.0


class IQL(OfflineAlgorithm):
    """IQL: values from recorded actions only, by expectile regression; the policy clones them by their advantage.

    Args:
        expectile: expectile that the values are fitted to (tau, equation 5); above one half, values lean towards the
            better actions. Paper: 0.7; antmaze 0.9.
        temperature: inverse temperature of advantage-weighted regression (beta, equation 7). Paper: 3; antmaze 10,
            kitchen and adroit 0.5. OPER-A on locomotion: 1.
        policy: gaussian (log likelihood; acts by its mean) or deterministic (squared error).
        dropout: chance that a hidden unit of the policy is left out in training. Paper: 0; kitchen and adroit 0.1.
        schedule: how the policy's learning rate falls over the run: cosine, linear or none.
        discount: factor of future rewards, per step.
        tau: share of the online critics that moves into the targets with each update.
        n_step: number of rewards that are summed before the target bootstraps. Paper: 1.
        value_bounds: lowest and highest value that targets bootstrap from; data takes what the recorded rewards allow;
            null for no bounds.
        hidden_sizes: widths of the hidden layers of policy, values and critics.
        learning_rate: learning rate of the three Adam optimisers.
        normalise_observations: whether the networks see observations with mean 0 and standard deviation 1.
    """

    def __init__(
        self,
        expectile: float = 0.7,
        temperature: float = 3.0,
        policy: Literal["gaussian", "deterministic"] = "gaussian",
        dropout: float = 0.0,
        schedule: Schedule = "cosine",
        discount: float = 0.99,
        tau: float = 0.005,
        n_step: int = 1,
        value_bounds: ValueBounds = None,
        hidden_sizes: Sequence[int] = (256, 256),
        learning_rate: float = 3e-4,
        normalise_observations: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(normalise_observations, **options)
        if not 0 < expectile < 1:
            raise InputError(f"IQL: expectile {expectile} is not in (0, 1)")
        if not 0 <= dropout < 1:
            raise InputError(f"IQL: dropout {dropout} is not in [0, 1)")
        self.expectile = expectile
        self.temperature = temperature
        self.policy_type = policy
        self.dropout = dropout
        self.schedule: Schedule = schedule
        self.discount = discount
        self.tau = tau
        self.n_step = n_step
        self.value_bounds = value_bounds
        self.hidden_sizes = hidden_sizes
        self.learning_rate = learning_rate

    def build(self, spec: DataSpec) -> None:
        observations, actions = spec.observation_size, spec.action_size
        network = FixedStdPolicy if self.policy_type == "gaussian" else DeterministicPolicy
        self.policy = network(observations, actions, self.hidden_sizes)
        self.value = EnsembleMLP((1,), [observations, *self.hidden_sizes])
        self.critics = EnsembleMLP((2,), [observations + actions, *self.hidden_sizes])
        for part in (self.policy, self.value, self.critics):
            orthogonal(part)
        self.target_critics = frozen_copy(self.critics)
        self.lowest, self.highest = bounds_of_values(self.value_bounds, spec, self.discount)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.policy_optimiser = adam(self.policy.parameters(), self.learning_rate)
        self.value_optimiser = adam(self.value.parameters(), self.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), self.learning_rate)
        return [self.policy_optimiser, self.value_optimiser, self.critic_optimiser]

    def columns(self, transitions: TensorDict) -> TensorDict:
        return n_step(transitions, self.n_step, self.discount)

    @torch.no_grad()
    def target_value(self, batch: TensorDict) -> Tensor:
        """Lower of the target critics' values of the recorded actions, ``[B]``."""
        return self.target_critics(torch.cat([batch["observation"], batch["action"]], -1)).amin(0)

    def value_loss(self, batch: TensorDict, target: Tensor) -> Tensor:
        """Expectile regression of V on the target critics' values ``[B]``, equation 5, ``[B]``."""
        return expectile_error(self.value.first(batch["observation"]), target, self.expectile)

    def critic_loss(self, batch: TensorDict) -> Tensor:
        """Squared Bellman errors of both critics, summed, equation 6, ``[B]``."""
        with torch.no_grad():
            following = self.value.first(batch["next", "observation"]).clamp(self.lowest, self.highest)
            target = batch["next", "reward"] + batch["discount"] * following
        values = self.critics(torch.cat([batch["observation"], batch["action"]], -1))
        return squared_error(values, target.expand_as(values)).sum(0)

    def policy_loss(self, batch: TensorDict, target: Tensor) -> tuple[Tensor, Tensor]:
        """Advantage-weighted regression, equation 7, ``[B]``; and the advantage over V of the targets ``[B]``.

        The clip bounds the product of the advantage's weight and the priority's, as OPER has it.
        """
        with torch.no_grad():
            advantage = target - self.value.first(batch["observation"])
            weight = advantage_weight(advantage, self.temperature, batch["weight"], LARGEST_WEIGHT)
        prediction = self.policy(batch["observation"], self.dropout)
        if isinstance(prediction, Normal):
            return -weight * prediction.log_prob(batch["action"]).sum(-1), advantage
        return weight * squared_error(prediction, batch["action"]).sum(-1), advantage

    def lengths(self) -> list[int]:
        """The run's length, on which the learning rate depends."""
        return [] if self.schedule == "none" else [self.run_length()]

    def prepare(self, number: int) -> None:
        """The policy's learning rate falls over the run."""
        factor = schedule(self.schedule, number / self.run_length())
        set_learning_rate(self.policy_optimiser, self.learning_rate * factor)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        data, cloned = batch.evaluation, self.one_policy_batch(batch)
        # The order matters: each network uses what the one before has just learnt.
        target = self.target_value(data)
        bounded = target.clamp(self.lowest, self.highest)
        value_loss = (data["weight"] * self.value_loss(data, bounded)).mean()
        self.minimise(value_loss, self.value_optimiser)
        if cloned is not data:
            target = self.target_value(cloned)
        policy_loss, advantage = self.policy_loss(cloned, target)
        self.minimise(policy_loss.mean(), self.policy_optimiser)
        critic_loss = (data["weight"] * self.critic_loss(data)).mean()
        self.minimise(critic_loss, self.critic_optimiser)
        polyak(self.target_critics, self.critics, self.tau)
        return {
            "value_loss": value_loss,
            "policy_loss": policy_loss.mean(),
            "critic_loss": critic_loss,
            "value": target.mean(),
            "absolute_advantage": advantage.abs().mean(),
        }

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        prediction = self.policy(self.observe(observation))
        action = prediction.mean if isinstance(prediction, Normal) else prediction
        return self.to_environment(action)

    def explore(self, observation: Tensor) -> Tensor:
        """A sample of the policy, which must be Gaussian."""
        prediction = self.policy(self.observe(observation))
        if not isinstance(prediction, Normal):
            raise InputError("IQL: a deterministic policy does not explore: leave model.policy at gaussian")
        return self.to_environment(sample(prediction, 1).squeeze(1).clamp(-1, 1))
