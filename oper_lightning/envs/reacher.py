"""A scripted controller for Gymnasium's Reacher, at several qualities: data whose worth is known beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

ENVIRONMENT = "Reacher-v5"
ARM = (0.1, 0.11)  # lengths of the two links in metres, the second one up to the fingertip


class Level(NamedTuple):
    """One quality of behaviour."""

    share: float
    """part of the episodes"""
    turn: float
    """degrees by which the target is turned about the base before the controller sees it"""
    noise: float
    """standard deviation of the Gaussian noise on the torques"""
    gain: float = 60.0
    """torque per metre of distance, through the arm's Jacobian"""
    damping: float = 0.25
    """torque per rad/s against the joints' motion"""


# A quarter of the episodes goes to the target, the rest goes wrong, all in the same direction: the mean of the recorded
# actions is then a bad action, which is what a plain behaviour clone learns.
LEVELS = (
    Level(0.10, turn=0, noise=0.0),
    Level(0.15, turn=0, noise=0.1),
    Level(0.10, turn=90, noise=0.6),
    Level(0.15, turn=120, noise=0.9),
    Level(0.50, turn=150, noise=1.2),
)


def torques(observation: np.ndarray, level: Level, generator: np.random.Generator) -> np.ndarray:
    """Jacobian-transpose control: pulls the fingertip towards the (turned) target; shape ``[2]``, within ±1."""
    cos1, cos2, sin1, sin2, target_x, target_y, speed1, speed2, offset_x, offset_y = observation
    first = np.arctan2(sin1, cos1)
    both = first + np.arctan2(sin2, cos2)
    angle = np.deg2rad(level.turn)
    goal = np.array(
        [
            np.cos(angle) * target_x - np.sin(angle) * target_y,
            np.sin(angle) * target_x + np.cos(angle) * target_y,
        ]
    )
    fingertip = np.array([target_x + offset_x, target_y + offset_y])
    jacobian = np.array(
        [
            [-ARM[0] * np.sin(first) - ARM[1] * np.sin(both), -ARM[1] * np.sin(both)],
            [ARM[0] * np.cos(first) + ARM[1] * np.cos(both), ARM[1] * np.cos(both)],
        ]
    )
    torque = level.gain * jacobian.T @ (goal - fingertip) - level.damping * np.array([speed1, speed2])
    noisy: np.ndarray = np.clip(torque + level.noise * generator.standard_normal(2), -1, 1)
    return noisy.astype(np.float32)


def reach(observations: np.ndarray) -> np.ndarray:
    """The best level as a controller for `oper collect`: torques ``[E, 2]`` for observations ``[E, 10]``."""
    generator = np.random.default_rng(0)  # of noise that this level has not
    return np.stack([torques(observation, LEVELS[0], generator) for observation in observations])


def record(episodes: int, levels: Sequence[Level] = LEVELS, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rolls out the levels one after another, each for its share of the episodes; yields one dict per episode.

    Its entries: ``level`` (number from 0), ``seed``, ``observations`` ``[T + 1, 10]``, ``actions`` ``[T, 2]``,
    ``rewards``, ``terminations`` and ``truncations`` ``[T]``.
    """
    import gymnasium

    env = gymnasium.make(ENVIRONMENT)
    generator = np.random.default_rng(seed)
    number = 0
    for index, level in enumerate(levels):
        for _ in range(round(level.share * episodes)):
            start = seed * 1_000_000 + number
            observation, _ = env.reset(seed=start)
            steps: list[tuple[Any, ...]] = []
            observations = [observation]
            over = False
            while not over:
                action = torques(observation, level, generator)
                observation, reward, terminated, truncated, _ = env.step(action)
                over = terminated or truncated
                observations.append(observation)
                steps.append((action, reward, terminated, truncated))
            actions, rewards, terminations, truncations = (np.array(column) for column in zip(*steps, strict=True))
            yield {
                "level": index,
                "seed": start,
                "observations": np.array(observations),
                "actions": actions,
                "rewards": rewards,
                "terminations": terminations,
                "truncations": truncations,
            }
            number += 1
    env.close()


def random_return(episodes: int = 100, seed: int = 0) -> float:
    """Mean return of uniformly random torques."""
    import gymnasium

    env = gymnasium.make(ENVIRONMENT)
    env.action_space.seed(seed)
    total = 0.0
    for episode in range(episodes):
        env.reset(seed=seed + episode)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total += float(reward)
            over = terminated or truncated
    env.close()
    return total / episodes
