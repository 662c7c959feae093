"""The parts of a trust-region step (TRPO: Schulman et al. 2015, arXiv 1502.05477), as functions.

Each takes means over its rank's rows and averages them over the ranks, so that all ranks step alike. Parameters are
best in float64: in float32 what conjugate gradients find is off by percents, and ranks drift apart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import Module

from oper_lightning.nn.losses import LARGEST_EXPONENT
from oper_lightning.nn.ranks import mean_over_ranks

Product = Callable[[Tensor], Tensor]
"""what a symmetric matrix makes of a vector ``[P]``"""


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of the tensors, one after the other, ``[P]``."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def shaped(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A vector ``[P]`` cut into parts of the shapes of ``like``: what :func:`flat` undoes."""
    parts = vector.split([tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


def gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Gradient ``[P]`` of a 0-d loss; the graph is freed."""
    return mean_over_ranks(flat(torch.autograd.grad(loss, parameters)))


def fisher_product(kl: Tensor, parameters: Sequence[Tensor], damping: float) -> Product:
    """Products with F + damping * I, where F is the Hessian of a mean KL divergence from the present policy.

    Each product differentiates the KL's gradient once more (appendix C.1), so that F itself is never formed.

    Args:
        kl: mean KL divergence, 0-d, from the present policy as a constant to itself as a function of the parameters.
        parameters: of the policy.
        damping: what is added to the diagonal.
    """
    slope = flat(torch.autograd.grad(kl, parameters, create_graph=True))

    def product(vector: Tensor) -> Tensor:
        second = torch.autograd.grad(slope @ vector, parameters, retain_graph=True)
        return mean_over_ranks(flat(second)) + damping * vector

    return product


def conjugate_gradient(product: Product, right: Tensor, iterations: int = 10, tolerance: float = 1e-10) -> Tensor:
    """Solves ``product(x) = right`` for a positive definite product; ``[P]``.

    Args:
        product: products with the matrix.
        right: right-hand side ``[P]``.
        iterations: steps at most, each of one product.
        tolerance: squared length of the residual at which it stops.
    """
    solution, residual, direction = torch.zeros_like(right), right.clone(), right.clone()
    size = residual @ residual
    for _ in range(iterations):
        if size < tolerance:
            break
        image = product(direction)
        length = size / (direction @ image)
        solution += length * direction
        residual -= length * image
        before, size = size, residual @ residual
        direction = residual + (size / before) * direction
    return solution


class Outcome(NamedTuple):
    """What a step came to; 0-d tensors."""

    improvement: Tensor
    """by how much the loss fell: 0 if no step was taken, NaN if the loss was no number to begin with"""
    kl: Tensor
    """mean KL divergence of the new policy from the old one"""
    halvings: Tensor
    """how often the step was halved; as many as there were tries if none was taken"""


@torch.no_grad()
def line_search(
    parameters: Sequence[Tensor],
    step: Tensor,
    expected: Tensor,
    judge: Callable[[], tuple[Tensor, Tensor]],
    largest_kl: float,
    tries: int = 10,
    accept: float = 0.1,
) -> Outcome:
    """Moves the parameters by the step, or by the first of its halves that does well; else leaves them.

    Args:
        parameters: changed in place.
        step: the full step ``[P]``.
        expected: by how much the loss falls over the full step if it goes on as steeply as it begins, 0-d.
        judge: finds the mean loss and the mean KL divergence from the old policy, 0-d each, under the parameters.
        largest_kl: the KL divergence that no step may exceed.
        tries: steps that are tried, each half as long as the one before.
        accept: share of the expected fall that a step must bring.
    """
    before = flat(parameters)
    loss, kl = map(mean_over_ranks, judge())
    for halvings in range(tries):
        share = 0.5**halvings
        torch._foreach_copy_(list(parameters), shaped(before + share * step, parameters))
        new_loss, new_kl = map(mean_over_ranks, judge())
        improvement = loss - new_loss
        if (improvement > 0) & (improvement > accept * share * expected) & (new_kl <= largest_kl):
            return Outcome(improvement, new_kl, loss.new_tensor(halvings))
    torch._foreach_copy_(list(parameters), shaped(before, parameters))
    return Outcome(loss - loss, kl, loss.new_tensor(tries))


def trust_region_step(
    policy: Module,
    normal: Callable[[Module, Tensor], Normal],
    observation: Tensor,
    action: Tensor,
    advantage: Tensor,
    weight: Tensor,
    target_kl: float,
    damping: float,
    fisher_share: float,
) -> Outcome:
    """Changes a policy so that it prefers actions of high advantage, within a KL divergence of the old one.

    The step solves (F + damping * I) x = -g by conjugate gradients, g being the gradient of the mean of -ratio *
    advantage, and has the length at which half its product with that matrix and itself is ``target_kl``. The line
    search takes no step whose mean KL divergence exceeds one and a half times that.

    Args:
        policy: changed in place; the step is found on a copy in float64.
        normal: makes of a policy and observations the distributions of actions ``[H, B, A]``.
        observation: what the policy sees, ``[H, B, O]``.
        action: what was done, ``[H, B, A]``.
        advantage: ``[H, B]``.
        weight: what each row counts in the means, ``[H, B]``.
        target_kl: mean KL divergence that the step aims at.
        damping: what is added to the diagonal of the Fisher matrix.
        fisher_share: share of the H steps, every n-th, that the Fisher matrix is estimated from.
    """
    double = copy.deepcopy(policy).double()
    parameters: list[Tensor] = list(double.parameters())
    observation, action = observation.double(), action.double()
    with torch.no_grad():
        old = normal(double, observation)
        likelihood = old.log_prob(action).sum(-1)

    def judge() -> tuple[Tensor, Tensor]:
        new = normal(double, observation)
        ratio = (new.log_prob(action).sum(-1) - likelihood).clamp(max=LARGEST_EXPONENT).exp()
        return -(weight * ratio * advantage).mean(), (weight * kl_divergence(old, new).sum(-1)).mean()

    # Whole steps of all rollouts: the same rows, however many ranks share the rollouts.
    some = slice(None, None, round(1 / fisher_share))
    constant = Normal(old.mean[some], old.stddev[some], validate_args=False)
    kl = (weight[some] * kl_divergence(constant, normal(double, observation[some])).sum(-1)).mean()
    product = fisher_product(kl, parameters, damping)
    slope = gradient(judge()[0], parameters)
    direction = conjugate_gradient(product, -slope)
    step = direction * (2 * target_kl / (direction @ product(direction))).sqrt()
    outcome = line_search(parameters, step, -(slope @ step), judge, 1.5 * target_kl)
    with torch.no_grad():
        torch._foreach_copy_(list(policy.parameters()), parameters)
    return outcome
