"""Random network distillation: what a network has not yet learnt to predict is new.

Burda et al. 2018, "Exploration by random network distillation", arXiv 1810.12894, as the three explorers of Mark et al.
2023, arXiv 2310.08558, use it: on every drawn batch, with the largest squared error as the bonus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.bonuses import learnt
from oper_lightning.data.bonuses.bonus import Bonus, bring
from oper_lightning.data.bonuses.moments import Moments
from oper_lightning.errors import InputError
from oper_lightning.nn import ranks
from oper_lightning.nn.losses import squared_error
from oper_lightning.nn.networks import mlp, orthogonal
from oper_lightning.nn.optim import adam, flushed_denormals, frozen_copy
from oper_lightning.spec import DataSpec

LARGEST = 5.0  # of a normalised observation, in standard deviations
SMALLEST = 1e-8  # added to variances


class RND(Bonus):
    """How far a trained network is from a random one, at the next observation: large where little has been drawn.

    The squared errors of a next observation, each feature's apart, are divided by their standard deviation; the largest
    one is the bonus. At the start bonuses are near 3 with a standard deviation of 1, which falls as the predictor
    learns: for rewards between -1 and 0 begin with a scale of 0.5 to 1.

    Args:
        hidden_sizes: widths of the hidden layers of predictor and target.
        features: number of their outputs.
        learning_rate: of the predictor's Adam.
        proportion: chance with which a transition is among those that the predictor learns from.
        every: number of updates whose transitions make one step of the predictor, within a block of updates: with more
            than data.updates_per_block the predictor takes a step for each block. Published: 1; with many updates to a
            step of the environment, as many as those.
        normalise: raw divides by the standard deviation of the errors. reference restores the published arithmetic,
            which divides by that of errors divided before (it comes to rest at the root of the former, so that scales
            mean something else for every task), and normalises next observations by statistics of the observations.
        order: bonus_first takes the predictor as it was before it learns from the transitions (Cal-QL and RLPD of arXiv
            2310.08558), predictor_first as it is after (IQL). Statistics are those from before in both.
        learn: whether predictor and statistics go on learning; without, `path` is needed.
        path: checkpoint of a run with such a bonus, which this one begins with; networks must have the same sizes.
        options: see :class:`oper_lightning.data.bonuses.bonus.Bonus`.
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (512,),
        features: int = 512,
        learning_rate: float = 1e-4,
        proportion: float = 0.25,
        every: int = 1,
        normalise: Literal["raw", "reference"] = "raw",
        order: Literal["bonus_first", "predictor_first"] = "bonus_first",
        learn: bool = True,
        path: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 0 < proportion <= 1:
            raise InputError(f"data.bonus.proportion is {proportion}; a share above 0, of 1 at most, is needed")
        if every < 1:
            raise InputError(f"data.bonus.every is {every}; at least 1 is needed")
        if not learn and path is None:
            raise InputError("data.bonus.learn is false: name the checkpoint of what was learnt as data.bonus.path")
        self.hidden_sizes = hidden_sizes
        self.features = features
        self.learning_rate = learning_rate
        self.proportion = proportion
        self.every = every
        self.normalise = normalise
        self.order = order
        self.learn = learn
        self.path = path
        self._state: dict[str, Tensor] = {}

    def build(self, spec: DataSpec, device: torch.device, seed: int) -> None:
        with torch.random.fork_rng([]):
            torch.manual_seed(ranks.stream_seed(seed, "networks of the bonus", 0))
            sizes = [spec.observation_size, *self.hidden_sizes, self.features]
            self.predictor, target = mlp(sizes), mlp(sizes)
            orthogonal(self.predictor)
            orthogonal(target)
        self.predictor.to(device)
        self.target = frozen_copy(target).to(device)
        self.optimiser = adam(self.predictor.parameters(), self.learning_rate)
        self.observations = Moments(spec.observation_size, device)
        self.errors = Moments(1, device)
        self._state = self._all()
        if self.path is not None:
            bring(self, learnt.section(self.path), self.path)

    def _all(self) -> dict[str, Tensor]:
        """Every tensor that decides what comes next, by name."""
        parts: dict[str, dict[str, Any]] = {
            "predictor": dict(self.predictor.named_parameters()),
            "target": dict(self.target.named_parameters()),
            "observations": vars(self.observations),
            "errors": vars(self.errors),
        }
        parts |= {f"adam.{name}": self.optimiser.state[p] for name, p in self.predictor.named_parameters()}
        return {f"{part}.{name}": tensor.detach() for part, all in parts.items() for name, tensor in all.items()}

    def __call__(self, block: TensorDict) -> Tensor:
        following = block["next", "observation"]
        seen = block["observation"] if self.normalise == "reference" else following
        bonus, losses = [], []
        with torch.enable_grad(), flushed_denormals():
            for first in range(0, len(block), self.every):
                part = slice(first, first + self.every)
                inputs = self._normalised(following[part])
                error = self._error(inputs)
                if self.learn:
                    losses.append(self._step(error))
                if self.order == "predictor_first":
                    error = self._error(inputs)
                largest = error.detach().amax(-1)
                divided = largest / self._spread()
                bonus.append(divided)
                if self.learn:
                    self.observations.take(seen[part].flatten(0, -2))
                    self.errors.take((divided if self.normalise == "reference" else largest).reshape(-1, 1))
        self.numbers = {"predictor_loss": torch.stack(losses).mean()} if losses else {}
        return torch.cat(bonus)

    def _normalised(self, observation: Tensor) -> Tensor:
        """Observations ``[..., O]`` in standard deviations from the mean; 0 in dimensions that have never changed, in
        which the least difference would be many standard deviations.
        """
        mean, variance = self.observations.mean, self.observations.variance
        if self.normalise == "reference":
            return ((observation - mean) / variance.sqrt()).clamp(-LARGEST, LARGEST).float()
        inputs = ((observation - mean) / (variance + SMALLEST).sqrt()).clamp(-LARGEST, LARGEST)
        return inputs.masked_fill(self.observations.constant(), 0).float()

    def _error(self, inputs: Tensor) -> Tensor:
        """Squared difference of predictor and target, ``[..., features]``."""
        return squared_error(self.predictor(inputs), self.target(inputs))

    def _spread(self) -> Tensor:
        variance = self.errors.variance
        return (variance + SMALLEST if self.normalise == "raw" else variance).sqrt().float()

    def _step(self, error: Tensor) -> Tensor:
        """The predictor learns from a part of the transitions with errors ``[..., B, features]``; its loss."""
        each = error.mean(-1).movedim(-1, 0)  # noise is shared out among ranks by the first dimension
        keep = ranks.rand_like(each.detach()) < self.proportion
        kept = ranks.sum_over_ranks(keep.sum()).clamp(min=1)
        loss = (keep * each).sum() / kept * ranks.world_size()
        parameters = list(self.predictor.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        ranks.average_gradients(parameters)
        self.optimiser.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        return {name: tensor.clone() for name, tensor in self._state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        learnt.load(self._state, state)
