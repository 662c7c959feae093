"""Behaviour cloning of discrete actions: a classifier of what was done.

The baseline of Fujimoto et al. 2019 (arXiv 1910.01708), there for Atari games.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.nn.encoders import encoder, widths
from oper_lightning.nn.networks import mlp
from oper_lightning.nn.optim import adam
from oper_lightning.spec import Batch, DataSpec


class DiscreteBC(OfflineAlgorithm):
    """Behaviour cloning of discrete actions: the policy takes the action that was most likely recorded.

    Args:
        hidden_sizes: widths of the hidden layers; by default 512 above images and 256, 256 above vectors.
        learning_rate: learning rate of the Adam optimiser.
        normalise_observations: whether the policy sees vectors with mean 0 and standard deviation 1.
    """

    kinds = ("discrete",)
    images = True
    reads = ("improvement", "constraint")

    def __init__(
        self,
        hidden_sizes: Sequence[int] | None = None,
        learning_rate: float = 3e-4,
        normalise_observations: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(normalise_observations, **options)
        self.hidden_sizes = hidden_sizes
        self.learning_rate = learning_rate

    def build(self, spec: DataSpec) -> None:
        body = encoder(spec.observation_shape, spec.pixels)
        head = mlp([body.features, *widths(self.hidden_sizes, spec.pixels), spec.actions])
        self.policy = nn.Sequential(body, head)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.optimiser = adam(self.policy.parameters(), self.learning_rate)
        return [self.optimiser]

    def loss(self, batch: TensorDict) -> Tensor:
        """Cross-entropy between the policy and the recorded actions, ``[B]``."""
        return functional.cross_entropy(self.policy(batch["observation"]), batch["action"], reduction="none")

    def update(self, batch: Batch) -> dict[str, Tensor]:
        data = self.one_policy_batch(batch)
        loss = (data["weight"] * self.loss(data)).mean()
        self.minimise(loss, self.optimiser)
        return {"policy_loss": loss}

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        return self.to_environment(self.policy(self.observe(observation)).argmax(-1))
