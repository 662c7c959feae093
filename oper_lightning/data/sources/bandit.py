"""The bandit of OPER, Yue et al. 2023, arXiv 2306.05412: two-dimensional actions in four modes, rewarded at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tensordict import TensorDict

from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.transitions import transitions_from
from oper_lightning.errors import InputError

MODES = (((0.6, 0.6), 5.0), ((0.6, -0.6), 1.0), ((-0.6, 0.6), 0.0), ((-0.6, -0.6), -2.0))  # centre, mean reward
ACTION_STD = 0.05
REWARD_STD = 0.25


class Bandit(Source):
    """OPER's bandit: episodes of one step, actions around four modes with mean rewards 5, 1, 0 and -2.

    Args:
        transitions: number of transitions, a multiple of 4; one mode after another.
        random_observation: whether the observation is standard normal noise instead of 0; it means nothing in either
            case.
        seed: seed of the draws.
    """

    def __init__(self, transitions: int = 10_000, random_observation: bool = False, seed: int = 0) -> None:
        if transitions < 4 or transitions % 4:
            raise InputError(f"Bandit: transitions {transitions} is no multiple of 4, the number of modes")
        self.transitions = transitions
        self.random_observation = random_observation
        self.seed = seed

    def origin(self) -> Origin:
        return Origin(dataset="bandit", action_low=-np.ones(2), action_high=np.ones(2))

    def __len__(self) -> int:
        return self.transitions

    def episodes(self) -> Iterator[TensorDict]:
        generator = np.random.default_rng(self.seed)
        share, rows = self.transitions // 4, self.transitions
        centres, means = (np.repeat(np.array(values), share, 0) for values in zip(*MODES, strict=True))
        actions = np.clip(centres + ACTION_STD * generator.normal(size=(rows, 2)), -1, 1)
        rewards = means + REWARD_STD * generator.normal(size=rows)
        observations = generator.normal(size=(2, rows, 1)) * self.random_observation
        ends = np.ones(rows, dtype=bool)
        yield transitions_from(observations[0], actions, rewards, observations[1], ends, ~ends)
