"""`oper report`: finished runs as tables, pictures and one page."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from oper_lightning.data.online import EPISODES
from oper_lightning.errors import InputError, note
from oper_lightning.report import coverage, deployments
from oper_lightning.report.curves import LAST
from oper_lightning.report.draw_runs import TRAINING, draw_curves, draw_training
from oper_lightning.report.page import Page, Table
from oper_lightning.report.references import references
from oper_lightning.report.results import Result, measured_by, over_datasets, plain_rows, results, table_of
from oper_lightning.report.runs import Group, Run, grouped, oddities, over_steps, read_run, settings
from oper_lightning.report.statistics import FEWEST
from oper_lightning.report.weights import Datasets, EpisodeWeights

X = Literal["updates", "steps"]
ACROSS: dict[X, str] = {"updates": "gradient updates", "steps": "environment steps"}


def report(runs: list[str], output: str = "runs/report", gap_to: float | None = None, x: X = "updates") -> None:
    """Compare finished runs: tables, learning curves, losses.

    It writes report.html, report.md, report.csv and pictures. Runs that differ only in their seeds count as one method.
    The other methods are compared with the first one.

    Args:
        runs: folders of runs of `oper fit`.
        output: folder to write to.
        gap_to: a return; the table then says which share of the first method's distance to it each method closes.
        x: what curves are drawn over: gradient updates, or steps of environments, which runs that interact log.
    """
    places = [Path(run).resolve() for run in runs]
    if twice := next((run for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None):
        raise InputError(f"{twice}: this run is given twice")
    everything = grouped([read_run(run) for run in runs])
    strange = [line for group in everything for line in oddities(group)]
    for line in strange:
        note(line)
    logged = [_as_far_as_the_furthest(group) for group in everything]
    groups = [group._replace(runs=judged) for group in logged if (judged := _judged(group))]
    methods = [*dict.fromkeys(group.method for group in everything)]
    page = Page(_title(everything, methods), output, "report")
    page.warnings(strange)
    said = references(groups)
    tables = _compare(page, groups, methods, gap_to, said, x) if groups else []
    if courses := deployments.deployed(groups):
        page.heading("Deployment after deployment")
        page.picture(
            deployments.draw(courses),
            "Returns of policies over the updates of all deployments, each of which adds a dataset.",
            "Where a model promises more than its policy earns, the policy exploits what the model is wrong about. "
            f"Means over runs. {_bands(groups)}",
            "-deployments",
        )
    if played := [group for group in logged if all(TRAINING in run.curves for run in group.runs)]:
        page.heading("Episodes in training")
        page.picture(
            draw_curves(_along(played, x), {}, methods, {group.data: TRAINING for group in played}, ACROSS[x]),
            f"Returns of the episodes that {_all([group.method for group in played], 'methods')} played in training, "
            f"over {ACROSS[x]}.",
            f"Of the last {EPISODES} episodes, played by the exploring policy, warm-up included. {_bands(played)}",
            "-episodes",
        )
    if found := coverage.visits(logged):
        page.heading("Where runs have been")
        page.picture(
            coverage.draw(found),
            f"Visits of places in the space of observations: {coverage.said(found)}.",
            "The first run of each method: what was recorded, and what it gathered, part after part; the brighter, the "
            "more often. Right: how many cells of the grid recorded and gathered steps have led to.",
            "-coverage",
        )
    if figure := draw_training(_along(logged, x), methods, ACROSS[x]):
        page.heading("What was logged in training")
        page.picture(
            figure,
            f"A panel for each number that {_all(methods, 'methods')} logged in training, over {ACROSS[x]}.",
            f"Means over runs. {_bands(logged)}Panels of the same data have the same {x} across.",
            "-training",
        )
    _list(page, everything)
    page.write()
    for table in tables:
        print(table.markdown(), end="\n\n")
    for line in said:
        print(line, end="\n\n")
    print(f"written: {', '.join(map(str, page.files))}")


def _title(groups: list[Group], methods: list[str]) -> str:
    """The title: methods and data."""
    data = [*dict.fromkeys(group.data for group in groups)]
    return f"{_all(methods, 'methods')} on {_all(data, 'datasets')}"


def _all(words: list[str], what: str) -> str:
    """Up to three words by name; of more, only their number."""
    return "; ".join(words) if len(words) <= 3 else f"{len(words)} {what}"


def _along(groups: list[Group], x: X) -> list[Group]:
    """The groups with their curves over what is asked for."""
    return [group._replace(runs=[over_steps(run) for run in group.runs]) if x == "steps" else group for group in groups]


def _as_far_as_the_furthest(group: Group) -> Group:
    """The group without runs that were stopped before the others."""
    furthest, kept = max(run.updates for run in group.runs), []
    for run in group.runs:
        if run.updates < min(run.planned, furthest):
            note(f"{run.folder}: stopped at update {run.updates:,}, others of its method at {furthest:,}: left out")
            continue
        if run.updates < run.planned:
            note(f"{run.folder}: unfinished, update {run.updates:,} of {run.planned:,}")
        kept.append(run)
    return group._replace(runs=kept)


def _judged(group: Group) -> list[Run]:
    """The runs of a group that were evaluated."""
    for run in group.runs:
        if "eval/return" not in run.curves:
            note(f"{run.folder}: no evaluations in this run; only what it logged is shown")
    return [run for run in group.runs if "eval/return" in run.curves]


def _compare(
    page: Page, groups: list[Group], methods: list[str], gap_to: float | None, said: list[str], x: X
) -> list[Table]:
    """Writes tables and curves, and what is ``said`` of scores; returns the tables."""
    found, overall = results(groups, gap_to), over_datasets(groups)
    tables = [table_of(found, gap_to)]
    page.heading("Results")
    page.paragraph(
        f"Last: the mean of a run's last {LAST} evaluations. Best: its best evaluation, chosen after the fact. Both "
        f"are scores where the data have them, else returns, and means over runs. Lowest to highest: the range of the "
        f"runs' last figures. From {FEWEST} runs on there are interquartile means (IQM) and bootstrapped intervals "
        f"(95 %); of fewer an interval would say more than they do. Better than first: the chance that a run is better "
        f"than one of the first method on the same data."
    )
    page.table(tables[0])
    if said:
        page.paragraph(" ".join(said))
    if overall:
        page.heading("Over all data")
        tables.append(table_of(overall, gap_to))
        page.table(tables[1])
    page.numbers(*plain_rows([*found, *overall]))
    measures = {data: measured_by(groups, data) for data in dict.fromkeys(group.data for group in groups)}
    weights = _weights(groups)
    ends = [f"{row.method} on {row.data} ends at {_said(row)}" for row in found]
    page.picture(
        draw_curves(_along(groups, x), weights, methods, measures, ACROSS[x]),
        f"Learning curves over {ACROSS[x]}: {'; '.join(ends)}."
        + (" Beside them the weight of each recorded episode against its return." if weights else ""),
        f"Means over runs. {_bands(groups)}"
        + ("Right: points are episodes of the data, weighed as the first run of each method does." if weights else ""),
    )
    return tables


def _said(row: Result) -> str:
    return f"a return of {row.returned:.1f}" if row.score is None else f"a score of {row.score:.1f}"


def _bands(groups: list[Group]) -> str:
    """A sentence that says what the bands around curves are."""
    counts = [len(group.runs) for group in groups if len(group.runs) > 1]
    few, many = any(count < FEWEST for count in counts), any(count >= FEWEST for count in counts)
    if few and many:
        return f"Bands: 95 % intervals, of fewer than {FEWEST} runs from the lowest to the highest. "
    return "Bands: from the lowest to the highest run. " if few else "Bands: 95 % intervals. " if many else ""


def _list(page: Page, groups: list[Group]) -> None:
    """Writes the list of runs, and the arguments in which methods differ."""
    runs = [run for group in groups for run in group.runs]
    versions = {run.versions for run in runs}
    page.heading("Runs")
    if len(versions) == 1:
        page.paragraph(f"All ran with {runs[0].versions}." if runs[0].versions else "Their versions were not recorded.")
    head = ["run", "data", "method", "seed", "updates", "evaluation episodes", "last logged, UTC"]
    head += ["versions"] * (len(versions) > 1)
    rows = [[*_listed(group, run), run.versions or "–"][: len(head)] for group in groups for run in group.runs]
    page.table(Table(head, rows, 3))
    names, differing = settings(groups)
    if differing:
        page.heading("In what methods differ")
        page.paragraph("Arguments that methods have in common and that are not the same in all of them.")
        page.table(Table(names, differing, len(names)))


def _listed(group: Group, run: Run) -> list[str]:
    updates = f"{run.updates:,}" + (f" of {run.planned:,}" if run.updates < run.planned else "")
    ended = "–" if run.ended is None else f"{datetime.fromtimestamp(run.ended, timezone.utc):%Y-%m-%d %H:%M}"
    return [run.folder, group.data, group.method, str(run.config.get("seed_everything")), updates, run.judging, ended]


def _weights(groups: list[Group]) -> dict[tuple[str, str], EpisodeWeights]:
    """The weight of each episode under the priority of each method, by data and method."""
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
