from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from oper_lightning.nn.baselines import LinearBaseline, NetworkBaseline

ROWS, WIDE = 400, 3


def rows(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(20, 20, WIDE, generator=generator), torch.arange(20.0).unsqueeze(1).expand(20, 20)


def features(observation: Tensor, time: Tensor) -> Tensor:
    """Row by row, as the paper lists them."""
    found = []
    for seen, late in zip(observation.reshape(-1, WIDE).tolist(), time.reshape(-1).tolist(), strict=True):
        cut = [min(max(value, -10.0), 10.0) for value in seen]
        found.append([*cut, *(v * v for v in cut), late / 100, (late / 100) ** 2, (late / 100) ** 3, 1.0])
    return torch.tensor(found, dtype=torch.float64)


def test_a_linear_baseline_is_zero_before_it_is_fitted() -> None:
    assert not LinearBaseline(WIDE)(*rows()).any()


def test_a_linear_baseline_finds_a_function_that_it_can_express() -> None:
    baseline, (observation, time) = LinearBaseline(WIDE), rows()
    target = 2 * observation[..., 0] - observation[..., 1].square() + time / 10 + 3
    baseline.fit(observation, time, target, torch.ones(20, 20))
    assert (baseline(observation, time) - target).abs().max() < 2e-3
    other, later = rows(1)
    expected = 2 * other[..., 0] - other[..., 1].square() + later / 10 + 3
    assert (baseline(other, later) - expected).abs().max() < 5e-3


def test_a_linear_baseline_is_ridge_regression() -> None:
    baseline, (observation, time) = LinearBaseline(WIDE), rows()
    generator = torch.Generator().manual_seed(2)
    observation[0, 0] = torch.tensor([-50.0, 50.0, 0.0])
    target = torch.randn(20, 20, generator=generator)
    weight = torch.rand(20, 20, generator=generator)
    baseline.fit(observation, time, target, weight)
    seen = features(observation, time)
    # The ridge as rows of their own: one for each feature, as heavy as that feature, with the target 0.
    root = weight.double().reshape(-1, 1).sqrt()
    size = (root * seen).square().sum(0).sqrt()
    stacked = torch.cat([root * seen, torch.diag(1e-5**0.5 * size)])
    wanted = torch.cat([root.squeeze(1) * target.double().reshape(-1), torch.zeros(len(size)).double()])
    expected = torch.linalg.lstsq(stacked, wanted.unsqueeze(1)).solution.squeeze(1)
    torch.testing.assert_close(baseline(observation, time).reshape(-1), seen @ expected, rtol=1e-6, atol=1e-6)


def test_a_linear_baseline_bears_columns_of_zeros_and_copies() -> None:
    baseline, (observation, time) = LinearBaseline(WIDE), rows()
    observation[..., 1] = 0
    observation[..., 2] = observation[..., 0]
    target = observation[..., 0] + 1
    baseline.fit(observation, time.new_zeros(20, 20), target, torch.ones(20, 20))
    assert (baseline(observation, time.new_zeros(20, 20)) - target).abs().max() < 1e-3


def test_a_network_baseline_is_adam_on_all_rows() -> None:
    torch.manual_seed(0)
    baseline, (observation, time) = NetworkBaseline(WIDE, (8, 8)), rows()
    by_hand = nn.Sequential(nn.Linear(WIDE, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    by_hand.load_state_dict(copy.deepcopy(baseline.body.state_dict()))
    adam = torch.optim.Adam(by_hand.parameters(), 3e-4, betas=(0.5, 0.99), eps=1e-4)
    baseline.optimisers()
    target, weight = observation[..., 0].exp().double(), torch.rand(20, 20)
    for _ in range(3):
        baseline.fit(observation, time, target, weight)
        for _ in range(20):
            adam.zero_grad()
            (weight * (by_hand(observation).squeeze(-1) - target) ** 2).mean().backward()
            adam.step()
    torch.testing.assert_close(baseline(observation, time), by_hand(observation).squeeze(-1).double())


@pytest.mark.parametrize("make", [LinearBaseline, lambda wide: NetworkBaseline(wide, (32,))])
def test_weights_say_which_rows_matter(make: type[LinearBaseline]) -> None:
    torch.manual_seed(0)
    baseline, (observation, time) = make(WIDE), rows()
    baseline.optimisers()
    half = torch.zeros(20, 20).index_fill(1, torch.arange(10), 2.0)
    target = torch.where(half > 0, 1.0, -1.0).double()
    for _ in range(60):
        baseline.fit(observation, time, target, half)
    assert baseline(observation, time).mean() > 0.9
