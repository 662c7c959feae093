"""Learning curves of policies that were deployed again and again: each learns from one dataset more than the last."""

from __future__ import annotations

from typing import Any

import numpy as np

from oper_lightning.report.looks import canvas, legend, look, plain
from oper_lightning.report.runs import Group, kind
from oper_lightning.report.statistics import band

EARNED, PROMISED = "eval/return", "eval/promised"


def deployed(groups: list[Group]) -> list[list[Group]]:
    """Groups that follow each other: of one algorithm, each with the datasets of the one before and another."""
    found: list[list[Group]] = []
    for group in sorted(groups, key=lambda group: len(_datasets(group))):
        before = _datasets(group)[:-1]
        if not before:
            found.append([group])
            continue
        # Methods are named by what differs on the same data, so that their names may change from round to round.
        alike = [c for c in found if _datasets(c[-1]) == before and kind(c[0].runs[0]) == kind(group.runs[0])]
        same = [course for course in alike if course[0].method == group.method]
        for course in (same or alike)[:1]:
            course.append(group)
    return [course for course in found if len(course) > 1]


def _datasets(group: Group) -> list[str]:
    named = group.runs[0].config.get("data.source.id")
    return named if isinstance(named, list) else [str(named)]


def draw(courses: list[list[Group]]) -> Any:
    """What policies earned and what their models promised, over the updates of all deployments."""
    figure, panels = canvas(1, len(courses), 8.0)
    for panel, course in zip(panels, courses, strict=True):
        lengths = [max(run.updates for run in group.runs) for group in course]
        begins = [sum(lengths[:number]) for number in range(len(course))]
        for name, number, label in ((PROMISED, 1, "promised by the model"), (EARNED, 0, "earned in the environment")):
            logged = [
                (begin + updates, values.mean(0), *band(values))
                for begin, group in zip(begins, course, strict=True)
                if all(name in run.curves for run in group.runs)
                for updates, values in [group.values_along(name)]
            ]
            if logged:
                updates, mean, low, high = (np.concatenate(part) for part in zip(*logged, strict=True))
                panel.plot(updates, mean, **look(number), marker="o", markersize=3.5, label=label)
                panel.fill_between(updates, low, high, color=look(number)["color"], alpha=0.18, linewidth=0)
        across = panel.get_xaxis_transform()
        for number, place in enumerate(begins, 1):
            panel.axvline(place, color="grey", linewidth=1, linestyle=":")
            panel.text(place, 1, f" deployment {number}", transform=across, va="bottom", color="grey", fontsize="small")
        panel.set(xlabel="gradient updates, one deployment after another", ylabel="return")
        panel.set_title(plain(course[0].method), loc="right", fontsize="small", pad=16)
    legend(figure, panels)
    return figure
