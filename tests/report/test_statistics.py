"""Against the definitions of Agarwal et al. 2021, by hand and by literal loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oper_lightning.report import statistics

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=6).map(np.array)


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert statistics.interquartile_mean([np.array([100.0, 1.0, 2.0, -50.0])]) == 1.5
    # Over all runs of all datasets together, not dataset by dataset.
    assert statistics.interquartile_mean([np.array([0.0, 1.0]), np.array([10.0, 20.0])]) == 5.5
    assert statistics.interquartile_mean([np.array([3.0, 4.0, 8.0])]) == 5  # a quarter of three is none
    eight = np.arange(8.0)
    assert statistics.interquartile_mean([eight]) == np.mean([2, 3, 4, 5])


@given(SCORES, SCORES)
def test_the_probability_of_improvement_counts_pairs(mine: np.ndarray, theirs: np.ndarray) -> None:
    pairs = list(itertools.product(mine, theirs))
    expected = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    assert statistics.probability_of_improvement([mine], [theirs]) == pytest.approx(expected)
    both = statistics.probability_of_improvement([mine, mine], [theirs, mine])
    assert both == pytest.approx((expected + 0.5) / 2)


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    """Of intervals from 30 normal numbers about 95 in 100 hold the true mean (a percentile bootstrap a little less)."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        low, high = statistics.interval(statistics.mean, [generator.normal(3.0, 2.0, 30)])
        held += low <= 3.0 <= high
    assert 85 <= held <= 99


def test_runs_are_redrawn_within_their_dataset() -> None:
    """Between datasets of equal runs nothing varies, however far apart they lie."""
    assert statistics.interval(statistics.mean, [np.full(3, 1.0), np.full(3, 99.0)]) == (50, 50)


def test_a_band_is_narrow_where_runs_agree() -> None:
    curves = np.array([[1.0, 0.0], [1.0, 10.0], [1.0, 20.0]])
    low, high = statistics.band(curves)
    assert low[0] == high[0] == 1
    assert 0 <= low[1] < 5
    assert 15 < high[1] <= 20
