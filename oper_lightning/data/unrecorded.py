"""What is known of transitions before any were gathered."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.transitions import transitions_from
from oper_lightning.envs.players import Players
from oper_lightning.envs.rollouts import World, ends_of
from oper_lightning.nn import ranks

EXAMPLE = 100  # transitions by which the frames of images are recognised


def unrecorded(environment: str, patience: float) -> Source:
    """A source of no transitions that knows shapes, bounds and name of an environment in which some will be gathered.

    Args:
        environment: Gymnasium id.
        patience: seconds that a step or a reset may take.
    """
    return _Unrecorded(environment, patience)


class _Unrecorded(Source):
    def __init__(self, environment: str, patience: float) -> None:
        self.environment = environment
        self.patience = patience

    def __str__(self) -> str:
        return self.environment

    def origin(self) -> Origin:
        (low, high), _ = self._facts
        return Origin(dataset=self.environment, environment=self.environment, action_low=low, action_high=high)

    def __len__(self) -> int:
        return 0

    def episodes(self) -> Iterator[TensorDict]:
        yield self._facts[1]

    @cached_property
    def _facts(self) -> tuple[tuple[Any, Any], TensorDict]:
        """Bounds of the actions, and an example of transitions, which nobody keeps: by it shapes are known and, of
        images, how they move up.
        """
        world = World(self.environment, {})
        try:
            space, flag = world.action_space, np.zeros(1, dtype=bool)
            if not world.images:
                action = np.asarray(space.sample())[None]
                blank = transitions_from(world.blank, action, np.zeros(1), world.blank, flag, ~flag)
                return ends_of(space), blank
            space.seed(0)
            with ranks.alike():
                player = Players(world, 0, 1, self.patience, torch.device("cpu"))
                player.begin()
                rows = [player.step(torch.as_tensor(space.sample())[None]) for _ in range(EXAMPLE)]
            rows[-1]["truncated"] = ~rows[-1]["terminated"]
            return ends_of(space), transitions_from(**{key: np.concatenate([r[key] for r in rows]) for key in rows[0]})
        finally:
            world.close()
