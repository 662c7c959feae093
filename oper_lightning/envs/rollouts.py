"""Scoring a policy: rollouts of whole, seeded episodes in several Gymnasium environments side by side."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oper_lightning.envs.observations import join
from oper_lightning.errors import InputError, first_line, nearest

Act = Callable[[Tensor], Tensor]
LONGEST = 100_000  # steps after which an episode is taken for one that never ends; Atari's longest has 27,000


@dataclass(frozen=True)
class Rollouts:
    """How a policy is scored: by whole episodes in an environment.

    Args:
        episodes: number of episodes, over all ranks together.
        environment: Gymnasium id of the environment; by default the dataset's.
        seed: seed of the first episode; each further episode has the next number. `oper test` takes other seeds than
            `oper validate`.
        parallel: number of environments that step side by side.
        steps: number of steps after which an episode is cut; by default the environment's own limit.
    """

    episodes: int = 10
    environment: str | None = None
    seed: int = 10_000
    parallel: int = 10
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.parallel < 1:
            raise InputError(f"rollouts: episodes {self.episodes} and parallel {self.parallel} must be at least 1")
        if self.steps is not None and not 1 <= self.steps <= LONGEST:
            raise InputError(f"rollouts: steps {self.steps:,} must be between 1 and {LONGEST:,}")

    def seeds(self, test: bool = False) -> list[int]:
        """Seeds of the episodes. A test's lie a million further: no episode serves both."""
        first = self.seed + (1_000_000 if test else 0)
        return list(range(first, first + self.episodes))


class World:
    """Copies of one environment, made once and reset with a seed for every episode.

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

        self.environment = environment
        self.keys = tuple(observation_keys)
        self.copies: list[Any] = []
        _register(environment)
        try:
            with _quiet():
                plain = {name: value for name, value in options.items() if name != "wrappers"}
                for _ in range(parallel):
                    self.copies.append(wrapped(gymnasium.make(environment, **plain), options.get("wrappers", [])))
        except gymnasium.error.UnregisteredEnv:
            ours = atari_id(environment)
            meant = f"did you mean {ours!r}?" if ours else nearest(environment, gymnasium.registry)
            own = "" if ":" in environment else "; one of your own is named module:Env-v0"
            remedy = _missing(environment) or meant + own
            raise InputError(f"environment {environment!r} is not registered with Gymnasium; {remedy}") from None
        except Exception as error:  # an environment's constructor may raise anything
            self.close()
            raise InputError(f"environment {environment!r} cannot be made: {first_line(error)}") from None

    @functools.cached_property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation after joining."""
        return self.join(self.copies[0].observation_space.sample()).shape

    @functools.cached_property
    def images(self) -> bool:
        """Whether observations are images of bytes."""
        space = self.copies[0].observation_space
        return getattr(space, "dtype", None) == np.uint8 and len(space.shape or ()) > 1

    @property
    def action_space(self) -> Any:
        """Gymnasium space of one action."""
        return self.copies[0].action_space

    def join(self, observation: Any) -> np.ndarray:
        """One observation as one array; entries of a Dict are joined along the last dimension in the declared order.

        Raises:
            InputError: if the observation has entries and no order was declared.
        """
        return join(observation, self.copies[0].observation_space, self.keys, f"environment {self.environment!r}")

    @property
    def blank(self) -> np.ndarray:
        """An observation of zeros for each copy, ``[E, ...]``: float32, or uint8 for images."""
        return np.zeros((len(self.copies), *self.observation_shape), np.uint8 if self.images else np.float32)

    def reset(self, copy: int, seed: int) -> np.ndarray:
        """The first observation of an episode, which is a function of the seed.

        Raises:
            ValueError: if the observation is not finite or has another shape; and what the environment raises.
        """
        first, _ = self.copies[copy].reset(seed=seed)
        return self._observation(first)

    def step(self, copy: int, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """What one step of a copy leads to: next observation, reward, whether it terminated, whether it was cut off.

        Raises:
            ValueError: if a number is not finite or has another shape; and what the environment raises.
        """
        following, reward, terminated, truncated, _ = self.copies[copy].step(action)
        if not math.isfinite(reward):
            raise ValueError(f"its reward is {reward}")
        return self._observation(following), float(reward), bool(terminated), bool(truncated)

    def clipped(self, actions: np.ndarray) -> np.ndarray:
        """Actions ``[E, A]`` moved into the environment's bounds; numbers ``[E]`` of discrete ones as they are."""
        low, high = getattr(self.action_space, "low", None), getattr(self.action_space, "high", None)
        return actions if low is None else np.clip(actions, low, high)

    @torch.no_grad()
    def rollouts(self, act: Act, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Undiscounted returns and lengths, float64 ``[len(seeds)]``, of one episode for each seed.

        Args:
            act: maps raw observations ``[E, ...]`` (float32; images uint8) to actions ``[E, A]`` in the
                environment's units, or to numbers ``[E]`` of discrete ones.
            seeds: what the environments are reset with.

        Raises:
            InputError: if the environment fails, returns numbers that are not finite, or ends no episode; names the
                episode's seed and its step.
        """
        returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds))
        # The policy acts for all copies at once, also for copies without an episode: the width of a matrix can change
        # the last bit of its product.
        observations = self.blank
        waiting = iter(range(len(seeds)))
        playing: dict[int, int] = {}

        def begin(copy: int) -> None:
            if (episode := next(waiting, None)) is None:
                playing.pop(copy, None)
                return
            playing[copy] = episode
            with self.explained(seeds[episode], 0):
                observations[copy] = self.reset(copy, seeds[episode])

        for copy in range(len(self.copies)):
            begin(copy)
        while playing:
            actions = self.clipped(act(torch.from_numpy(observations.copy())).cpu().numpy())
            for copy, episode in list(playing.items()):
                step = int(lengths[episode]) + 1
                with self.explained(seeds[episode], step):
                    observations[copy], reward, terminated, truncated = self.step(copy, actions[copy])
                    if step == LONGEST and not (terminated or truncated):
                        raise ValueError(
                            "the episode does not end; give data.rollouts.steps, or the environment's option "
                            "max_episode_steps"
                        )
                returns[episode] += reward
                lengths[episode] = step
                if terminated or truncated:
                    begin(copy)
        return torch.from_numpy(returns), torch.from_numpy(lengths)

    def _observation(self, observation: Any) -> np.ndarray:
        joined = self.join(observation)
        if joined.shape != self.observation_shape:
            raise ValueError(f"its observation has shape {joined.shape} instead of {self.observation_shape}")
        if joined.dtype != np.uint8 and not np.isfinite(joined).all():
            raise ValueError("its observation is not finite")
        return joined

    @contextlib.contextmanager
    def explained(self, seed: int, step: int) -> Iterator[None]:
        """Says in which episode and at which step an environment failed; it may raise anything."""
        try:
            yield
        except Exception as error:
            raise InputError(
                f"environment {self.environment!r} failed in the episode of seed {seed} at step {step:,}: "
                f"{first_line(error)}"
            ) from None

    def close(self) -> None:
        """Closes the environments; what they have to say against it does not matter any more."""
        for copy in self.copies:
            with contextlib.suppress(Exception):
                copy.close()


def action_space(environment: str, options: dict[str, Any]) -> Any | None:
    """The space of an environment's actions; None if it cannot be made here."""
    try:
        world = World(environment, options)
    except InputError:
        return None
    world.close()
    return world.action_space


def number_of_actions(space: Any) -> int | None:
    """How many discrete actions a space has; None if its actions are of another kind."""
    return int(space.n) if type(space).__name__ == "Discrete" else None


def ends_of(space: Any) -> tuple[Any, Any]:
    """Lowest and highest action of an environment's space, or the first and last number of discrete ones; None if it
    has none.
    """
    if (count := number_of_actions(space)) is not None:
        return int(space.start), int(space.start) + count - 1
    return getattr(space, "low", None), getattr(space, "high", None)


def wrapped(environment: Any, wrappers: Sequence[dict[str, Any]]) -> Any:
    """Puts Gymnasium's own wrappers, given as ``{"name": …, "kwargs": {…}}``, around an environment, in that order."""
    import gymnasium

    for wrapper in wrappers:
        environment = getattr(gymnasium.wrappers, wrapper["name"])(environment, **wrapper["kwargs"])
    return environment


# How gymnasium-robotics' environments are called; their names go on with size, reward and version.
ROBOTICS = (
    "Adroit",
    "oper/Adroit",
    "oper/Kitchen",
    "AntMaze_",
    "Fetch",
    "FrankaKitchen",
    "HandManipulate",
    "HandReach",
    "PointMaze_",
)
# Where this package's own tasks are registered, by how their ids begin; the other ids with oper/ are Atari games.
OWN = {
    ("oper/PointMassWall",): "point_mass_wall",
    ("oper/DMSD", "oper/SafetyHalfCheetah"): "neorl2",
    ("oper/AntSparse", "oper/HalfCheetahSparse"): "sparse",
    ("oper/AntMaze", "oper/Maze2d"): "mazes",
    ("oper/Adroit", "oper/Kitchen"): "manipulation",
    ("bremen/",): "published",
}
ATARI = ("oper/", "ALE/")  # this package's ids of Atari games, and ale-py's own


def atari_id(environment: str) -> str | None:
    """This package's id of the Atari game that another id means, such as BreakoutNoFrameskip-v4; None if it means none
    or has it already.
    """
    import gymnasium

    game = re.fullmatch(r"(?:ALE/)?([A-Za-z]+?)(?:-ram)?(?:NoFrameskip|Deterministic)?(?:-v\d+)?", environment)
    ours = f"oper/{game[1]}-v0" if game else ""
    if not ours or ours == environment:
        return None
    _register(ours)
    return ours if ours in gymnasium.registry else None


def own_module(environment: str) -> str | None:
    """The module of this package that registers one of its own tasks; None for other environments."""
    return next((module for names, module in OWN.items() if environment.startswith(names)), None)


def _missing(environment: str) -> str | None:
    """How to get the packages that an environment needs, where they are known and not installed."""
    if own_module(environment) not in (None, "manipulation"):
        return None
    for names, extra, packages in ((ROBOTICS, "robotics", ["gymnasium_robotics"]), (ATARI, "atari", ["ale_py", "cv2"])):
        if environment.startswith(names) and not all(map(importlib.util.find_spec, packages)):
            return f"pip install 'oper-lightning[{extra}]' brings it"
    return None


def registered(environment: str) -> Any | None:
    """Gymnasium's spec of an environment; None if neither this package nor an installed one has it."""
    import gymnasium

    _register(environment)
    return gymnasium.registry.get(environment)


def _register(environment: str) -> None:
    """Registers this package's environments, and those of optional packages that are installed, where the id is not
    known yet.
    """
    import gymnasium

    if environment in gymnasium.registry:
        return
    with _quiet(), contextlib.suppress(ImportError):
        if module := own_module(environment):
            importlib.import_module(f"oper_lightning.envs.{module}").register()
        elif environment.startswith(ATARI):
            from oper_lightning.envs import atari

            atari.register()
        else:
            import gymnasium_robotics

            gymnasium.register_envs(gymnasium_robotics)


@contextlib.contextmanager
def _quiet() -> Any:
    """Keeps what other packages print while an environment is made off the terminal."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield
