"""A point, a wall and a goal behind it: a task whose recorded way is not the shortest one.

Point-mass-wall of Mark et al. 2023, arXiv 2310.08558, made anew from its published constants. Recorded episodes
(:class:`oper_lightning.data.sources.point_mass_wall.PointMassWall`) go over the wall; the way under it is shorter, and
nobody has gone it.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np

LOW, HIGH = np.array([-0.25, -0.25]), np.array([1.25, 1.45])
"""corners of the room"""
WALL = np.array([0.5, 0.1]), np.array([0.5, 1.2])
START, SPREAD = np.array([0.0, 0.5]), 0.02
"""where episodes begin, up to the spread in each coordinate"""
GOAL = np.array([1.0, 0.15])
# Of the published task, and of one that processors learn in minutes: a step's length in each coordinate, the distance
# from the goal that counts as there, and the number of steps of an episode.
SIZES = {"": (math.sqrt(0.5) * 0.05, 0.01, 150), "Small": (0.1, 0.1, 50)}


def register() -> None:
    """Registers ``oper/PointMassWall[Small][Cost]-v0``."""
    for size, (_, _, steps) in SIZES.items():
        for cost in (False, True):
            if (name := f"oper/PointMassWall{size}{'Cost' * cost}-v0") not in gymnasium.registry:
                entry = f"{__name__}:PointMassWall"
                gymnasium.register(name, entry, max_episode_steps=steps, kwargs={"size": size, "cost": cost})


class PointMassWall(gymnasium.Env[np.ndarray, np.ndarray]):
    """The task; an observation is the point's position ``[2]``, an action moves it.

    Args:
        size: one of :data:`SIZES`.
        cost: whether a step is rewarded with -1 and the one that reaches the goal with 0, as policies are judged;
            otherwise that step is rewarded with 1, all others with 0.
    """

    def __init__(self, size: str = "", cost: bool = False) -> None:
        self.length, self.near, _ = SIZES[size]
        self.cost = cost
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.position = START

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Puts the point near the start."""
        super().reset(seed=seed)
        self.position = START + self.np_random.uniform(-SPREAD, SPREAD, 2)
        return self.position.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Moves the point, unless the wall is in its way: then it stays where it is."""
        following = self.position + self.length * np.asarray(action, dtype=np.float64)
        if not cross(*WALL, self.position, following):
            self.position = np.clip(following, LOW, HIGH)
        there = bool(np.linalg.norm(self.position - GOAL) < self.near)
        reward = float(there) - self.cost
        return self.position.astype(np.float32), reward, there, False, {"success": there}


def cross(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> bool:
    """Whether the lines from a to b and from c to d cross; to touch, or to lie along each other, is not to cross."""
    return _turns(a, c, d) != _turns(b, c, d) and _turns(a, b, c) != _turns(a, b, d)


def _turns(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> bool:
    """Whether the way from a over b to c turns left."""
    return bool((c[1] - a[1]) * (b[0] - a[0]) > (b[1] - a[1]) * (c[0] - a[0]))


def towards(position: np.ndarray, place: np.ndarray, length: float) -> np.ndarray:
    """The action that leads straight to a place, as far as a step goes; not yet between -1 and 1."""
    return (place - position) / length
