"""Pure functions over N transitions in recording order: episode ends, returns, n-step targets, the fingerprint.

``transitions`` is a TensorDict ``[N]`` with ``observation``, ``action`` and, under ``next``, ``observation``,
``reward``, ``terminated``, ``truncated`` and ``done``, each of the last four with one number per transition.
Images lie apart, as frames (:mod:`oper_lightning.data.frames`); in their place, ``observation`` and the next one,
``transitions`` then has ``first``, int64 ``[N]``: the number of the first frame.
``ends`` is bool ``[N]``: True on the last transition of every episode; the last row of all is always an end. Where
episodes were not recorded whole, ``("next", "episode_return")`` is what each transition's whole episode returned.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.errors import InputError

Key = str | tuple[str, str]
RETURN: Key = ("next", "episode_return")
LEAP = 100  # times as long as usual: no step, but the beginning of another episode
SEAM = 1e-3  # standard deviations between where a step ended and where the next one begins
SAMPLE = 100_000  # rows from which a scale is read off


def transitions_from(
    observation: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    next_observation: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    episode_return: np.ndarray | None = None,
) -> TensorDict:
    """Joins arrays of M consecutive transitions into torchrl's TED layout (float32; reward and flags ``[M, 1]``).

    Actions that are whole numbers, one for each row, are discrete: int64 ``[M]``. Observations of bytes with two or
    more dimensions are images and stay uint8. Where both flags are set the episode counts as terminated. Where rows are
    not whole episodes, ``episode_return`` says what each row's episode returned, ``[M]``.

    Raises:
        ValueError: if a flag is neither 0 nor 1, or an array holds no real numbers.
    """
    terminated = _flag(terminated, "terminated")
    truncated = _flag(truncated, "truncated") & ~terminated
    tensors: dict[str, Any] = {
        "observation": _observation(np.asarray(observation)),
        "action": _action(np.asarray(action)),
        "next": {
            "observation": _observation(np.asarray(next_observation)),
            "reward": _float(reward).reshape(-1, 1),
            "terminated": torch.from_numpy(terminated),
            "truncated": torch.from_numpy(truncated),
            "done": torch.from_numpy(terminated | truncated),
        },
    }
    if episode_return is not None:
        tensors["next"]["episode_return"] = _float(episode_return).reshape(-1, 1)
    return TensorDict(tensors, batch_size=[len(terminated)])


def _flag(array: np.ndarray, name: str) -> np.ndarray:
    flags = np.asarray(array).reshape(-1, 1)
    if (place := wrong_flag(flags)) is not None:
        raise ValueError(f"{name} is {flags[place, 0]} at row {place:,} of {len(flags):,}; a flag is 0 or 1")
    return flags.astype(bool)


def wrong_flag(flags: np.ndarray) -> int | None:
    """Row of the first flag ``[N, 1]`` or ``[N]`` that is neither 0 nor 1; None if all are."""
    wrong = (flags != 0) & (flags != 1)
    return int(np.argmax(wrong.reshape(-1))) if wrong.any() else None


def _action(array: np.ndarray) -> Tensor:
    if array.dtype.kind in "iub" and array.shape in ((len(array),), (len(array), 1)):
        return torch.from_numpy(np.ascontiguousarray(array.reshape(-1), dtype=np.int64))
    return _float(array)


def _observation(array: np.ndarray) -> Tensor:
    if array.dtype == np.uint8 and array.ndim > 2:
        return torch.from_numpy(array)
    return _float(array)


def are_images(observations: Tensor) -> bool:
    """Whether observations ``[N, ...]`` of transitions are images of bytes."""
    return observations.dtype is torch.uint8


def is_discrete(actions: Tensor) -> bool:
    """Whether actions ``[N, ...]`` of transitions are numbers of discrete actions: what is no floating point is."""
    return not actions.is_floating_point()


def _float(array: np.ndarray) -> Tensor:
    if np.asarray(array).dtype.kind not in "fiub":
        raise ValueError(f"an array of {np.asarray(array).dtype}; real numbers are needed")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def has_frames(transitions: TensorDict) -> bool:
    """Whether observations of transitions are images, which lie apart as frames."""
    return "first" in transitions.keys()  # noqa: SIM118 (a TensorDict)


def seen_as(transitions: TensorDict) -> str:
    """What stands for observations in transitions: ``first`` for images, else ``observation``."""
    return "first" if has_frames(transitions) else "observation"


def squeezed(transitions: TensorDict) -> TensorDict:
    """A view of TED transitions in which reward and flags have one number per transition, without copying."""
    following, seen = transitions["next"], seen_as(transitions)
    numbers = ("reward", "terminated", "truncated", "done", *(["episode_return"] if has_returns(transitions) else []))
    flags = {key: following[key].squeeze(-1) for key in numbers}
    return TensorDict(
        {
            seen: transitions[seen],
            "action": transitions["action"],
            "next": {seen: following[seen], **flags},
        },
        batch_size=transitions.batch_size,
        device=transitions.device,
    )


def has_returns(transitions: TensorDict) -> bool:
    """Whether transitions say what their episodes returned."""
    return RETURN in transitions.keys(include_nested=True)


def fingerprint(transitions: TensorDict, frames: str = "") -> str:
    """SHA-256 over the row count and, in row order, float32 observations, actions and rewards and the end flags.

    Weights belong to rows: a file with the same rows in another order, or with any value changed, is other data. Images
    count by ``frames``, the SHA-256 of all their frames, and by where those of a row begin.
    """
    digest = hashlib.sha256(f"{len(transitions)}{frames}".encode())
    keys: list[Key] = ["observation", "action", ("next", "reward"), ("next", "terminated"), ("next", "truncated")]
    for key in ["first", ("next", "first"), *keys[1:]] if frames else keys:
        for chunk in transitions.get(key).split(1 << 16):
            digest.update(memoryview(chunk.contiguous().cpu().numpy()).cast("B"))
    return digest.hexdigest()


def episode_of(ends: Tensor) -> Tensor:
    """Number of the episode of each transition, int64 ``[N]``, counted from 0."""
    return torch.cumsum(ends.long(), 0) - ends.long()


def last_row(ends: Tensor) -> Tensor:
    """Row of the last transition of each transition's episode, int64 ``[N]``."""
    return torch.nonzero(ends).squeeze(1)[episode_of(ends)]


def episode_returns(rewards: Tensor, ends: Tensor) -> Tensor:
    """Undiscounted return of each transition's whole episode, float64 ``[N]``.

    Returns that differ by no more than the rounding of their rewards are made equal.
    """
    # On the CPU: a GPU adds in an order that changes from run to run.
    episode, reward = episode_of(ends.cpu()), rewards.double().cpu()
    empty = torch.zeros(int(episode[-1]) + 1, dtype=torch.float64)
    totals = empty.index_add(0, episode, reward)
    if totals.max() - totals.min() <= 1e-6 * empty.index_add(0, episode, reward.abs()).max():
        totals[:] = totals.mean()
    return totals[episode].to(rewards.device)


def returns_of(transitions: TensorDict) -> Tensor:
    """Undiscounted return of each transition's whole episode, float64 ``[N]``: as recorded, else the sum of rewards."""
    if has_returns(transitions):
        return transitions[RETURN].double()
    return episode_returns(transitions["next", "reward"], transitions["next", "done"])


def discounted_sum(values: Tensor, carry: Tensor) -> Tensor:
    """Solves ``y[t] = values[t] + carry[t] * y[t + 1]`` backwards over the last dimension (``y`` beyond the end: 0).

    Takes ``[..., N]`` and returns float64 of that shape, in about log2(longest run of non-zero carry) whole-array
    steps (a parallel scan) instead of N small ones.
    """
    total, carry = values.double().clone(), carry.double().expand(values.shape).clone()
    shift = 1
    while shift < total.shape[-1] and bool(carry.any()):
        total[..., :-shift] += carry[..., :-shift] * total[..., shift:]
        carry[..., :-shift] *= carry[..., shift:].clone()
        carry[..., -shift:] = 0
        shift *= 2
    return total


def return_to_go(rewards: Tensor, ends: Tensor, discount: float) -> Tensor:
    """Discounted sum of the rewards from each transition to the end of its episode, float64 ``[N]``."""
    return discounted_sum(rewards, discount * (~ends).double())


def times_and_returns(rewards: Tensor, ends: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """Steps before each transition in its episode, int64 ``[N]``, and :func:`return_to_go`, float64 ``[N]``."""
    episode = episode_of(ends)
    time = torch.arange(len(ends), device=ends.device) - torch.searchsorted(episode, episode)
    return time, return_to_go(rewards, ends, discount)


def n_step(transitions: TensorDict, n: int, discount: float, bootstrap_truncated: bool = True) -> TensorDict:
    """Turns transitions into n-step ones, TensorDict ``[N]`` of the columns that change.

    ``("next", "reward")`` is the discounted sum of the next n rewards of the episode, ``("next", "row")`` the row of
    the last of them, whose next observation stands for the transition's own, and ``discount`` the factor of the value
    bootstrapped there: discount to the number of steps, 0 if the episode terminated. A window cut by a truncation
    bootstraps at the observation after the cut, unless ``bootstrap_truncated`` is False: then any end of episode
    counts as terminal.

    Raises:
        InputError: if n is not positive.
    """
    if n < 1:
        raise InputError(f"n_step {n} must be at least 1")
    done, terminated = transitions["next", "done"], transitions["next", "terminated"]
    last = last_row(done)
    row = torch.arange(len(last), device=last.device)
    end = torch.minimum(row + min(n, len(last)) - 1, last)
    factor = discount ** (end - row + 1).double()
    columns: dict[str, Tensor | dict[str, Tensor]] = {
        "discount": factor.masked_fill(terminated[end] if bootstrap_truncated else done[end], 0).float()
    }
    if n > 1:
        rewards = transitions["next", "reward"].double()
        total = torch.zeros_like(rewards)
        for step in range(int((end - row).max()) + 1):  # no window is longer, whatever n is
            ahead = row + step
            total += discount**step * rewards[ahead.clamp(max=len(row) - 1)].masked_fill(ahead > end, 0)
        columns["next"] = {"reward": total.float(), "row": end}
    return TensorDict(columns, batch_size=transitions.batch_size)


def next_action(transitions: TensorDict) -> Tensor:
    """The action taken after each transition, ``[N, A]``; at the end of an episode, where none was, zeros."""
    following: Tensor = transitions["action"].roll(-1, 0)
    return following.masked_fill(transitions["next", "done"].reshape(-1, *[1] * (following.dim() - 1)), 0)


def missed_ends(transitions: TensorDict) -> Tensor:
    """Rows inside episodes after which an end seems to be missing, int64 ``[M]``.

    There the step to the next observation is over a hundred times as long as 98 % of all steps are, or the following
    row begins elsewhere than the step ended. Lengths are in standard deviations of the observations. Of images only the
    latter is asked.
    """
    if has_frames(transitions):
        follows = transitions["first"][1:] == transitions["next", "first"][:-1]
        return torch.nonzero(~(follows | transitions["next", "done"][:-1])).squeeze(1)
    observation, following = transitions["observation"], transitions["next", "observation"]
    rows, width, inside = len(observation), observation[0].numel(), ~transitions["next", "done"].cpu()
    sample = observation[:: max(1, rows // SAMPLE, rows * width >> 22)].flatten(1).double()  # 32 MB at most
    scale = sample.std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    length, gap = torch.zeros(rows), torch.zeros(rows)
    part = max(1, (1 << 18) // width)
    for start in range(0, rows, part):
        begun, ended = observation[start : start + part + 1].flatten(1), following[start : start + part].flatten(1)
        length[start : start + part] = ((ended - begun[: len(ended)]) / scale).norm(dim=1)
        gap[start : start + len(begun) - 1] = ((begun[1:] - ended[: len(begun) - 1]) / scale).norm(dim=1)
    steps = length[inside]
    if len(steps) == 0:
        return torch.empty(0, dtype=torch.long)
    usual = torch.quantile(steps[:: max(1, len(steps) // SAMPLE)], 0.98)
    leap = (length > LEAP * usual) & (usual > 0)
    return torch.nonzero(inside & (leap | (gap > SEAM))).squeeze(1)
