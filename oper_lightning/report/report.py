"""`oper report`: finished runs as tables, pictures and one page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from oper_lightning.errors import InputError, note
from oper_lightning.report import statistics
from oper_lightning.report.curves import LAST
from oper_lightning.report.looks import canvas, legend, plain
from oper_lightning.report.page import Page, Table
from oper_lightning.report.runs import Group, Run, grouped, oddities, read_run
from oper_lightning.report.weights import Datasets, EpisodeWeights

STYLES = ("-", "--", ":", "-.")
Looks = dict[str, dict[str, Any]]
"""colour and line of every method"""


def report(runs: list[str], output: str = "runs/report", gap_to: float | None = None) -> None:
    """Compare finished runs: tables, learning curves, what the losses did; report.html, report.md and pictures.

    Runs that differ in their seeds only count as one method. The first method is what the others are compared with.

    Args:
        runs: folders of runs of `oper fit`.
        output: folder to write to.
        gap_to: a return; adds which share of the first method's distance to it each method closes.
    """
    places = [Path(run).resolve() for run in runs]
    if twice := next((run for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None):
        raise InputError(f"{twice}: this run is given twice")
    known = [read_run(run) for run in runs]
    everything = grouped(known)
    for group in everything:
        for line in oddities(group):
            note(line)
    logged = [_as_far_as_the_furthest(group) for group in everything]
    groups = [group._replace(runs=judged) for group in logged if (judged := _judged(group))]
    looks: Looks = {
        name: {"color": f"C{number % 10}", "linestyle": STYLES[number // 10 % len(STYLES)]}
        for number, name in enumerate(dict.fromkeys(group.method for group in everything))
    }
    page = Page("Runs", output, "report")
    tables = _compare(page, groups, looks, gap_to) if groups else []
    if figure := _losses(logged, looks):
        page.heading("What was logged in training")
        page.picture(figure, "-training")
    page.heading("Runs")
    rows = [_listed(group, run) for group in everything for run in group.runs]
    page.table(Table(["run", "data", "method", "seed", "updates"], rows, 3))
    page.write()
    for table in tables:
        print(table.markdown(), end="\n\n")
    print(f"written: {', '.join(map(str, page.files))}")


def _as_far_as_the_furthest(group: Group) -> Group:
    """Without runs that were stopped before the others were."""
    furthest, kept = max(run.updates for run in group.runs), []
    for run in group.runs:
        if run.updates < min(run.planned, furthest):
            note(f"{run.folder}: stopped at update {run.updates:,}, others of its kind at {furthest:,}: left out")
            continue
        if run.updates < run.planned:
            note(f"{run.folder}: unfinished, update {run.updates:,} of {run.planned:,}")
        kept.append(run)
    return group._replace(runs=kept)


def _judged(group: Group) -> list[Run]:
    """Its runs that were evaluated."""
    for run in group.runs:
        if "eval/return" not in run.curves:
            note(f"{run.folder}: no evaluations in this run; only what it logged is shown")
    return [run for run in group.runs if "eval/return" in run.curves]


def _compare(page: Page, groups: list[Group], looks: Looks, gap_to: float | None) -> list[Table]:
    """Writes tables and curves; returns the tables."""
    tables = [_results(groups, gap_to)]
    page.heading("Results")
    page.paragraph(
        f"Last: the mean of a run's last {LAST} evaluations. Best: its best evaluation, chosen after the fact. Both "
        f"are scores where the data have them, else returns. Means and interquartile means (IQM) are over runs, "
        f"intervals (95 %) bootstrapped. Better than first: the chance that a run is better than one of the first "
        f"method on the same data."
    )
    page.table(tables[0])
    if across := _over_datasets(groups):
        page.heading("Over all data")
        page.table(across)
        tables.append(across)
    page.picture(_curves(groups, _weights(groups), looks))
    return tables


def _listed(group: Group, run: Run) -> list[str]:
    updates = f"{run.updates:,}" + (f" of {run.planned:,}" if run.updates < run.planned else "")
    return [run.folder, group.data, group.method, str(run.config.get("seed_everything")), updates]


def measure(groups: list[Group], data: str) -> str:
    """What runs on a dataset are judged by: the normalised score where all have one."""
    runs = [run for group in groups if group.data == data for run in group.runs]
    return "eval/score" if all("eval/score" in run.curves for run in runs) else "eval/return"


def _results(groups: list[Group], gap_to: float | None) -> Table:
    several = any(len(group.runs) > 1 for group in groups)
    scored = any(measure(groups, group.data) == "eval/score" for group in groups)
    head = ["data", "method", "updates", "return, last"] + ["score, last"] * scored + ["best"]
    head += ["runs", "mean, 95 %", "IQM", "95 %", "better than first"] if several else []
    head += [f"gap to {gap_to:g} closed"] if gap_to is not None else []
    rows = []
    for group in groups:
        name = measure(groups, group.data)
        first = next(other for other in groups if other.data == group.data)
        last, base, returns = group.finals(name), first.finals(name), group.finals("eval/return").mean()
        row = [group.data, group.method, f"{group.runs[0].updates:,}", f"{returns:.2f}"]
        row += [f"{last.mean():.1f}" if name == "eval/score" else "–"] * scored
        row.append(f"{group.bests(name).mean():.1f}")
        if several:
            iqm = statistics.interquartile_mean
            better = "" if group is first else _chance([last], [base])
            row += [str(len(last)), _range(statistics.mean, [last]), f"{iqm([last]):.1f}", _range(iqm, [last]), better]
        if gap_to is not None:
            start = first.finals("eval/return").mean()
            row.append(f"{(returns - start) / (gap_to - start):.0%}" if gap_to != start else "–")
        rows.append(row)
    return Table(head, rows, words=2)


def _chance(mine: list[np.ndarray], base: list[np.ndarray]) -> str:
    """Probability of improvement with its interval."""
    chance = f"{statistics.probability_of_improvement(mine, base):.2f}"
    if max(len(part) for part in [*mine, *base]) < 2:
        return chance
    low, high = statistics.interval(statistics.probability_of_improvement, mine, base)
    return f"{chance} ({low:.2f} – {high:.2f})"


def _range(statistic: Callable[..., float], *scores: list[np.ndarray]) -> str:
    if max(len(part) for part in scores[0]) < 2:
        return "–"
    low, high = statistics.interval(statistic, *scores)
    return f"{low:.1f} – {high:.1f}"


def _over_datasets(groups: list[Group]) -> Table | None:
    """Methods that were run on all data, if these are several and scored alike."""
    data = list(dict.fromkeys(group.data for group in groups))
    measures = {measure(groups, part) for part in data}
    if len(data) < 2 or measures != {"eval/score"}:
        return None
    scores: dict[str, list[np.ndarray]] = {}
    for method in dict.fromkeys(group.method for group in groups):
        found = {group.data: group.finals("eval/score") for group in groups if group.method == method}
        if len(found) == len(data):
            scores[method] = [found[part] for part in data]
    rows = []
    for method, mine in scores.items():
        base = next(iter(scores.values()))
        iqm = statistics.interquartile_mean
        row = [method, str(sum(map(len, mine))), f"{statistics.mean(mine):.1f}", _range(statistics.mean, mine)]
        rows.append([*row, f"{iqm(mine):.1f}", _range(iqm, mine), "" if mine is base else _chance(mine, base)])
    return Table(["method", "runs", "mean", "95 %", "IQM", "95 %", "better than first"], rows) if rows else None


def _weights(groups: list[Group]) -> dict[tuple[str, str], EpisodeWeights]:
    """By data and method, what the priority made of each episode."""
    datasets, found, said = Datasets(), {}, set()
    for group in groups:
        try:
            weights = datasets.weights_of(group.runs[0].folder)
        except InputError as error:
            if str(error) not in said:
                note(f"{group.runs[0].folder}: weights are not drawn: {error}")
            said.add(str(error))
            continue
        if weights is not None:
            found[group.data, group.method] = weights
    return found


def _curves(groups: list[Group], weights: dict[tuple[str, str], EpisodeWeights], looks: Looks) -> Any:
    """For each dataset learning curves, and beside them what each priority makes of good and bad episodes."""
    data = list(dict.fromkeys(group.data for group in groups))
    columns = 2 if weights else 1
    shown = [*dict.fromkeys(group.method for group in groups)]
    figure, panels = canvas(columns, len(data), foot=shown)
    for place, dataset in enumerate(data):
        panel, name = panels[columns * place], measure(groups, dataset)
        for group in groups:
            if group.data == dataset:
                draw_curve(panel, group, name, looks[group.method])
        unit = "normalised score" if name.endswith("score") else "return"
        panel.set(title=f"What the policies earn: {plain(dataset)}", xlabel="gradient updates", ylabel=unit)
        if weights:
            mine = {method: part for (where, method), part in weights.items() if where == dataset}
            draw_weights(panels[columns * place + 1], mine, looks)
    legend(figure, panels)
    return figure


def draw_curve(panel: Any, group: Group, name: str, look: dict[str, Any]) -> None:
    """The mean over runs with its interval."""
    updates, values = group.values_along(name)
    panel.plot(updates, values.mean(0), **look, marker="o", markersize=2.5, label=plain(group.method))
    if len(values) > 1:
        panel.fill_between(updates, *statistics.band(values), color=look["color"], alpha=0.2, linewidth=0)


def draw_weights(panel: Any, weights: dict[str, EpisodeWeights], looks: Looks) -> None:
    """Mean weight of each episode against its return; nothing where no run had weights."""
    if not weights:
        panel.axis("off")
        return
    for name, (returns, mean) in weights.items():
        step = max(1, len(returns) // 2000)
        panel.scatter(returns[::step], mean[::step], s=7, alpha=0.5, color=looks[name]["color"], linewidths=0)
    panel.axhline(1, color="grey", linewidth=1, linestyle="--")
    beside = panel.get_yaxis_transform()
    panel.text(0.99, 1, "uniform", transform=beside, ha="right", va="bottom", color="grey", fontsize="small")
    panel.set(
        title="How much each recorded episode weighs",
        xlabel="its return",
        ylabel="mean weight of its transitions, as used",
    )


def _losses(groups: list[Group], looks: Looks) -> Any:
    """Everything that was logged in training, a panel for each number and dataset."""
    logged = sorted(
        {(tag, group.data) for group in groups for run in group.runs for tag in run.curves if tag.startswith("train/")}
    )
    if not logged:
        return None
    columns = min(4, len(logged))
    shown = [*dict.fromkeys(group.method for group in groups)]
    figure, panels = canvas(columns, -(-len(logged) // columns), 3.6, 2.8, foot=shown)
    several = len({data for _, data in logged}) > 1
    for panel, (tag, data) in zip(panels, logged, strict=False):
        for group in groups:
            if group.data == data and all(tag in run.curves for run in group.runs):
                draw_curve(panel, group, tag, looks[group.method])
        panel.set_title(tag.removeprefix("train/") + (f", {plain(data)}" if several else ""), fontsize="small")
        panel.set_xlabel("gradient updates", fontsize="x-small")
        panel.tick_params(labelsize="x-small")
    for panel in panels[len(logged) :]:
        panel.axis("off")
    legend(figure, panels)
    return figure
