"""What a run has logged: TensorBoard's events, or metrics.csv of Lightning's CSVLogger."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from oper_lightning.errors import InputError, reading
from oper_lightning.files import existing

LAST = 3  # evaluations that a run's final figure is the mean of
EVENTS, METRICS = "events.out.tfevents.*", "metrics.csv"
# Folders of loggers whose records need their own services or packages to be read.
OTHERS = {"wandb": "Weights & Biases", "mlruns": "MLflow", ".neptune": "Neptune", ".cometml-runs": "Comet"}


def final(values: list[float]) -> float:
    """The final figure of a run: the mean of its last evaluations."""
    last = values[-LAST:]
    return sum(last) / len(last)


class Curve(NamedTuple):
    """One logged number over a run."""

    updates: list[int]
    """gradient updates at which it was logged, ascending"""
    values: list[float]


class Logged(NamedTuple):
    """Everything that a run logged."""

    curves: dict[str, Curve]
    ended: float | None
    """when the last number was logged, in seconds since 1970; None where that is not recorded"""


def read_curves(folder: str | Path) -> dict[str, Curve]:
    """All numbers that a run logged, by name; see :func:`read_logged`."""
    return read_logged(folder).curves


def read_logged(folder: str | Path, remedy: str = "the folder of a run of `oper fit` is needed") -> Logged:
    """All numbers that a run logged, by name. Where a resumed run logged an update twice, the later value counts.

    Loggers that make folders of their own inside the run's (lightning_logs/version_0) are found there.

    Args:
        folder: of the run.
        remedy: what to tell a person if no logger left anything there.

    Raises:
        InputError: if the folder holds nothing that a logger left, or nothing that can be read.
    """
    folder = Path(folder)
    empty: list[Path] = []
    for pattern, read in ((EVENTS, _events), (METRICS, _metrics)):
        places = sorted({file.parent for file in (*folder.glob(pattern), *folder.glob(f"*/**/{pattern}"))})
        if folder in places:
            places = [folder]
        logged = [read(place) for place in places]
        if curves := _joined([part.curves for part in logged]):
            return Logged(curves, max((part.ended for part in logged if part.ended is not None), default=None))
        empty += places
    if empty:
        raise InputError(f"{empty[0]}: what was logged there holds no number: nothing was logged, or it is broken")
    for name, logger in OTHERS.items():
        if (folder / name).is_dir() or next(folder.glob(f"*/{name}"), None):
            raise InputError(
                f"{folder}: logged with {logger}, whose records are not read here; train with TensorBoard (the "
                f"default) or Lightning's CSVLogger beside it"
            )
    raise InputError(f"{folder}: no TensorBoard events and no {METRICS}; {remedy}")


def _events(folder: Path) -> Logged:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for file in folder.glob(EVENTS):
        existing(file)
    with reading(folder, "TensorBoard events"):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
        events.Reload()
        ended, found = 0.0, {}
        for name in events.Tags()["scalars"]:
            scalars = sorted(events.Scalars(name), key=lambda event: event.wall_time)
            ended = max(ended, scalars[-1].wall_time)
            found[name] = _curve({event.step: event.value for event in scalars})
    return Logged(found, ended or None)


def _metrics(folder: Path) -> Logged:
    found: dict[str, dict[int, float]] = {}
    file = folder / METRICS
    with reading(file, "metrics.csv of Lightning's CSVLogger"), open(file, newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            for name, update, value in _numbers(row):
                found.setdefault(name, {})[update] = value
    return Logged({name: _curve(values) for name, values in found.items()}, None)


def _numbers(row: dict[str, str]) -> Iterator[tuple[str, int, float]]:
    """Name, update and value of everything in a line of metrics.csv."""
    update = int(float(row["step"]))
    for name, text in row.items():
        if name not in ("step", "epoch") and text:
            yield name, update, float(text)


def _curve(values: dict[int, float]) -> Curve:
    updates = sorted(values)
    return Curve(updates, [values[update] for update in updates])


def _joined(parts: list[dict[str, Curve]]) -> dict[str, Curve]:
    """Curves of several folders as one; of two values at one update that of the later folder."""
    found: dict[str, dict[int, float]] = {}
    for part in parts:
        for name, curve in part.items():
            found.setdefault(name, {}).update(zip(*curve, strict=True))
    return {name: _curve(values) for name, values in found.items()}


def first_bad(curve: Curve) -> int | None:
    """The first update at which something that is no number was logged."""
    return next((update for update, value in zip(*curve, strict=True) if not math.isfinite(value)), None)
