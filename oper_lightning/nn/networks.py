"""Multi-layer perceptrons, alone and in ensembles, and the policies made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional

from oper_lightning.errors import InputError
from oper_lightning.files import fits_memory
from oper_lightning.nn import ranks
from oper_lightning.nn.encoders import encoder, widths


def possible(sizes: Sequence[int], members: int = 1) -> None:
    """Refuses networks, so many of them, with layers of impossible sizes, before memory is taken.

    Raises:
        InputError: if a layer has no unit, or parameters, moments, gradients and targets do not fit into memory.
    """
    shown = ", ".join(map(str, sizes))[:60]
    if members < 1 or any(type(size) is not int or size < 1 for size in sizes):
        raise InputError(f"hidden_sizes: layers of {shown} units; each needs at least 1, as a whole number")
    parameters = members * sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))
    fits_memory(5 * 4 * parameters, "hidden_sizes", f"training a network with layers of {shown} units")


def in_full(value: Tensor) -> torch.autocast:
    """Inside, nothing is rounded to bfloat16: last layers give values, means and logits, whose differences count.

    Args:
        value: of the device that computes.
    """
    return torch.autocast(value.device.type, enabled=False)


class LastLinear(nn.Linear):
    """The last layer of a perceptron; takes hidden units ``[..., H]`` of any precision."""

    def forward(self, hidden: Tensor) -> Tensor:
        with in_full(hidden):
            return super().forward(hidden.to(self.weight.dtype))


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given sizes (input first, output last) with ReLU between them, PyTorch's default init."""
    possible(sizes)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, LastLinear(sizes[-2], sizes[-1]))


def with_dropout(network: nn.Sequential, inputs: Tensor, chance: float) -> Tensor:
    """What a perceptron makes of inputs ``[B, D]`` if each hidden unit is left out with this chance.

    The noise is drawn for the rows of all ranks, so that R ranks train what one process does.
    """
    hidden = inputs
    for layer in network:
        hidden = layer(hidden)
        if chance and isinstance(layer, nn.ReLU):
            hidden = hidden * (ranks.rand_like(hidden) >= chance) / (1 - chance)
    return hidden


SHORTEST = 1e-8  # features that are shorter are divided by this: all units may be off


class EnsembleMLP(nn.Module):
    """Independent MLPs of equal shape, evaluated together; each has one output, or T of them.

    Args:
        members: shape M of the ensemble: ``(2,)`` for twin critics, ``(S, 2)`` for twin values of S seeds.
        sizes: layer sizes from the input to the last hidden layer; every member ends in one number.
        layer_norm: whether each hidden layer is normalised before its ReLU, then scaled and shifted by each member.
        normalise_features: whether what goes into the last layer is brought to Euclidean length 1 (as in OOO,
            arXiv 2310.08558).
        epsilon: what the normalisation of layers adds to variances.
        outputs: number T of outputs of each member; None for one, which then has no dimension of its own.
    """

    def __init__(
        self,
        members: tuple[int, ...],
        sizes: Sequence[int],
        layer_norm: bool = False,
        normalise_features: bool = False,
        epsilon: float = 1e-5,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.members = members
        self.normalise_features = normalise_features
        self.epsilon = epsilon
        count = math.prod(members)
        self.outputs = outputs
        sizes = [*sizes, outputs or 1]
        possible(sizes, count)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.scales, self.shifts = nn.ParameterList(), nn.ParameterList()
        for inputs, width in pairwise(sizes):
            bound = 1 / math.sqrt(inputs)  # what nn.Linear draws its weights and biases from
            self.weights.append(nn.Parameter(torch.empty(count, inputs, width).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(count, 1, width).uniform_(-bound, bound)))
        for width in sizes[1:-1] if layer_norm else ():
            self.scales.append(nn.Parameter(torch.ones(count, 1, width)))
            self.shifts.append(nn.Parameter(torch.zeros(count, 1, width)))

    def forward(self, inputs: Tensor, frozen: bool = False) -> Tensor:
        """Maps inputs ``[*P, B, D]``, P a prefix of M, to the members' outputs ``[*M, B]`` or ``[*M, B, T]``.

        If ``frozen``, gradients pass through to the inputs only.
        """
        prefix = inputs.shape[:-2]
        if prefix != self.members[: len(prefix)]:
            raise ValueError(f"inputs {tuple(inputs.shape)} do not begin with a prefix of the ensemble {self.members}")
        rows = inputs.shape[-2:]
        missing = [1] * (len(self.members) - len(prefix))
        hidden = inputs.reshape(*prefix, *missing, *rows).expand(*self.members, *rows).reshape(-1, *rows)
        hidden = self._outputs(hidden, None, frozen)
        return hidden.reshape(*self.members, rows[0], *([] if self.outputs is None else [self.outputs]))

    def several(self, observation: Tensor, actions: Tensor, frozen: bool = False) -> Tensor:
        """Outputs ``[*M, B, n]`` for n actions ``[B, n, A]`` at each observation ``[B, O]``; see :meth:`forward`.

        They are those of inputs ``[B * n, O + A]``. What the first layer makes of an observation is computed once.
        """
        (rows, count), size = actions.shape[:2], observation.shape[-1]
        if len(self.weights) == 1:
            wide = observation.unsqueeze(1).expand(-1, count, -1)
            return self(torch.cat([wide, actions], -1).flatten(0, 1), frozen).unflatten(-1, (rows, count))
        weight, bias = (part[0].detach() if frozen else part[0] for part in (self.weights, self.biases))
        shared = torch.matmul(observation, weight[:, :size]) + bias
        hidden = torch.matmul(actions.flatten(0, 1), weight[:, size:])
        hidden = hidden.unflatten(1, (rows, count)).add_(shared.unsqueeze(2)).flatten(1, 2)
        return self._outputs(hidden, None, frozen, entered=True).reshape(*self.members, rows, count)

    def some(self, inputs: Tensor, members: Tensor) -> Tensor:
        """Outputs ``[m, B]`` or ``[m, B, T]`` of the members with numbers ``[m]``, int64, for inputs ``[B, D]``."""
        hidden = self._outputs(inputs.expand(len(members), *inputs.shape), members)
        return hidden.squeeze(-1) if self.outputs is None else hidden

    def first(self, inputs: Tensor) -> Tensor:
        """Outputs ``[B]`` of the first member alone for inputs ``[B, D]``."""
        return self._outputs(inputs.unsqueeze(0), None if self.members == (1,) else slice(1))[0, :, 0]

    def _outputs(
        self, hidden: Tensor, members: slice | Tensor | None, frozen: bool = False, entered: bool = False
    ) -> Tensor:
        """Outputs ``[m, B, T]`` of some members for inputs ``[m, B, D]``; if ``entered``, for what the first layer made
        of them, ``[m, B, H]``.
        """

        def of(parameters: nn.ParameterList) -> list[Tensor]:
            found = [parameter.detach() if frozen else parameter for parameter in parameters]
            return found if members is None else [parameter[members] for parameter in found]

        weights, biases = of(self.weights), of(self.biases)
        scales, shifts = of(self.scales), of(self.shifts)
        for layer, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
            if layer or not entered:
                hidden = torch.baddbmm(bias, hidden, weight)
            if len(scales):
                hidden = functional.layer_norm(hidden, hidden.shape[-1:], eps=self.epsilon)
                hidden = hidden * scales[layer] + shifts[layer]
            hidden = functional.relu_(hidden)
        if self.normalise_features:
            hidden = functional.normalize(hidden, dim=-1, eps=SHORTEST)
        with in_full(hidden):
            if self.outputs is None:
                # A sum of products takes a fifth of the time of a matrix product with one column.
                return (hidden * weights[-1].mT).sum(-1, keepdim=True) + biases[-1]
            return torch.baddbmm(biases[-1], hidden.to(weights[-1].dtype), weights[-1])


class TwoHeads(nn.Module):
    """One encoder, and above it two perceptrons with A outputs each, one for every discrete action.

    Vectors pass the encoder as they are, so that above them the two share nothing.

    Args:
        shape: shape of an observation.
        pixels: whether observations are images of bytes.
        hidden_sizes: widths of each head's hidden layers; None for those of :func:`oper_lightning.nn.encoders.widths`.
        actions: number of actions A.
    """

    def __init__(self, shape: Sequence[int], pixels: bool, hidden_sizes: Sequence[int] | None, actions: int) -> None:
        super().__init__()
        self.body = encoder(shape, pixels)
        sizes = [self.body.features, *widths(hidden_sizes, pixels), actions]
        self.first, self.second = mlp(sizes), mlp(sizes)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs ``[B, A]`` of both heads."""
        features = self.body(observation)
        return self.first(features), self.second(features)


def of_action(values: Tensor, action: Tensor) -> Tensor:
    """What belongs to discrete actions ``[B]`` out of something for all of them, ``[B, A]`` or ``[B, A, ...]``."""
    index = action.reshape(-1, *[1] * (values.dim() - 1))
    return values.take_along_dim(index, 1).squeeze(1)


def sampled(logits: Tensor) -> Tensor:
    """An action ``[E]`` for each row of logits ``[E, A]``, as likely as they say."""
    return functional.softmax(logits, -1).multinomial(1).squeeze(1)


def epsilon_greedy(action: Tensor, actions: int, epsilon: Tensor | float) -> Tensor:
    """Actions ``[E]`` counted from 0; each is exchanged, with the chance ``epsilon``, for any of all ``actions``."""
    random = torch.rand(action.shape, device=action.device) < epsilon
    return torch.where(random, torch.randint_like(action, actions), action)


@torch.no_grad()
def orthogonal(network: nn.Module, last_gain: float = math.sqrt(2)) -> None:
    """Initialises all layers orthogonally with gain sqrt(2), the last with ``last_gain``; biases are zero."""
    for weights, biases in _layers(network):
        for weight, gain in zip(weights, [math.sqrt(2)] * (len(weights) - 1) + [last_gain], strict=True):
            for matrix in weight if weight.dim() == 3 else [weight]:
                nn.init.orthogonal_(matrix, gain)
        for bias in biases:
            bias.zero_()


@torch.no_grad()
def lecun(network: nn.Module, last_scale: float) -> None:
    """Initialises as Flax does: truncated normal with variance 1 / fan-in, biases zero.

    The last layer is uniform with variance ``last_scale`` / fan-in.
    """
    for weights, biases in _layers(network):
        for weight in weights[:-1]:
            std = math.sqrt(1 / _fan_in(weight))
            nn.init.trunc_normal_(weight, std=std / TRUNCATED, a=-2 * std / TRUNCATED, b=2 * std / TRUNCATED)
        bound = math.sqrt(3 * last_scale / _fan_in(weights[-1]))
        weights[-1].uniform_(-bound, bound)
        for bias in biases:
            bias.zero_()


@torch.no_grad()
def xavier(network: nn.Module) -> None:
    """Initialises all layers uniformly within sqrt(6 / (fan-in + fan-out)), after Glorot and Bengio; biases zero."""
    for weights, biases in _layers(network):
        for weight in weights:
            bound = math.sqrt(6 / sum(weight.shape[-2:]))
            weight.uniform_(-bound, bound)
        for bias in biases:
            bias.zero_()


TRUNCATED = 0.87962566103423978  # standard deviation of a standard normal cut at -2 and 2


def _fan_in(weight: Tensor) -> int:
    """Inputs of a layer: weights are ``[out, in]``, in ensembles ``[members, in, out]``."""
    return weight.shape[1]


def _layers(network: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Weights and biases, from the first layer to the last, of each perceptron or ensemble in ``network``."""
    for module in network.modules():
        if isinstance(module, EnsembleMLP):
            yield list(module.weights), list(module.biases)
        elif isinstance(module, nn.Sequential):
            linear = [layer for layer in module if isinstance(layer, nn.Linear)]
            yield [layer.weight for layer in linear], [layer.bias for layer in linear]


class DeterministicPolicy(nn.Module):
    """Maps observations ``[..., O]`` to actions ``[..., A]`` in (-1, 1) through a tanh."""

    def __init__(self, observations: int, actions: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.body = mlp([observations, *hidden_sizes, actions])

    def forward(self, observation: Tensor, dropout: float = 0.0) -> Tensor:
        return torch.tanh(with_dropout(self.body, observation, dropout))


class GaussianPolicy(nn.Module):
    """Maps observations ``[..., O]`` to normal distributions over actions ``[..., A]``.

    Mean through a tanh; log standard deviation through a tanh onto (-5, 0). Not squashed: a sample may leave the
    action box (behaviour policy of Brandfonbrener et al. 2021, arXiv 2106.08909).
    """

    LOWEST, HIGHEST = -5.0, 0.0

    def __init__(self, observations: int, actions: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.body = mlp([observations, *hidden_sizes, 2 * actions])

    def forward(self, observation: Tensor) -> Normal:
        out = torch.tanh(cast(Tensor, self.body(observation)))
        mean, spread = out.chunk(2, -1)
        log_std = self.LOWEST + (self.HIGHEST - self.LOWEST) * (spread + 1) / 2
        return Normal(mean, log_std.exp(), validate_args=False)


class Normalising(nn.Module):
    """A network of normalised observations that takes raw ones ``[..., O]``.

    Args:
        network: sees them with the mean taken off, divided by the standard deviation.
        observations: length O of observations.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, observations: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.zeros(observations))
        self.register_buffer("std", torch.ones(observations))

    def forward(self, observation: Tensor) -> Any:
        return self.network((observation - self.mean) / self.std)


class FixedStdPolicy(nn.Module):
    """Maps observations ``[..., O]`` to normal distributions over actions ``[..., A]`` with one learnt spread for all.

    Mean through a tanh; log standard deviations are parameters, within (-5, 2). Not squashed (policy of Kostrikov et
    al. 2021, arXiv 2110.06169).
    """

    LOWEST, HIGHEST = -5.0, 2.0

    def __init__(self, observations: int, actions: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.body = mlp([observations, *hidden_sizes, actions])
        self.log_std = nn.Parameter(torch.zeros(actions))

    def forward(self, observation: Tensor, dropout: float = 0.0) -> Normal:
        mean = torch.tanh(with_dropout(self.body, observation, dropout))
        std = self.log_std.clamp(self.LOWEST, self.HIGHEST).exp()
        return Normal(mean, std.expand_as(mean), validate_args=False)


class SquashedPolicy(nn.Module):
    """Maps observations ``[..., O]`` to tanh-squashed normal distributions over actions ``[..., A]`` in (-1, 1).

    Log standard deviations are the network's, within (-20, 2): the policy of Haarnoja et al. 2018, arXiv 1812.05905.

    Args:
        observations: length O of observations.
        actions: length A of actions.
        hidden_sizes: widths of the hidden layers.
        scaled: whether log standard deviations are first multiplied by a learnt factor (at the start 1), and a learnt
            offset (-1) is added, as in JaxCQL.
    """

    LOWEST, HIGHEST = -20.0, 2.0

    def __init__(self, observations: int, actions: int, hidden_sizes: Sequence[int], scaled: bool = True) -> None:
        super().__init__()
        self.body = mlp([observations, *hidden_sizes, 2 * actions])
        self.scaled = scaled
        if scaled:
            self.factor = nn.Parameter(torch.ones(()))
            self.offset = nn.Parameter(torch.tensor(-1.0))

    def forward(self, observation: Tensor) -> Normal:
        """The distribution before squashing."""
        mean, log_std = cast(Tensor, self.body(observation)).chunk(2, -1)
        if self.scaled:
            log_std = self.factor * log_std + self.offset
        return Normal(mean, log_std.clamp(self.LOWEST, self.HIGHEST).exp(), validate_args=False)

    def sample(self, observation: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Actions ``[B, count, A]`` for observations ``[B, O]`` and their log densities ``[B, count]``."""
        normal = self(observation)
        before = sample(normal, count)
        wide = Normal(normal.mean.unsqueeze(1), normal.stddev.unsqueeze(1), validate_args=False)
        return torch.tanh(before), (wide.log_prob(before) - log_tanh_slope(before)).sum(-1)

    def log_density(self, observation: Tensor, action: Tensor) -> Tensor:
        """Log densities ``[B]`` of actions ``[B, A]`` within (-1, 1)."""
        before = torch.atanh(action)
        return (self(observation).log_prob(before) - log_tanh_slope(before)).sum(-1)


def sample(normal: Normal, count: int) -> Tensor:
    """Samples ``[B, count, A]`` of normal distributions ``[B, A]``, differentiable in mean and deviation."""
    mean, std = normal.mean.unsqueeze(1), normal.stddev.unsqueeze(1)
    return mean + std * ranks.randn_like(mean.expand(-1, count, -1))


def log_tanh_slope(value: Tensor) -> Tensor:
    """log(1 - tanh(value)^2) without cancellation."""
    return 2 * (math.log(2) - value - functional.softplus(-2 * value))
