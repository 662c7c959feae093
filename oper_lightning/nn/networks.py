"""Multi-layer perceptrons, alone and in ensembles, and the policies made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given sizes (input first, output last) with ReLU between them, PyTorch's default init."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class EnsembleMLP(nn.Module):
    """Independent MLPs of equal shape with one output each, evaluated together.

    Args:
        members: shape M of the ensemble: ``(2,)`` for twin critics, ``(S, 2)`` for twin values of S seeds.
        sizes: layer sizes from the input to the last hidden layer; every member ends in one number.
    """

    def __init__(self, members: tuple[int, ...], sizes: Sequence[int]) -> None:
        super().__init__()
        self.members = members
        count = math.prod(members)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for inputs, outputs in pairwise([*sizes, 1]):
            bound = 1 / math.sqrt(inputs)  # what nn.Linear draws its weights and biases from
            self.weights.append(nn.Parameter(torch.empty(count, inputs, outputs).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(count, 1, outputs).uniform_(-bound, bound)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps inputs ``[*P, B, D]``, P a prefix of M, to the members' outputs ``[*M, B]``."""
        prefix = inputs.shape[:-2]
        if prefix != self.members[: len(prefix)]:
            raise ValueError(f"inputs {tuple(inputs.shape)} do not begin with a prefix of the ensemble {self.members}")
        rows = inputs.shape[-2:]
        missing = [1] * (len(self.members) - len(prefix))
        hidden = inputs.reshape(*prefix, *missing, *rows).expand(*self.members, *rows).reshape(-1, *rows)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, functional.relu_(hidden) if layer else hidden, weight)
        return hidden.reshape(*self.members, rows[0])

    def first(self, inputs: Tensor) -> Tensor:
        """Outputs ``[B]`` of the first member alone for inputs ``[B, D]``."""
        hidden = inputs
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.addmm(bias[0], functional.relu_(hidden) if layer else hidden, weight[0])
        return hidden.squeeze(-1)


class DeterministicPolicy(nn.Module):
    """Maps observations ``[..., O]`` to actions ``[..., A]`` in (-1, 1) through a tanh."""

    def __init__(self, observations: int, actions: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.body = mlp([observations, *hidden_sizes, actions])

    def forward(self, observation: Tensor) -> Tensor:
        return torch.tanh(cast(Tensor, self.body(observation)))


class GaussianPolicy(nn.Module):
    """Maps observations ``[..., O]`` to normal distributions over actions ``[..., A]``.

    Mean through a tanh; log standard deviation through a tanh onto (-5, 0). Not squashed: a sample may leave the
    action box (behaviour policy of Brandfonbrener et al. 2021, arXiv 2106.08909).
    """

    LOWEST, HIGHEST = -5.0, 0.0

    def __init__(self, observations: int, actions: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.body = mlp([observations, *hidden_sizes, 2 * actions])

    def forward(self, observation: Tensor) -> torch.distributions.Normal:
        mean, spread = torch.tanh(cast(Tensor, self.body(observation))).chunk(2, -1)
        log_std = self.LOWEST + (self.HIGHEST - self.LOWEST) * (spread + 1) / 2
        return torch.distributions.Normal(mean, log_std.exp(), validate_args=False)
