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
            named = scores_of(suite, task, algorithm)
            # The door's settings let all loss terms see the weights; a clone has one.
            if suite is DOOR and algorithm != "bc":
                named["OPER-A, coupled"] = named.pop("OPER-A")
            yield Row(task, contender.called, named.pop("none"), named)


def of_classic() -> Iterator[Row]:
    for dataset, runs in (
        ("cartpole-0.8", discrete.CARTPOLE_RUNS),
        ("cartpole-replay", discrete.CARTPOLE_RUNS),
        ("pendulum-replay", discrete.PENDULUM_RUNS),
    ):
        for run in runs:
            cells = [discrete.finals(discrete.records(dataset, one)) for one in (run, *discrete.prioritised(run))]
            named = dict(zip(("OPER-R", "OPER-A", "top 10 %"), cells[1:], strict=True))
            yield Row(dataset, run.name.replace("TD3BC", "TD3+BC"), cells[0], named, unit="return")


def rows() -> list[Row]:
    """All of them; cells of fewer seeds are left out."""
    found = []
    for row in (*of_grid(), *of_suite(NEORL2), *of_suite(DOOR), *of_classic()):
        whole = {name: row.priorities[name] for name in PRIORITIES if len(row.priorities.get(name, ())) == SEEDS}
        if len(row.without) == SEEDS and whole:
            found.append(row._replace(priorities=whole))
    return found


def differ(those: list[float] | None, these: list[float] | None, digits: int) -> str:
    """What the second has above the first, as it is printed."""
    return difference(those, these, digits) if those and these else "–"


def table(found: list[Row]) -> str:
    """A row for each algorithm and dataset: without a priority, what each adds, and OPER-A less OPER-R."""
    heads = ["data", "algorithm", "none", *PRIORITIES, "OPER-A less OPER-R"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for row in found:
        digits = int(row.unit == "score")
        cells = [row.data, row.algorithm, interval(row.without, digits)]
        cells += [differ(row.without, row.priorities.get(name), digits) for name in PRIORITIES]
        cells.append(differ(row.priorities.get("OPER-R"), row.priorities.get("OPER-A"), digits))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def decided(those: list[float], these: list[float]) -> int:
    """1 where the second is better by more than the interval, -1 where it is worse, else 0."""
    mean, margin = welch(those, these)
    return (mean > margin) - (mean < -margin)


def counts(found: list[Row]) -> str:
    """How often each priority is better, worse, or neither; on Reacher, and elsewhere."""
    pairs = [("none", name) for name in PRIORITIES] + [("OPER-R", "OPER-A")]
    lines = [
        "| | better / worse / undecided: Reacher | all other data | datasets |",
        "|---|---:|---:|---:|",
    ]
    for first, second in pairs:
        cells, datasets = [], set()
        for here in (True, False):
            results = []
            for row in found:
                seeds = {"none": row.without, **row.priorities}
                if (row.data == "Reacher") == here and first in seeds and second in seeds:
                    results.append(decided(seeds[first], seeds[second]))
                    datasets.add(row.data)
            cells.append(" / ".join(str(results.count(result)) for result in (1, -1, 0)) if results else "–")
        name = second if first == "none" else f"{second} rather than {first}"
        lines.append(f"| {name} | {' | '.join(cells)} | {len(datasets)} |")
    return "\n".join(lines)


def draw(found: list[Row]) -> None:
    """A panel for each dataset, a group of points for each algorithm: what a priority adds, with its interval."""
    datasets = list(dict.fromkeys(row.data for row in found))
    figure, panels = canvas(3, -(-len(datasets) // 3), 4.8, 3.2, foot=PRIORITIES)
    for panel, dataset in zip(panels, datasets, strict=False):
        here = [row for row in found if row.data == dataset]
        farthest = 1000 if here[0].unit == "return" else 100
        for place, row in enumerate(here):
            for slot, (name, seeds) in enumerate(row.priorities.items()):
                mean, margin = welch(row.without, seeds)
                height = place + 0.16 * (slot - (len(row.priorities) - 1) / 2)
                number = PRIORITIES.index(name)
                colour = look(number)["color"]
                fill = colour if decided(row.without, seeds) else "white"
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
