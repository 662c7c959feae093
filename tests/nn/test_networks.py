"""Ensembles against members one by one, and what bfloat16 rounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from oper_lightning.nn.networks import EnsembleMLP, SquashedPolicy, mlp

CASES = [
    {"members": (2,)},
    {"members": (3, 2)},
    {"members": (1,), "layer_norm": True},
    {"members": (4,), "layer_norm": True, "normalise_features": True},
    {"members": (2,), "outputs": 5},
]


def alone(network: EnsembleMLP, member: int, inputs: Tensor) -> Tensor:
    """One member as a chain of textbook layers."""
    hidden = inputs
    layers = len(network.weights)
    for layer in range(layers):
        if layer and len(network.scales):
            hidden = functional.layer_norm(hidden, hidden.shape[-1:], eps=network.epsilon)
            hidden = hidden * network.scales[layer - 1][member] + network.shifts[layer - 1][member]
        hidden = hidden.clamp(min=0) if layer else hidden
        if network.normalise_features and layer == layers - 1:
            hidden = hidden / hidden.norm(dim=-1, keepdim=True)
        hidden = hidden @ network.weights[layer][member] + network.biases[layer][member]
    return hidden if network.outputs else hidden.squeeze(-1)


@pytest.mark.parametrize("sizes", [[3, 8, 6], [3]], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_ensemble_is_its_members(case: dict[str, object], sizes: list[int]) -> None:
    network = EnsembleMLP(sizes=sizes, **case).double()  # type: ignore[arg-type]
    inputs = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    values = network(inputs).reshape(-1, *([10, 5] if network.outputs else [10]))
    each = torch.stack([alone(network, member, inputs) for member in range(len(values))])
    torch.testing.assert_close(values, each)
    gradient = torch.autograd.grad(values.square().sum(), inputs, retain_graph=True)[0]
    wanted = [inputs, *network.parameters()]
    for mine, theirs in zip(
        *(torch.autograd.grad(value.square().sum(), wanted) for value in (values, each)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    if not network.outputs:
        torch.testing.assert_close(network.first(inputs), values[0])
    if len(network.members) == 1:
        chosen = torch.tensor([0, 0])
        torch.testing.assert_close(network.some(inputs, chosen), values[chosen])
    if not network.outputs:
        several = network.several(inputs[:, :2], actions := torch.randn(10, 7, 1, dtype=torch.float64))
        pairs = torch.cat([inputs[:, :2].unsqueeze(1).expand(-1, 7, -1), actions], -1)
        expected = network(pairs.flatten(0, 1)).unflatten(-1, (10, 7))
        torch.testing.assert_close(several, expected)
        for mine, theirs in zip(
            *(torch.autograd.grad(value.square().sum(), wanted) for value in (several, expected)), strict=True
        ):
            torch.testing.assert_close(mine, theirs)
    (through,) = torch.autograd.grad(network(inputs, frozen=True).square().sum(), inputs)
    torch.testing.assert_close(through, gradient)


def policy() -> Callable[[Tensor], Tensor]:
    network = SquashedPolicy(3, 2, [64, 64])
    with torch.no_grad():
        network.body[-1].bias += 280
    return lambda inputs: network(inputs).mean


def values(outputs: int | None) -> Callable[[Tensor], Tensor]:
    network = EnsembleMLP((2,), [3, 64, 64], outputs=outputs)
    with torch.no_grad():
        network.biases[-1] += 280
    return network


def perceptron() -> Callable[[Tensor], Tensor]:
    network = mlp([3, 64, 64, 2])
    with torch.no_grad():
        network[-1].bias += 280  # type: ignore[union-attr, operator]
    assert isinstance(network[-1], nn.Linear)
    return network


@pytest.mark.parametrize("made", [policy, lambda: values(None), lambda: values(4), perceptron])
def test_what_comes_out_is_not_rounded_to_bfloat16(made: Callable[[], Callable[[Tensor], Tensor]]) -> None:
    """Near 280 its neighbours are 2 apart; the differences between values are all that a policy learns from."""
    torch.manual_seed(0)
    network, inputs = made(), torch.randn(50, 3)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(inputs)
    assert low.dtype is torch.float32
    torch.testing.assert_close(low, network(inputs), rtol=0, atol=0.02)
