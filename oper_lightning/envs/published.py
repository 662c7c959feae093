"""The five environments of BREMEN (arXiv 2006.03647): Gymnasium's robots, paid and ended by a task's formula."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from oper_lightning.envs import tasks
from oper_lightning.spec import Task

STEPS = 1000


class Robot(NamedTuple):
    """How one of Gymnasium's robots becomes a published environment."""

    entry: str
    """module and class of the robot"""
    task: type[Task]
    options: dict[str, Any]
    hidden: int = 1
    """leading joint positions that observations are without: where the robot is"""


# The published walker stands on a foot with Gymnasium's earlier friction.
ROBOTS = {
    "Ant": Robot("ant_v5:AntEnv", tasks.Ant, {"include_cfrc_ext_in_observation": False}, hidden=2),
    "HalfCheetah": Robot("half_cheetah_v5:HalfCheetahEnv", tasks.HalfCheetah, {}),
    "CheetahRun": Robot("half_cheetah_v5:HalfCheetahEnv", tasks.CheetahRun, {}),
    "Hopper": Robot("hopper_v5:HopperEnv", tasks.Hopper, {}),
    "Walker2d": Robot("walker2d_v5:Walker2dEnv", tasks.Walker2d, {"xml_file": "walker2d.xml"}),
}


def register() -> None:
    """Registers ``bremen/Ant-v0``, ``bremen/HalfCheetah-v0``, ``bremen/CheetahRun-v0``, ``bremen/Hopper-v0`` and
    ``bremen/Walker2d-v0``.
    """
    for robot in ROBOTS:
        if (name := f"bremen/{robot}-v0") not in gymnasium.registry:
            gymnasium.register(name, f"{__name__}:made", max_episode_steps=STEPS, kwargs={"robot": robot})


def made(robot: str, **options: Any) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """One of :data:`ROBOTS` in its task; the options are those of Gymnasium's robot."""
    known = ROBOTS[robot]
    module, _, name = known.entry.partition(":")
    make = getattr(importlib.import_module(f"gymnasium.envs.mujoco.{module}"), name)
    return Judged(make(**{**known.options, **options}), known.task(), known.hidden)


class Judged(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """A MuJoCo robot that a task pays and stops; resets are the robot's own.

    Args:
        env: the robot.
        task: judges what observations show, with actions inside their bounds.
        hidden: number of leading joint positions that observations are without. All others and all velocities are in
            them, as they are: Gymnasium's own hopper and walker show no velocity above 10.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], task: Task, hidden: int) -> None:
        super().__init__(env)
        self.task = task
        self.hidden = hidden
        self.data = env.unwrapped.data  # type: ignore[attr-defined]
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, self._seen().shape, np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode."""
        _, info = self.env.reset(seed=seed, options=options)
        return self._seen(), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes a step, which the task judges."""
        box = self.action_space
        assert isinstance(box, gymnasium.spaces.Box)
        before = self._seen()
        *_, info = self.env.step(action)
        after = self._seen()
        taken = np.clip(np.asarray(action, dtype=np.float64), box.low, box.high)
        seen = [torch.from_numpy(array)[None] for array in (before, taken, after)]
        return after, float(self.task.reward(*seen)), bool(self.task.terminated(*seen)), False, info

    def _seen(self) -> np.ndarray:
        return np.concatenate([self.data.qpos[self.hidden :], self.data.qvel])
