"""Adam: PyTorch's own is the oracle, before and after a checkpoint, as it is and compiled."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from oper_lightning.nn.optim import Adam, adam, reset_adam

SHAPES = [(2, 5, 7), (2, 1, 7), (3,), ()]


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(number)
    # From tiny to large, and some that are zero.
    return [torch.randn(shape, generator=generator) * 10 ** (number % 7 - 5) * (number % 5 > 0) for shape in SHAPES]


def move(optimiser: torch.optim.Optimizer, first: int, last: int) -> None:
    for number in range(first, last):
        for parameter, gradient in zip(optimiser.param_groups[0]["params"], gradients(number), strict=True):
            parameter.grad = gradient
        optimiser.step()


def same(mine: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> bool:
    pairs = zip(mine.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True)
    return all(
        torch.equal(here, there)
        and all(torch.equal(mine.state[here][name], value) for name, value in theirs.state[there].items())
        for here, there in pairs
    )


def test_steps_are_those_of_pytorch() -> None:
    mine, theirs = adam(parameters(), 3e-3), torch.optim.Adam(parameters(), lr=3e-3, fused=True)
    move(mine, 0, 60)
    move(theirs, 0, 60)
    assert same(mine, theirs)
    for optimiser in (mine, theirs):
        reset_adam(optimiser)
        move(optimiser, 60, 90)
    assert same(mine, theirs)


def test_states_are_exchanged_with_pytorch_in_both_directions() -> None:
    mine, theirs = adam(parameters(), 3e-3), torch.optim.Adam(parameters(), lr=3e-3, fused=True)
    move(mine, 0, 20)
    move(theirs, 0, 20)
    of_theirs, of_mine = copy.deepcopy(theirs.state_dict()), copy.deepcopy(mine.state_dict())
    mine.load_state_dict(of_theirs)
    theirs.load_state_dict(of_mine)
    move(mine, 20, 40)
    move(theirs, 20, 40)
    assert same(mine, theirs)


def test_gradients_may_lie_in_memory_as_they_like() -> None:
    mine, theirs = (adam([nn.Parameter(torch.ones(3, 5))], 3e-3) for _ in range(2))
    gradient = torch.randn(5, 3).T
    for optimiser, given in ((mine, gradient), (theirs, gradient.contiguous())):
        optimiser.param_groups[0]["params"][0].grad = given
        optimiser.step()
    assert same(mine, theirs)


def test_a_state_of_no_step_is_a_beginning() -> None:
    mine, theirs = adam(parameters(), 3e-3), torch.optim.Adam(parameters(), lr=3e-3, fused=True)
    mine.load_state_dict(theirs.state_dict())
    move(mine, 0, 5)
    move(theirs, 0, 5)
    assert same(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_steps_are_the_same_up_to_rounding(dtype: torch.dtype) -> None:
    def made(learning_rate: float) -> Adam:
        return adam([nn.Parameter(parameter.detach().to(dtype)) for parameter in parameters()], learning_rate)

    mine, theirs = made(3e-3), made(3e-3)
    mine.param_groups[0]["lr"] = torch.tensor(3e-3, dtype=torch.float64)
    compiled = torch.compile(mine.step, backend="eager")
    for number in range(20):
        for optimiser in (mine, theirs):
            for parameter, gradient in zip(optimiser.param_groups[0]["params"], gradients(number), strict=True):
                parameter.grad = gradient.to(dtype)
        compiled()
        theirs.step()
    for here, there in zip(mine.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5 if dtype is torch.float32 else 1e-9, atol=0)
        torch.testing.assert_close(mine.state[here]["exp_avg_sq"], theirs.state[there]["exp_avg_sq"])
    assert mine.state[here]["step"] == 20
