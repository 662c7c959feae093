"""Copies of an environment that a policy explores side by side, every episode with a seed of its own."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oper_lightning.envs.rollouts import World
from oper_lightning.errors import TrainingError, first_line
from oper_lightning.nn import ranks


class Players:
    """E copies of an environment, stepped together. Of several ranks each steps its share, and all see all rows.

    What happens is a function of the seed, of the number of each episode within its copy, and of the actions. An
    episode that was interrupted therefore comes back when it is reset with its seed and its actions are repeated.

    Args:
        world: this rank's copies, see :func:`own`.
        seed: seed of the run.
        copies: number E of copies, over all ranks together.
        patience: seconds that a reset or a step may take.
        device: where the ranks' messages are to be.
    """

    def __init__(self, world: World, seed: int, copies: int, patience: float, device: torch.device) -> None:
        self.world = world
        self.seed = seed
        self.copies = copies
        self.own = own(copies)
        self.patience = patience
        self.device = device
        self.episode = np.zeros(copies, dtype=np.int64)
        """number of the episode that each copy plays"""
        self.steps = 0
        """steps that each copy has taken"""
        self.observation = np.zeros((copies, *world.observation_shape), world.blank.dtype)
        """what each copy shows, ``[E, *O]``"""

    def begin(self) -> None:
        """Begins the present episode of every copy."""
        with self._watched():
            for place, copy in enumerate(self.own):
                self.observation[copy] = self._reset(place, copy)
        self.observation = self._of_all(self.observation)

    def step(self, action: Tensor) -> dict[str, np.ndarray]:
        """Takes a step with each copy; where an episode ended, the next one begins.

        Args:
            action: ``[E, A]`` in the environment's units, moved into its bounds here; or numbers ``[E]``.

        Returns:
            observation, action, next_observation, reward, terminated and truncated, ``[E, ...]``. The action is the
            one that was taken, in float32.

        Raises:
            TrainingError: if the environment fails, takes too long, or gives something that is not finite.
        """
        taken = self.world.clipped(action.cpu().numpy())
        following, shown = np.zeros_like(self.observation), np.zeros_like(self.observation)
        numbers = np.zeros((self.copies, 3), dtype=np.float32)
        with self._watched():
            for place, copy in enumerate(self.own):
                following[copy], reward, terminated, truncated = self.world.step(place, taken[copy])
                numbers[copy] = reward, terminated, truncated and not terminated
                shown[copy] = following[copy]
                if terminated or truncated:
                    self.episode[copy] += 1
                    shown[copy] = self._reset(place, copy)
        following, shown, numbers = (self._of_all(array) for array in (following, shown, numbers))
        row = {
            "observation": self.observation,
            "action": taken,
            "next_observation": following,
            "reward": numbers[:, 0],
            "terminated": numbers[:, 1].astype(bool),
            "truncated": numbers[:, 2].astype(bool),
        }
        ended = row["terminated"] | row["truncated"]
        ended[self.own] = False  # counted already
        self.episode[ended] += 1
        self.observation = shown
        self.steps += 1
        return row

    def repeat(self, steps: int, episode: Sequence[int], actions: Sequence[np.ndarray], expected: np.ndarray) -> bool:
        """Brings copies to where they stood, from the beginnings of the episodes that they were playing.

        Args:
            steps: steps that each copy had taken.
            episode: number of the episode that each copy was playing.
            actions: for each copy the actions of that episode, ``[steps, ...]``.
            expected: what each copy showed then, ``[E, *O]``; not looked at where there are no actions.

        Returns:
            whether they show the same again.
        """
        self.steps, self.episode = steps, np.array(episode, dtype=np.int64)
        self.begin()
        again = np.zeros_like(self.observation)
        differ = torch.zeros((), device=self.device)
        for place, copy in enumerate(self.own):
            again[copy], over = self.observation[copy], False
            for action in actions[copy]:
                if over:  # what has ended must not be stepped
                    break
                with self._watched():
                    again[copy], _, terminated, truncated = self.world.step(place, action)
                over = terminated or truncated
            if len(actions[copy]) and (over or not np.array_equal(again[copy], expected[copy])):
                differ += 1
        self.observation = self._of_all(again)
        return not bool(ranks.sum_over_ranks(differ))

    def close(self) -> None:
        """Closes the environments."""
        self.world.close()

    def _reset(self, place: int, copy: int) -> np.ndarray:
        seed = ranks.stream_seed(self.seed, f"episodes of copy {copy}", int(self.episode[copy]))
        return self.world.reset(place, seed >> 32)  # Gymnasium's wrappers take seeds of 31 bits

    def _of_all(self, rows: np.ndarray) -> np.ndarray:
        """Rows ``[E, ...]`` of all ranks, of which each has its own and else zeros."""
        if ranks.world_size() == 1:
            return rows
        others = np.ones(self.copies, dtype=bool)
        others[self.own] = False
        rows[others] = 0
        return ranks.sum_over_ranks(torch.from_numpy(rows).to(self.device)).cpu().numpy()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Says at which step an environment failed, and interrupts one that hangs."""

        def interrupt(*_: Any) -> None:
            raise TimeoutError(f"no answer within {self.patience:g} seconds")

        alarmed = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
        try:
            if alarmed:
                before = signal.signal(signal.SIGALRM, interrupt)
                signal.setitimer(signal.ITIMER_REAL, self.patience)
            try:
                yield
            finally:
                if alarmed:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    signal.signal(signal.SIGALRM, before)
        except Exception as error:
            raise TrainingError(
                f"environment {self.world.environment!r} failed at step {self.steps * self.copies:,}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error


def own(copies: int) -> list[int]:
    """Numbers of the copies, out of so many, that this rank steps."""
    world, rank = ranks.world_size(), ranks.rank()
    return list(range(rank * copies // world, (rank + 1) * copies // world))
