"""Compares recorded transitions with the environment that they name.

If states can be set in the environment, recorded states are set and recorded actions are taken. If not, ranges are
compared with those of random steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from tensordict import TensorDict

from oper_lightning.data.frames import Frames, observation_shape
from oper_lightning.data.sources.source import Origin
from oper_lightning.data.transitions import is_discrete
from oper_lightning.envs.rollouts import World, ends_of, number_of_actions
from oper_lightning.errors import InputError, Stopped, first_line

ROWS = 100  # recorded steps that are taken again, spread over the data
RANDOM = 300  # random steps, by which a way to set states is tried; where there is none, their ranges are compared
LENGTH = 50  # of an episode of random steps
TOLERATED = 0.1  # of a step, in the median: simulators of other years differ by less
BEYOND = 3  # ranges of random steps: so far recorded values may lie from them,
APART = 30  # and so many times as wide or as large they may be

SetState = Callable[[Any, np.ndarray], None]


class Verdict(NamedTuple):
    """What came of the comparison."""

    fits: bool | None
    """None where nothing could be compared"""
    line: str
    """for a table"""
    warnings: list[str]
    """what does not fit"""


class Steps(NamedTuple):
    """R steps as flat arrays."""

    observations: np.ndarray
    """``[R, D]``"""
    actions: np.ndarray
    """``[R, A]``"""
    rewards: np.ndarray
    """``[R]``"""
    following: np.ndarray
    """next observations ``[R, D]``"""


def judge(transitions: TensorDict, origin: Origin, frames: Frames | None = None) -> Verdict:
    """Compares transitions ``[N]`` with the environment that their origin names, where it can be made here.

    Of images, whose ``frames`` lie apart, shapes and actions are compared: they do not tell the environment's state.
    """
    name = origin.environment
    if name is None:
        return Verdict(None, "no environment is named", [])
    try:
        world = World(name, origin.environment_options, origin.observation_keys)
    except InputError as error:
        return Verdict(None, f"not compared: {error}", [])
    try:
        if differences := _spaces(transitions, observation_shape(transitions, frames), origin, world):
            return Verdict(False, "does not fit: other shapes or bounds", differences)
        if frames is not None:
            return Verdict(None, "shapes and actions fit; images do not tell the state to compare more", [])
        return _steps(transitions, world)
    except Stopped:
        raise
    except Exception as error:  # an environment may raise anything
        return Verdict(None, f"not compared: {name} fails: {first_line(error)}", [])
    finally:
        world.close()


def _spaces(transitions: TensorDict, observation: tuple[int, ...], origin: Origin, world: World) -> list[str]:
    """Shapes and bounds that differ."""
    found = []
    space = world.action_space
    for key, recorded, shape in (
        ("observation", observation, world.observation_shape),
        ("action", tuple(transitions["action"].shape[1:]), space.shape),
    ):
        if recorded != tuple(shape):
            found.append(f"{key}s of shape {recorded}, but {world.environment} has {tuple(shape)}")
    discrete = is_discrete(transitions["action"])
    if not found and discrete != (number_of_actions(space) is not None):
        kinds = ("discrete", "continuous") if discrete else ("continuous", "discrete")
        found.append(f"actions are {kinds[0]}, but {world.environment} has {kinds[1]} ones")
    if found:
        return found
    low, high = ends_of(space)
    least, most = transitions["action"].min(), transitions["action"].max()
    if discrete and (least < low or most > high):
        found.append(f"actions {least} to {most} are recorded, but {world.environment} takes {low} to {high}")
    if found or origin.action_low is None or origin.action_high is None:
        return found
    for word, mine, theirs in (("lowest", origin.action_low, low), ("highest", origin.action_high, high)):
        if not np.allclose(mine, theirs):
            found.append(
                f"the data declare {np.asarray(mine).ravel()[0]:g} as {word} action, {world.environment} has "
                f"{np.asarray(theirs).ravel()[0]:g}: were actions changed on their way into it?"
            )
    return found


def _steps(transitions: TensorDict, world: World) -> Verdict:
    """Takes recorded steps again; where that is not possible compares ranges."""
    name, env = world.environment, world.copies[0]
    rows = np.unique(np.linspace(0, len(transitions) - 1, 20 * ROWS).astype(int))
    recorded = Steps(
        *(
            part[rows].double().reshape(len(rows), -1).numpy()
            for part in (
                transitions["observation"],
                transitions["action"],
                transitions["next", "reward"],
                transitions["next", "observation"],
            )
        )
    )
    recorded = _unclipped(recorded._replace(rewards=recorded.rewards[:, 0]))
    random, starts = _random_steps(env, world, RANDOM)
    own = _unclipped(random)
    for set_state in _ways(env, recorded.observations.shape[1]):
        try:
            moved, _, earned = _errors(env, world, own, set_state)
            if not max(moved, earned) <= TOLERATED / 2:
                continue
        except Stopped:
            raise
        except Exception:  # this way does not suit this environment
            continue
        return _verdict(name, *_errors(env, world, recorded, set_state), len(recorded.rewards))
    return _compare_ranges(name, transitions, random, starts)


def _unclipped(steps: Steps) -> Steps:
    """At most ROWS of the steps, spread, without those whose observation was clipped: it does not tell the state."""
    observations = steps.observations
    clipped = np.zeros(len(observations), dtype=bool)
    for extreme in (observations.min(0), observations.max(0)):
        reached = observations == extreme
        often = (reached.sum(0) > 1) & ~reached.all(0)
        clipped |= reached[:, often].any(1)
    kept = np.nonzero(~clipped)[0] if (~clipped).sum() > 10 else np.arange(len(observations))
    kept = kept[np.unique(np.linspace(0, len(kept) - 1, ROWS).astype(int))]
    return Steps(*(part[kept] for part in steps))


def _verdict(name: str, moved: float, most: float, earned: float, rows: int) -> Verdict:
    """The verdict on steps that were taken again, in words."""
    found = []
    if not moved <= TOLERATED:
        found.append(
            f"recorded next observations differ from {name}'s by {_share(moved)} of a step in the median of {rows} "
            f"rows: the data are not from this environment, or from another version of it"
        )
    elif not earned <= TOLERATED:
        found.append(
            f"rewards differ from {name}'s by {_share(earned)} of their spread in the median of {rows} rows, next "
            f"observations do not: rewards were scaled or replaced, so that returns in {name} do not measure them"
        )
    said = (
        f"{'fits' if not found else 'does not fit'}: of {rows} steps taken again observations differ by "
        f"{_share(moved)} of a step ({_share(most)} in nine of ten), rewards by {_share(earned)} of their spread"
    )
    return Verdict(not found, said, found)


def _share(value: float) -> str:
    """A share of a step, or of a spread, in percent."""
    return "< 0.1 %" if value < 0.001 else f"{100 * value:.1f} %" if value < 0.1 else f"{100 * value:,.0f} %"


def _errors(env: Any, world: World, steps: Steps, set_state: SetState) -> tuple[float, float, float]:
    """Differences when the steps are taken again from their states.

    Of next observations in lengths of a step, the median and what nine rows in ten keep; of rewards in their spread,
    the median.
    """
    moved, earned = [], []
    for observation, action, _, _ in zip(*steps, strict=True):
        env.reset(seed=0)
        set_state(env.unwrapped, observation)
        after, reward, *_ = env.step(action.reshape(world.action_space.shape).astype(world.action_space.dtype))
        moved.append(np.asarray(world.join(after), dtype=np.float64).ravel())
        earned.append(float(reward))
    change = np.abs(steps.following - steps.observations)
    # A column that hardly moves is measured by how it differs between rows.
    length = np.maximum(np.median(change, 0), 1e-3 * steps.observations.std(0)) + 1e-6
    differing = np.sqrt((((np.array(moved) - steps.following) / length) ** 2).mean(1))
    spread = max(float(steps.rewards.std()), 1e-3 * float(np.abs(steps.rewards).mean()), 1e-6)
    middle, most = np.quantile(differing, [0.5, 0.9])
    return float(middle), float(most), float(np.median(np.abs(np.array(earned) - steps.rewards)) / spread)


def _ways(env: Any, width: int) -> list[SetState]:
    """Ways to set a state from an observation of so many numbers; which of them is right is found by trying."""
    inner = env.unwrapped
    if hasattr(inner, "set_state") and hasattr(inner, "model"):
        positions, velocities = int(inner.model.nq), int(inner.model.nv)
        # Positions then velocities; the robot's place, which changes nothing, is often left out.
        left_out = range(max(0, positions + velocities - width), 4)
        return [*(_joints(count, positions, velocities) for count in left_out), _reacher, _double_pendulum]
    if hasattr(inner, "state"):
        return [_as_state, _pendulum]
    return []


def _joints(left_out: int, positions: int, velocities: int) -> SetState:
    def set_state(inner: Any, observation: np.ndarray) -> None:
        whole = np.concatenate([np.zeros(left_out), observation])
        inner.set_state(whole[:positions], whole[positions : positions + velocities])

    return set_state


def _reacher(inner: Any, observation: np.ndarray) -> None:
    """Cosines and sines of two joints, the target, the joints' velocities."""
    angles = np.arctan2(observation[2:4], observation[:2])
    inner.set_state(np.concatenate([angles, observation[4:6]]), np.concatenate([observation[6:8], np.zeros(2)]))


def _double_pendulum(inner: Any, observation: np.ndarray) -> None:
    """The cart's place, sines and cosines of two joints, velocities."""
    angles = np.arctan2(observation[1:3], observation[3:5])
    inner.set_state(np.concatenate([observation[:1], angles]), observation[5:8])


def _as_state(inner: Any, observation: np.ndarray) -> None:
    inner.state = observation.copy()


def _pendulum(inner: Any, observation: np.ndarray) -> None:
    """Cosine and sine of the angle, its velocity."""
    inner.state = np.array([np.arctan2(observation[1], observation[0]), observation[2]])


def _random_steps(env: Any, world: World, count: int) -> tuple[Steps, np.ndarray]:
    """Steps of the environment under random actions, in episodes of at most LENGTH, and which of them are first."""
    taken: list[tuple[np.ndarray, np.ndarray, float, np.ndarray]] = []
    env.action_space.seed(0)
    observation, starts = None, []
    while len(taken) < count:
        starts.append(observation is None)
        if observation is None:
            start, _ = env.reset(seed=len(taken))
            observation = np.asarray(world.join(start), dtype=np.float64).ravel()
        action = env.action_space.sample()
        after, reward, terminated, truncated, _ = env.step(action)
        following = np.asarray(world.join(after), dtype=np.float64).ravel()
        taken.append((observation, np.asarray(action, dtype=np.float64).ravel(), float(reward), following))
        over = terminated or truncated or len(taken) % LENGTH == 0
        observation = None if over else following
    return Steps(*(np.array(part) for part in zip(*taken, strict=True))), np.array(starts)


def _compare_ranges(name: str, transitions: TensorDict, steps: Steps, starts: np.ndarray) -> Verdict:
    """Compares recorded values with those of random steps, column by column."""
    observations = transitions["observation"].flatten(1).double().numpy()
    apart = _apart(observations, steps.observations)
    width, found = observations.shape[1], []
    if apart.sum() > width / 2:
        found.append(
            f"{int(apart.sum())} of {width} observation columns lie far from where {name} goes in {len(steps.rewards)} "
            f"random steps (first: column {int(np.nonzero(apart)[0][0])}): the data are not from this environment, or "
            f"in other units"
        )
    # Skilled policies earn what random ones never see, but hardly in their first step.
    ends = transitions["next", "done"]
    paid = np.abs(transitions["next", "reward"][ends.roll(1)].double().numpy())
    mine, theirs = float(np.median(paid)), float(np.median(np.abs(steps.rewards[starts])))
    if mine and theirs and not 1 / APART < mine / theirs < APART:
        found.append(
            f"the first reward of an episode is {mine:.3g} in size, {name} pays {theirs:.3g}: rewards were scaled or "
            f"replaced, or belong to another task"
        )
    said = (
        f"{width - int(apart.sum())} of {width} observation columns are near those of {len(steps.rewards)} random steps"
    )
    return Verdict(not found, f"{'fits' if not found else 'does not fit'}: {said} (states cannot be set)", found)


def _apart(recorded: np.ndarray, visited: np.ndarray) -> np.ndarray:
    """Columns ``[D]`` in which the middle of what was recorded lies far from all that was visited, or is far wider."""
    least, most = visited.min(0), visited.max(0)
    # What random steps do not move says nothing of how far it could be moved.
    extent = np.where(most > least, most - least, np.inf)
    low, high = np.quantile(recorded[:: max(1, len(recorded) // 100_000)], [0.05, 0.95], axis=0)
    return (low > most + BEYOND * extent) | (high < least - BEYOND * extent) | (high - low > APART * extent)
