"""Which of NeoRL-2's tasks recorded steps are of: its files do not say so, their steps do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

ROWS = 1000  # steps by which a task is told
WIDTHS = {"oper/DMSD-v0": (6, 2), "oper/SafetyHalfCheetah-v0": (18, 6)}
"""of observations and actions, by environment"""
TOLERATED = 1e-3  # difference in a state or reward
# A half-cheetah that never breaks the limit obeys the rules of both tasks; the published one never does.


def task_of(rows: Mapping[str, np.ndarray]) -> str | None:
    """The environment by whose rules all of these steps went; None if there is none.

    Args:
        rows: D4RL's columns by name: observations and next_observations ``[R, D]``, actions ``[R, A]``, rewards
            ``[R]``.
    """
    names = ("observations", "actions", "rewards", "next_observations")
    if not all(name in rows and rows[name].dtype.kind in "fiu" for name in names):
        return None
    before, action, reward, after = (rows[name].astype(np.float64) for name in names)
    widths = before.shape[1:] + action.shape[1:]
    task = next((task for task, known in WIDTHS.items() if widths == known and after.shape == before.shape), None)
    if task is None or np.array_equal(before, after):
        return None
    from oper_lightning.envs.neorl2 import closeness, moved, progress

    with np.errstate(all="ignore"):  # numbers that are too large, or none, belong to no task
        if task == "oper/DMSD-v0":
            following, expected = moved(before[:, :4], action), closeness(after[:, :2], after[:, 4:])
        else:  # of the robot's motion, what is paid for is enough
            following, expected = after[:, :4], progress(before[:, 0], action, after[:, 0])
        states, rewards = np.abs(following - after[:, :4]), np.abs(expected - reward.reshape(-1))
    return task if states.max() < TOLERATED and rewards.max() < TOLERATED else None
