"""Discrete BCQ: Fujimoto et al. 2019, "Benchmarking Batch Deep Reinforcement Learning Algorithms", arXiv 1910.01708.

Prioritised by OPER's roles, arXiv 2306.05412, which has no discrete actions: the Bellman error is evaluation, imitation
constraint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.data.transitions import n_step
from oper_lightning.errors import InputError
from oper_lightning.nn.losses import huber_error
from oper_lightning.nn.networks import TwoHeads, epsilon_greedy, of_action
from oper_lightning.nn.optim import adam, copy_to, frozen_copy
from oper_lightning.spec import Batch, DataSpec


class DiscreteBCQ(OfflineAlgorithm):
    """Discrete BCQ: a double DQN that only considers actions which a clone of the data finds likely enough.

    Args:
        threshold: an action is considered if it is at least this share as likely as the likeliest one (tau). 0
            considers all; towards 1 the policy becomes the clone. Paper: 0.3.
        logits_penalty: weight of the clone's mean squared logits. Paper's code: 0.01.
        discount: factor of future rewards, per step.
        n_step: number of rewards that are summed before the target bootstraps. Paper: 1.
        target_update: number of updates after which the online network is copied into the target. Atari: 8000.
        epsilon: chance of a random action while gathering transitions.
        hidden_sizes: widths of the hidden layers of values and clone; by default 512 above images and 256, 256 above
            vectors.
        learning_rate: learning rate of the Adam optimiser. Atari: 6.25e-5.
        normalise_observations: whether the network sees vectors with mean 0 and standard deviation 1.
    """

    kinds = ("discrete",)
    images = True
    reads = ("evaluation", "constraint")

    def __init__(
        self,
        threshold: float = 0.3,
        logits_penalty: float = 0.01,
        discount: float = 0.99,
        n_step: int = 1,
        target_update: int = 320,
        epsilon: float = 0.05,
        hidden_sizes: Sequence[int] | None = None,
        learning_rate: float = 3e-4,
        normalise_observations: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(normalise_observations, **options)
        if not 0 <= threshold < 1:
            raise InputError(f"DiscreteBCQ: threshold {threshold} is not in [0, 1)")
        if target_update < 1:
            raise InputError(f"DiscreteBCQ: target_update {target_update} must be at least 1")
        if not 0 <= epsilon <= 1:
            raise InputError(f"DiscreteBCQ: epsilon {epsilon} is not in [0, 1]")
        self.log_threshold = math.log(threshold) if threshold else -math.inf
        self.logits_penalty = logits_penalty
        self.discount = discount
        self.n_step = n_step
        self.target_update = target_update
        self.epsilon = epsilon
        self.hidden_sizes = hidden_sizes
        self.learning_rate = learning_rate

    def build(self, spec: DataSpec) -> None:
        # Values first, logits of the clone second.
        self.network = TwoHeads(spec.observation_shape, spec.pixels, self.hidden_sizes, spec.actions)
        self.target_network = frozen_copy(self.network)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.optimiser = adam(self.network.parameters(), self.learning_rate)
        return [self.optimiser]

    def columns(self, transitions: TensorDict) -> TensorDict:
        return n_step(transitions, self.n_step, self.discount)

    def best(self, values: Tensor, logits: Tensor) -> Tensor:
        """The action ``[...]`` of highest value among those likely enough, from values and logits ``[..., A]``."""
        unlikely = logits - logits.amax(-1, keepdim=True) < self.log_threshold
        return values.masked_fill(unlikely, -math.inf).argmax(-1)

    @torch.no_grad()
    def target(self, batch: TensorDict) -> Tensor:
        """What the values of recorded actions should be, ``[B]``: double Q over the actions considered."""
        following = batch["next", "observation"]
        best = self.best(*self.network(following))
        values = self.target_network.first(self.target_network.body(following))
        return batch["next", "reward"] + batch["discount"] * of_action(values, best)

    def imitation_loss(self, batch: TensorDict, logits: Tensor) -> Tensor:
        """Cross-entropy between clone and recorded actions, and the penalty of its logits ``[B, A]``; ``[B]``."""
        cross_entropy = functional.cross_entropy(logits, batch["action"], reduction="none")
        return cross_entropy + self.logits_penalty * logits.square().mean(1)

    def prepare(self, number: int) -> bool:
        """Whether the target network is renewed."""
        return number % self.target_update == 0

    def update(self, batch: Batch) -> dict[str, Tensor]:
        evaluation, constraint = batch.evaluation, batch.constraint
        target = self.target(evaluation)
        if self.branch:
            copy_to(self.target_network, self.network)
        values, logits = self.network(evaluation["observation"])
        value = of_action(values, evaluation["action"])
        critic_loss = (evaluation["weight"] * huber_error(value, target)).mean()
        if constraint is not evaluation:
            _, logits = self.network(constraint["observation"])
        imitation_loss = (constraint["weight"] * self.imitation_loss(constraint, logits)).mean()
        self.minimise(critic_loss + imitation_loss, self.optimiser)
        return {"critic_loss": critic_loss, "imitation_loss": imitation_loss, "value": value.mean()}

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        return self.to_environment(self.best(*self.network(self.observe(observation))))

    def explore(self, observation: Tensor) -> Tensor:
        """The policy's action or, with the chance ``epsilon``, any."""
        values, logits = self.network(self.observe(observation))
        return self.to_environment(epsilon_greedy(self.best(values, logits), values.shape[-1], self.epsilon))
