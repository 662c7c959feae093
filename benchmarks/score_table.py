"""Tables and pictures of the grid's finished runs, for README.md and benchmarks/README.md.

    python benchmarks/score_table.py

Draws benchmarks/scores.png and longer.png anew from the raw results in benchmarks/raw/scores.
"""

from __future__ import annotations

import json
import statistics
from functools import cache

import numpy as np
from intervals import interval
from scores import ALGORITHMS, DATASETS, LONGER, PRIORITIES, RAW, ROOT, SEEDS, policies, setting_of, way

from oper_lightning.report.curves import final
from oper_lightning.report.looks import canvas, legend

Curves = dict[str, dict[str, list[float]]]
CALLED = {
    "bc": "BC", "onestep": "OnestepRL", "iql": "IQL", "td3_bc": "TD3+BC", "cql": "CQL",
    "hopper-replay": "hopper-replay", "halfcheetah-replay": "halfcheetah-replay", "reacher": "Reacher",
    "uniform": "uniform", "oper_r": "OPER-R", "oper_r-decoupled": "OPER-R, decoupled", "oper_a": "OPER-A",
    "oper_a-coupled": "OPER-A, coupled", "top10": "top 10 %", "aw": "AW",
}  # fmt: skip
TELLING = (
    "eval/score",
    "train/value",
    "train/lambda",
    "train/absolute_advantage",
    "train/entropy_temperature",
    "train/critic_loss",
)


def called(name: str) -> str:
    """As papers do."""
    priority, setting, value = setting_of(name)
    return f"{CALLED[priority]}, {setting} {value}" if setting else CALLED[name]


@cache
def curves_of(name: str) -> Curves | None:
    """What a finished run logged."""
    file = RAW / f"{name}.json"
    curves: Curves | None = json.loads(file.read_text())["curves"] if file.is_file() else None
    return curves


def scores_of(dataset: str) -> dict[tuple[str, str], list[float]]:
    """Mean of the last three normalised scores of each seed, by algorithm and priority."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in policies(dataset):
        if (curves := curves_of(run.name)) and "longer" not in run.name:
            algorithm, name = run.name.removeprefix(f"{dataset}-").rsplit("-", 1)[0].split("-", 1)
            found.setdefault((algorithm, name), []).append(final(curves["eval/score"]["values"]))
    return found


def table() -> str:
    """Every mean over seeds with its 95 % interval, and each seed."""
    lines = ["| data | algorithm | priority | score | seeds |", "|---|---|---|---:|---|"]
    for dataset in DATASETS:
        for (algorithm, name), scores in scores_of(dataset).items():
            spread = " ".join(f"{score:.1f}" for score in scores)
            lines.append(
                f"| {CALLED[dataset]} | {CALLED[algorithm]} | {called(name)} | {interval(scores)} | {spread} |"
            )
    return "\n".join(lines)


def changed() -> str:
    """What a cell's first seed had said, and what all its seeds say, where the others run in another way than it."""
    lines = [
        "| data | algorithm | priority | first seed | all seeds | without a priority |",
        "|---|---|---|---:|---:|---:|",
    ]
    for dataset in DATASETS:
        known = scores_of(dataset)
        for (algorithm, name), scores in known.items():
            if len(scores) == SEEDS and way(dataset, algorithm, name, seed=1):
                parts = [CALLED[dataset], CALLED[algorithm], called(name), f"{scores[0]:.1f}", interval(scores)]
                uniform = known[algorithm, "uniform"]
                parts.append("" if name == "uniform" else f"{uniform[0]:.1f}; {interval(uniform)}")
                lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)


def matrix() -> str:
    """Means over seeds with the lowest and the highest, algorithms against priorities."""
    head = ["data", "algorithm", *map(called, PRIORITIES)]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(PRIORITIES)]
    for dataset in DATASETS:
        known = scores_of(dataset)
        for algorithm in ALGORITHMS:  # a clone has one loss: coupled or not is the same
            cells = []
            for name in PRIORITIES:
                scores = known.get((algorithm, name), [])
                cell = f"{statistics.mean(scores):.0f}" if scores else ""
                if len(scores) > 1:
                    cell += f" ({min(scores):.0f}–{max(scores):.0f})"
                cells.append("–" if (algorithm, name) == ("bc", "oper_a-coupled") else cell)
            lines.append("| " + " | ".join([CALLED[dataset], CALLED[algorithm], *cells]) + " |")
    return "\n".join(lines)


def draw() -> None:
    """Learning curves of the whole grid: mean over seeds, and their range."""
    figure, panels = canvas(len(ALGORITHMS), len(DATASETS), 3.2, 2.6, foot=[called(name) for name in PRIORITIES])
    for row, dataset in enumerate(DATASETS):
        for column, algorithm in enumerate(ALGORITHMS):
            panel = panels[row * len(ALGORITHMS) + column]
            for number, priority in enumerate(PRIORITIES):
                runs = [curves_of(f"{dataset}-{algorithm}-{priority}-{seed}") for seed in range(3)]
                curves = [curves["eval/score"] for curves in runs if curves]
                if not curves:
                    continue
                values = np.array([curve["values"] for curve in curves])
                updates, look = np.array(curves[0]["updates"]) / 1000, f"C{number}"
                panel.plot(updates, values.mean(0), color=look, marker="o", markersize=2, label=called(priority))
                panel.fill_between(updates, values.min(0), values.max(0), color=look, alpha=0.15, linewidth=0)
            if not panel.lines:
                panel.axis("off")
            panel.set_title(f"{CALLED[dataset]}, {CALLED[algorithm]}", fontsize="small")
            panel.tick_params(labelsize="x-small")
            if dataset == "reacher":
                panel.set_ylim(bottom=40)  # what falls out of it falls to -100
            if row == len(DATASETS) - 1:
                panel.set_xlabel("gradient updates, thousands", fontsize="x-small")
        panels[row * len(ALGORITHMS)].set_ylabel("normalised score", fontsize="x-small")
    legend(figure, panels)
    figure.savefig(ROOT / "benchmarks" / "scores.png", dpi=110)


def draw_longer() -> None:
    """Score beside what tells how runs of three times the length fared: values, and how strongly they pull."""
    known = {(where, who, name): curves_of(f"{where}-{who}-{name}-longer-0") for where, who, name in LONGER}
    rows = list(dict.fromkeys(key[:2] for key, curves in known.items() if curves))
    figure, panels = canvas(3, len(rows), 4.4, 2.6, foot=[called(name) for name in PRIORITIES])
    for row, (dataset, algorithm) in enumerate(rows):
        beside, scores = panels[row * 3 : row * 3 + 3], scores_of(dataset)
        runs = {key[2]: curves for key, curves in known.items() if curves and key[:2] == (dataset, algorithm)}
        tags = [tag for tag in TELLING if all(tag in curves for curves in runs.values())]
        for priority, curves in runs.items():
            look = {"color": f"C{PRIORITIES.index(priority)}", "label": called(priority)}
            for panel, tag in zip(beside, tags, strict=False):
                panel.plot(np.array(curves[tag]["updates"]) / 1000, curves[tag]["values"], linewidth=1, **look)
                title = tag.split("/")[1].replace("_", " ")
                panel.set_title(f"{CALLED[dataset]}, {CALLED[algorithm]}: {title}", fontsize="small")
                if tag == "train/lambda":
                    panel.set_yscale("log")
            if clone := scores.get(("bc", priority.removesuffix("-coupled"))):  # one loss: it is the same
                beside[0].axhline(statistics.mean(clone), color=look["color"], linewidth=1, linestyle=":")
        for panel in beside:
            panel.tick_params(labelsize="x-small")
            if not panel.lines:
                panel.axis("off")
    for panel in panels[-3:]:
        panel.set_xlabel("gradient updates, thousands", fontsize="x-small")
    legend(figure, panels)
    figure.savefig(ROOT / "benchmarks" / "longer.png", dpi=110)


if __name__ == "__main__":
    draw()
    draw_longer()
    print(f"{matrix()}\n\n{table()}\n\n{changed()}")
