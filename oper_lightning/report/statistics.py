"""Comparing few runs: interquartile mean, bootstrap intervals, probability of improvement.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv 2108.13264, with the
definitions of their package rliable. Scores are lists of arrays, one array ``[runs]`` for each dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Scores = Sequence[np.ndarray]
SAMPLES = 2000  # of the bootstrap
LEVEL = 0.95
FEWEST = 4  # runs on each dataset from which an interval is bootstrapped; of fewer the range is given


def mean(scores: Scores) -> float:
    """Mean over datasets of the mean over runs."""
    return float(np.mean([np.mean(part) for part in scores]))


def interquartile_mean(scores: Scores) -> float:
    """Mean of the middle half of all runs of all datasets: a quarter of them is left out at each end."""
    values = np.sort(np.concatenate(scores))
    cut = int(0.25 * len(values))
    return float(values[cut : len(values) - cut].mean())


def probability_of_improvement(scores: Scores, others: Scores) -> float:
    """Chance that a run is better than one of the others on the same dataset, averaged over datasets; ties are half."""
    chances = []
    for mine, theirs in zip(scores, others, strict=True):
        difference = mine[:, None] - theirs[None, :]
        chances.append((np.sign(difference) + 1).mean() / 2)
    return float(np.mean(chances))


def interval(statistic: Callable[..., float], *groups: Scores) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %) of a statistic of groups of scores: runs are redrawn within each dataset."""
    generator = np.random.default_rng(0)

    def redrawn(scores: Scores) -> list[np.ndarray]:
        return [part[generator.integers(len(part), size=len(part))] for part in scores]

    values = [statistic(*map(redrawn, groups)) for _ in range(SAMPLES)]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def enough(*groups: Scores) -> bool:
    """Whether every dataset has enough runs for intervals."""
    return all(len(part) >= FEWEST for scores in groups for part in scores)


def extent(scores: Scores) -> tuple[float, float]:
    """Means over datasets of the lowest and of the highest run; of one dataset simply these."""
    return float(np.mean([part.min() for part in scores])), float(np.mean([part.max() for part in scores]))


def band(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap interval (95 %) of the mean of curves ``[runs, points]``, or their range; ``[points]`` each."""
    if len(curves) < FEWEST:
        return curves.min(0), curves.max(0)
    generator = np.random.default_rng(0)
    picks = generator.integers(len(curves), size=(SAMPLES, len(curves)))
    low, high = np.quantile(curves[picks].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high
