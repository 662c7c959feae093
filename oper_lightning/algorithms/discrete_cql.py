"""CQL of discrete actions: Kumar et al. 2020, "Conservative Q-Learning for Offline Reinforcement Learning", arXiv
2006.04779, on quantile regression: Dabney et al. 2018, arXiv 1710.10044.

Prioritised by OPER's roles, arXiv 2306.05412, as the continuous CQL is: the Bellman error is evaluation, the penalty
constraint.
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
from oper_lightning.nn.encoders import encoder, widths
from oper_lightning.nn.losses import quantile_error
from oper_lightning.nn.networks import epsilon_greedy, mlp, of_action
from oper_lightning.nn.optim import adam, copy_to, frozen_copy
from oper_lightning.spec import Batch, DataSpec


class DiscreteCQL(OfflineAlgorithm):
    """CQL of discrete actions: a quantile-regression DQN that values recorded actions higher than the others.

    Args:
        cql_weight: weight of the penalty relative to the quantile loss; 0 leaves a plain QR-DQN.
        quantiles: number of quantiles that describe the return of an action. Atari: 200.
        discount: factor of future rewards, per step.
        n_step: number of rewards that are summed before the target bootstraps. Paper: 1.
        target_update: number of updates after which the online network is copied into the target.
        epsilon: chance of a random action while gathering transitions.
        hidden_sizes: widths of the hidden layers; by default 512 above images and 256, 256 above vectors.
        learning_rate: learning rate of the Adam optimiser. Atari: 1e-4.
        normalise_observations: whether the network sees vectors with mean 0 and standard deviation 1.
    """

    kinds = ("discrete",)
    images = True
    reads = ("evaluation", "constraint")

    def __init__(
        self,
        cql_weight: float = 1.0,
        quantiles: int = 32,
        discount: float = 0.99,
        n_step: int = 1,
        target_update: int = 500,
        epsilon: float = 0.05,
        hidden_sizes: Sequence[int] | None = None,
        learning_rate: float = 3e-4,
        normalise_observations: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(normalise_observations, **options)
        if quantiles < 1:
            raise InputError(f"DiscreteCQL: quantiles {quantiles} must be at least 1")
        if target_update < 1:
            raise InputError(f"DiscreteCQL: target_update {target_update} must be at least 1")
        if not 0 <= epsilon <= 1:
            raise InputError(f"DiscreteCQL: epsilon {epsilon} is not in [0, 1]")
        if not cql_weight >= 0:
            raise InputError(f"DiscreteCQL: cql_weight {cql_weight} must not be negative")
        self.cql_weight = cql_weight
        self.quantiles = quantiles
        self.discount = discount
        self.n_step = n_step
        self.target_update = target_update
        self.epsilon = epsilon
        self.hidden_sizes = hidden_sizes
        self.learning_rate = learning_rate

    def build(self, spec: DataSpec) -> None:
        body = encoder(spec.observation_shape, spec.pixels)
        head = mlp([body.features, *widths(self.hidden_sizes, spec.pixels), spec.actions * self.quantiles])
        self.critic = nn.Sequential(body, head, nn.Unflatten(-1, (spec.actions, self.quantiles)))
        self.target_critic = frozen_copy(self.critic)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.optimiser = adam(self.critic.parameters(), self.learning_rate)
        return [self.optimiser]

    def columns(self, transitions: TensorDict) -> TensorDict:
        return n_step(transitions, self.n_step, self.discount)

    @torch.no_grad()
    def target(self, batch: TensorDict) -> Tensor:
        """Where the quantiles of recorded actions should lie, ``[B, N]``: those of the next action, by double Q."""
        following = batch["next", "observation"]
        best = self.critic(following).mean(-1).argmax(-1)
        quantiles = of_action(self.target_critic(following), best)
        return batch["next", "reward"].unsqueeze(1) + batch["discount"].unsqueeze(1) * quantiles

    @staticmethod
    def difference(batch: TensorDict, quantiles: Tensor) -> Tensor:
        """How far the soft maximum over actions lies above the value of the recorded one, ``[B]``.

        Values are means of the quantiles ``[B, A, N]``.
        """
        values = quantiles.mean(-1)
        return values.logsumexp(-1) - of_action(values, batch["action"])

    def prepare(self, number: int) -> bool:
        """Whether the target network is renewed."""
        return number % self.target_update == 0

    def update(self, batch: Batch) -> dict[str, Tensor]:
        evaluation, constraint = batch.evaluation, batch.constraint
        target = self.target(evaluation)
        if self.branch:
            copy_to(self.target_critic, self.critic)
        quantiles = self.critic(evaluation["observation"])
        recorded = of_action(quantiles, evaluation["action"])
        bellman_error = (evaluation["weight"] * quantile_error(recorded, target)).mean()
        if constraint is not evaluation:
            quantiles = self.critic(constraint["observation"])
        difference = (constraint["weight"] * self.difference(constraint, quantiles)).mean()
        critic_loss = bellman_error + self.cql_weight * difference
        self.minimise(critic_loss, self.optimiser)
        return {
            "critic_loss": critic_loss,
            "bellman_error": bellman_error,
            "difference": difference,
            "value": recorded.mean(),
        }

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        return self.to_environment(self.critic(self.observe(observation)).mean(-1).argmax(-1))

    def explore(self, observation: Tensor) -> Tensor:
        """The action of highest value or, with the chance ``epsilon``, any."""
        values = self.critic(self.observe(observation)).mean(-1)
        return self.to_environment(epsilon_greedy(values.argmax(-1), values.shape[-1], self.epsilon))
