from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from oper_lightning.nn.networks import DeterministicPolicy, GaussianPolicy
from oper_lightning.nn.trpo import (
    conjugate_gradient,
    fisher_product,
    flat,
    gradient,
    line_search,
    shaped,
    trust_region_step,
)

STD = 0.3


def normal(network: nn.Module, observation: Tensor) -> Normal:
    found = network(observation)
    return found if isinstance(found, Normal) else Normal(found, STD, validate_args=False)


def policy(kind: type[nn.Module], sizes: tuple[int, ...] = (3,)) -> nn.Module:
    torch.manual_seed(0)
    return kind(2, 1, sizes).double()


KINDS = pytest.mark.parametrize("kind", [DeterministicPolicy, GaussianPolicy])


def test_flat_and_shaped_undo_each_other() -> None:
    tensors = [torch.randn(2, 3), torch.randn(4), torch.randn(())]
    vector = flat(tensors)
    assert vector.shape == (11,)
    assert all(part.equal(tensor) for part, tensor in zip(shaped(vector, tensors), tensors, strict=True))


@KINDS
def test_fisher_products_are_those_of_the_hessian(kind: type[nn.Module]) -> None:
    network, observation = policy(kind), torch.randn(20, 2, dtype=torch.float64)
    parameters = list(network.parameters())
    with torch.no_grad():
        old = normal(network, observation)

    def divergence(vector: Tensor) -> Tensor:
        names = [name for name, _ in network.named_parameters()]
        found = torch.func.functional_call(
            network, dict(zip(names, shaped(vector, parameters), strict=True)), observation
        )
        new = found if isinstance(found, Normal) else Normal(found, STD, validate_args=False)
        return kl_divergence(old, new).sum(-1).mean()

    hessian = torch.autograd.functional.hessian(divergence, flat(parameters).detach())
    product = fisher_product(kl_divergence(old, normal(network, observation)).sum(-1).mean(), parameters, 0.1)
    for column, unit in enumerate(torch.eye(len(hessian), dtype=torch.float64)):
        torch.testing.assert_close(product(unit), hessian[column] + 0.1 * unit, rtol=1e-10, atol=1e-12)


def test_conjugate_gradients_solve_a_known_system() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(8, dtype=torch.float64)
    solution = torch.randn(8, generator=generator, dtype=torch.float64)
    found = conjugate_gradient(lambda vector: matrix @ vector, matrix @ solution, tolerance=1e-24)
    torch.testing.assert_close(found, solution, rtol=1e-9, atol=1e-9)
    assert not conjugate_gradient(lambda vector: matrix @ vector, torch.zeros_like(solution)).any()


def test_conjugate_gradients_stop_after_so_many_products() -> None:
    products = []

    def product(vector: Tensor) -> Tensor:
        products.append(vector)
        return torch.arange(1.0, 101.0, dtype=torch.float64) * vector

    conjugate_gradient(product, torch.ones(100, dtype=torch.float64), iterations=7)
    assert len(products) == 7


class Valley:
    """A loss x^2 / 2 with a KL divergence of ``steep`` times the squared distance from where the search began."""

    def __init__(self, begin: float, steep: float = 0.0) -> None:
        self.parameter = torch.tensor([begin], dtype=torch.float64)
        self.begin, self.steep = begin, steep

    def __call__(self) -> tuple[Tensor, Tensor]:
        x = self.parameter.squeeze()
        return x.square() / 2, self.steep * (x - self.begin).square()

    def search(self, step: float, largest_kl: float = 1.0) -> Any:
        expected = torch.tensor(-self.begin * step, dtype=torch.float64)
        return line_search([self.parameter], torch.tensor([step], dtype=torch.float64), expected, self, largest_kl)


def test_a_line_search_takes_a_good_step_whole() -> None:
    valley = Valley(1.0)
    found = valley.search(-1.0)
    assert valley.parameter.item() == 0
    assert [value.item() for value in found] == [0.5, 0, 0]


def test_a_line_search_halves_a_step_that_goes_too_far() -> None:
    valley = Valley(1.0)
    found = valley.search(-4.0)  # whole: up the other side; half: just as high; a quarter: to the ground
    assert valley.parameter.item() == 0
    assert found.halvings == 2


def test_a_line_search_respects_the_divergence() -> None:
    valley = Valley(1.0, steep=1.0)
    found = valley.search(-1.0, largest_kl=0.1)  # divergences of 1, 0.25 and 0.0625
    assert valley.parameter.item() == 0.75
    assert [value.item() for value in found] == [0.5 - 0.75**2 / 2, 0.0625, 2]


def test_a_line_search_refuses_what_only_makes_it_worse() -> None:
    for valley, step in ((Valley(1.0), 1.0), (Valley(1.0), float("nan")), (Valley(0.0), 0.0)):
        found = valley.search(step)
        assert valley.parameter.item() == valley.begin
        assert [value.item() for value in found] == [0, 0, 10]


def test_a_line_search_says_that_the_loss_was_no_number() -> None:
    found = line_search(
        [torch.ones(1)], torch.ones(1), torch.ones(()), lambda: (torch.tensor(float("nan")), torch.zeros(())), 1.0
    )
    assert found.improvement.isnan()


@KINDS
def test_a_step_is_the_natural_gradient_of_that_length(kind: type[nn.Module]) -> None:
    """Against the formula with matrices, where the line search takes the whole step."""
    network = policy(kind)
    generator = torch.Generator().manual_seed(1)
    observation = torch.randn(6, 50, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        old = normal(network, observation)
        action = old.mean + old.stddev * torch.randn(6, 50, 1, generator=generator, dtype=torch.float64)
    advantage = torch.randn(6, 50, generator=generator, dtype=torch.float64)
    weight = torch.rand(6, 50, generator=generator, dtype=torch.float64) * 2

    parameters = list(network.parameters())
    before = flat(parameters).detach()
    log_density = normal(network, observation).log_prob(action).sum(-1)
    slope = flat(torch.autograd.grad(-(weight * advantage * log_density).mean(), parameters))
    kl = (weight[::2] * kl_divergence(old, normal(network, observation)).sum(-1)[::2]).mean()
    product = fisher_product(kl, parameters, 1.0)  # so much that ten products solve it
    matrix = torch.stack([product(unit) for unit in torch.eye(len(before), dtype=torch.float64)])
    direction = torch.linalg.solve(matrix, -slope)
    expected = before + direction * (2 * 0.001 / (direction @ matrix @ direction)).sqrt()

    found = trust_region_step(network, normal, observation, action, advantage, weight, 0.001, 1.0, 0.5)
    assert found.halvings == 0
    torch.testing.assert_close(flat(parameters).detach(), expected, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        new = normal(network, observation)
        torch.testing.assert_close(found.kl, (weight * kl_divergence(old, new).sum(-1)).mean())
        ratio = (new.log_prob(action) - old.log_prob(action)).sum(-1).exp()
    # The mean advantage under the old policy is what the loss began with.
    torch.testing.assert_close(found.improvement, (weight * (ratio - 1) * advantage).mean())


def test_a_policy_in_single_precision_steps_as_one_in_double() -> None:
    single = policy(GaussianPolicy, (16, 16)).float()
    double = copy.deepcopy(single).double()
    generator = torch.Generator().manual_seed(2)
    observation, action = torch.randn(4, 50, 2, generator=generator), torch.randn(4, 50, 1, generator=generator) / 4
    advantage = torch.randn(4, 50, generator=generator).double()
    for network in (single, double):
        trust_region_step(network, normal, observation, action, advantage, torch.ones(4, 50), 0.05, 0.1, 1.0)
    for one, other in zip(single.parameters(), double.parameters(), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-7)


def test_without_advantages_a_policy_stays() -> None:
    network = policy(DeterministicPolicy)
    before = flat(list(network.parameters())).detach()
    rows = torch.randn(4, 5, 2), torch.randn(4, 5, 1), torch.zeros(4, 5), torch.ones(4, 5)
    found = trust_region_step(network, normal, *rows, 0.05, 0.1, 1.0)
    assert flat(list(network.parameters())).equal(before)
    assert found.improvement == 0


def test_gradients_are_autograds() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    assert gradient(weight.square().sum(), [weight]).tolist() == [2, 4]
