from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Arrays, columns, transitions
from hypothesis import given, settings
from hypothesis import strategies as st

from oper_lightning import D4RL, AdvantageWeighting, InputError, OfflineDataModule, OperR, ReturnWeighting, TopFraction
from oper_lightning.data.storage import fill
from oper_lightning.data.transitions import episode_returns, squeezed
from oper_lightning.priorities.priority import Priority, mean_one, statistics
from oper_lightning.priorities.returns import (
    advantage_of_trajectories,
    doubts,
    oper_r,
    scores,
    top_trajectories,
    top_transitions,
)

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


# What returns do not tell -------------------------------------------------------------------------------------------


def log_of(lengths: list[int], rewards: list[float]) -> dict[str, np.ndarray]:
    """Episodes that were all cut off, each with one reward per step."""
    data = columns(lengths, terminal=False)
    data["rewards"][:] = np.repeat(rewards, lengths)
    return data


def days() -> dict[str, np.ndarray]:
    """42 days of 96 quarters of an hour, seven of them disasters: one reward of -100,000."""
    skill = np.random.default_rng(0).permutation(np.linspace(3.0, 7.0, 42))
    data = log_of([96] * 42, list(skill))
    data["rewards"].reshape(42, 96)[::6, 50] = -100_000
    return data


def restarts() -> dict[str, np.ndarray]:
    """A log that was restarted now and then, whatever the policy did: rewards per step and lengths are unrelated."""
    generator = np.random.default_rng(3)
    return log_of(list(generator.integers(20, 800, 60)), list(generator.uniform(4.5, 5.5, 60)))


def per_episode(data: dict[str, np.ndarray], priority: Priority) -> tuple[np.ndarray, np.ndarray]:
    """Weight and reward per step of each episode."""
    table = transitions(data)
    ends = table["next", "done"].numpy()
    lengths = np.diff(np.r_[-1, np.nonzero(ends)[0]])
    sums = np.add.reduceat(data["rewards"].astype(float), np.r_[0, np.nonzero(ends)[0][:-1] + 1])
    return np.asarray(priority(table))[ends], sums / lengths


def said(data: dict[str, np.ndarray], priority: Priority) -> list[str]:
    table = transitions(data)
    return doubts(priority, table, priority(table))


@pytest.mark.parametrize("make", [OperR, ReturnWeighting])
def test_a_few_disasters_squeeze_all_other_weights(make: Any) -> None:
    data = days()
    if make is OperR:
        weight, _ = per_episode(data, make())
        usual = np.delete(weight, np.s_[::6])
        assert 0 < (usual.max() - usual.min()) / usual.max() < 0.01
    assert any("83% of the transitions weigh nearly the same" in line for line in said(data, make()))
    assert all("set the priority's returns to rank" in line for line in said(data, make()))
    weight, skill = per_episode(data, make(returns="rank"))
    usual = np.delete(np.arange(42), np.s_[::6])
    assert np.corrcoef(weight[usual], skill[usual])[0, 1] > 0.7
    assert weight[usual].max() / weight[usual].min() > 2
    assert weight[::6].max() < weight[usual].min()
    assert said(data, make(returns="rank")) == []


@pytest.mark.parametrize("make", [OperR, ReturnWeighting, TopFraction, AdvantageWeighting])
def test_where_a_log_was_restarted_returns_measure_length(make: Any) -> None:
    data = restarts()
    weight, skill = per_episode(data, make())
    assert abs(np.corrcoef(weight, skill)[0, 1]) < 0.35
    (line,) = said(data, make())
    assert "returns go with the length of trajectories" in line
    assert "set the priority's returns to per_step" in line
    weight, skill = per_episode(data, make(returns="per_step"))
    assert np.corrcoef(weight, skill)[0, 1] > 0.5
    assert said(data, make(returns="per_step")) == []


def test_what_is_worth_doubting_is_noted_when_the_weights_are_made(caplog: pytest.LogCaptureFixture) -> None:
    OfflineDataModule(Arrays(restarts()), OperR()).setup()
    assert "OperR: returns go with the length of trajectories" in caplog.text


def test_returns_that_tell_enough_are_not_doubted(shared: Path) -> None:
    """Where skill makes episodes longer, length is merit; equal weights of a best part or of two outcomes are meant."""
    for name in ("hopper-replay", "halfcheetah-replay", "reacher-five-levels"):
        table = squeezed(fill(D4RL(str(shared / f"{name}.hdf5")), torch.device("cpu"))[:])
        for priority in (OperR(), ReturnWeighting(), TopFraction(), AdvantageWeighting()):
            assert doubts(priority, table, priority(table)) == [], name
    assert said(log_of([20] * 40, [0.0] * 36 + [1.0] * 4), OperR(0.2)) == []


def test_returns_by_step_and_by_rank_are_the_formulas() -> None:
    table = transitions(log_of([2, 4, 1, 3, 2], [3.0, 1.0, 6.0, 2.0, 2.0]))  # sums 6, 4, 6, 6, 4
    last = table["next", "done"]
    found = {how: scores(table, how)[0] for how in ("sum", "per_step", "rank")}
    np.testing.assert_allclose(found["sum"][last], [6, 4, 6, 6, 4])
    np.testing.assert_allclose(found["per_step"][last], [3, 1, 6, 2, 2])
    # Ascending places 1 and 2 are shared by the fours, 3 to 5 by the sixes: means 1.5 and 4, less 1, over 4.
    np.testing.assert_allclose(found["rank"][last], [0.75, 0.125, 0.75, 0.75, 0.125])
    assert found["rank"].tolist() == [0.75] * 2 + [0.125] * 4 + [0.75] * 4 + [0.125] * 2
    assert (OperR(returns="rank")(transitions(log_of([3], [1.0]))) == 1).all()
