"""What a few seeds say about a mean."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

# Student's quantile for 95 % by degrees of freedom, from one on
QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def number(value: float, digits: int = 0) -> str:
    """As it is printed: with a minus instead of a hyphen."""
    return f"{value:.{digits}f}".replace("-", "−")


def interval(values: Sequence[float], digits: int = 1) -> str:
    """Mean and 95 % interval, such as "63.8 ± 4.1"; of fewer than three seeds the mean and their number."""
    if not values:
        return "–"
    mean = number(statistics.mean(values), digits)
    if len(values) < 3:
        return f"{mean} ({len(values)} seed{'s' * (len(values) > 1)})"
    return f"{mean} ± {QUANTILES[len(values) - 2] * statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"


def welch(those: Sequence[float], these: Sequence[float]) -> tuple[float, float]:
    """Mean of the second less that of the first, and half its 95 % interval by Welch; of two values or more each."""
    parts = [(statistics.variance(values) / len(values), len(values) - 1) for values in (those, these)]
    variance = sum(part for part, _ in parts)
    # Welch 1947; rounded down, which makes the interval wider.
    freedom = int(variance**2 / sum(part**2 / less for part, less in parts)) if variance else 1
    margin = QUANTILES[min(freedom, len(QUANTILES)) - 1] * variance**0.5
    return statistics.mean(these) - statistics.mean(those), margin


def difference(those: Sequence[float], these: Sequence[float], digits: int = 1) -> str:
    """The same, as it is printed."""
    mean, margin = welch(those, these)
    return f"{mean:+.{digits}f} ± {margin:.{digits}f}".replace("-", "−")
