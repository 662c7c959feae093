"""QR-DQN: Dabney et al. 2018, "Distributional Reinforcement Learning with Quantile Regression", arXiv 1710.10044.

Its targets take the next action by double Q, van Hasselt et al. 2016, arXiv 1509.06461. Prioritised by OPER's roles,
arXiv 2306.05412, which has no discrete actions: all there is is evaluation.
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


class QRDQN(OfflineAlgorithm):
    """QR-DQN, which gathers its transitions itself: learns quantiles of the return of each discrete action.

    Args:
        quantiles: number N of quantiles that describe the return of an action. Paper: 200.
        discount: factor of future rewards, per step.
        n_step: number of rewards that are summed before the target bootstraps. Paper: 1.
        target_update: number of updates after which the online network is copied into the target.
        epsilon: chance of a random action while gathering, from update ``epsilon_decay`` on. Paper: 0.01.
        epsilon_decay: number of updates over which that chance falls from 1, linearly.
        hidden_sizes: widths of the hidden layers; by default 512 above images and 256, 256 above vectors.
        learning_rate: learning rate of the Adam optimiser. Paper: 5e-5.
        normalise_observations: whether the network sees vectors with mean 0 and standard deviation 1, those of recorded
            transitions.
    """

    kinds = ("discrete",)
    images = True
    reads = ("evaluation",)
    epsilon: Tensor

    def __init__(
        self,
        quantiles: int = 32,
        discount: float = 0.99,
        n_step: int = 1,
        target_update: int = 500,
        epsilon: float = 0.05,
        epsilon_decay: int = 10_000,
        hidden_sizes: Sequence[int] | None = None,
        learning_rate: float = 3e-4,
        normalise_observations: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(normalise_observations, **options)
        if quantiles < 1:
            raise InputError(f"QRDQN: quantiles {quantiles} must be at least 1")
        if target_update < 1:
            raise InputError(f"QRDQN: target_update {target_update} must be at least 1")
        if not 0 <= epsilon <= 1:
            raise InputError(f"QRDQN: epsilon {epsilon} is not in [0, 1]")
        if epsilon_decay < 0:
            raise InputError(f"QRDQN: epsilon_decay {epsilon_decay} must not be negative")
        self.quantiles = quantiles
        self.discount = discount
        self.n_step = n_step
        self.target_update = target_update
        self.last_epsilon = epsilon
        self.epsilon_decay = epsilon_decay
        self.hidden_sizes = hidden_sizes
        self.learning_rate = learning_rate

    def build(self, spec: DataSpec) -> None:
        body = encoder(spec.observation_shape, spec.pixels)
        head = mlp([body.features, *widths(self.hidden_sizes, spec.pixels), spec.actions * self.quantiles])
        self.critic = nn.Sequential(body, head, nn.Unflatten(-1, (spec.actions, self.quantiles)))
        self.target_critic = frozen_copy(self.critic)
        # In the checkpoint: a run that goes on gathers before its first update sets it again.
        self.register_buffer("epsilon", torch.tensor(self.epsilon_at(0)))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.optimiser = adam(self.critic.parameters(), self.learning_rate)
        return [self.optimiser]

    def columns(self, transitions: TensorDict) -> TensorDict:
        return n_step(transitions, self.n_step, self.discount)

    @torch.no_grad()
    def target(self, batch: TensorDict) -> Tensor:
        """Where the quantiles of the actions taken should lie, ``[B, N]``: those of the next action, by double Q."""
        following = batch["next", "observation"]
        best = self.critic(following).mean(-1).argmax(-1)
        quantiles = of_action(self.target_critic(following), best)
        return batch["next", "reward"].unsqueeze(1) + batch["discount"].unsqueeze(1) * quantiles

    def epsilon_at(self, number: int) -> float:
        """Chance of a random action around update ``number``."""
        share = min(number / self.epsilon_decay, 1) if self.epsilon_decay else 1
        return 1 + share * (self.last_epsilon - 1)

    def prepare(self, number: int) -> bool:
        """Sets epsilon; returns whether the target network is renewed."""
        self.epsilon.fill_(self.epsilon_at(number))
        return number % self.target_update == 0

    def update(self, batch: Batch) -> dict[str, Tensor]:
        data = batch.evaluation
        target = self.target(data)
        if self.branch:
            copy_to(self.target_critic, self.critic)
        quantiles = of_action(self.critic(data["observation"]), data["action"])
        critic_loss = (data["weight"] * quantile_error(quantiles, target)).mean()  # equation 10
        self.minimise(critic_loss, self.optimiser)
        return {"critic_loss": critic_loss, "value": quantiles.mean(), "epsilon": self.epsilon.clone()}

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        return self.to_environment(self.critic(self.observe(observation)).mean(-1).argmax(-1))

    def explore(self, observation: Tensor) -> Tensor:
        """The action of highest value or, with the chance epsilon, any."""
        values = self.critic(self.observe(observation)).mean(-1)
        return self.to_environment(epsilon_greedy(values.argmax(-1), values.shape[-1], self.epsilon))
