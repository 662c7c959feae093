"""RLPD: Ball et al. 2023, "Efficient Online Reinforcement Learning with Offline Data", arXiv 2302.02948, algorithm 1.

As in the authors' code (github.com/ikostrikov/rlpd). The other half of the method, batches of which a share is
recorded and many updates for each step of the environment, are the datamodule's ``offline_share`` and
``updates_per_step``. With two critics, no subset, no normalisation and one update per step it is SAC: Haarnoja et al.
2018, arXiv 1812.05905. Prioritised by OPER's roles, arXiv 2306.05412: the critics learn on the evaluation batch, the
policy on the improvement batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.data.transitions import n_step
from oper_lightning.errors import InputError
from oper_lightning.nn.losses import squared_error
from oper_lightning.nn.networks import EnsembleMLP, SquashedPolicy, xavier
from oper_lightning.nn.optim import adam, frozen_copy, polyak
from oper_lightning.spec import Batch, DataSpec, ValueBounds, bounds_of_values

NORM_EPSILON = 1e-6  # what Flax's LayerNorm adds to variances


class RLPD(OfflineAlgorithm):
    """RLPD: a soft actor-critic with an ensemble of normalised critics, made for many updates per step and prior data.

    Args:
        critics: number of critics E.
        subset: number of target critics whose lowest value is the target, drawn anew for each update; null for all.
        policy_freq: policy and temperature are updated after so many updates of the critics: in the paper once for
            each step of the environment, so that it equals ``data.updates_per_step``.
        backup_entropy: whether the target counts the policy's entropy. Paper: not on antmaze and adroit.
        target_entropy: entropy that the policy is tuned to; null is minus half the number of action dimensions.
        value_bounds: lowest and highest value that targets bootstrap from, the policy's entropy aside; data takes what
            the recorded rewards allow; null for no bounds.
        discount: factor of future rewards, per step.
        tau: share of the online critics that moves into the targets with each update of the critics.
        hidden_sizes: widths of the hidden layers of policy and critics.
        layer_norm: whether the critics' hidden layers are normalised.
        learning_rate: learning rate of the three Adam optimisers.
        normalise_observations: whether the networks see observations with mean 0 and standard deviation 1.
    """

    reads = ("evaluation", "improvement")

    def __init__(
        self,
        critics: int = 10,
        subset: int | None = 2,
        policy_freq: int = 20,
        backup_entropy: bool = True,
        target_entropy: float | None = None,
        value_bounds: ValueBounds = None,
        discount: float = 0.99,
        tau: float = 0.005,
        hidden_sizes: Sequence[int] = (256, 256),
        layer_norm: bool = True,
        learning_rate: float = 3e-4,
        normalise_observations: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(normalise_observations, **options)
        if critics < 1:
            raise InputError(f"RLPD: critics {critics} must be at least 1")
        if subset is not None and not 1 <= subset <= critics:
            raise InputError(f"RLPD: subset {subset} must be from 1 to the number of critics, {critics}; null for all")
        if policy_freq < 1:
            raise InputError(f"RLPD: policy_freq {policy_freq} must be at least 1")
        self.ensemble = critics
        self.subset = subset
        self.policy_freq = policy_freq
        self.backup_entropy = backup_entropy
        self.target_entropy = target_entropy
        self.value_bounds = value_bounds
        self.discount = discount
        self.tau = tau
        self.hidden_sizes = hidden_sizes
        self.layer_norm = layer_norm
        self.learning_rate = learning_rate

    def build(self, spec: DataSpec) -> None:
        observations, actions = spec.observation_size, spec.action_size
        sizes = [observations + actions, *self.hidden_sizes]
        self.policy = SquashedPolicy(observations, actions, self.hidden_sizes, scaled=False)
        self.critics = EnsembleMLP((self.ensemble,), sizes, self.layer_norm, epsilon=NORM_EPSILON)
        xavier(self.policy)
        xavier(self.critics)
        self.target_critics = frozen_copy(self.critics)
        self.lowest, self.highest = bounds_of_values(self.value_bounds, spec, self.discount)
        self.wanted_entropy = -actions / 2 if self.target_entropy is None else self.target_entropy
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.policy_optimiser = adam(self.policy.parameters(), self.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), self.learning_rate)
        self.temperature_optimiser = adam([self.log_temperature], self.learning_rate)
        return [self.policy_optimiser, self.critic_optimiser, self.temperature_optimiser]

    def columns(self, transitions: TensorDict) -> TensorDict:
        return n_step(transitions, 1, self.discount)

    def sampled(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """An action ``[B, A]`` of the policy for each observation ``[B, O]``, and its log density ``[B]``."""
        action, log_density = self.policy.sample(observation, 1)
        return action.squeeze(1), log_density.squeeze(1)

    def target_value(self, observation: Tensor, action: Tensor) -> Tensor:
        """Lowest value ``[B]`` of actions ``[B, A]`` by the target critics drawn for this update, within the bounds."""
        pairs = torch.cat([observation, action], -1)
        if self.subset is None:
            values = self.target_critics(pairs)
        else:
            drawn = torch.rand(self.ensemble, device=pairs.device).topk(self.subset).indices
            values = self.target_critics.some(pairs, drawn)
        return values.amin(0).clamp(self.lowest, self.highest)

    def critic_loss(self, batch: TensorDict) -> Tensor:
        """Squared Bellman errors, averaged over the critics, ``[B]``."""
        following = batch["next", "observation"]
        with torch.no_grad():
            action, log_density = self.sampled(following)
            value = self.target_value(following, action)
            if self.backup_entropy:
                value = value - self.log_temperature.exp() * log_density
            target = batch["next", "reward"] + batch["discount"] * value
        values = self.critics(torch.cat([batch["observation"], batch["action"]], -1))
        return squared_error(values, target.expand_as(values)).mean(0)

    def policy_loss(self, batch: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
        """Soft actor loss ``[B]``: it follows the mean of all critics.

        Also returns that mean value ``[B]`` of the policy's actions, and their log density ``[B]``.
        """
        action, log_density = self.sampled(batch["observation"])
        value = self.critics(torch.cat([batch["observation"], action], -1)).mean(0)
        return self.log_temperature.exp().detach() * log_density - value, value, log_density

    def prepare(self, number: int) -> bool:
        """Whether policy and temperature move too."""
        return (number + 1) % self.policy_freq == 0

    def update(self, batch: Batch) -> dict[str, Tensor]:
        data = batch.evaluation
        critic_loss = (data["weight"] * self.critic_loss(data)).mean()
        self.minimise(critic_loss, self.critic_optimiser)
        polyak(self.target_critics, self.critics, self.tau)
        if not self.branch:
            return {"critic_loss": critic_loss}

        improvement = batch.improvement
        policy_loss, value, log_density = self.policy_loss(improvement)
        policy_loss = (improvement["weight"] * policy_loss).mean()
        self.minimise(policy_loss, self.policy_optimiser)
        entropy = -log_density.detach().mean()
        temperature = self.log_temperature.exp()
        self.minimise(temperature * (entropy - self.wanted_entropy), self.temperature_optimiser)
        return {
            "critic_loss": critic_loss,
            "policy_loss": policy_loss,
            "entropy": entropy,
            "value": value.mean(),
            "entropy_temperature": temperature,
        }

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        return self.to_environment(torch.tanh(self.policy(self.observe(observation)).mean))

    def explore(self, observation: Tensor) -> Tensor:
        """A sample of the policy."""
        return self.to_environment(self.sampled(self.observe(observation))[0])
