"""What a priority adds to no priority, in every cell of three seeds of scores.py, discrete.py and published_scores.py.

    python benchmarks/which_priority.py

Draws benchmarks/which_priority.png from the raw results, and prints the tables of benchmarks/README.md and
docs/which-priority.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import discrete
import score_table
import scores
from intervals import difference, interval, welch
from matplotlib.ticker import NullLocator
from published_scores import DOOR, NEORL2, Suite, scores_of

from oper_lightning.report.looks import canvas, legend, look, marker

PRIORITIES = ("OPER-R", "OPER-A", "OPER-A, coupled", "top 10 %", "AW")
AGAINST = [*(("none", name) for name in PRIORITIES), ("OPER-R", "OPER-A")]
ELSEWHERE = {"uniform": "none", "best tenth": "top 10 %", "TD3BC": "TD3+BC"}  # names in the other scripts


class Row(NamedTuple):
    """An algorithm on a dataset: its seeds without a priority ("none"), and with each."""

    data: str
    algorithm: str
    seeds: dict[str, list[float]]
    unit: str = "score"


def of_grid() -> Iterator[Row]:
    for dataset in scores.DATASETS:
        known = score_table.scores_of(dataset)
        for algorithm in scores.ALGORITHMS:
            named = {score_table.called(name): seeds for (whose, name), seeds in known.items() if whose == algorithm}
            yield Row(score_table.called(dataset), score_table.called(algorithm), named)


def of_suite(suite: Suite) -> Iterator[Row]:
    for task in suite.tasks:
        for algorithm, contender in suite.algorithms.items():
            named = scores_of(suite, task, algorithm)
            # The door's settings let all loss terms see the weights; a clone has one.
            if suite is DOOR and algorithm != "bc":
                named["OPER-A, coupled"] = named.pop("OPER-A")
            yield Row(task, contender.called, named)


def of_classic() -> Iterator[Row]:
    for dataset, runs in (
        ("cartpole-0.8", discrete.CARTPOLE_RUNS),
        ("cartpole-replay", discrete.CARTPOLE_RUNS),
        ("pendulum-replay", discrete.PENDULUM_RUNS),
    ):
        for run in runs:
            ways = zip(("none", *discrete.PRIORITIES), (run, *discrete.prioritised(run)), strict=True)
            named = {name: discrete.finals(discrete.records(dataset, one)) for name, one in ways}
            yield Row(dataset, run.name, named, unit="return")


def rows() -> list[Row]:
    """All of them; cells of fewer seeds are left out."""
    found = []
    for row in (*of_grid(), *of_suite(NEORL2), *of_suite(DOOR), *of_classic()):
        named = {ELSEWHERE.get(name, name): seeds for name, seeds in row.seeds.items()}
        whole = {name: named[name] for name in ("none", *PRIORITIES) if len(named.get(name, ())) == scores.SEEDS}
        if "none" in whole and len(whole) > 1:
            found.append(row._replace(algorithm=ELSEWHERE.get(row.algorithm, row.algorithm), seeds=whole))
    return found


def table(found: list[Row]) -> str:
    """A row for each algorithm and dataset: without a priority, what each adds, and OPER-A less OPER-R."""
    heads = ["data", "algorithm", "none", *PRIORITIES, "OPER-A less OPER-R"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for row in found:
        digits = int(row.unit == "score")
        cells = [row.data, row.algorithm, interval(row.seeds["none"], digits)]
        for first, second in AGAINST:
            both = row.seeds.keys() >= {first, second}
            cells.append(difference(row.seeds[first], row.seeds[second], digits) if both else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def decided(row: Row, first: str, second: str) -> int:
    """1 where the second is better by more than the interval, -1 where it is worse, else 0."""
    mean, margin = welch(row.seeds[first], row.seeds[second])
    return (mean > margin) - (mean < -margin)


def counts(found: list[Row]) -> str:
    """How often each priority is better, worse, or neither; on Reacher, and elsewhere."""
    lines = [
        "| | better / worse / undecided: Reacher | all other data | datasets |",
        "|---|---:|---:|---:|",
    ]
    for first, second in AGAINST:
        both = [row for row in found if row.seeds.keys() >= {first, second}]
        cells = [second if first == "none" else f"{second} rather than {first}"]
        for reacher in (True, False):
            results = [decided(row, first, second) for row in both if (row.data == "Reacher") == reacher]
            cells.append(" / ".join(str(results.count(result)) for result in (1, -1, 0)) if results else "–")
        cells.append(str(len({row.data for row in both})))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: list[Row]) -> None:
    """A panel for each dataset, a group of points for each algorithm: what a priority adds, with its interval."""
    datasets = list(dict.fromkeys(row.data for row in found))
    figure, panels = canvas(3, -(-len(datasets) // 3), 4.8, 3.2, foot=PRIORITIES)
    for panel, dataset in zip(panels, datasets, strict=False):
        here = [row for row in found if row.data == dataset]
        farthest = 1000 if here[0].unit == "return" else 100
        for place, row in enumerate(here):
            shown = [name for name in PRIORITIES if name in row.seeds]
            for slot, name in enumerate(shown):
                mean, margin = welch(row.seeds["none"], row.seeds[name])
                height = place + 0.16 * (slot - (len(shown) - 1) / 2)
                number = PRIORITIES.index(name)
                colour = look(number)["color"]
                fill = colour if decided(row, "none", name) else "white"
                points = {"fmt": marker(number), "markersize": 5, "markerfacecolor": fill, "label": name}
                panel.errorbar(mean, height, xerr=margin, color=colour, linewidth=1.2, **points)
            if place % 2:
                panel.axhspan(place - 0.5, place + 0.5, color="black", alpha=0.04, linewidth=0)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_xscale("symlog", linthresh=farthest / 10, linscale=1.5)
        panel.set_xlim(-1.3 * farthest, 1.3 * farthest)
        panel.set_xticks([sign * farthest / part for sign in (-1, 1) for part in (1, 5, 20)] + [0])
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:+.0f}".replace("-", "−") if value else "0")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_yticks(range(len(here)), [row.algorithm for row in here], fontsize="small")
        panel.set_ylim(len(here) - 0.5, -0.5)
        panel.grid(visible=False, axis="y")
        panel.set_title(dataset, fontsize="small")
        panel.set_xlabel(f"← worse   {here[0].unit}   better →", fontsize="x-small")
        panel.tick_params(axis="x", labelsize="x-small")
    for panel in panels[len(datasets) :]:
        panel.axis("off")
    legend(figure, panels, PRIORITIES)
    figure.savefig(scores.ROOT / "benchmarks" / "which_priority.png", dpi=110)


if __name__ == "__main__":
    known = rows()
    draw(known)
    print(table(known), counts(known), sep="\n\n")
