"""Where runs that interact have been: their observations in a plane, part after part of what they gathered."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oper_lightning.data import log
from oper_lightning.errors import InputError, note, reading
from oper_lightning.report.describe import principal
from oper_lightning.report.looks import COLOURS, canvas, plain, same_axes
from oper_lightning.report.runs import Group, read_config
from oper_lightning.report.weights import make

PARTS = 4  # of what a run gathered, equally long
GRID = 50  # cells to a side of the plane
MOST = 1_000_000  # rows of a run that are looked at, spread over all of it


class Visits(NamedTuple):
    """Places in a plane."""

    name: str
    """of the method whose run it was"""
    recorded: Tensor
    """of the recorded transitions, ``[N, 2]``; none where the run had none"""
    gathered: Tensor
    """in the order of steps, ``[M, 2]``"""
    steps: int
    """that were gathered; more than M if not all are looked at"""
    axes: tuple[str, str]
    """what the plane's directions are"""


def visits(groups: list[Group]) -> list[Visits]:
    """Where the first run of each method has been, of those that interact and see vectors."""
    found = []
    for group in groups:
        folder = Path(group.runs[0].folder)
        if not log.is_there(folder):
            continue
        try:
            seen = _visits(folder, group.method)
        except InputError as error:
            note(f"{folder}: where it has been is not drawn: {error}")
            continue
        found += [seen] if seen is not None else []
    return found


def _visits(folder: Path, name: str) -> Visits | None:
    files = log.files(log.folder_of(folder))
    head = log.head(files[0][2])
    _, shape = head.kinds["next_observation"]
    if len(shape) != 1 or shape[0] < 2:  # images, or a line
        return None
    steps = files[-1][1] * head.copies
    gathered = _gathered([path for _, _, path in files], -(-steps // MOST))
    recorded = _recorded(folder, gathered[:0])
    axes = "first dimension of observations", "second"
    if gathered.shape[1] > 2:
        both = principal(torch.cat([recorded, gathered]))
        recorded, gathered = both[: len(recorded)], both[len(recorded) :]
        axes = "first principal component of observations", "second"
    return Visits(name, recorded.float(), gathered.float(), steps, axes)


def _gathered(files: list[Path], every: int) -> Tensor:
    """Next observations ``[M, O]`` in the order of steps, of each file the first and then one out of ``every``."""
    parts = []
    for path in files:
        with reading(path, "a file of this run's log"):
            seen = log.read(path)[0]["next_observation"].transpose(0, 1).flatten(0, 1)
            parts.append(seen[::every].clone())  # a view would keep the whole file
    with reading(files[0].parent, "the log of one run"):
        return torch.cat(parts)


def _recorded(folder: Path, none: Tensor) -> Tensor:
    """Next observations ``[N, ...]`` of the data that the run drew from as well; ``none`` if there were none."""
    config = read_config(folder)["data"]["init_args"]["source"]
    if not config:
        return none
    source = make("source", config, folder / "config.yaml")
    source.prepare()
    every = -(-len(source) // MOST)
    return torch.cat([episodes["next", "observation"][::every] for episodes in source.episodes()])


def draw(found: list[Visits]) -> Any:
    """A row for each run: how often places were visited, recorded ones and then part by part; how many cells in all."""
    before = any(len(seen.recorded) for seen in found)  # else no run needs a panel for recorded places
    columns = before + PARTS + 1
    figure, panels = canvas(columns, len(found), 2.7, 2.9)
    for row, seen in enumerate(found):
        *maps, growth = panels[row * columns : (row + 1) * columns]
        everything = torch.cat([seen.recorded, seen.gathered])
        low, high = everything.amin(0), everything.amax(0)
        edges = [torch.linspace(*pair, GRID + 1).numpy() for pair in zip(low.tolist(), high.tolist(), strict=True)]
        parts = seen.gathered.split(-(-len(seen.gathered) // PARTS))
        ends = (torch.tensor([0, *map(len, parts)]).cumsum(0) * seen.steps / len(seen.gathered)).round().int().tolist()
        shown = [
            (f"steps {start + 1:,} to {end:,}", part)
            for start, end, part in zip(ends[:-1], ends[1:], parts, strict=True)
        ]
        if before:
            shown.insert(0, ("recorded" if len(seen.recorded) else "nothing recorded", seen.recorded))
        for panel, (when, part) in zip(maps, shown, strict=False):
            if len(part):
                panel.hist2d(*part.T.numpy(), bins=edges, cmin=1, norm="log", cmap="viridis")
            # An empty line above each title, for the name of the method above the first.
            panel.set_title(f"\n{when}", loc="left", fontsize="small")
            panel.set_xlabel(seen.axes[0].replace(" of observations", ""), fontsize="x-small")
            panel.tick_params(labelsize="x-small")
        # A name may be longer than the panel, and must not push the others away.
        above = {"xycoords": "axes fraction", "xytext": (0, 6), "textcoords": "offset points", "fontsize": "small"}
        maps[0].annotate(f"{plain(seen.name)}\n", (0, 1), **above).set_in_layout(False)
        maps[0].set_ylabel(seen.axes[1], fontsize="x-small")
        same_axes(maps, up=True)
        first, count = entered(seen, low, high)
        steps = torch.linspace(0, seen.steps, len(count) + 1)
        growth.plot(steps, torch.cat([torch.tensor([first]), count]), color=COLOURS[0])
        growth.set_ylim(0)
        growth.xaxis.get_major_locator().set_params(nbins=3)
        growth.set_title("\ncells entered", loc="left", fontsize="small")
        growth.set_xlabel("environment steps", fontsize="x-small")
        growth.tick_params(labelsize="x-small")
        if first:
            growth.axhline(first, color="grey", linewidth=1, linestyle=":")
            right = growth.get_yaxis_transform()
            growth.text(1, first, "recorded", transform=right, ha="right", va="top", color="grey", fontsize="x-small")
    return figure


def entered(seen: Visits, low: Tensor, high: Tensor) -> tuple[int, Tensor]:
    """How many cells of the grid between two corners ``[2]`` the recorded places lie in, and after each gathered one
    how many all so far do, int64 ``[M]``.
    """
    cells = []
    for places in (seen.recorded, seen.gathered):
        place = ((places - low) / (high - low).clamp(min=1e-12) * GRID).long().clamp(0, GRID - 1)
        cells.append(place[:, 0] * GRID + place[:, 1])
    known = torch.zeros(GRID * GRID, dtype=torch.bool)
    known[cells[0]] = True
    first = torch.full((GRID * GRID,), len(cells[1]))
    first.scatter_reduce_(0, cells[1], torch.arange(len(cells[1])), "amin")  # when each was entered first
    new = torch.zeros(len(cells[1]) + 1, dtype=torch.int64).index_add_(0, first[~known], torch.ones_like(first[~known]))
    return int(known.sum()), int(known.sum()) + new[:-1].cumsum(0)


def said(found: list[Visits]) -> str:
    """What the picture shows, in words."""
    parts = []
    for seen in found:
        everything = torch.cat([seen.recorded, seen.gathered])
        first, count = entered(seen, everything.amin(0), everything.amax(0))
        parts.append(f"{seen.name}: {first:,} of {GRID * GRID:,} cells recorded, {int(count[-1]):,} in the end")
    return "; ".join(parts)
