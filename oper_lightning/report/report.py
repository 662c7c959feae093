"""`oper report`: finished runs as tables, pictures and one page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from oper_lightning.errors import InputError, note
from oper_lightning.report import statistics
from oper_lightning.report.curves import LAST
from oper_lightning.report.page import Page, Table, canvas
from oper_lightning.report.runs import Group, Run, grouped, read_run
from oper_lightning.report.weights import Datasets, EpisodeWeights

Colours = dict[str, str]


def report(runs: list[str], output: str = "runs/report", gap_to: float | None = None) -> None:
    """Compare finished runs: tables, learning curves, what the losses did; report.html, report.md and pictures.

    Runs that differ in their seeds only count as one method. The first method is what the others are compared with.

    Args:
        runs: folders of runs of `oper fit`.
        output: folder to write to.
        gap_to: a return; adds which share of the first method's distance to it each method closes.
    """
    page = Page("Runs", output, "report")
    if len(set(runs)) < len(runs):
        raise InputError("the same run is given twice")
    known = [read_run(run) for run in runs]
    judged = [run for run in known if "eval/return" in run.curves]
    for run in known:
        if run not in judged:
            note(f"{run.folder}: no evaluations in this run; only what it logged is shown")
    groups = grouped(judged)
    colours = {name: f"C{number % 10}" for number, name in enumerate(dict.fromkeys(g.method for g in groups))}
    if groups:
        _compare(page, groups, colours, gap_to)
    logged = grouped(known)
    if figure := _losses(
        logged, {name: f"C{k % 10}" for k, name in enumerate(dict.fromkeys(g.method for g in logged))}
    ):
        page.heading("What was logged in training")
        page.picture(figure, "-training")
    page.heading("Runs")
    page.table(
        Table(["run", "data", "method", "seed"], [_listed(group, run) for group in logged for run in group.runs], 3)
    )
    page.write()
    if groups:
        print(_results(groups, gap_to).markdown(), end="\n\n")
        if len({group.data for group in groups}) > 1:
            print(_over_datasets(groups).markdown(), end="\n\n")
    print(f"written: {', '.join(map(str, page.files))}")


def _compare(page: Page, groups: list[Group], colours: Colours, gap_to: float | None) -> None:
    page.heading("Results")
    page.paragraph(
        f"Last: the mean of a run's last {LAST} evaluations. Best: its best evaluation, chosen after the fact. Means "
        f"and interquartile means (IQM) are over runs, intervals bootstrapped. Better than first: the chance that a "
        f"run is better than one of the first method on the same data."
    )
    page.table(_results(groups, gap_to))
    if len({group.data for group in groups}) > 1:
        page.heading("Over all data")
        page.table(_over_datasets(groups))
    weights = _weights(groups)
    page.picture(_curves(groups, weights, colours))


def _listed(group: Group, run: Run) -> list[str]:
    return [run.folder, group.data, group.method, str(run.config.get("seed_everything"))]


def measure(groups: list[Group]) -> str:
    """What runs are judged by: the normalised score where all have one."""
    return "eval/score" if all("eval/score" in run.curves for group in groups for run in group.runs) else "eval/return"


def _results(groups: list[Group], gap_to: float | None) -> Table:
    name = measure(groups)
    kind = name.removeprefix("eval/")
    several = any(len(group.runs) > 1 for group in groups)
    head = ["data", "method", "updates", "return, last", f"{kind}, last", "best"]
    head += ["runs", "IQM", "95 %", "better than first"] if several else []
    head += [f"gap to {gap_to:g} closed"] if gap_to is not None else []
    rows = []
    for group in groups:
        first = next(other for other in groups if other.data == group.data)
        last, base, returns = group.finals(name), first.finals(name), group.finals("eval/return").mean()
        updates = max(run.updates for run in group.runs)
        row = [group.data, group.method, f"{updates:,}", f"{returns:.2f}", f"{last.mean():.1f}"]
        row.append(f"{group.bests(name).mean():.1f}")
        if several:
            iqm, chance = statistics.interquartile_mean, statistics.probability_of_improvement
            better = "" if group is first else f"{chance([last], [base]):.2f}"
            row += [str(len(group.runs)), f"{iqm([last]):.1f}", _range(iqm, [last]), better]
        if gap_to is not None:
            start = first.finals("eval/return").mean()
            row.append(f"{(returns - start) / (gap_to - start):.0%}" if gap_to != start else "–")
        rows.append(row)
    return Table(head, rows, words=2)


def _range(statistic: Callable[..., float], *scores: list[np.ndarray]) -> str:
    if max(len(part) for part in scores[0]) < 2:
        return "–"
    low, high = statistics.interval(statistic, *scores)
    return f"{low:.1f} – {high:.1f}"


def _over_datasets(groups: list[Group]) -> Table:
    """Methods that were run on all data."""
    name = measure(groups)
    data = list(dict.fromkeys(group.data for group in groups))
    scores: dict[str, list[np.ndarray]] = {}
    for method in dict.fromkeys(group.method for group in groups):
        found = {group.data: group.finals(name) for group in groups if group.method == method}
        if len(found) == len(data):
            scores[method] = [found[part] for part in data]
    rows = []
    for method, mine in scores.items():
        base = next(iter(scores.values()))
        chance = statistics.probability_of_improvement
        low, high = statistics.interval(chance, mine, base)
        rows.append(
            [
                method,
                str(sum(map(len, mine))),
                f"{statistics.mean(mine):.1f}",
                f"{statistics.interquartile_mean(mine):.1f}",
                _range(statistics.interquartile_mean, mine),
                "" if mine is base else f"{chance(mine, base):.2f} ({low:.2f} – {high:.2f})",
            ]
        )
    return Table(["method", "runs", "mean", "IQM", "95 %", "better than first"], rows)


def _weights(groups: list[Group]) -> dict[tuple[str, str], EpisodeWeights]:
    """By data and method, what the priority made of each episode."""
    datasets, found = Datasets(), {}
    for group in groups:
        try:
            weights = datasets.weights_of(group.runs[0].folder)
        except InputError as error:
            note(f"{group.runs[0].folder}: weights are not drawn: {error}")
            continue
        if weights is not None:
            found[group.data, group.method] = weights
    return found


def _curves(groups: list[Group], weights: dict[tuple[str, str], EpisodeWeights], colours: Colours) -> Any:
    """For each dataset learning curves, and beside them what each priority makes of good and bad episodes."""
    data = list(dict.fromkeys(group.data for group in groups))
    columns = 2 if weights else 1
    figure, panels = canvas(columns, len(data))
    name = measure(groups)
    for place, dataset in enumerate(data):
        panel = panels[columns * place]
        for group in groups:
            if group.data == dataset:
                draw_curve(panel, group, name, colours[group.method])
        panel.set(title=f"What the policies earn: {dataset}", xlabel="gradient updates", ylabel=name.split("/")[1])
        panel.legend(fontsize="small")
        if weights:
            mine = {method: part for (where, method), part in weights.items() if where == dataset}
            draw_weights(panels[columns * place + 1], mine, colours)
    return figure


def draw_curve(panel: Any, group: Group, name: str, colour: str) -> None:
    """The mean over runs with its interval."""
    updates, values = group.mean_curve(name)
    panel.plot(updates, values.mean(0), color=colour, marker="o", markersize=2.5, label=group.method)
    if len(values) > 1:
        panel.fill_between(updates, *statistics.band(values), color=colour, alpha=0.2, linewidth=0)


def draw_weights(panel: Any, weights: dict[str, EpisodeWeights], colours: Colours) -> None:
    """Mean weight of each episode against its return."""
    for name, (returns, mean) in weights.items():
        step = max(1, len(returns) // 2000)
        panel.scatter(returns[::step], mean[::step], s=7, alpha=0.5, color=colours[name], label=name, linewidths=0)
    panel.axhline(1, color="grey", linewidth=1, linestyle="--", label="uniform")
    panel.set(title="How much each recorded episode weighs", xlabel="its return", ylabel="mean weight per transition")
    panel.legend(markerscale=2, fontsize="small")


def _losses(groups: list[Group], colours: Colours) -> Any:
    """Everything that was logged in training, a panel for each number and dataset."""
    logged = sorted(
        {(tag, group.data) for group in groups for run in group.runs for tag in run.curves if tag.startswith("train/")}
    )
    if not logged:
        return None
    columns = min(4, len(logged))
    figure, panels = canvas(columns, -(-len(logged) // columns), 3.6, 2.8)
    several = len({data for _, data in logged}) > 1
    for panel, (tag, data) in zip(panels, logged, strict=False):
        for group in groups:
            if group.data == data and all(tag in run.curves for run in group.runs):
                draw_curve(panel, group, tag, colours[group.method])
        panel.set_title(tag.removeprefix("train/") + (f", {data}" if several else ""), fontsize="small")
        panel.tick_params(labelsize="x-small")
    for panel in panels[len(logged) :]:
        panel.axis("off")
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize="small")
    return figure
