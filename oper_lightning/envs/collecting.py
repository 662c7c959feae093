"""Whole episodes that a policy plays, with noise on its actions: what a dataset is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from oper_lightning.envs.rollouts import LONGEST, Act, World, ends_of, number_of_actions
from oper_lightning.errors import InputError
from oper_lightning.nn.ranks import stream_seed

MOST_FRAMES = 16  # single frames of an observation; an image with more rows of pixels than that is a picture


class Behaviour(NamedTuple):
    """How actions come about."""

    name: str
    begin: Callable[[], Act] | None
    """called at the beginning of every round; gives the policy, which maps raw observations ``[E, *O]`` to actions
    ``[E, A]`` in the environment's units, or to numbers ``[E]`` of discrete ones. None: all actions are random"""
    epsilon: float = 0.0
    """share of the actions that are exchanged for uniformly random ones"""
    noise: float = 0.0
    """standard deviation of Gaussian noise on continuous actions, where their bounds are -1 and 1"""


class Played(NamedTuple):
    """An episode of T steps, whole or cut."""

    seed: int
    """that the environment was reset with"""
    observed: np.ndarray
    """observations ``[T + 1, *O]``, float32 or, of images, uint8; of stacks, the single frames ``[T + 1, H, W]``"""
    actions: np.ndarray
    """that were taken: float32 ``[T, A]``, or int64 ``[T]``"""
    rewards: np.ndarray
    """float64 ``[T]``"""
    terminated: bool
    """else it was truncated"""


def uniform(world: World) -> Callable[[np.random.Generator], np.ndarray]:
    """Draws an action for every copy, uniform between the bounds.

    Raises:
        InputError: if actions have no bounds, or are neither numbers nor vectors.
    """
    space, copies = world.action_space, len(world.copies)
    low, high = ends_of(space)
    if number_of_actions(space) is not None:
        return lambda generator: generator.integers(low, high + 1, copies)
    if low is None:
        raise InputError(f"environment {world.environment!r}: actions {space}; only Box and Discrete ones work")
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise InputError(f"environment {world.environment!r}: actions {space} have no bounds to draw random ones from")
    return lambda generator: generator.uniform(low, high, (copies, *space.shape)).astype(np.float32)


def frames_of_an_observation(world: World, seed: int = 0) -> int:
    """How many single frames, one below the other, make an observation, as far as some first steps show; else 1."""
    shape = world.observation_shape
    if not (world.images and len(shape) == 3 and 1 < shape[0] <= MOST_FRAMES):
        return 1
    draw, generator = uniform(world), np.random.default_rng(seed)
    with world.explained(seed, 0):
        seen = world.reset(0, seed)
        if not (seen == seen[:1]).all():
            return 1
        for _ in range(2 * shape[0]):
            before = seen.copy()
            seen, _, terminated, truncated = world.step(0, draw(generator)[0])
            if not (seen[:-1] == before[1:]).all():
                return 1
            if terminated or truncated:
                break
    return shape[0]


def possible(world: World, behaviour: Behaviour) -> None:
    """Refuses Gaussian noise where actions have no bounds to scale it by.

    Raises:
        InputError: if there is noise, and they have none.
    """
    space = world.action_space
    if behaviour.noise and (number_of_actions(space) is not None or not np.isfinite([space.low, space.high]).all()):
        raise InputError(f"environment {world.environment!r}: Gaussian noise is for continuous actions with bounds")


def rounds(
    world: World,
    behaviour: Behaviour,
    seed: int,
    stack: int = 1,
    episodes: int | None = None,
    steps: int | None = None,
    done: tuple[int, int] = (0, 0),
) -> Iterator[list[Played]]:
    """Episodes in the order of their numbers, as many as the world has copies at a time.

    A round is a function of the seed and of its own number: what was played before does not matter, so that a
    collection which was stopped goes on as if it had not been. No episode is left out for its length; the last one is
    cut where ``steps`` are reached.

    Args:
        world: the environment.
        behaviour: how actions come about.
        seed: of everything.
        stack: what :func:`frames_of_an_observation` said.
        episodes: how many to play.
        steps: how many to take; together with ``episodes``, what is reached first ends the collection.
        done: episodes and steps that there are already, of whole rounds.

    Raises:
        InputError: if the environment fails, an episode does not end, or the policy gives no actions that fit.
    """
    possible(world, behaviour)
    copies, (played, taken) = len(world.copies), done
    while (episodes is None or played < episodes) and (steps is None or taken < steps):
        room = None if steps is None else steps - taken
        count = copies if episodes is None else min(copies, episodes - played)
        found = _round(world, behaviour, seed, played, stack, count, room)
        yield found
        played, taken = played + len(found), taken + sum(len(episode.rewards) for episode in found)


@torch.no_grad()
def _round(
    world: World, behaviour: Behaviour, seed: int, first: int, stack: int, count: int, room: int | None
) -> list[Played]:
    """Plays ``count`` episodes from number ``first`` on, of at most ``room`` steps together."""
    most = LONGEST * count + 1 if room is None else room
    torch.manual_seed(stream_seed(seed, "policy of the round from episode", first))
    np.random.seed(stream_seed(seed, "numpy of the round from episode", first) % 2**32)  # noqa: NPY002 (others' controllers may use it)
    generator = np.random.default_rng(stream_seed(seed, "noise of the round from episode", first))
    act = behaviour.begin() if behaviour.begin is not None else None
    seeds = [stream_seed(seed, "episode", first + copy) >> 32 for copy in range(count)]
    observations, lengths = world.blank, np.zeros(count, dtype=np.int64)
    observed: list[list[np.ndarray]] = [[] for _ in range(count)]
    actions: list[list[np.ndarray]] = [[] for _ in range(count)]
    rewards: list[list[float]] = [[] for _ in range(count)]
    terminated, over = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)

    def see(copy: int, observation: np.ndarray) -> None:
        moved = not observed[copy] or stack == 1 or (observation[:-1] == observations[copy, 1:]).all()
        if not moved:
            raise ValueError(f"its observations, at first {stack} frames in a row, are something else now")
        observations[copy] = observation
        observed[copy].append(observations[copy, -1].copy() if stack > 1 else observations[copy].copy())

    for copy in range(count):
        with world.explained(seeds[copy], 0):
            see(copy, world.reset(copy, seeds[copy]))
    # An episode is needed as long as those before it have not used up the steps. The policy acts for all copies, also
    # for those that have ended: the width of a matrix can change the last bit of its product.
    while len(playing := np.flatnonzero(~over & (np.cumsum(lengths) < most))):
        chosen = _actions(world, behaviour, act, observations, generator)
        for copy in playing.tolist():
            with world.explained(seeds[copy], int(lengths[copy]) + 1):
                following, reward, terminated[copy], truncated = world.step(copy, chosen[copy])
                see(copy, following)
                if lengths[copy] == LONGEST and not (terminated[copy] or truncated):
                    raise ValueError("the episode does not end; give the environment's option max_episode_steps")
            actions[copy].append(chosen[copy])
            rewards[copy].append(reward)
            lengths[copy] += 1
            over[copy] = terminated[copy] or truncated
    found = []
    for copy in range(count):
        steps = int(min(lengths[copy], most - lengths[:copy].sum()))
        if steps <= 0:
            break
        found.append(
            Played(
                seeds[copy],
                np.stack(observed[copy][: steps + 1]),
                np.stack(actions[copy][:steps]),
                np.array(rewards[copy][:steps]),
                bool(terminated[copy]) and steps == lengths[copy],
            )
        )
        observed[copy].clear()  # long episodes of images need the room
    return found


def _actions(
    world: World, behaviour: Behaviour, act: Act | None, observations: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """What all copies do next: float32 ``[E, A]`` within the bounds, or int64 ``[E]``."""
    if act is None:
        return world.clipped(uniform(world)(generator))
    space, copies = world.action_space, len(world.copies)
    actions = np.asarray(act(torch.from_numpy(observations.copy())))
    count = number_of_actions(space)
    if actions.shape != (copies, *space.shape):
        raise InputError(
            f"{behaviour.name}: actions of shape {actions.shape} for {copies} observations; environment "
            f"{world.environment!r} takes {(copies, *space.shape)}"
        )
    if count is not None:
        if actions.dtype.kind not in "iu" or actions.min() < space.start or actions.max() >= space.start + count:
            raise InputError(f"{behaviour.name}: actions {actions.tolist()!r:.60}; {space} takes numbers of its own")
        actions = actions.astype(np.int64)
    else:
        actions = actions.astype(np.float32)
        if not np.isfinite(actions).all():
            raise InputError(f"{behaviour.name}: its actions are not finite")
        if behaviour.noise:
            half = (space.high - space.low) / 2
            actions = actions + (behaviour.noise * half * generator.standard_normal(actions.shape)).astype(np.float32)
    if behaviour.epsilon:
        any_action = uniform(world)(generator)
        random = generator.random(copies) < behaviour.epsilon
        actions = np.where(random.reshape(-1, *[1] * (actions.ndim - 1)), any_action, actions)
    return world.clipped(actions)


def mean_return(world: World, behaviour: Behaviour, episodes: int, seed: int) -> float:
    """Mean return of so many episodes."""
    played = rounds(world, behaviour, seed, frames_of_an_observation(world), episodes)
    returns = [episode.rewards.sum() for together in played for episode in together]
    return float(np.mean(returns))


def space_of_observations(world: World, stack: int) -> Any:
    """The Gymnasium space of what a dataset holds of an observation: of stacks, of a single frame."""
    from gymnasium import spaces

    shape = world.observation_shape
    if world.images:
        return spaces.Box(0, 255, shape[1:] if stack > 1 else shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, shape, np.float32)
