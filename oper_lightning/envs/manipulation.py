"""Adroit's tasks that pay for success only, and kitchen's that count what is done, on gymnasium-robotics' robots.

Their rewards are those of arXiv 2310.08558 and of the recordings it learns from.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

ADROIT = {"Pen": 100, "Door": 200, "Relocate": 200}
"""steps of an episode"""
TASKS = {
    "Complete": ["microwave", "kettle", "light switch", "slide cabinet"],
    "Partial": ["microwave", "kettle", "light switch", "slide cabinet"],
    "Mixed": ["microwave", "kettle", "bottom burner", "light switch"],
}
"""of kitchen"""
KITCHEN_STEPS = 1000
ROBOT = [*range(9), *range(18, 39)]  # positions of joints and objects among gymnasium-robotics' 59 entries
POSITIONS = 30


def register() -> None:
    """Registers ``oper/Adroit{Pen,Door,Relocate}[Ends]-v0`` and ``oper/Kitchen{Complete,Partial,Mixed}[Once]-v0``."""
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    found: dict[str, tuple[str, int, dict[str, Any]]] = {}
    for flag in (False, True):
        for task, steps in ADROIT.items():
            found[f"oper/Adroit{task}{'Ends' * flag}-v0"] = "adroit", steps, {"task": task, "ends": flag}
        for name, tasks in TASKS.items():
            id_ = f"oper/Kitchen{name}{'Once' * flag}-v0"
            found[id_] = "kitchen", KITCHEN_STEPS, {"tasks": tasks, "once": flag}
    for name, (make, steps, options) in found.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, f"{__name__}:{make}", max_episode_steps=steps, kwargs=options)


def adroit(task: str, ends: bool = False, **options: Any) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """One of :data:`ADROIT`'s tasks, see :class:`Success`."""
    return Success(gymnasium.make(f"AdroitHand{task}Sparse-v1", **options).unwrapped, ends)


def kitchen(tasks: list[str], once: bool = False, **options: Any) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """A kitchen with these tasks, see :class:`Counted`."""
    made = gymnasium.make("FrankaKitchen-v1", tasks_to_complete=tasks, terminate_on_tasks_completed=False, **options)
    return Counted(made.unwrapped, tasks, once)


class Success(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """Pays -1 for each step, and 0 for those after which the goal is reached.

    Args:
        env: one of gymnasium-robotics' hands.
        ends: whether the goal ends the episode.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], ends: bool) -> None:
        super().__init__(env)
        self.ends = ends

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes a step."""
        observation, _, _, truncated, info = self.env.step(action)
        there = bool(info["success"])
        return observation, float(there) - 1.0, self.ends and there, truncated, {**info, "success": there}


class Counted(gymnasium.Wrapper[Any, np.ndarray, Any, np.ndarray]):
    """Pays each step with the number of tasks that have been done so far; when all are, the episode ends.

    An observation is D4RL's: positions of joints and objects ``[30]``, then where the tasks want them, with zeros where
    no task does ``[30]``.

    Args:
        env: gymnasium-robotics' kitchen.
        tasks: their names.
        once: whether a task is paid only with the step that does it: the return is the number of tasks that were done.
    """

    def __init__(self, env: gymnasium.Env[dict[str, Any], np.ndarray], tasks: list[str], once: bool) -> None:
        from gymnasium_robotics.envs.franka_kitchen.kitchen_env import OBS_ELEMENT_GOALS, OBS_ELEMENT_INDICES

        super().__init__(env)
        self.tasks = len(tasks)
        self.once = once
        self.done = 0
        self.goal = np.zeros(POSITIONS)
        for task in tasks:
            self.goal[OBS_ELEMENT_INDICES[task]] = OBS_ELEMENT_GOALS[task]
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2 * POSITIONS,), np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode, in which no task is done."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.done = 0
        return self._seen(observation), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes a step."""
        observation, _, _, truncated, info = self.env.step(action)
        before, self.done = self.done, len(info["episode_task_completions"])
        there = self.done == self.tasks
        reward = float(self.done - before if self.once else self.done)
        return self._seen(observation), reward, there, truncated, {**info, "success": there}

    def _seen(self, observation: dict[str, Any]) -> np.ndarray:
        return np.concatenate([observation["observation"][ROBOT], self.goal])
