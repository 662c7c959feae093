from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import columns, transitions
from hypothesis import given, settings
from hypothesis import strategies as st

from oper_lightning import D4RL, AdvantageWeighting, InputError, OfflineDataModule, OperR, ReturnWeighting, TopFraction
from oper_lightning.data.transitions import episode_returns
from oper_lightning.priorities.priority import mean_one, statistics
from oper_lightning.priorities.returns import advantage_of_trajectories, oper_r, top_trajectories, top_transitions

RETURNS = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30).filter(lambda row: max(row) - min(row) > 1e-3)


@settings(deadline=None)
@given(RETURNS, st.floats(0, 2))
def test_oper_r_is_the_normalised_return(returns: list[float], p_base: float) -> None:
    row = torch.tensor(returns, dtype=torch.float64)
    weights = oper_r(row, p_base)
    low, high = min(returns), max(returns)
    shares = [(value - low) / (high - low) + p_base for value in returns]
    expected = [share * len(shares) / sum(shares) for share in shares]
    np.testing.assert_allclose(weights, expected, rtol=1e-9, atol=1e-12)
    assert weights.mean().item() == pytest.approx(1)


def test_oper_r_on_binary_returns_gives_six_to_one() -> None:
    weights = oper_r(torch.tensor([0.0, 1.0, 0.0, 0.0]), 0.2)
    assert (weights.max() / weights.min()).item() == pytest.approx(6)


def test_the_worst_trajectory_has_weight_zero_without_a_base() -> None:
    assert oper_r(torch.tensor([3.0, -1.0, 2.0]), 0.0)[1] == 0


def test_equal_returns_weigh_the_same_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    for priority in (OperR(), ReturnWeighting()):
        data = columns([5, 5], terminal=False)
        data["rewards"][:] = 1.0
        assert (priority(transitions(data)) == 1).all()
    assert "OPER-R: all episodes have the same return" in caplog.text


def test_top_transitions_keeps_ties_and_top_trajectories_whole_ones() -> None:
    ends = torch.tensor([False, True, False, False, True, True])
    returns = torch.tensor([1.0, 1.0, 5.0, 5.0, 5.0, 5.0])
    assert (top_transitions(returns, 0.1) > 0).tolist() == [False, False, True, True, True, True]
    # One of two equally good trajectories: the first.
    assert (top_trajectories(returns, ends, 0.34) > 0).tolist() == [False, False, True, True, True, False]
    assert (top_trajectories(returns, ends, 0.01) > 0).sum() == 3
    assert top_trajectories(returns, ends, 1.0).tolist() == [1] * 6


def test_return_weighting_is_a_softmax_over_transitions() -> None:
    table = transitions(columns([4, 2, 3]))
    weights = ReturnWeighting(0.1)(table)
    returns = episode_returns(table["next", "reward"], table["next", "done"])
    shares = np.exp(((returns - returns.min()) / (returns.max() - returns.min())).numpy() / 0.1)
    np.testing.assert_allclose(weights, shares / shares.mean(), rtol=1e-9)


def test_advantage_weighting_takes_away_what_the_start_explains() -> None:
    """Returns that are a linear function of the first observation leave no advantage but the disturbance."""
    data = columns([4] * 30, terminal=False)
    starts = data["observations"][::4].astype(np.float64)
    disturbance = np.random.default_rng(1).normal(size=30)
    disturbance -= np.c_[starts, np.ones(30)] @ np.linalg.lstsq(np.c_[starts, np.ones(30)], disturbance, rcond=None)[0]
    data["rewards"][:] = 0
    data["rewards"][3::4] = 7 * starts[:, 0] - 2 * starts[:, 1] + 3 + disturbance
    table = transitions(data)
    ends = table["next", "done"]
    returns = episode_returns(table["next", "reward"], ends)
    advantage = advantage_of_trajectories(returns, table["observation"][::4], ends)
    np.testing.assert_allclose(advantage[::4], disturbance, atol=1e-5)
    assert AdvantageWeighting()(table).reshape(30, 4).max(0).indices.tolist() == [int(disturbance.argmax())] * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OperR(-0.1), "p_base -0.1 is negative"),
        (lambda: TopFraction(0.0), r"fraction 0.0 is not in \(0, 1\]"),
        (lambda: ReturnWeighting(0.0), "temperature 0.0 is not positive"),
    ],
)
def test_arguments_that_make_no_sense(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_statistics_of_weights() -> None:
    weights = mean_one(torch.tensor([0.0, 0.0, 1.0, 3.0]), "test")
    found = statistics(weights)
    assert found["ess"] == pytest.approx(16 / 40)
    assert found["max"] == 3
    assert found["at_floor"] == 0.5
    assert found["std"] == pytest.approx(np.std([0, 0, 1, 3]))


def test_weights_rise_with_the_quality_of_known_levels(shared: object) -> None:
    """The five levels of the file lie one after another, best first."""
    data = OfflineDataModule(D4RL(str(shared / "reacher-five-levels.hdf5")), priority=OperR())  # type: ignore[operator]
    data.setup()
    levels = data.weights.reshape(5, -1).mean(1)
    assert (levels[:-1] > levels[1:]).all()
