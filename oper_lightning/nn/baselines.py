"""What returns are to be expected from where a rollout stands: baselines that are fitted anew to every batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from oper_lightning.nn.losses import squared_error
from oper_lightning.nn.networks import possible
from oper_lightning.nn.ranks import average_gradients, mean_over_ranks

FURTHEST = 10.0  # where normalised observations are cut
RIDGE = 1e-5  # share of its own diagonal that is added to the matrix of the normal equations
STEPS = 20  # of Adam, on all rows, in each fit of a network


class LinearBaseline(nn.Module):
    """A linear function of an observation, its square, and the time to the powers of 0 to 3, by least squares.

    Time is known because a rollout is cut after a number of steps (Duan et al. 2016, arXiv 1604.06778, section 4.1).

    Args:
        observations: length O of observations.
    """

    coefficients: Tensor

    def __init__(self, observations: int) -> None:
        super().__init__()
        self.register_buffer("coefficients", torch.zeros(2 * observations + 4, dtype=torch.float64))

    def forward(self, observation: Tensor, time: Tensor) -> Tensor:
        """Values ``[...]``, float64, for normalised observations ``[..., O]`` after so many steps ``[...]``."""
        return self._features(observation, time) @ self.coefficients

    def _features(self, observation: Tensor, time: Tensor) -> Tensor:
        seen, late = observation.clamp(-FURTHEST, FURTHEST).double(), time.double().unsqueeze(-1) / 100
        return torch.cat([seen, seen.square(), late, late**2, late**3, torch.ones_like(late)], -1)

    @torch.no_grad()
    def fit(self, observation: Tensor, time: Tensor, target: Tensor, weight: Tensor) -> None:
        """Minimises the squared errors ``[...]``, times their weights, over the rows of all ranks.

        The ridge is a share of each feature's own size: the powers of time are nearly collinear, and a fixed one would
        leave their coefficients to rounding.
        """
        features = self._features(observation, time).flatten(0, -2)
        weighed = features * weight.double().flatten().unsqueeze(-1) / len(features)
        squares = mean_over_ranks(weighed.T @ features)
        size = squares.diagonal()
        size.copy_(torch.where(size > 0, size * (1 + RIDGE), 1.0))  # columns of zeros get the coefficient zero
        right = mean_over_ranks(weighed.T @ target.double().flatten())
        self.coefficients.copy_(torch.linalg.solve_ex(squares, right)[0])

    def optimisers(self) -> list[torch.optim.Optimizer]:
        """None: each fit is a solution."""
        return []


class NetworkBaseline(nn.Module):
    """A perceptron with tanh between its layers; each fit is some steps of Adam on all rows.

    Args:
        observations: length O of observations.
        hidden_sizes: widths of the hidden layers.
    """

    def __init__(self, observations: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        sizes = [observations, *hidden_sizes, 1]
        possible(sizes)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.body = nn.Sequential(*layers[:-1])

    def forward(self, observation: Tensor, time: Tensor) -> Tensor:
        """Values ``[...]``, float64, for normalised observations ``[..., O]``; the time ``[...]`` is not looked at."""
        values: Tensor = self.body(observation)
        return values.squeeze(-1).double()

    def fit(self, observation: Tensor, time: Tensor, target: Tensor, weight: Tensor) -> None:
        """Lowers the squared errors ``[...]``, times their weights, over the rows of all ranks."""
        for _ in range(STEPS):
            loss = (weight * squared_error(self(observation, time), target)).mean()
            self.optimiser.zero_grad()
            loss.backward()
            average_gradients(list(self.parameters()))
            self.optimiser.step()

    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Makes the optimiser that fits."""
        self.optimiser = torch.optim.Adam(self.parameters(), 3e-4, betas=(0.5, 0.99), eps=1e-4, fused=True)
        return [self.optimiser]
