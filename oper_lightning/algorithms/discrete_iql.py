"""IQL of discrete actions: Kostrikov et al. 2021, "Offline Reinforcement Learning with Implicit Q-Learning", arXiv
2110.06169.

Prioritised as the continuous IQL is, after OPER, arXiv 2306.05412: values and critics learn on the evaluation batch,
the policy on the batch of improvement and constraint; its weight enters inside the clipped exponential.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.data.transitions import n_step
from oper_lightning.errors import InputError
from oper_lightning.nn.encoders import encoder, widths
from oper_lightning.nn.losses import advantage_weight, expectile_error, squared_error
from oper_lightning.nn.networks import TwoHeads, mlp, of_action, sampled
from oper_lightning.nn.optim import adam, frozen_copy, polyak
from oper_lightning.spec import Batch, DataSpec


class DiscreteIQL(OfflineAlgorithm):
    """IQL of discrete actions: values by expectile regression; the policy clones actions by their advantage.

    Args:
        expectile: expectile that the values are fitted to (tau, equation 5); above one half, values lean towards the
            better actions.
        temperature: inverse temperature of advantage-weighted regression (beta, equation 7).
        max_weight: upper bound of what an action weighs in the policy's loss. Paper's code: 100.
        discount: factor of future rewards, per step.
        n_step: number of rewards that are summed before the target bootstraps. Paper: 1.
        tau: share of the online critics that moves into the targets with each update.
        hidden_sizes: widths of the hidden layers of policy, values and critics; by default 512 above images and 256,
            256 above vectors.
        learning_rate: learning rate of the three Adam optimisers.
        normalise_observations: whether the networks see vectors with mean 0 and standard deviation 1.
    """

    kinds = ("discrete",)
    images = True

    def __init__(
        self,
        expectile: float = 0.7,
        temperature: float = 3.0,
        max_weight: float = 100.0,
        discount: float = 0.99,
        n_step: int = 1,
        tau: float = 0.005,
        hidden_sizes: Sequence[int] | None = None,
        learning_rate: float = 3e-4,
        normalise_observations: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(normalise_observations, **options)
        if not 0 < expectile < 1:
            raise InputError(f"DiscreteIQL: expectile {expectile} is not in (0, 1)")
        self.expectile = expectile
        self.temperature = temperature
        self.max_weight = max_weight
        self.discount = discount
        self.n_step = n_step
        self.tau = tau
        self.hidden_sizes = hidden_sizes
        self.learning_rate = learning_rate

    def build(self, spec: DataSpec) -> None:
        def network(outputs: int) -> nn.Sequential:
            body = encoder(spec.observation_shape, spec.pixels)
            return nn.Sequential(body, mlp([body.features, *widths(self.hidden_sizes, spec.pixels), outputs]))

        self.policy, self.value = network(spec.actions), network(1)
        self.critics = TwoHeads(spec.observation_shape, spec.pixels, self.hidden_sizes, spec.actions)
        self.target_critics = frozen_copy(self.critics)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.policy_optimiser = adam(self.policy.parameters(), self.learning_rate)
        self.value_optimiser = adam(self.value.parameters(), self.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), self.learning_rate)
        return [self.policy_optimiser, self.value_optimiser, self.critic_optimiser]

    def columns(self, transitions: TensorDict) -> TensorDict:
        return n_step(transitions, self.n_step, self.discount)

    def value_of(self, observation: Tensor) -> Tensor:
        """Values ``[B]`` of observations."""
        return self.value(observation).squeeze(-1)

    @torch.no_grad()
    def target_value(self, batch: TensorDict) -> Tensor:
        """Lower of the target critics' values of the recorded actions, ``[B]``."""
        return of_action(torch.minimum(*self.target_critics(batch["observation"])), batch["action"])

    def value_loss(self, batch: TensorDict, target: Tensor) -> Tensor:
        """Expectile regression of V on the target critics' values ``[B]``, equation 5, ``[B]``."""
        return expectile_error(self.value_of(batch["observation"]), target, self.expectile)

    def critic_loss(self, batch: TensorDict) -> Tensor:
        """Squared Bellman errors of both critics, summed, equation 6, ``[B]``."""
        with torch.no_grad():
            target = batch["next", "reward"] + batch["discount"] * self.value_of(batch["next", "observation"])
        first, second = (of_action(values, batch["action"]) for values in self.critics(batch["observation"]))
        return squared_error(first, target) + squared_error(second, target)

    def policy_loss(self, batch: TensorDict, target: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy weighted by the advantage, equation 7, ``[B]``; and the advantage over V of targets ``[B]``.

        The clip bounds the product of the advantage's weight and the priority's.
        """
        with torch.no_grad():
            advantage = target - self.value_of(batch["observation"])
            weight = advantage_weight(advantage, self.temperature, batch["weight"], self.max_weight)
        logits = self.policy(batch["observation"])
        return weight * functional.cross_entropy(logits, batch["action"], reduction="none"), advantage

    def update(self, batch: Batch) -> dict[str, Tensor]:
        data, cloned = batch.evaluation, self.one_policy_batch(batch)
        # The order matters: each network uses what the one before has just learnt.
        target = self.target_value(data)
        value_loss = (data["weight"] * self.value_loss(data, target)).mean()
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
        return self.to_environment(self.policy(self.observe(observation)).argmax(-1))

    def explore(self, observation: Tensor) -> Tensor:
        """A sample of the policy."""
        return self.to_environment(sampled(self.policy(self.observe(observation))))
