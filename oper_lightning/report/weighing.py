"""Weights of one dataset, as stage 1 left them and as training uses them, in tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.transitions import episode_of, has_frames, is_discrete
from oper_lightning.errors import InputError
from oper_lightning.priorities.file import WeightsFile, weights_for
from oper_lightning.priorities.priority import Priority, mean_one, statistics
from oper_lightning.report.describe import Facts, coverage
from oper_lightning.report.page import Table
from oper_lightning.report.runs import NAMES

EXTREME = 5  # episodes at each end
COLUMNS = 8  # that are shifted most


class Weights(NamedTuple):
    """One set of weights of the dataset's transitions."""

    name: str
    seeds: Tensor
    """float64 ``[S, N]``, mean 1"""
    used: bool
    """whether training uses them as they are, or stage 1 left them so"""

    @property
    def mean(self) -> Tensor:
        """Over seeds, ``[N]``."""
        return self.seeds.mean(0)


def weights_from(
    files: Sequence[str], priority: Priority | None, transitions: TensorDict, data: str
) -> tuple[list[Weights], list[str]]:
    """The weights that files and ``priority`` give to transitions ``[N]``, and messages about what could not be used.

    Args:
        files: files, folders of stage 1's runs, or templates; each is used as WeightsFile does by default.
        priority: a priority with arguments of its own.
        transitions: the dataset.
        data: its fingerprint.
    """
    wanted: list[tuple[str, Priority]] = []
    for file, name in zip(files, _names(files), strict=True):
        path = str(Path(file) / "weights.safetensors") if Path(file).is_dir() else file
        wanted.append((name, WeightsFile(path)))
    if priority is not None:
        wanted.append((NAMES.get(type(priority).__name__, type(priority).__name__), priority))
    known: list[Weights] = []
    unusable: list[str] = []
    left: set[str] = set()  # whose iterations are shown
    for name, mine in wanted:
        try:
            if isinstance(mine, WeightsFile) and str(mine.path) not in left:
                left.add(str(mine.path))
                known += iterations(mine, name, len(transitions), data)
            known.append(Weights(f"{name}, {_settings(mine)}", mine(transitions)[None], True))
        except InputError as error:
            unusable.append(str(error))
    return known, unusable


def _names(files: Sequence[str]) -> list[str]:
    """The names of weights in tables and pictures, one for each word that named them."""
    if len(files) == 1:
        return ["OPER-A"]
    stems = [Path(file).parent.name if Path(file).name == "weights.safetensors" else Path(file).stem for file in files]
    return [stem if stems.count(stem) == 1 else file for stem, file in zip(stems, files, strict=True)]


def _settings(priority: Priority) -> str:
    """How training uses the weights, in few words."""
    if not isinstance(priority, WeightsFile):
        return "as used"
    if priority.how == "exp":
        return f"as used: exp, {priority.inverse_temperature:g}"
    spread = "own std" if priority.std is None else f"std {priority.std:g}"
    ceiling = "" if priority.ceiling is None else f", ceiling {priority.ceiling:g}"
    return f"as used: {spread}, floor {priority.floor:g}{ceiling}"


def iterations(priority: WeightsFile, name: str, rows: int, data: str) -> list[Weights]:
    """Every iteration of a weights file as stage 1 left it, the seeds of all its files together.

    Args:
        priority: names the files.
        name: what to call the weights.
        rows: number of transitions of the dataset.
        data: fingerprint of the dataset.

    Raises:
        InputError: if there are no such files, or they were made for other data.
    """
    paths = priority.paths()
    parts = [weights_for(path, rows, data) for path in paths]
    common = min(map(len, parts))
    seeds = torch.cat([weights[:common] for weights in parts], 1)
    return [Weights(f"{name}, iteration {k}", mean_one(part, paths[0]), False) for k, part in enumerate(seeds, 1)]


def weights_table(known: list[Weights], transitions: TensorDict, facts: Facts) -> Table:
    """A row for each set of weights."""
    returns = facts.returns[episode_of(transitions["next", "done"])]
    rows = [["uniform", "", "0.00", "100%", "1.00", "1.00", "100%", "100%", f"{returns.mean():.2f}", ""]]
    for weights in known:
        numbers = statistics(weights.mean)
        agreement = ""
        if len(weights.seeds) > 1:
            correlation = torch.corrcoef(weights.seeds)
            others = ~torch.eye(len(correlation), dtype=torch.bool)
            agreement = f"{correlation[others].mean():.2f}"
        rows.append(
            [
                weights.name,
                "" if weights.used else str(len(weights.seeds)),
                f"{numbers['std']:.2f}",
                f"{numbers['ess']:.0%}",
                f"{numbers['min']:.2g}",
                f"{numbers['max']:.2f}",
                f"{numbers['at_floor']:.0%}",
                f"{coverage(facts.cell, weights.mean):.0%}",
                f"{(returns * weights.mean).mean():.2f}",
                agreement,
            ]
        )
    head = ["weights", "seeds", "std", "effective", "least", "most", "at the least", "coverage", "return", "agreement"]
    return Table(head, rows)


def extremes(returns: Tensor, lengths: Tensor, weights: Tensor) -> Table:
    """The episodes that weigh most and least.

    Args:
        returns: of the episodes, ``[E]``.
        lengths: their transitions, int64 ``[E]``.
        weights: mean weight of an episode's transitions, ``[E]``.
    """
    order = torch.argsort(weights, descending=True, stable=True).tolist()
    first = torch.cumsum(lengths, 0) - lengths
    count = min(EXTREME, len(order) // 2)
    shown = [("most", number) for number in order[:count]] + [("least", number) for number in order[::-1][:count]]
    if len(order) <= 2 * EXTREME:
        shown = [("", number) for number in order]
    alike = {number: int((weights == weights[number]).sum()) for _, number in shown}
    rows = [
        [
            *(
                word if alike[number] <= EXTREME else f"{word} ({alike[number]:,} alike)".strip(),
                f"{number:,}",
                f"{int(first[number]):,}",
                f"{int(lengths[number]):,}",
            ),
            *(f"{returns[number]:.2f}", f"{weights[number]:.3g}"),
        ]
        for word, number in shown
    ]
    return Table(["weigh", "episode", "first row", "length", "return", "mean weight"], rows)


def shifts(transitions: TensorDict, weights: Tensor) -> Table:
    """The columns of observation and action whose mean the weights ``[N]`` move furthest, in standard deviations.

    Each discrete action counts as a column that is 1 where it was taken.
    """
    found = []
    discrete = is_discrete(transitions["action"])
    if discrete:
        taken, place = transitions["action"].unique(return_inverse=True)
        share = torch.bincount(place).double() / len(place)
        weighted = torch.bincount(place, weights=weights.double()) / len(place)
        moved = (weighted - share) / (share * (1 - share)).sqrt().clamp(min=1e-12)
        columns = [f"action is {number}" for number in taken.tolist()]
        found = [*zip(moved.tolist(), columns, share.tolist(), weighted.tolist(), strict=True)]
    for name in [*(["observation"] * (not has_frames(transitions))), *(["action"] * (not discrete))]:
        values = transitions[name].flatten(1).double()
        mean, std = values.mean(0), values.std(0, correction=0)
        weighted = (values * weights[:, None]).mean(0)
        moved = torch.where(std > 1e-9 * mean.abs(), (weighted - mean) / std.clamp(min=1e-300), 0.0)
        for place in torch.topk(moved.abs(), min(COLUMNS, len(moved))).indices.tolist():
            entry = f"{name}[{place}]" if len(moved) > 1 else name
            found.append((moved[place].item(), entry, mean[place].item(), weighted[place].item()))
    found.sort(key=lambda entry: -abs(entry[0]))
    rows = [
        [entry, f"{mean:.3g}", f"{weighted:.3g}", f"{moved:+.2f}"] for moved, entry, mean, weighted in found[:COLUMNS]
    ]
    return Table(["column", "mean", "weighted mean", "moved, in std"], rows)
