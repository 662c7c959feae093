"""Pictures of finished runs: learning curves, what priorities weigh, what was logged in training."""

from __future__ import annotations

from typing import Any

from oper_lightning.report import statistics
from oper_lightning.report.looks import canvas, legend, look, marker, plain, same_axes
from oper_lightning.report.runs import Group
from oper_lightning.report.weights import EpisodeWeights

Methods = list[str]
"""all of a report, in order: a method looks alike in every picture"""
ABREAST = 4  # small panels
TRAINING = "online/return"
"""what the last episodes of a run that interacts returned"""


def draw_curves(
    groups: list[Group],
    weights: dict[tuple[str, str], EpisodeWeights],
    methods: Methods,
    measures: dict[str, str],
    across: str,
) -> Any:
    """For each dataset learning curves, and beside them what each priority makes of good and bad episodes.

    Args:
        groups: runs that have logged the measures.
        weights: by data and method.
        methods: all of the report.
        measures: what runs on a dataset are judged by.
        across: what their curves are over.
    """
    columns = 2 if weights else 1
    shown = [*dict.fromkeys(group.method for group in groups)]
    figure, panels = canvas(columns, len(measures), 5.5 if weights else 8.0, foot=shown)
    for place, (data, name) in enumerate(measures.items()):
        panel = panels[columns * place]
        for group in groups:
            if group.data == data:
                draw_curve(panel, group, name, methods)
        unit = "normalised score" if name.endswith("score") else "return"
        whose = "episodes in training" if name == TRAINING else "the policies"
        panel.set(title=f"What {whose} earn: {plain(data)}", xlabel=across, ylabel=unit)
        if weights:
            mine = {method: part for (where, method), part in weights.items() if where == data}
            draw_weights(panels[columns * place + 1], mine, methods)
    same_axes([panels[columns * place] for place in range(len(measures))])
    legend(figure, panels, methods)
    return figure


def draw_curve(panel: Any, group: Group, name: str, methods: Methods) -> None:
    """The mean over runs with its interval or range."""
    panel.xaxis.get_major_locator().set_params(integer=True)
    updates, values = group.values_along(name)
    number = methods.index(group.method)
    how = {**look(number), "marker": marker(number), "markersize": 3.5}
    if len(updates) == 0:  # runs that were evaluated at different updates
        for run in group.runs:
            panel.plot(*run.curves[name], **how, label=plain(group.method))
        return
    panel.plot(updates, values.mean(0), **how, label=plain(group.method))
    if len(values) > 1:
        panel.fill_between(updates, *statistics.band(values), color=how["color"], alpha=0.18, linewidth=0)


def draw_weights(panel: Any, weights: dict[str, EpisodeWeights], methods: Methods) -> None:
    """Mean weight of each episode against its return; nothing where no run had weights."""
    if not weights:
        panel.axis("off")
        return
    for name, (returns, mean) in weights.items():
        step, number = max(1, len(returns) // 2000), methods.index(name)
        how = {"marker": marker(number), "color": look(number)["color"]}
        panel.scatter(returns[::step], mean[::step], s=9, alpha=0.5, linewidths=0, **how)
    panel.axhline(1, color="grey", linewidth=1, linestyle=":")
    beside = panel.get_yaxis_transform()
    panel.text(0.99, 1, "uniform", transform=beside, ha="right", va="bottom", color="grey", fontsize="small")
    panel.set(
        title="How much each recorded episode weighs",
        xlabel="its return",
        ylabel="mean weight of its transitions, as used",
    )


def draw_training(groups: list[Group], methods: Methods, across: str) -> Any:
    """Everything that was logged in training: a panel for each number, a block of rows for each dataset.

    Returns None where nothing was logged.
    """
    tags: dict[str, list[str]] = {}
    for group in groups:
        found = {tag for run in group.runs for tag in run.curves if tag.startswith("train/")}
        tags[group.data] = sorted({*tags.get(group.data, []), *found})
    most = max(map(len, tags.values()))
    if not most:
        return None
    columns = min(ABREAST, most)
    blocks = {data: -(-len(names) // columns) for data, names in tags.items()}
    shown = [*dict.fromkeys(group.method for group in groups)]
    width = max(3.6, 7.2 / columns)  # a legend needs room
    figure, panels = canvas(columns, sum(blocks.values()), width, 2.8, foot=shown)
    several, first = len(tags) > 1, 0
    for data, names in tags.items():
        block = panels[first : first + blocks[data] * columns]
        first += len(block)
        for panel, tag in zip(block, names, strict=False):
            for group in groups:
                if group.data == data and all(tag in run.curves for run in group.runs):
                    draw_curve(panel, group, tag, methods)
            panel.set_title(
                plain(tag.removeprefix("train/")) + (f", {plain(data)}" if several else ""), fontsize="small"
            )
            panel.set_xlabel(across, fontsize="x-small")
            panel.tick_params(labelsize="x-small")
        same_axes(block[: len(names)])
        for panel in block[len(names) :]:
            panel.axis("off")
    legend(figure, panels, methods)
    return figure
