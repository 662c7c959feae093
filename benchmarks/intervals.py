"""What a few seeds say about a mean."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

# By the number of seeds, Student's quantile for 95 %.
QUANTILES = {3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57}


def interval(values: Sequence[float], digits: int = 1) -> str:
    """Mean and 95 % interval, such as "63.8 ± 4.1"; of fewer than three seeds the mean and their number."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}".replace("-", "−")
    if len(values) < 3:
        return f"{mean} ({len(values)} seed{'s' * (len(values) > 1)})"
    return f"{mean} ± {width(values):.{digits}f}"


def width(values: Sequence[float]) -> float:
    """Half of the interval of three seeds or more."""
    return QUANTILES[len(values)] * statistics.stdev(values) / len(values) ** 0.5
