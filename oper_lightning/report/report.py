"""`oper report`: finished runs as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from oper_lightning.errors import InputError, note
from oper_lightning.files import whole
from oper_lightning.report.curves import LAST, Curve, final, read_curves
from oper_lightning.report.weights import Datasets, EpisodeWeights, read_config


class Row(NamedTuple):
    """One run in the table."""

    name: str
    data: str
    updates: int
    final: float
    """mean return of the last evaluations"""
    best: float
    score: float | None
    """mean normalised score of the last evaluations"""


def report(runs: list[str], output: str = "runs/report", gap_to: float | None = None) -> None:
    """Compare finished runs: print a table, write report.md and report.png.

    Args:
        runs: folders of runs of `oper fit`; the ends of their paths are the labels.
        output: folder to write to.
        gap_to: a return; adds which share of the first run's distance to it each run closes.
    """
    returns: dict[str, Curve] = {}
    rows: list[Row] = []
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot write there ({error.strerror}); name another --output") from None
    labels = short_names(runs)
    for run, label in zip(runs, labels, strict=True):
        curves = read_curves(run)
        if "eval/return" not in curves:
            raise InputError(f"{run}: no evaluations in this run; a policy trained with data.evaluation is needed")
        returns[label] = curves["eval/return"]
        rows.append(_row(run, label, curves))
    weights = {}
    datasets = Datasets()
    for run, label in zip(runs, labels, strict=True):
        try:
            found = datasets.weights_of(run)
        except InputError as error:
            note(f"{run}: weights are not drawn: {error}")
            continue
        if found is not None:
            weights[label] = found
    text = table(rows, gap_to)
    with whole(folder / "report.md") as file:
        file.write(f"{text}\n".encode())
    picture(folder / "report.png", returns, weights)
    print(f"{text}\n\nwritten: {folder / 'report.md'}, {folder / 'report.png'}")


def short_names(runs: list[str]) -> list[str]:
    """The ends of the paths, as short as they can be and still differ."""
    parts = [Path(run).resolve().parts for run in runs]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError("the same run is given twice")


def _row(run: str, label: str, curves: dict[str, Curve]) -> Row:
    returns, scores = curves["eval/return"], curves.get("eval/score")
    source = read_config(run)["source"]
    arguments = source.get("init_args", {})
    data = Path(str(arguments.get("path") or arguments.get("id") or source["class_path"].rsplit(".", 1)[-1])).stem
    return Row(
        name=label,
        data=data,
        updates=returns.updates[-1],
        final=final(returns.values),
        best=max(returns.values),
        score=final(scores.values) if scores else None,
    )


def table(rows: list[Row], gap_to: float | None = None) -> str:
    """The runs as a Markdown table, aligned so that it also reads well in a terminal."""
    lines = [["run", "data", "updates", f"return, last {LAST}", "best return", f"score, last {LAST}"]]
    for row in rows:
        score = "–" if row.score is None else f"{row.score:.1f}"
        lines.append([row.name, row.data, f"{row.updates:,}", f"{row.final:.2f}", f"{row.best:.2f}", score])
    if gap_to is not None:
        lines[0].append(f"gap to {gap_to:g} closed")
        for line, row in zip(lines[1:], rows, strict=True):
            gap = gap_to - rows[0].final
            line.append(f"{(row.final - rows[0].final) / gap:.0%}" if gap else "–")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width if place < 2 else "-" * (width - 1) + ":" for place, width in enumerate(widths)])
    return "\n".join(f"| {' | '.join(_aligned(line, widths))} |" for line in lines)


def _aligned(line: list[str], widths: list[int]) -> list[str]:
    """Text to the left, numbers to the right."""
    padded = enumerate(zip(line, widths, strict=True))
    return [cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in padded]


def picture(path: Path, returns: dict[str, Curve], weights: dict[str, EpisodeWeights]) -> None:
    """Learning curves, and beside them what each priority makes of good and bad episodes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    count = 2 if weights else 1
    figure, panels = plt.subplots(1, count, figsize=(5.5 * count, 4.2), squeeze=False, layout="constrained")
    colours = {name: f"C{number}" for number, name in enumerate(returns)}
    curves: Any = panels[0, 0]
    for name, curve in returns.items():
        curves.plot(curve.updates, curve.values, color=colours[name], marker="o", markersize=3, label=name)
    curves.set(title="What the policies earn", xlabel="gradient updates", ylabel="return of an episode")
    curves.legend()
    if weights:
        _draw_weights(panels[0, 1], weights, colours)
    for panel in panels[0]:
        panel.grid(alpha=0.3)
    with whole(path) as file:
        figure.savefig(file, dpi=130, format="png")
    plt.close(figure)


def _draw_weights(panel: Any, weights: dict[str, EpisodeWeights], colours: dict[str, str]) -> None:
    for name, (returns, mean) in weights.items():
        step = max(1, len(returns) // 2000)
        panel.scatter(returns[::step], mean[::step], s=7, alpha=0.5, color=colours[name], label=name, linewidths=0)
    panel.axhline(1, color="grey", linewidth=1, linestyle="--", label="uniform")
    panel.set(title="How much each recorded episode weighs", xlabel="its return", ylabel="mean weight per transition")
    panel.legend(markerscale=2)
