"""What a run has logged."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from oper_lightning.errors import InputError

LAST = 3  # evaluations that a run's final figure is the mean of


def final(values: list[float]) -> float:
    """The final figure of a run: the mean of its last evaluations."""
    last = values[-LAST:]
    return sum(last) / len(last)


class Curve(NamedTuple):
    """One logged number over a run."""

    updates: list[int]
    """gradient updates at which it was logged, ascending"""
    values: list[float]


def read_curves(folder: str | Path) -> dict[str, Curve]:
    """All numbers that a run logged, by name. Where a resumed run logged an update twice, the later value counts.

    Raises:
        InputError: if the folder holds no TensorBoard events, or no numbers are in them.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(folder)
    if not any(folder.glob("events.out.tfevents.*")):
        raise InputError(f"{folder}: no TensorBoard events; the folder of a run of `oper fit` is needed")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    curves = {}
    for name in events.Tags()["scalars"]:
        latest = {event.step: event.value for event in sorted(events.Scalars(name), key=lambda event: event.wall_time)}
        updates = sorted(latest)
        curves[name] = Curve(updates, [latest[update] for update in updates])
    if not curves:
        raise InputError(f"{folder}: its TensorBoard events hold no number: nothing was logged, or they are broken")
    return curves
