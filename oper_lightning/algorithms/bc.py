"""Behaviour cloning: supervised learning of the recorded actions.

The Gaussian variant is the behaviour policy of Brandfonbrener et al. 2021 (arXiv 2106.08909), the sampled one the clone
of Matsushima et al. 2020 (arXiv 2006.03647).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.nn import ranks
from oper_lightning.nn.losses import squared_error
from oper_lightning.nn.networks import DeterministicPolicy, GaussianPolicy
from oper_lightning.nn.optim import adam
from oper_lightning.spec import Batch, DataSpec


class BC(OfflineAlgorithm):
    """Behaviour cloning: the policy imitates the recorded actions.

    Args:
        policy: deterministic (squared error), gaussian (log likelihood; acts by its mean) or sampled (squared error of
            an action drawn from the same distribution, which drives its spread to the floor).
        hidden_sizes: widths of the policy's hidden layers.
        learning_rate: learning rate of the Adam optimiser.
        normalise_observations: whether the policy sees observations with mean 0 and standard deviation 1.
    """

    reads = ("improvement", "constraint")

    def __init__(
        self,
        policy: Literal["deterministic", "gaussian", "sampled"] = "deterministic",
        hidden_sizes: Sequence[int] = (256, 256),
        learning_rate: float = 3e-4,
        normalise_observations: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(normalise_observations, **options)
        self.policy_type = policy
        self.hidden_sizes = hidden_sizes
        self.learning_rate = learning_rate

    def build(self, spec: DataSpec) -> None:
        network = DeterministicPolicy if self.policy_type == "deterministic" else GaussianPolicy
        self.policy = network(spec.observation_size, spec.action_size, self.hidden_sizes)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.optimiser = adam(self.policy.parameters(), self.learning_rate)
        return [self.optimiser]

    def loss(self, batch: TensorDict) -> Tensor:
        """Squared error averaged over the action's dimensions, or negative log likelihood summed over them; ``[B]``."""
        prediction = self.policy(batch["observation"])
        if self.policy_type == "sampled":
            prediction = prediction.mean + prediction.stddev * ranks.randn_like(prediction.mean)
        if self.policy_type == "gaussian":
            likelihood: Tensor = prediction.log_prob(batch["action"]).sum(-1)
            return -likelihood
        return squared_error(prediction, batch["action"]).mean(-1)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        data = self.one_policy_batch(batch)
        loss = (data["weight"] * self.loss(data)).mean()
        self.minimise(loss, self.optimiser)
        return {"policy_loss": loss}

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        prediction = self.policy(self.observe(observation))
        action = prediction.mean if isinstance(prediction, torch.distributions.Normal) else prediction
        return self.to_environment(action)
