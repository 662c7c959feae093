"""What runs earned, in numbers: a row for each method and dataset, and for each method over all data."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from oper_lightning.report import statistics
from oper_lightning.report.page import Table
from oper_lightning.report.runs import Group

Pair = tuple[float, float]


class Result(NamedTuple):
    """One method on one dataset, or on all; what was not measured is None."""

    data: str
    method: str
    updates: int | None
    returned: float | None
    """mean over runs of the last evaluations' returns"""
    score: float | None
    """the same of their normalised scores"""
    best: float | None
    """mean over runs of each one's best evaluation, in what the data are judged by"""
    runs: int
    extent: Pair | None
    """lowest and highest run"""
    interval: Pair | None
    """95 % interval of the mean; None of few runs"""
    middle: float | None
    """interquartile mean; None of few runs"""
    middle_interval: Pair | None
    better: float | None
    """chance that a run is better than one of the first method; None of the first"""
    better_interval: Pair | None
    gap: float | None
    """share of the first method's distance to a return that is closed"""


def measured_by(groups: list[Group], data: str) -> str:
    """What runs on a dataset are judged by: the normalised score where all have one."""
    runs = [run for group in groups if group.data == data for run in group.runs]
    return "eval/score" if all("eval/score" in run.curves for run in runs) else "eval/return"


def results(groups: list[Group], gap_to: float | None) -> list[Result]:
    """A row for each method and dataset, in the order of the groups."""
    found = []
    for group in groups:
        name = measured_by(groups, group.data)
        first = next(other for other in groups if other.data == group.data)
        last, returned = group.finals(name), float(group.finals("eval/return").mean())
        gap = None
        if gap_to is not None and gap_to != (start := float(first.finals("eval/return").mean())):
            gap = (returned - start) / (gap_to - start) + 0.0  # no -0
        base = None if group is first else [first.finals(name)]
        spread = _spread([last], base)
        score = float(last.mean()) if name == "eval/score" else None
        best = float(group.bests(name).mean())
        found.append(
            Result(group.data, group.method, group.runs[0].updates, returned, score, best, len(last), *spread, gap)
        )
    return found


def over_datasets(groups: list[Group]) -> list[Result]:
    """Methods that were run on all data, if these are several and all scored."""
    data = list(dict.fromkeys(group.data for group in groups))
    if len(data) < 2 or {measured_by(groups, part) for part in data} != {"eval/score"}:
        return []
    scores: dict[str, list[np.ndarray]] = {}
    for method in dict.fromkeys(group.method for group in groups):
        known = {group.data: group.finals("eval/score") for group in groups if group.method == method}
        if len(known) == len(data):
            scores[method] = [known[part] for part in data]
    found, base = [], None
    for method, mine in scores.items():
        runs, mean = sum(map(len, mine)), statistics.mean(mine)
        found.append(Result("all", method, None, None, mean, None, runs, *_spread(mine, base), None))
        base = base or mine
    return found


def _spread(
    mine: list[np.ndarray], base: list[np.ndarray] | None
) -> tuple[Pair | None, Pair | None, float | None, Pair | None, float | None, Pair | None]:
    """The fields of :class:`Result` from ``extent`` to ``better_interval``."""
    several, enough = max(map(len, mine)) > 1, statistics.enough(mine)
    iqm = statistics.interquartile_mean
    better = better_interval = None
    if base is not None:
        better = statistics.probability_of_improvement(mine, base)
        if enough and statistics.enough(base):
            better_interval = statistics.interval(statistics.probability_of_improvement, mine, base)
    return (
        statistics.extent(mine) if several else None,
        statistics.interval(statistics.mean, mine) if enough else None,
        iqm(mine) if enough else None,
        statistics.interval(iqm, mine) if enough else None,
        better,
        better_interval,
    )


def table_of(found: list[Result], gap_to: float | None) -> Table:
    """A table for people, with the columns that have content."""
    over_all = found[0].data == "all"
    scored, several = any(row.score is not None for row in found), any(row.extent for row in found)
    intervals = any(row.interval for row in found)
    head = [] if over_all else ["data"]
    head += ["method"]
    head += [] if over_all else ["updates", "return, last"]
    head += ["score, last"] * scored + ["best"] * (not over_all)
    head += ["runs", "lowest to highest"] * several
    head += ["mean, 95 %", "IQM", "IQM, 95 %"] * intervals
    head += ["better than first"] * several
    head += [f"gap to {gap_to:g} closed"] if gap_to is not None and not over_all else []
    rows = []
    for row in found:
        line = [] if over_all else [row.data]
        line += [row.method]
        line += [] if over_all else [f"{row.updates:,}", _number(row.returned, 2)]
        line += [_number(row.score)] * scored + [_number(row.best)] * (not over_all)
        line += [str(row.runs), _pair(row.extent)] * several
        line += [_pair(row.interval), _number(row.middle), _pair(row.middle_interval)] * intervals
        if several:
            chance = "" if row.better is None else _number(row.better, 2)
            line.append(chance + (f" ({_pair(row.better_interval, 2)})" if row.better_interval else ""))
        if gap_to is not None and not over_all:
            line.append("–" if row.gap is None or math.isnan(row.gap) else f"{row.gap:.0%}")
        rows.append(line)
    return Table(head, rows, words=1 if over_all else 2)


def plain_rows(found: list[Result]) -> tuple[list[str], list[list[object]]]:
    """A table for other programs, with all digits: head and rows."""
    head = ["data", "method", "updates", "return_last", "score_last", "best", "runs", "lowest", "highest"]
    head += ["mean_low_95", "mean_high_95", "iqm", "iqm_low_95", "iqm_high_95"]
    head += ["better_than_first", "better_low_95", "better_high_95", "gap_closed"]
    rows: list[list[object]] = []
    for row in found:
        pairs = [pair or (None, None) for pair in (row.extent, row.interval, row.middle_interval, row.better_interval)]
        line: list[object] = [*row[:5], row.best, row.runs, *pairs[0], *pairs[1], row.middle, *pairs[2]]
        rows.append([*line, row.better, *pairs[3], row.gap])
    return head, rows


def _number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if math.isfinite(value) else "not finite"


def _pair(pair: Pair | None, digits: int = 1) -> str:
    if pair is None:
        return "–"
    return " to ".join(_number(value, digits) for value in pair) if all(map(math.isfinite, pair)) else "not finite"
