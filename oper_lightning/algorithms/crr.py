"""CRR of discrete actions: Wang et al. 2020, "Critic Regularized Regression", arXiv 2006.15134.

With few actions the policy's own value is an exact sum, and nothing is sampled. Prioritised by OPER's roles, arXiv
2306.05412, which has no discrete actions: the critic is evaluation, CQL's penalty on it included; the policy is
improvement and constraint in one loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.data.transitions import n_step
from oper_lightning.errors import InputError
from oper_lightning.nn.losses import squared_error
from oper_lightning.nn.networks import TwoHeads, of_action, sampled
from oper_lightning.nn.optim import adam, copy_to, frozen_copy
from oper_lightning.spec import Batch, DataSpec


class CRR(OfflineAlgorithm):
    """CRR of discrete actions: the policy clones recorded actions, those more that a critic finds better than its own.

    Args:
        mode: what a recorded action weighs: exp (the exponential of its advantage), binary (1 if its advantage is
            positive, else 0) or all (1: behaviour cloning).
        beta: what the advantage is divided by in the exponential. Paper: 1.
        max_weight: upper bound of the exponential. Paper: 20.
        cql_weight: weight of CQL's penalty on the critic; 0, as in the paper, leaves it out.
        discount: factor of future rewards, per step.
        n_step: number of rewards that are summed before the target bootstraps.
        target_update: number of updates after which the online network is copied into the target. Atari: 500.
        hidden_sizes: widths of the hidden layers of critic and policy; by default 512 above images and 256, 256 above
            vectors.
        learning_rate: learning rate of the Adam optimiser. Atari: 1e-4.
        normalise_observations: whether the network sees vectors with mean 0 and standard deviation 1.
    """

    kinds = ("discrete",)
    images = True

    def __init__(
        self,
        mode: Literal["exp", "binary", "all"] = "exp",
        beta: float = 1.0,
        max_weight: float = 20.0,
        cql_weight: float = 0.0,
        discount: float = 0.99,
        n_step: int = 1,
        target_update: int = 320,
        hidden_sizes: Sequence[int] | None = None,
        learning_rate: float = 3e-4,
        normalise_observations: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(normalise_observations, **options)
        if not beta > 0:
            raise InputError(f"CRR: beta {beta} must be positive")
        if not max_weight > 0:
            raise InputError(f"CRR: max_weight {max_weight} must be positive")
        if not cql_weight >= 0:
            raise InputError(f"CRR: cql_weight {cql_weight} must not be negative")
        if target_update < 1:
            raise InputError(f"CRR: target_update {target_update} must be at least 1")
        self.mode = mode
        self.beta = beta
        self.max_weight = max_weight
        self.cql_weight = cql_weight
        self.discount = discount
        self.n_step = n_step
        self.target_update = target_update
        self.hidden_sizes = hidden_sizes
        self.learning_rate = learning_rate

    def build(self, spec: DataSpec) -> None:
        # Values first, logits of the policy second.
        self.network = TwoHeads(spec.observation_shape, spec.pixels, self.hidden_sizes, spec.actions)
        self.target_network = frozen_copy(self.network)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.optimiser = adam(self.network.parameters(), self.learning_rate)
        return [self.optimiser]

    def columns(self, transitions: TensorDict) -> TensorDict:
        return n_step(transitions, self.n_step, self.discount)

    @staticmethod
    def policy_value(values: Tensor, logits: Tensor) -> Tensor:
        """Mean of the values ``[B, A]`` over the policy's actions, ``[B]``."""
        return (functional.softmax(logits, -1) * values).sum(-1)

    @torch.no_grad()
    def target(self, batch: TensorDict) -> Tensor:
        """What the values of recorded actions should be, ``[B]``, by target critic and target policy."""
        following = self.policy_value(*self.target_network(batch["next", "observation"]))
        return batch["next", "reward"] + batch["discount"] * following

    def critic_loss(self, batch: TensorDict, values: Tensor, target: Tensor) -> Tensor:
        """Half the squared Bellman error of values ``[B, A]`` against targets ``[B]``, and CQL's penalty; ``[B]``."""
        recorded = of_action(values, batch["action"])
        error = squared_error(recorded, target) / 2
        return error + self.cql_weight * (values.logsumexp(-1) - recorded) if self.cql_weight else error

    @torch.no_grad()
    def factor(self, batch: TensorDict, values: Tensor, logits: Tensor) -> Tensor:
        """What recorded actions weigh in the policy's loss, ``[B]``; a constant for the gradient."""
        advantage = of_action(values, batch["action"]) - self.policy_value(values, logits)
        if self.mode == "exp":
            return (advantage / self.beta).exp().clamp(max=self.max_weight)
        return (advantage > 0).to(advantage) if self.mode == "binary" else torch.ones_like(advantage)

    def policy_loss(self, batch: TensorDict, values: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy between policy and recorded actions, times their factors, ``[B]``; and these factors."""
        factor = self.factor(batch, values, logits)
        return factor * functional.cross_entropy(logits, batch["action"], reduction="none"), factor

    def prepare(self, number: int) -> bool:
        """Whether the target network is renewed."""
        return number % self.target_update == 0

    def update(self, batch: Batch) -> dict[str, Tensor]:
        data, cloned = batch.evaluation, self.one_policy_batch(batch)
        target = self.target(data)
        if self.branch:
            copy_to(self.target_network, self.network)
        values, logits = self.network(data["observation"])
        critic_loss = (data["weight"] * self.critic_loss(data, values, target)).mean()
        if cloned is not data:
            values, logits = self.network(cloned["observation"])
        policy_loss, factor = self.policy_loss(cloned, values, logits)
        policy_loss = (cloned["weight"] * policy_loss).mean()
        self.minimise(critic_loss + policy_loss, self.optimiser)
        return {
            "critic_loss": critic_loss,
            "policy_loss": policy_loss,
            "value": of_action(values, cloned["action"]).mean(),
            "factor": factor.mean(),
        }

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        _, logits = self.network(self.observe(observation))
        return self.to_environment(logits.argmax(-1))

    def explore(self, observation: Tensor) -> Tensor:
        """A sample of the policy."""
        _, logits = self.network(self.observe(observation))
        return self.to_environment(sampled(logits))
