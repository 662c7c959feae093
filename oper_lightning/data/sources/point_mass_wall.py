"""Episodes of point-mass-wall that all go over the wall, made anew wherever they are read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from tensordict import TensorDict

from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.transitions import transitions_from
from oper_lightning.errors import InputError

OVER = np.array([[0.3, 1.3], [0.7, 1.3]])  # where the way over the wall leads through
SPREAD = 0.05  # of these places, up to, in each coordinate
NOISE = 0.3  # standard deviation, of actions
ADVANCE = 1.5  # steps from a place at which the controller turns to the next one
LARGEST = 1 - 1e-5  # of an action; policies through a tanh cannot take 1


class PointMassWall(Source):
    """Point-mass-wall (arXiv 2310.08558): a noisy controller reaches the goal over the wall, never under it.

    Args:
        episodes: number of episodes.
        small: whether to play the small task, with longer steps and a larger goal.
        seed: seed of starts, ways and noise.
    """

    def __init__(self, episodes: int = 100, small: bool = False, seed: int = 0) -> None:
        if episodes < 1:
            raise InputError(f"PointMassWall: episodes is {episodes}; at least 1 is needed")
        self.count = episodes
        self.size = "Small" if small else ""
        self.seed = seed

    def origin(self) -> Origin:
        name = f"PointMassWall{self.size}"
        return Origin(name, f"oper/{name}-v0", action_low=-np.ones(2), action_high=np.ones(2))

    def __len__(self) -> int:
        return sum(map(len, self._played))

    def episodes(self) -> Iterator[TensorDict]:
        yield from self._played

    @cached_property
    def _played(self) -> list[TensorDict]:
        from oper_lightning.envs.point_mass_wall import GOAL, SIZES, PointMassWall, towards

        world, generator = PointMassWall(self.size), np.random.default_rng(self.seed)
        limit, episodes = SIZES[self.size][2], []
        for _ in range(self.count):
            observation, _ = world.reset(seed=int(generator.integers(2**31)))
            places = [*(OVER + generator.uniform(-SPREAD, SPREAD, OVER.shape)), GOAL]
            rows: list[tuple[object, ...]] = []
            there = False
            while not there and len(rows) < limit:
                if len(places) > 1 and np.linalg.norm(places[0] - world.position) < ADVANCE * world.length:
                    places.pop(0)
                action = towards(world.position, places[0], world.length) + generator.normal(0, NOISE, 2)
                action = action.clip(-LARGEST, LARGEST).astype(np.float32)
                following, reward, there, _, _ = world.step(action)
                rows.append((observation, action, reward, following, there, len(rows) + 1 == limit))
                observation = following
            episodes.append(transitions_from(*map(np.array, zip(*rows, strict=True))))
        return episodes
