"""Judging a policy by what it earns: rollouts of whole, seeded episodes in vectorised Gymnasium environments."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oper_lightning.envs.observations import join
from oper_lightning.errors import InputError, first_line, nearest

Act = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rollouts:
    """How a policy is judged.

    Args:
        episodes: number of episodes, over all ranks together.
        environment: Gymnasium id; the dataset's environment by default.
        seed: seed of the first episode; the others follow. `oper test` takes other seeds than `oper validate`.
        parallel: how many environments step side by side.
    """

    episodes: int = 10
    environment: str | None = None
    seed: int = 10_000
    parallel: int = 10

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.parallel < 1:
            raise InputError(f"rollouts: episodes {self.episodes} and parallel {self.parallel} must be at least 1")

    def seeds(self, test: bool = False) -> list[int]:
        """Seeds of the episodes. A test's lie a million further: no episode serves both."""
        first = self.seed + (1_000_000 if test else 0)
        return list(range(first, first + self.episodes))


class World:
    """Vectorised copies of one environment, made once and reset with a seed for every episode.

    Args:
        environment: Gymnasium id.
        options: keyword arguments of the environment; under "wrappers", Gymnasium's own wrappers to put around it.
        observation_keys: for Dict observations, the entries to join, in this order.
        parallel: number of copies.

    Raises:
        InputError: if the environment cannot be made.
    """

    def __init__(
        self, environment: str, options: dict[str, Any], observation_keys: Sequence[str] = (), parallel: int = 1
    ) -> None:
        import gymnasium
        from gymnasium.vector import AutoresetMode

        self.environment = environment
        self.keys = tuple(observation_keys)
        _register(environment)
        try:
            with _quiet():
                self.env: Any = gymnasium.make_vec(
                    environment,
                    num_envs=parallel,
                    vectorization_mode="sync",
                    vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
                    wrappers=[functools.partial(wrapped, wrappers=options.get("wrappers", []))],
                    **{name: value for name, value in options.items() if name != "wrappers"},
                )
        except gymnasium.error.UnregisteredEnv:
            known = nearest(environment, gymnasium.registry)
            raise InputError(f"environment {environment!r} is not registered with Gymnasium; {known}") from None
        except Exception as error:  # an environment's constructor may raise anything
            raise InputError(f"environment {environment!r} cannot be made: {first_line(error)}") from None

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation after joining."""
        space = self.env.single_observation_space
        return self.join(space.sample()).shape

    @property
    def action_space(self) -> Any:
        """Gymnasium space of one action."""
        return self.env.single_action_space

    def join(self, observation: Any) -> np.ndarray:
        """Observations as one array; entries of a Dict are joined along the last dimension in the declared order.

        Raises:
            InputError: if the observation has entries and no order was declared.
        """
        return join(observation, self.env.single_observation_space, self.keys, f"environment {self.environment!r}")

    @torch.no_grad()
    def rollouts(self, act: Act, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Undiscounted returns and lengths, float64 ``[len(seeds)]``, of one episode for each seed.

        Args:
            act: maps raw observations ``[E, ...]`` (float32) to actions ``[E, A]`` in the environment's units.
            seeds: what the environments are reset with.
        """
        returns = np.zeros(len(seeds))
        lengths = np.zeros(len(seeds))
        copies = self.env.num_envs
        waiting = iter(range(len(seeds)))
        # Number of the episode that each copy plays; a copy that has none left plays on and is not looked at.
        playing = np.array([next(waiting, -1) for _ in range(copies)])
        low, high = getattr(self.action_space, "low", None), getattr(self.action_space, "high", None)
        observation, _ = self.env.reset(seed=[seeds[k] if k >= 0 else None for k in playing])
        while (playing >= 0).any():
            action = act(torch.as_tensor(self.join(observation), dtype=torch.float32)).cpu().numpy()
            if low is not None:
                action = np.clip(action, low, high)
            observation, reward, terminated, truncated, _ = self.env.step(action)
            live = playing >= 0
            returns[playing[live]] += reward[live]
            lengths[playing[live]] += 1
            done = terminated | truncated
            if done.any():
                playing[done] = [next(waiting, -1) for _ in range(int(done.sum()))]
                reseeded = [seeds[k] if k >= 0 and over else None for k, over in zip(playing, done, strict=True)]
                observation, _ = self.env.reset(seed=reseeded, options={"reset_mask": done})
        return torch.from_numpy(returns), torch.from_numpy(lengths)

    def close(self) -> None:
        """Closes the environments."""
        self.env.close()


def action_space(environment: str, options: dict[str, Any]) -> Any | None:
    """The space of an environment's actions; None if it cannot be made here."""
    try:
        world = World(environment, options)
    except InputError:
        return None
    world.close()
    return world.action_space


def wrapped(environment: Any, wrappers: Sequence[dict[str, Any]]) -> Any:
    """Puts Gymnasium's own wrappers, given as ``{"name": …, "kwargs": {…}}``, around an environment, in that order."""
    import gymnasium

    for wrapper in wrappers:
        environment = getattr(gymnasium.wrappers, wrapper["name"])(environment, **wrapper["kwargs"])
    return environment


def _register(environment: str) -> None:
    """Lets gymnasium-robotics register its environments, where it is installed and the id is not known yet."""
    import gymnasium

    if environment in gymnasium.registry:
        return
    with _quiet(), contextlib.suppress(ImportError):
        import gymnasium_robotics

        gymnasium.register_envs(gymnasium_robotics)


@contextlib.contextmanager
def _quiet() -> Any:
    """Keeps what other packages print while an environment is made off the terminal."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield
