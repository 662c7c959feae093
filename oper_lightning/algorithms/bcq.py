"""BCQ: Fujimoto, Meger & Precup 2019, "Off-Policy Deep Reinforcement Learning without Exploration", arXiv 1812.02900.

Settings as in the authors' code (github.com/sfujim/BCQ). Prioritised by OPER's roles, arXiv 2306.05412: the critics
learn on the evaluation batch, the perturbation on the improvement batch, the generative model on the constraint batch.
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
from oper_lightning.nn import ranks
from oper_lightning.nn.losses import squared_error
from oper_lightning.nn.networks import DeterministicPolicy, EnsembleMLP, mlp
from oper_lightning.nn.optim import adam, frozen_copy, polyak
from oper_lightning.spec import Batch, DataSpec

LOWEST_LOG_STD, HIGHEST_LOG_STD = -4.0, 15.0  # of the encoder
LARGEST_LATENT = 0.5  # latents of generated actions are clipped: they stay where the decoder saw most of the data
MOST = 10_000


class BCQ(OfflineAlgorithm):
    """BCQ: twin critics choose among actions that a variational autoencoder generates as the data have them.

    Args:
        perturbation: largest change of a generated action, relative to half the action range (phi).
        minimum_share: share of the smaller of both critics' values in the target; the larger one has the rest (lambda).
        target_actions: number of generated actions of which the target takes the best.
        acting_actions: number of generated actions of which the policy takes the best.
        latent_size: length of the autoencoder's latent vectors; null is twice the number of action dimensions.
        kl_weight: weight of the latents' divergence from a standard normal against the reconstruction error.
        discount: factor of future rewards, per step.
        tau: share of the online networks that moves into the targets with each update.
        hidden_sizes: widths of the hidden layers of critics and perturbation.
        vae_hidden_sizes: widths of the hidden layers of encoder and decoder.
        learning_rate: learning rate of the three Adam optimisers.
        normalise_observations: whether the networks see observations with mean 0 and standard deviation 1.
    """

    acting_latents: Tensor

    def __init__(
        self,
        perturbation: float = 0.05,
        minimum_share: float = 0.75,
        target_actions: int = 10,
        acting_actions: int = 100,
        latent_size: int | None = None,
        kl_weight: float = 0.5,
        discount: float = 0.99,
        tau: float = 0.005,
        hidden_sizes: Sequence[int] = (400, 300),
        vae_hidden_sizes: Sequence[int] = (750, 750),
        learning_rate: float = 1e-3,
        normalise_observations: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(normalise_observations, **options)
        counts = {"target_actions": target_actions, "acting_actions": acting_actions, "latent_size": latent_size}
        for name, count in counts.items():
            if count is not None and not 1 <= count <= MOST:
                raise InputError(f"BCQ: {name} {count} must be from 1 to {MOST:,}")
        self.largest_perturbation = perturbation
        self.minimum_share = minimum_share
        self.target_actions = target_actions
        self.acting_actions = acting_actions
        self.latent_size = latent_size
        self.kl_weight = kl_weight
        self.discount = discount
        self.tau = tau
        self.hidden_sizes = hidden_sizes
        self.vae_hidden_sizes = vae_hidden_sizes
        self.learning_rate = learning_rate

    def build(self, spec: DataSpec) -> None:
        observations, actions = spec.observation_size, spec.action_size
        self.latents = 2 * actions if self.latent_size is None else self.latent_size
        self.encoder = mlp([observations + actions, *self.vae_hidden_sizes, 2 * self.latents])
        self.decoder = DeterministicPolicy(observations + self.latents, actions, self.vae_hidden_sizes)
        self.critics = EnsembleMLP((2,), [observations + actions, *self.hidden_sizes])
        self.perturbation = DeterministicPolicy(observations + actions, actions, self.hidden_sizes)
        self.target_critics = frozen_copy(self.critics)
        self.target_perturbation = frozen_copy(self.perturbation)
        # Drawn once, so that the policy is a function of the observation; the checkpoint keeps them.
        latents = torch.randn(self.acting_actions, self.latents).clamp(-LARGEST_LATENT, LARGEST_LATENT)
        self.register_buffer("acting_latents", latents)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.vae_optimiser = adam([*self.encoder.parameters(), *self.decoder.parameters()], self.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), self.learning_rate)
        self.perturbation_optimiser = adam(self.perturbation.parameters(), self.learning_rate)
        return [self.vae_optimiser, self.critic_optimiser, self.perturbation_optimiser]

    def columns(self, transitions: TensorDict) -> TensorDict:
        return n_step(transitions, 1, self.discount)

    # Actions -----------------------------------------------------------------------------------------------------

    def generated(self, observation: Tensor) -> Tensor:
        """An action ``[B, ..., A]`` for each observation ``[B, ..., O]``, as the data have them."""
        latent = ranks.randn_like(observation.new_empty(*observation.shape[:-1], self.latents))
        action: Tensor = self.decoder(torch.cat([observation, latent.clamp(-LARGEST_LATENT, LARGEST_LATENT)], -1))
        return action

    def perturbed(self, network: nn.Module, observation: Tensor, action: Tensor) -> Tensor:
        """Actions ``[..., A]``, each moved by no more than the largest perturbation within [-1, 1]."""
        change = self.largest_perturbation * network(torch.cat([observation, action], -1))
        return (action + change).clamp(-1, 1)

    # Losses ------------------------------------------------------------------------------------------------------

    def vae_loss(self, batch: TensorDict) -> Tensor:
        """Reconstruction error of the recorded action and divergence of its latents, means over dimensions, ``[B]``."""
        observation, action = batch["observation"], batch["action"]
        mean, log_std = self.encoder(torch.cat([observation, action], -1)).to(action.dtype).chunk(2, -1)
        log_std = log_std.clamp(LOWEST_LOG_STD, HIGHEST_LOG_STD)
        latent = mean + log_std.exp() * ranks.randn_like(mean)
        reconstruction = squared_error(self.decoder(torch.cat([observation, latent], -1)), action).mean(-1)
        divergence = ((log_std.exp().square() + mean.square() - 1) / 2 - log_std).mean(-1)
        return reconstruction + self.kl_weight * divergence

    def best_value(self, values: Tensor) -> Tensor:
        """Value ``[B]`` of the best of n actions, by both critics' values ``[2, B, n]`` (equation 13)."""
        mixed = self.minimum_share * values.amin(0) + (1 - self.minimum_share) * values.amax(0)
        return mixed.amax(-1)

    def critic_loss(self, batch: TensorDict) -> Tensor:
        """Squared Bellman errors of both critics, summed, ``[B]``."""
        with torch.no_grad():
            following = batch["next", "observation"].unsqueeze(1).expand(-1, self.target_actions, -1)
            action = self.perturbed(self.target_perturbation, following, self.generated(following))
            best = self.best_value(self.target_critics.several(batch["next", "observation"], action))
            target = batch["next", "reward"] + batch["discount"] * best
        values = self.critics(torch.cat([batch["observation"], batch["action"]], -1))
        return squared_error(values, target.expand_as(values)).sum(0)

    def improvement_loss(self, batch: TensorDict) -> Tensor:
        """Minus the first critic's value of a generated and perturbed action, ``[B]`` (equation 12)."""
        observation = batch["observation"]
        with torch.no_grad():
            action = self.generated(observation)
        action = self.perturbed(self.perturbation, observation, action)
        return -self.critics.first(torch.cat([observation, action], -1))

    # Update ------------------------------------------------------------------------------------------------------

    def update(self, batch: Batch) -> dict[str, Tensor]:
        evaluation, improvement, constraint = batch
        vae_loss = (constraint["weight"] * self.vae_loss(constraint)).mean()
        self.minimise(vae_loss, self.vae_optimiser)
        critic_loss = (evaluation["weight"] * self.critic_loss(evaluation)).mean()
        self.minimise(critic_loss, self.critic_optimiser)
        improvement_loss = self.improvement_loss(improvement)
        value = -improvement_loss.mean()
        improvement_loss = (improvement["weight"] * improvement_loss).mean()
        self.minimise(improvement_loss, self.perturbation_optimiser)
        polyak(self.target_critics, self.critics, self.tau)
        polyak(self.target_perturbation, self.perturbation, self.tau)
        return {
            "critic_loss": critic_loss,
            "vae_loss": vae_loss,
            "improvement_loss": improvement_loss,
            "value": value,
        }

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """The best by the first critic of ``acting_actions`` generated and perturbed actions."""
        observation = self.observe(observation).unsqueeze(-2)
        observation = observation.expand(*observation.shape[:-2], self.acting_actions, -1)  # [..., n, O]
        latent = self.acting_latents.expand(*observation.shape[:-1], -1)
        action = self.decoder(torch.cat([observation, latent], -1))
        action = self.perturbed(self.perturbation, observation, action)
        pairs = torch.cat([observation, action], -1)
        best = self.critics.first(pairs.flatten(0, -2)).unflatten(0, pairs.shape[:-1]).argmax(-1)
        action = action.take_along_dim(best[..., None, None], -2).squeeze(-2)
        return self.to_environment(action)
