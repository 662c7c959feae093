"""Whether recorded transitions and an environment fit each other, and what an algorithm is told of both."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.storage import observation_statistics
from oper_lightning.data.transitions import has_frames, is_discrete, returns_of
from oper_lightning.envs.rollouts import Rollouts, World, action_space, atari_id, ends_of, number_of_actions
from oper_lightning.envs.scores import NEORL2, family_of_environment
from oper_lightning.errors import InputError, note
from oper_lightning.spec import MOST_ACTIONS, DataSpec

Scale = float | Literal["return_range", "sign"]
"""of rewards: a factor, or how to find one"""
ONE_HOT = (
    "every action is a row of zeros with a single 1, and counts as continuous: if these are numbers of discrete "
    "actions, save actions.argmax(1), whole numbers of an integer type, one to a row"
)


def make_world(source: Source, rollouts: Rollouts) -> World | None:
    """The environment to evaluate in; None, with a note, if the dataset has none that can be made here.

    Raises:
        InputError: if one that was named by hand cannot be made.
    """
    origin = source.origin()
    name = rollouts.environment or origin.environment
    if name is None:
        note(f"{source}: no environment known: training without evaluation")
        return None
    options = origin.environment_options if rollouts.environment is None else {}
    if rollouts.steps is not None:
        options = {**options, "max_episode_steps": rollouts.steps}
    try:
        return World(name, options, origin.observation_keys, min(rollouts.parallel, rollouts.episodes))
    except InputError as error:
        if name in (rollouts.environment, getattr(source, "environment", None)):
            raise
        note(f"{error}: training without evaluation")
        return None


def check_shapes(source: Source, observation_shape: tuple[int, ...], actions: Tensor, world: World) -> None:
    """Compares kinds of actions ``[N, ...]``, and shapes of observations and actions.

    Raises:
        InputError: if they differ, or the environment takes actions that nothing here makes.
    """
    remedy = "name the right one in data.rollouts.environment, or set data.rollouts to null"
    space = world.action_space
    if type(space).__name__ not in ("Box", "Discrete"):
        raise InputError(f"environment {world.environment} takes actions {space}; only Box and Discrete work; {remedy}")
    discrete = is_discrete(actions)
    if discrete != (number_of_actions(space) is not None):
        kinds = ("discrete", "continuous") if discrete else ("continuous", "discrete")
        numbers = "floating-point numbers" if discrete else "whole numbers of an integer type, one to a row"
        raise InputError(
            f"{source}: {kinds[0]} actions, but environment {world.environment} has {kinds[1]} ones ({space}); save "
            f"them as {numbers} if that is what they are, or {remedy}"
        )
    for key, stored, shape in (
        ("observation", observation_shape, world.observation_shape),
        ("action", tuple(actions.shape[1:]), world.action_space.shape),
    ):
        if stored != shape:
            if key == "observation" and (ours := atari_id(world.environment)) is not None:
                remedy = f"for stacks of small grey frames name {ours} in data.rollouts.environment"
            raise InputError(
                f"{source}: {key}s of shape {stored}, but environment {world.environment} has {shape}; {remedy}"
            )


def action_bounds(
    source: Source, actions: Tensor, world: World | None, origin: Origin, ask: bool
) -> tuple[Tensor, Tensor, bool]:
    """Bounds of actions ``[N, A]`` (``[A]``) or ``[N]`` (their first and last number), and whether they were known.

    The source knows them, else the environment; else, with a note, they are read off the data.

    Args:
        source: for messages.
        actions: all of them.
        world: the environment, where it was made.
        origin: what the source knows.
        ask: whether to make the environment for its bounds where only its name is known.

    Raises:
        InputError: if the source's bounds are not for as many columns.
    """
    name: str | None = world.environment if world else origin.environment
    space: Any = world.action_space if world else None
    if space is None and origin.action_low is None and name and ask:
        space = action_space(name, origin.environment_options)
        if is_discrete(actions) != (number_of_actions(space) is not None):
            space = None  # these are not the actions that the environment takes
    own, asked = (origin.action_low, origin.action_high), ends_of(space)
    for low, high in (own, asked):
        if low is not None and high is not None:
            for shape in (np.shape(low), np.shape(high)):
                if shape and shape != actions.shape[1:]:
                    raise InputError(
                        f"{source}: action bounds of shape {list(shape)} for actions of shape "
                        f"{list(actions.shape[1:])}; give one number, or one for each column"
                    )
            if is_discrete(actions):
                first, last = _numbers(source, low, high, asked if world else (None, None), name)
                return actions.new_tensor(first), actions.new_tensor(last), True
            bounds = [torch.as_tensor(bound).to(actions) for bound in (low, high)]
            if all(bound.isfinite().all() for bound in bounds):
                lowest, highest = (bound.expand(actions.shape[1:]).clone() for bound in bounds)
                return lowest, highest, True
    unasked = f"without a trainer {name} is not asked" if name and not ask else "not known"
    return *_recorded_bounds(source, actions, unasked, origin.bounded_by), False


def _numbers(
    source: Source, low: Any, high: Any, played: tuple[int | None, int | None], environment: str | None
) -> tuple[int, int]:
    """First and last number of discrete actions; ``played`` are those that the environment takes, if known.

    Raises:
        InputError: if they are no whole numbers, too many, or others than the environment takes.
    """
    if not all(math.isfinite(bound) and bound == int(bound) for bound in (low, high)):
        raise InputError(f"{source}: discrete actions are whole numbers; action_low {low}, action_high {high}")
    first, last = int(low), int(high)
    _few_enough(source, first, last)
    if played[0] is not None and played[1] is not None and not played[0] <= first <= last <= played[1]:
        raise InputError(
            f"{source}: discrete actions {first} to {last}, but environment {environment} takes {played[0]} to "
            f"{played[1]}; name the right one in data.rollouts.environment, or set data.rollouts to null"
        )
    return first, last


def _few_enough(source: Source, first: int, last: int) -> None:
    if not 1 <= last - first + 1 <= MOST_ACTIONS:
        raise InputError(
            f"{source}: discrete actions from {first:,} to {last:,}; 1 to {MOST_ACTIONS:,} of them work; number them "
            f"from 0, or, if they are amounts, save them as floating-point numbers"
        )


def _recorded_bounds(source: Source, actions: Tensor, why: str, bounded_by: str) -> tuple[Tensor, Tensor]:
    """For continuous actions ±1 if all are within, else what occurs; for discrete ones 0 to the highest number. Either
    is a guess, and said to be one.
    """
    low, high = actions.amin(0), actions.amax(0)
    right = f"if others are right, give the source's {bounded_by}"
    if is_discrete(actions):
        first, last = min(int(low), 0), int(high)
        _few_enough(source, first, last)
        note(
            f"{source}: actions are whole numbers, one to a row, and count as discrete; how many there are is {why}: "
            f"{last - first + 1:,} ({first} to {last}) are taken, by what was recorded; {right}"
        )
        return actions.new_tensor(first), actions.new_tensor(last)
    unit = torch.ones_like(low)
    within = bool((low >= -1).all() and (high <= 1).all())
    span = f"{low.min().item():g} to {high.max().item():g}"
    note(
        f"{source}: action bounds: {why}; "
        + (f"-1 to 1 is taken, as all actions lie within ({span})" if within else f"taken from the data: {span}")
        + f"; policies act between these bounds: {right}"
    )
    return (-unit, unit) if within else (low, torch.where(high > low, high, low + 1))


def outside(actions: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Which of actions ``[N, A]`` leave their bounds by more than float32 rounding, or ``[N]`` at all; bool ``[N]``."""
    slack = 0 if is_discrete(actions) else 1e-5 * (high - low)
    return ((actions < low - slack) | (actions > high + slack)).reshape(len(actions), -1).any(1)


def are_one_hot(actions: Tensor) -> bool:
    """Whether continuous actions ``[N, A]`` look like numbers of discrete ones, spelt out as zeros and a 1."""
    if actions.dim() != 2 or actions.shape[1] < 2:
        return False
    parts = (actions[:1000], actions)  # nearly always the first rows say no
    return all(bool(((part == 0) | (part == 1)).all() and (part.sum(1) == 1).all()) for part in parts)


def check_actions(source: Source, actions: Tensor, low: Tensor, high: Tensor, clip: bool) -> None:
    """Looks for actions ``[N, A]`` or ``[N]`` that lie outside their bounds by more than float32 rounding; clips if
    asked to. Notes that continuous ones look like discrete ones.

    Raises:
        InputError: if there are any and they are not to be clipped; if discrete ones are to be clipped.
    """
    if not len(actions):
        return
    discrete = is_discrete(actions)
    if clip and discrete:
        raise InputError(f"{source}: discrete actions cannot be clipped; set data.clip_actions to false")
    wrong = outside(actions, low, high)
    if not clip and (count := int(wrong.sum())):
        row = int(torch.nonzero(wrong)[0])
        remedy = (
            "give the right ones as the source's action_low and action_high"
            if discrete
            else "set data.clip_actions to true to bring them to its border"
        )
        raise InputError(
            f"{source}: {count:,} of {len(actions):,} actions lie outside the action space "
            f"[{low.min().item():g}, {high.max().item():g}] (first at row {row:,}: {actions[row].tolist()}); {remedy}"
        )
    if not discrete and are_one_hot(actions):
        note(f"{source}: {ONE_HOT}")
    if clip:
        torch.clamp(actions, low, high, out=actions)


def factor_of(source: Source, transitions: TensorDict, scale: Scale) -> float | Literal["sign"]:
    """The factor that a scale of rewards means for these transitions; signs stay signs.

    Raises:
        InputError: if rewards are to be scaled by the range of returns and there is none.
    """
    if scale != "return_range":
        return scale
    if not len(transitions):
        raise InputError(f"{source}: nothing is recorded: no data.reward_scale=return_range")
    totals = returns_of(transitions)
    spread = float(totals.max() - totals.min())
    if not spread:
        raise InputError(f"{source}: all episodes return {float(totals[0]):g}: no data.reward_scale=return_range")
    return 1000 / spread


def scaled(transitions: TensorDict, factor: float | Literal["sign"], shift: float) -> TensorDict:
    """The transitions with scaled and shifted rewards; everything else shared."""
    if factor == 1 and shift == 0:
        return transitions
    reward = transitions["next", "reward"]
    changed = transitions.clone(recurse=False)
    changed["next"] = transitions["next"].clone(recurse=False)
    changed["next", "reward"] = (reward.sign() if factor == "sign" else reward * factor) + shift
    return changed


def reference_of(origin: Origin, environment: str | None) -> tuple[tuple[float, float] | None, str]:
    """Returns that score 0 and 100, and who says so.

    The source knows them, by its argument, by the dataset or by the name of one of D4RL's; else NeoRL-2 has some for
    the environment, or D4RL for its robot; else there are none.
    """
    if origin.reference is not None:
        return origin.reference, origin.reference_from
    if environment in NEORL2:
        return NEORL2[environment], "NeoRL-2's"
    known = family_of_environment(environment) if environment else None
    if known is None:
        return None, ""
    return (known.low, known.high), f"D4RL's for the robot of {environment}"


def spec(
    transitions: TensorDict,
    observation_shape: tuple[int, ...],
    origin: Origin,
    world: World | None,
    bounds: tuple[Tensor, Tensor],
    recorded: str,
) -> DataSpec:
    """What an algorithm needs to know of transitions ``[N]`` with bounds ``[A]`` and the fingerprint ``recorded``."""
    environment = world.environment if world else origin.environment
    reference, reference_from = reference_of(origin, environment)
    pixels = has_frames(transitions)
    shape = () if pixels else observation_shape
    mean, std = torch.zeros(shape), torch.ones(shape)
    if len(transitions) and not pixels:
        mean, std = observation_statistics(transitions["observation"])
    return DataSpec(
        observation_shape=observation_shape,
        action_shape=tuple(transitions["action"].shape[1:]),
        action_low=bounds[0],
        action_high=bounds[1],
        observation_mean=mean.cpu(),
        observation_std=std.cpu(),
        rows=len(transitions),
        fingerprint=recorded,
        dataset=origin.dataset,
        environment=environment,
        environment_options=origin.environment_options,
        observation_keys=origin.observation_keys,
        reference=reference,
        reference_from=reference_from,
        d4rl=origin.d4rl and environment == origin.environment,
        discrete=is_discrete(transitions["action"]),
        pixels=pixels,
    )
