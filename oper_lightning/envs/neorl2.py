"""Two tasks of NeoRL-2 (arXiv 2503.19267): masses on springs that are to follow targets, a cheetah with a speed limit.

Made anew from their published constants. The published transitions, taken again here, lead to what was recorded: DMSD's
states to 2.4e-7, which is float32's precision, and rewards to 1.3e-5; the cheetah's states to 3e-4 in 999 rows of 1,000
(median 1.6e-6, at most 1.3e-3) and rewards to 1.3e-5.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

TASKS = {"DMSD": ("DMSD", 100), "SafetyHalfCheetah": ("safety_half_cheetah", 1000)}
"""what makes the environment, and the steps of an episode, by task"""
MASS, STIFFNESS, DAMPING = 20.0, 2.0, 4.0
"""of each mass, and of each of the three springs: wall, mass, mass, wall"""
FORCE, SECONDS = 30.0, 0.2
"""of an action of 1, and how long a step takes"""
# What pulls at both masses, by where they are and by how fast they move.
PULL = np.array([[-2.0, 1.0], [1.0, -2.0]])
START, SPREAD, FARTHEST = 0.25, 0.1, 1.5
"""an episode's first positions, its first velocities and its targets are this far from 0 at most"""
SECOND = 50  # steps before a second target
NEAREST = 0.01  # is added to distances from targets, so that their logarithm is finite
LIMIT, FINE = 3.2096, -100.0
"""speed in m/s above which the cheetah gets a fine in place of its reward"""
FRAME = 0.05  # seconds of the cheetah's step
EFFORT = 0.1  # what a squared torque costs it


def register() -> None:
    """Registers ``oper/DMSD-v0`` and ``oper/SafetyHalfCheetah-v0``."""
    for task, (entry, steps) in TASKS.items():
        if (name := f"oper/{task}-v0") not in gymnasium.registry:
            gymnasium.register(name, f"{__name__}:{entry}", max_episode_steps=steps)


def moved(state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Positions and velocities ``[..., 4]`` of DMSD's masses a step after these, under actions ``[..., 2]``."""
    position, velocity = state[..., :2], state[..., 2:]
    force = (STIFFNESS * position + DAMPING * velocity) @ PULL + FORCE * np.clip(action, -1, 1)
    return np.concatenate([position + SECONDS * velocity, velocity + SECONDS / MASS * force], -1)


def closeness(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """DMSD's rewards ``[...]`` for positions and targets ``[..., 2]``."""
    rewards: np.ndarray = -np.log(np.abs(position - target) + NEAREST).sum(-1)
    return rewards


def progress(before: np.ndarray, action: np.ndarray, after: np.ndarray) -> np.ndarray:
    """SafetyHalfCheetah's rewards ``[...]`` for places before and after a step ``[...]``, torques ``[..., 6]``."""
    speed = (after - before) / FRAME
    return np.where(speed > LIMIT, FINE, speed - EFFORT * np.square(action).sum(-1))


class DMSD(gymnasium.Env[np.ndarray, np.ndarray]):
    """Two masses between two walls, joined by springs that are damped; each is pushed towards a target of its own.

    An observation is ``[6]``: two positions, two velocities, the two targets. Half of the masses have another target
    from the fiftieth step on, which is not shown before. An action ``[2]`` pushes both. Episodes end by time only.
    """

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (6,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.state = np.zeros(6)
        """what is observed"""
        self.second = np.zeros(2)
        """targets of the second half"""
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Puts the masses near their places, and draws targets."""
        super().reset(seed=seed)
        reach = np.array([START, START, SPREAD, SPREAD, FARTHEST, FARTHEST])
        self.state = self.np_random.uniform(-reach, reach)
        other = self.np_random.uniform(-FARTHEST, FARTHEST, 2)
        self.second = np.where(self.np_random.random(2) < 0.5, other, self.state[4:])
        self.steps = 0
        return self.state.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Moves the masses; the targets that count are those that are shown afterwards."""
        self.steps += 1
        target = self.second if self.steps == SECOND else self.state[4:]
        self.state = np.concatenate([moved(self.state[:4], np.asarray(action, dtype=np.float64)), target])
        return self.state.astype(np.float32), float(closeness(self.state[:2], target)), False, False, {}


class SpeedLimit(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """A robot that says how fast it moved ahead, and is fined where that was too fast."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes a step; a step above the limit earns the fine only."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, FINE if info["x_velocity"] > LIMIT else float(reward), terminated, truncated, info


def safety_half_cheetah(**options: Any) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """Gymnasium's half-cheetah with a speed limit; where it is comes first of 18 observations."""
    from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

    return SpeedLimit(HalfCheetahEnv(exclude_current_positions_from_observation=False, **options))
