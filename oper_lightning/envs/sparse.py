"""Locomotion that is paid only far from where it began: ant-sparse and halfcheetah-sparse of arXiv 2310.08558."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

STEPS = 1000
ANT, HALF_CHEETAH = 10.0, 20.0
"""how far ahead of their first place the robots are paid"""


def register() -> None:
    """Registers ``oper/AntSparse-v0`` and ``oper/HalfCheetahSparse-v0``."""
    for name, make in (("oper/AntSparse-v0", ant), ("oper/HalfCheetahSparse-v0", half_cheetah)):
        if name not in gymnasium.registry:
            gymnasium.register(name, f"{__name__}:{make.__name__}", max_episode_steps=STEPS)


def ant(**options: Any) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """Ant, which sees where it is along its way but not beside it: ``[106]``."""
    made = AntEnv(terminate_when_unhealthy=False, exclude_current_positions_from_observation=False, **options)
    return Beyond(made, ANT, left_out=1)


def half_cheetah(**options: Any) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """HalfCheetah, which does not see how far it has come: ``[17]``."""
    return Beyond(HalfCheetahEnv(**options), HALF_CHEETAH)


class Beyond(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """Pays 1 for every step after which the robot is further ahead of its first place than a distance, else 0.

    Args:
        env: a robot whose first coordinate is its way ahead.
        distance: in metres.
        left_out: number of an entry that observations are without; none by default.
    """

    def __init__(
        self, env: gymnasium.Env[np.ndarray, np.ndarray], distance: float, left_out: int | None = None
    ) -> None:
        super().__init__(env)
        self.distance = distance
        self.left_out = left_out
        self.begin = 0.0
        space = env.observation_space
        assert isinstance(space, gymnasium.spaces.Box)
        low, high = self._seen(space.low), self._seen(space.high)
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=space.dtype.type)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode; its first place is what counts."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.begin = self._place()
        return self._seen(observation), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes a step; it never terminates."""
        observation, _, _, _, info = self.env.step(action)
        there = self._place() - self.begin > self.distance
        return self._seen(observation), float(there), False, False, {**info, "success": there}

    def _place(self) -> float:
        return float(self.env.unwrapped.data.qpos[0])  # type: ignore[attr-defined]

    def _seen(self, observation: np.ndarray) -> np.ndarray:
        return observation if self.left_out is None else np.delete(observation, self.left_out)
