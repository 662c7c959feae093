"""OGBench's files, each of which becomes the recording of one task."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from oper_lightning.data.sources.flat import FlatEpisodes, FlatFile
from oper_lightning.data.sources.npz import read_arrays
from oper_lightning.data.sources.source import Origin
from oper_lightning.errors import InputError
from oper_lightning.files import place


class OGBench(FlatFile):
    """A file of OGBench (.npz) with the rewards of one task, which the file itself does not have.

    The file records play. A task is a goal of one or several parts: coordinates that the simulator's positions (qpos)
    are to reach, and states that buttons are to have. As in OGBench's single-task datasets (Park et al. 2024, arXiv
    2410.20092) a step's reward is minus the number of parts that are not reached before the step, and a step from a
    state in which all are reached terminates. The last row of a trajectory holds only the last observation.

    Args:
        path: the file.
        goals: for each place that is to be reached, its coordinates, such as [[20.0, 12.0]] in a maze.
        at: for each of them, the column of qpos in which its first coordinate is. Mazes: 0; soccer's ball: 15; cubes:
            14, 21, 28, ….
        tolerance: distance within which a place is reached. Mazes: 0.5, with a point 1.0; cubes: 0.04.
        buttons: state that each button is to have.
        environment: Gymnasium id of the environment with that task, if policies are to be scored.
    """

    def __init__(
        self,
        path: str,
        goals: list[list[float]] | None = None,
        at: list[int] | None = None,
        tolerance: float = 0.5,
        buttons: list[int] | None = None,
        environment: str | None = None,
    ) -> None:
        self.path = path
        self.goals = goals or []
        self.at = [0] if at is None else at
        self.tolerance = tolerance
        self.buttons = buttons or []
        self.environment = environment
        if not (self.goals or self.buttons):
            raise InputError(
                f"{path}: OGBench's files have no rewards: name the task with the source's goals or buttons"
            )
        if self.goals and len(self.at) != len(self.goals):
            raise InputError(f"{path}: {len(self.goals)} goals, but at names {len(self.at)} columns of qpos")

    def origin(self) -> Origin:
        return Origin(dataset=place(self.path).stem, environment=self.environment)

    def _read(self) -> tuple[dict[str, np.ndarray], FlatEpisodes]:
        columns = read_arrays(self.path, self._choose)
        reached = self._reached(columns)
        missing = reached.shape[1] - reached.sum(1)
        last = columns["terminals"].reshape(-1).astype(bool)
        columns = {name: columns[name] for name in ("observations", "actions", "terminals")}
        columns["rewards"] = -missing.astype(np.float32)
        # A trajectory's last row has no step, even where the goal is reached.
        columns["masks"] = (missing > 0) | last if len(last) == len(missing) else missing > 0
        return columns, FlatEpisodes(columns, self.path)

    def _choose(self, present: list[str], described: Callable[[str], str]) -> dict[str, str]:
        wanted = ["observations", "actions", "terminals"]
        wanted += ["qpos"] if self.goals else []
        wanted += ["button_states"] if self.buttons else []
        for name in wanted:
            if name not in present:
                shown = ", ".join(described(found) for found in present[:20]) or "no arrays"
                raise InputError(f"{self.path}: no array {name!r}, which the task needs; the file has {shown}")
        return {name: name for name in wanted}

    def _reached(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """Which parts of the goal each row has reached, bool ``[N, parts]``."""
        found = []
        for goal, start in zip(self.goals, self.at, strict=False):
            positions = columns["qpos"]
            stop = start + len(goal)
            if positions.ndim != 2 or not 0 <= start < stop <= positions.shape[1]:
                raise InputError(
                    f"{self.path}: columns {start} to {stop - 1} of qpos, which has shape {list(positions.shape)}"
                )
            away = np.linalg.norm(positions[:, start:stop] - np.asarray(goal, dtype=np.float64), axis=1)
            found.append(away <= self.tolerance)
        if self.buttons:
            states = columns["button_states"]
            if states.ndim != 2 or states.shape[1] != len(self.buttons):
                raise InputError(
                    f"{self.path}: {len(self.buttons)} buttons, but button_states has shape {list(states.shape)}"
                )
            found += list((states == np.asarray(self.buttons)).T)
        return np.stack(found, axis=1)
