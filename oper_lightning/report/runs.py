"""Finished runs: what they were, what they logged, and which of them are seeds of the same thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from oper_lightning.errors import InputError
from oper_lightning.report.curves import Curve, final, read_curves

NAMES = {"OperR": "OPER-R", "WeightsFile": "OPER-A", "BanditAdvantages": "OPER-A"}  # as the papers call them
# What makes no other method: seed and place, the dataset (a column of its own), and how the run is carried out.
NOT_COMPARED = (
    "seed_everything",
    "output",
    "ckpt_path",
    "trainer.",
    "data.source",
    "data.priority.path",
    "data.evaluation",
    "data.storage",
    "data.memmap_folder",
    "data.updates_per_",
    "model.compile",
)
COMPARED = ("trainer.max_steps", "trainer.precision")


class Run(NamedTuple):
    """One run of `oper fit`."""

    folder: str
    config: dict[str, Any]
    """arguments by dotted names, as they are given on the command line"""
    curves: dict[str, Curve]

    @property
    def data(self) -> str:
        """The dataset, in short."""
        source = {key.removeprefix("data.source."): value for key, value in self.config.items() if "data.source" in key}
        return Path(str(source.get("path") or source.get("id") or source["data.source"])).stem

    @property
    def updates(self) -> int:
        """Gradient updates at the last evaluation."""
        return self.curves["eval/return"].updates[-1]


class Group(NamedTuple):
    """Runs that differ in their seeds only."""

    data: str
    method: str
    runs: list[Run]

    def finals(self, name: str) -> np.ndarray:
        """Mean of each run's last evaluations, ``[runs]``."""
        return np.array([final(run.curves[name].values) for run in self.runs])

    def bests(self, name: str) -> np.ndarray:
        """Each run's best evaluation, ``[runs]``."""
        return np.array([max(run.curves[name].values) for run in self.runs])

    def mean_curve(self, name: str) -> tuple[list[int], np.ndarray]:
        """Updates ``[points]`` that all runs logged, and the runs' values there, ``[runs, points]``."""
        curves = [run.curves[name] for run in self.runs]
        common = sorted(set.intersection(*(set(curve.updates) for curve in curves)))
        values = [[dict(zip(*curve, strict=True))[update] for update in common] for curve in curves]
        return common, np.array(values)


def read_config(run: str | Path) -> dict[str, Any]:
    """A run's configuration.

    Raises:
        InputError: if there is none.
    """
    file = Path(run) / "config.yaml"
    if not file.is_file():
        raise InputError(f"{file}: no such file; the folder of a run of `oper fit` is needed")
    return dict(yaml.safe_load(file.read_text()))


def read_run(folder: str) -> Run:
    """Reads what a run left.

    Raises:
        InputError: if the folder holds no run.
    """
    return Run(folder, flat(read_config(folder)), read_curves(folder))


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Arguments by dotted names; a class stands under its own name, in short."""
    if isinstance(config, dict) and "class_path" in config:
        own = {prefix: config["class_path"].rsplit(".", 1)[-1]} if prefix not in ("model", "data") else {}
        if prefix == "model":
            own = {"model": config["class_path"].rsplit(".", 1)[-1]}
        return own | flat(config.get("init_args") or {}, prefix)
    if not isinstance(config, dict) or (prefix and not config):
        return {prefix: config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def grouped(runs: list[Run]) -> list[Group]:
    """Runs by dataset and method, in the order in which they were given."""
    parts: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        parts.setdefault((run.data, str(sorted(_compared(run).items()))), []).append(run)
    groups = []
    for (data, _), same in parts.items():
        mine = _compared(same[0])
        alike = [_compared(run) for run in runs if run.data == data and _kind(run) == _kind(same[0])]
        differing = [key for key in mine if any(other.get(key) != mine[key] for other in alike)]
        details = [f"{key.split('.', 1)[-1]}={mine[key]}" for key in differing]
        groups.append(Group(data, ", ".join([*_kind(same[0]), *details]), same))
    return groups


def _kind(run: Run) -> tuple[str, str]:
    """Algorithm and priority."""
    priority = run.config.get("data.priority")
    return run.config["model"], "uniform" if priority is None else NAMES.get(priority, priority)


def _compared(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key in COMPARED or not key.startswith(NOT_COMPARED)}
