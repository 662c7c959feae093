"""Stage 1 of OPER-A on an MDP so small that its values are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Arrays
from test_shared import fit

from oper_lightning import OfflineDataModule
from oper_lightning.algorithms.oper_a import OperA
from oper_lightning.data.sources.source import Origin

DISCOUNT = 0.9
# State, action (of -1, 0, 1), reward, state that follows (None: the end).
STEPS = [
    (0, -1, 0.0, None),
    (0, 0, 0.5, 1),
    (0, 1, 2.0, None),
    (1, -1, 0.0, None),
    (1, 0, 4.0, None),
]


def recording(times: int = 20) -> dict[str, np.ndarray]:
    """Every step of the MDP as often as the others, each an episode of its own."""
    rows = STEPS * times
    return {
        "observations": np.array([[state] for state, *_ in rows], dtype=np.float32),
        "actions": np.array([action for _, action, _, _ in rows]),
        "rewards": np.array([reward for _, _, reward, _ in rows], dtype=np.float32),
        "next_observations": np.array([[following or 0] for *_, following in rows], dtype=np.float32),
        "terminals": np.array([following is None for *_, following in rows]),
        "timeouts": np.array([following is not None for *_, following in rows]),
    }


def exact(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of both states and advantages of the five steps under weighted behaviour, by definition."""
    value = np.zeros(2)
    worth = np.zeros(5)
    for state in (1, 0):
        places = [place for place, step in enumerate(STEPS) if step[0] == state]
        for place in places:
            _, _, reward, following = STEPS[place]
            worth[place] = reward + (0 if following is None else DISCOUNT * value[following])
        value[state] = np.average(worth[places], weights=weights[places])
    return value, worth - value[[state for state, *_ in STEPS]]


@pytest.mark.parametrize("critic", ["doublev", "v", "vq"])
def test_advantages_of_a_small_mdp(critic: str, tmp_path: Path) -> None:
    """Two iterations: under uniform behaviour, and under behaviour weighted by the first one's advantages."""
    origin = Origin(action_low=np.asarray(-1), action_high=np.asarray(1))
    data = OfflineDataModule(Arrays(recording(), origin), batch_size=64, updates_per_epoch=400, rollouts=None)
    model = OperA(
        iterations=2, seeds=2, critic=critic, discount=DISCOUNT, learning_rate=0.01, tau=0.05, hidden_sizes=[32]
    )
    fit(model, data, tmp_path, 800)
    value, first = exact(np.ones(5))
    assert value.tolist() == [pytest.approx((0 + 0.5 + 0.9 * 2 + 2) / 3), 2.0]
    weights = first - first.min()
    _, second = exact(weights)
    for found, expected in zip(model.advantages, (first, second), strict=True):
        for seed in found:
            np.testing.assert_allclose(seed[:5], expected, atol=0.15)
            np.testing.assert_allclose(seed.reshape(-1, 5), seed[:5].expand(20, 5), atol=1e-5)
    for seed in model.weights[0]:
        np.testing.assert_allclose(seed[:5], weights / weights.mean(), atol=0.15)
    if critic == "vq":
        # Each action is a column of its own: the worth of one says nothing about the next number.
        batch = data.rows(slice(0, 5))
        batch["observation"] = model.observe(batch["observation"])
        batch["action"] = batch["action"] + 1
        with torch.no_grad():
            worth = model.q(model.pair(batch))
        assert model.pair(batch)[:, 1:].tolist() == torch.eye(3)[[0, 1, 2, 0, 1]].tolist()
        known, advantages = exact(weights)
        expected = advantages + known[[state for state, *_ in STEPS]]
        drawn = weights > 0.1  # what is never drawn is not fitted
        for head in worth.flatten(0, 1):
            np.testing.assert_allclose(head[drawn], expected[drawn], atol=0.2)
