"""TD3+BC: Fujimoto & Gu 2021, "A Minimalist Approach to Offline Reinforcement Learning", arXiv 2106.06860.

Prioritised as in OPER, arXiv 2306.05412: the critics learn on the evaluation batch, the actor's Q term on the
improvement batch, its behaviour-cloning term on the constraint batch.
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
from oper_lightning.nn import ranks
from oper_lightning.nn.losses import squared_error
from oper_lightning.nn.networks import DeterministicPolicy, EnsembleMLP, FixedStdPolicy, sample
from oper_lightning.nn.optim import adam, frozen_copy, polyak
from oper_lightning.spec import Batch, DataSpec


class TD3BC(OfflineAlgorithm):
    """TD3+BC: twin critics, and an actor that maximises their values but stays near the recorded actions.

    Args:
        alpha: weight of the Q term against behaviour cloning (equation 5; there 2.5).
        bc_coefficient: weight of the behaviour-cloning term.
        clip_constraint: what priorities below 1 do to the behaviour-cloning term when losses are reweighted: none
            (the priority as it is), one (they count as 1) or root (their square root counts).
        policy: deterministic, or gaussian (one learnt standard deviation; trained on samples, acts by its mean).
        discount: factor of future rewards, per step.
        tau: share of the online networks that moves into the targets with each actor update.
        policy_noise: standard deviation of the target action's noise, relative to half the action range.
        noise_clip: largest size of that noise.
        exploration_noise: standard deviation of the noise on actions that gather data, relative to half the action
            range (TD3: 0.1).
        policy_freq: the actor is updated after so many updates of the critics.
        n_step: number of rewards that are summed before the target bootstraps. Paper: 1.
        hidden_sizes: widths of the hidden layers of actor and critics.
        layer_norm: whether the critics' hidden layers are normalised.
        learning_rate: learning rate of both Adam optimisers.
        normalise_observations: whether the networks see observations with mean 0 and standard deviation 1.
    """

    def __init__(
        self,
        alpha: float = 2.5,
        bc_coefficient: float = 1.0,
        clip_constraint: Literal["none", "one", "root"] = "none",
        policy: Literal["deterministic", "gaussian"] = "deterministic",
        discount: float = 0.99,
        tau: float = 0.005,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        exploration_noise: float = 0.1,
        policy_freq: int = 2,
        n_step: int = 1,
        hidden_sizes: Sequence[int] = (256, 256),
        layer_norm: bool = False,
        learning_rate: float = 3e-4,
        normalise_observations: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(normalise_observations, **options)
        if policy_freq < 1:
            raise InputError(f"TD3BC: policy_freq {policy_freq} must be at least 1")
        self.alpha = alpha
        self.bc_coefficient = bc_coefficient
        self.clip_constraint = clip_constraint
        self.policy_type = policy
        self.discount = discount
        self.tau = tau
        self.policy_noise = policy_noise
        self.noise_clip = noise_clip
        self.exploration_noise = exploration_noise
        self.policy_freq = policy_freq
        self.n_step = n_step
        self.hidden_sizes = hidden_sizes
        self.layer_norm = layer_norm
        self.learning_rate = learning_rate

    def build(self, spec: DataSpec) -> None:
        observations, actions = spec.observation_size, spec.action_size
        network = DeterministicPolicy if self.policy_type == "deterministic" else FixedStdPolicy
        self.actor = network(observations, actions, self.hidden_sizes)
        self.critics = EnsembleMLP((2,), [observations + actions, *self.hidden_sizes], self.layer_norm)
        self.target_actor = frozen_copy(self.actor)
        self.target_critics = frozen_copy(self.critics)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.actor_optimiser = adam(self.actor.parameters(), self.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), self.learning_rate)
        return [self.actor_optimiser, self.critic_optimiser]

    def columns(self, transitions: TensorDict) -> TensorDict:
        return n_step(transitions, self.n_step, self.discount)

    @staticmethod
    def action_of(actor: torch.nn.Module, observation: Tensor) -> Tensor:
        """The policy's action ``[B, A]``, or a sample of it."""
        prediction: Tensor | Normal = actor(observation)
        return sample(prediction, 1).squeeze(1) if isinstance(prediction, Normal) else prediction

    def critic_loss(self, batch: TensorDict) -> Tensor:
        """Squared Bellman errors of both critics, summed, ``[B]``; clipped double Q with target smoothing."""
        following, action = batch["next", "observation"], batch["action"]
        with torch.no_grad():
            noise = (ranks.randn_like(action) * self.policy_noise).clamp(-self.noise_clip, self.noise_clip)
            next_action = (self.action_of(self.target_actor, following) + noise).clamp(-1, 1)
            next_value = self.target_critics(torch.cat([following, next_action], -1)).amin(0)
            target = batch["next", "reward"] + batch["discount"] * next_value
        values = self.critics(torch.cat([batch["observation"], action], -1))
        return squared_error(values, target.expand_as(values)).sum(0)

    def improvement_loss(self, batch: TensorDict, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Minus the first critic's value of the policy's action, scaled by lambda = alpha / mean |Q|, ``[B]``.

        Also returns these values ``[B]`` and lambda.
        """
        value = self.critics.first(torch.cat([batch["observation"], action], -1))
        scale = self.alpha / ranks.batch_mean(value.detach().abs())
        return -scale * value, value, scale

    def constraint_loss(self, batch: TensorDict, action: Tensor) -> Tensor:
        """Behaviour cloning: squared distance to the recorded action, averaged over its dimensions, ``[B]``."""
        return squared_error(action, batch["action"]).mean(-1)

    def constraint_weight(self, batch: TensorDict) -> Tensor:
        """Weights of the behaviour-cloning term, ``[B]``."""
        weight: Tensor = batch["weight"]
        if self.clip_constraint == "none":
            return weight
        return weight.clamp(min=1) if self.clip_constraint == "one" else torch.where(weight < 1, weight.sqrt(), weight)

    def prepare(self, number: int) -> bool:
        """Whether the policy moves too."""
        return (number + 1) % self.policy_freq == 0

    def update(self, batch: Batch) -> dict[str, Tensor]:
        data = batch.evaluation
        critic_loss = (data["weight"] * self.critic_loss(data)).mean()
        self.minimise(critic_loss, self.critic_optimiser)
        if not self.branch:
            return {"critic_loss": critic_loss}

        improvement, constraint = batch.improvement, batch.constraint
        action = self.action_of(self.actor, improvement["observation"])
        improvement_loss, value, scale = self.improvement_loss(improvement, action)
        improvement_loss = (improvement["weight"] * improvement_loss).mean()
        cloned = action if constraint is improvement else self.action_of(self.actor, constraint["observation"])
        constraint_loss = (self.constraint_weight(constraint) * self.constraint_loss(constraint, cloned)).mean()
        self.minimise(improvement_loss + self.bc_coefficient * constraint_loss, self.actor_optimiser)
        polyak(self.target_critics, self.critics, self.tau)
        polyak(self.target_actor, self.actor, self.tau)
        return {
            "critic_loss": critic_loss,
            "improvement_loss": improvement_loss,
            "constraint_loss": constraint_loss,
            "value": value.mean(),
            "lambda": scale,
        }

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        prediction = self.actor(self.observe(observation))
        return self.to_environment(prediction.mean if isinstance(prediction, Normal) else prediction)

    def explore(self, observation: Tensor) -> Tensor:
        """The policy's action, or a sample of it, with Gaussian noise."""
        action = self.action_of(self.actor, self.observe(observation))
        return self.to_environment((action + self.exploration_noise * ranks.randn_like(action)).clamp(-1, 1))
