"""OPER's bandit: figures that its authors' notebook prints, and closed forms."""

from __future__ import annotations

import pytest
import torch

from oper_lightning import InputError, OperR
from oper_lightning.data.sources.bandit import Bandit
from oper_lightning.data.transitions import squeezed
from oper_lightning.priorities.advantages import BanditAdvantages

# Average return under the weights, share of the best mode and standard deviation of mean-1 weights, iterations 1 to 10.
RETURNS = [2.67, 3.75, 4.38, 4.71, 4.88, 4.97, 5.01, 5.04, 5.05, 5.07]
BEST_MODE = [0.51, 0.72, 0.85, 0.93, 0.965, 0.98, 0.99, 0.996, 0.998, 0.999]
STDS = [0.66, 1.12, 1.41, 1.58, 1.68, 1.73, 1.77, 1.80, 1.82, 1.84]


@pytest.fixture(scope="module")
def transitions() -> torch.Tensor:
    return squeezed(torch.cat(list(Bandit().episodes())))


def test_four_modes(transitions: torch.Tensor) -> None:
    modes = transitions["action"].view(4, 2500, 2)
    torch.testing.assert_close(
        modes.mean(1), torch.tensor([[0.6, 0.6], [0.6, -0.6], [-0.6, 0.6], [-0.6, -0.6]]), atol=0.01, rtol=0
    )
    torch.testing.assert_close(modes.std(1), torch.full((4, 2), 0.05), atol=0.003, rtol=0)
    rewards = transitions["next", "reward"].view(4, 2500)
    torch.testing.assert_close(rewards.mean(1), torch.tensor([5.0, 1.0, 0.0, -2.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(rewards.std(1), torch.full((4,), 0.25), atol=0.01, rtol=0)
    assert transitions["next", "terminated"].all()
    assert not transitions["observation"].any()
    noisy = next(iter(Bandit(random_observation=True).episodes()))
    assert noisy["observation"].std() == pytest.approx(1, abs=0.05)


def test_iterated_weights_are_the_published_ones(transitions: torch.Tensor) -> None:
    reward = transitions["next", "reward"].double()
    for iterations in range(1, 11):
        weights = BanditAdvantages(iterations)(transitions)
        assert weights.mean().item() == pytest.approx(1)
        assert (weights * reward).mean().item() == pytest.approx(RETURNS[iterations - 1], abs=0.04)
        assert weights[:2500].sum().item() / 10_000 == pytest.approx(BEST_MODE[iterations - 1], abs=0.01)
        assert weights.std().item() == pytest.approx(STDS[iterations - 1], rel=0.02)
    first = BanditAdvantages(1)(transitions)
    closed = reward.mean() + reward.var(correction=0) / (reward.mean() - reward.min())
    assert (first * reward).mean().item() == pytest.approx(closed.item(), rel=1e-6)


def test_oper_r_is_the_first_iteration(transitions: torch.Tensor) -> None:
    torch.testing.assert_close(OperR()(transitions), BanditAdvantages(1)(transitions), rtol=1e-5, atol=1e-6)


def test_longer_episodes_are_refused(transitions: torch.Tensor) -> None:
    longer = transitions.clone()
    longer["next", "terminated"][3] = False
    with pytest.raises(InputError, match="more than one step"):
        BanditAdvantages()(longer)
    with pytest.raises(InputError, match="no multiple of 4"):
        Bandit(transitions=10)
