"""What a priority adds to no priority, in every cell of three seeds of scores.py, discrete.py and published_scores.py.

    python benchmarks/which_priority.py

Draws benchmarks/which_priority.png from the raw results, and prints the tables of docs/which-priority.md and of
benchmarks/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import discrete
import score_table
import scores
from intervals import difference, interval, welch
from published_scores import DOOR, NEORL2, Suite, name_of

from oper_lightning.report.looks import canvas, legend, look

PRIORITIES = ("OPER-R", "OPER-A", "OPER-A, coupled", "top 10 %", "AW")
SEEDS = 3


class Row(NamedTuple):
    """An algorithm on a dataset: its seeds without a priority, and with each."""

    data: str
    algorithm: str
    without: list[float]
    priorities: dict[str, list[float]]
    unit: str = "score"


def of_grid() -> Iterator[Row]:
    for dataset in scores.DATASETS:
        known = score_table.scores_of(dataset)
        for algorithm in scores.ALGORITHMS:
            named = {score_table.called(name): seeds for (whose, name), seeds in known.items() if whose == algorithm}
            yield Row(score_table.called(dataset), score_table.called(algorithm), named.pop("uniform"), named)


def of_suite(suite: Suite) -> Iterator[Row]:
    for task in suite.tasks:
        for algorithm, contender in suite.algorithms.items():
            named = {}
            for priority, called in (("uniform", "none"), ("oper_r", "OPER-R"), ("oper_a", "OPER-A")):
                files = [suite.file(name_of(task, algorithm, priority, seed, times=1)) for seed in suite.seeds]
                named[called] = [json.loads(file.read_text())["test"]["score"] for file in files if file.is_file()]
            # The door's settings let all loss terms see the weights; a clone has one.
            if suite is DOOR and algorithm != "bc":
                named["OPER-A, coupled"] = named.pop("OPER-A")
            yield Row(task, contender.called, named.pop("none"), named)


def of_classic() -> Iterator[Row]:
    for dataset, runs in (
        ("cartpole-replay", discrete.CARTPOLE_RUNS),
        ("pendulum-replay", discrete.PENDULUM_RUNS),
    ):
        for run in runs:
            cells = [discrete.finals(discrete.records(dataset, one)) for one in (run, *discrete.prioritised(run))]
            named = dict(zip(("OPER-R", "OPER-A", "top 10 %"), cells[1:], strict=True))
            yield Row(dataset, run.name, cells[0], named, unit="return")


def rows() -> list[Row]:
    """All of them; cells of fewer seeds are left out."""
    found = []
    for row in (*of_grid(), *of_suite(NEORL2), *of_suite(DOOR), *of_classic()):
        whole = {name: row.priorities[name] for name in PRIORITIES if len(row.priorities.get(name, ())) == SEEDS}
        if len(row.without) == SEEDS and whole:
            found.append(row._replace(priorities=whole))
    return found


def table(found: list[Row]) -> str:
    """A row for each algorithm and dataset: without a priority, and what each adds."""
    lines = [f"| data | algorithm | none | {' | '.join(PRIORITIES)} |", "|---|---|" + "---:|" * 6]
    for row in found:
        digits = int(row.unit == "score")
        cells = [row.data, row.algorithm, interval(row.without, digits)]
        for name in PRIORITIES:
            seeds = row.priorities.get(name)
            cells.append(difference(row.without, seeds, digits) if seeds else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(row: Row, name: str) -> int:
    """1 where a priority is better by more than its interval, -1 where it is worse, else 0."""
    mean, margin = welch(row.without, row.priorities[name])
    return (mean > margin) - (mean < -margin)


def counts(found: list[Row]) -> str:
    """How often each priority is better, worse, or neither."""
    lines = ["| priority | better | worse | undecided |", "|---|---:|---:|---:|"]
    for name in PRIORITIES:
        verdicts = [verdict(row, name) for row in found if name in row.priorities]
        lines.append(f"| {name} | {verdicts.count(1)} | {verdicts.count(-1)} | {verdicts.count(0)} |")
    return "\n".join(lines)


def draw(found: list[Row]) -> None:
    """A panel for each dataset, a group of points for each algorithm: what a priority adds, with its interval."""
    datasets = list(dict.fromkeys(row.data for row in found))
    figure, panels = canvas(4, -(-len(datasets) // 4), 3.6, 3.4, foot=PRIORITIES)
    for panel, dataset in zip(panels, datasets, strict=False):
        here = [row for row in found if row.data == dataset]
        farthest = 0.0
        for place, row in enumerate(here):
            for slot, (name, seeds) in enumerate(row.priorities.items()):
                mean, margin = welch(row.without, seeds)
                farthest = max(farthest, abs(mean))
                height = place + 0.16 * (slot - (len(row.priorities) - 1) / 2)
                colour = look(PRIORITIES.index(name))["color"]
                panel.errorbar(mean, height, xerr=margin, color=colour, fmt="o", markersize=4, label=name)
            if place % 2:
                panel.axhspan(place - 0.5, place + 0.5, color="black", alpha=0.04, linewidth=0)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_xlim(-1.25 * farthest, 1.25 * farthest)
        panel.set_yticks(range(len(here)), [row.algorithm for row in here], fontsize="small")
        panel.set_ylim(len(here) - 0.5, -0.5)
        panel.grid(visible=False, axis="y")
        panel.set_title(dataset, fontsize="small")
        panel.set_xlabel(f"{here[0].unit} gained over no priority", fontsize="x-small")
        panel.tick_params(axis="x", labelsize="x-small")
    for panel in panels[len(datasets) :]:
        panel.axis("off")
    legend(figure, panels, PRIORITIES)
    figure.savefig(scores.ROOT / "benchmarks" / "which_priority.png", dpi=110)


if __name__ == "__main__":
    known = rows()
    draw(known)
    print(table(known), counts(known), sep="\n\n")
