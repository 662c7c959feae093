"""What a dataset is like, in numbers and in sentences about what is wrong with it."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.frames import Frames
from oper_lightning.data.matching import ONE_HOT, are_one_hot, outside
from oper_lightning.data.transitions import episode_of, has_frames, is_discrete, missed_ends, returns_of, seen_as
from oper_lightning.nn.encoders import unfit
from oper_lightning.report import images

FAR = 20  # interquartile ranges from the median: a value beyond them lies apart,
GAP = 4  # if it is so many times as far from the median as the next nearer one,
RARE = 0.05  # and no more than this share of all values do
SELDOM = 0.001  # of the rows: so few do not tell what an action leads to
GRID = 30  # cells to a side in which coverage is counted


class Facts(NamedTuple):
    """One dataset; E episodes, N transitions."""

    returns: Tensor
    """undiscounted, float64 ``[E]``"""
    lengths: Tensor
    """transitions, int64 ``[E]``"""
    terminated: Tensor
    """whether an episode ended by termination, bool ``[E]``"""
    saturation: Tensor
    """share of continuous actions within 1 % of their bounds, ``[A]``; of discrete ones ``[0]``"""
    counts: Tensor | None
    """how often each discrete action was taken, int64, one number for each that there is; None of continuous ones"""
    plane: Tensor
    """the two leading principal components of observations, float64 ``[N, 2]``"""
    cell: Tensor
    """number of the cell of each observation in a grid over that plane, int64 ``[N]``"""
    warnings: list[str]
    """what to look at before training"""


def describe(transitions: TensorDict, low: Tensor, high: Tensor, frames: Frames | None = None) -> Facts:
    """Looks at transitions ``[N]`` whose actions lie between ``low`` and ``high`` ``[A]``, or are numbered from low to
    high. Images have ``frames``.
    """
    ends = transitions["next", "done"]
    episode = episode_of(ends)
    returns = returns_of(transitions)[ends]
    lengths = torch.bincount(episode)
    action = transitions["action"]
    counts, saturated = None, torch.empty(0)
    if is_discrete(action):
        inside = ~outside(action, low, high)
        counts = torch.bincount((action - low)[inside], minlength=int(high - low) + 1)
        about_actions = _choices(action, counts, low, high)
    else:
        margin = 0.01 * (high - low)
        saturated = ((action <= low + margin) | (action >= high - margin)).double().mean(0)
        about_actions = _amounts(action, low, high, saturated)
    of_images = unfit(frames.observation_shape) if frames is not None else None
    warnings = [
        *([f"no algorithm takes these observations: {of_images}"] if of_images else []),
        *_values(transitions),
        *about_actions,
        *_episodes(transitions, returns, lengths, frames),
        *_seams(transitions),
    ]
    terminated = transitions["next", "terminated"][ends]
    if frames is None:
        plane = principal(transitions["observation"])
    else:
        seen, stands = images.features(frames, transitions)
        plane = principal(seen)[stands]
    return Facts(returns, lengths, terminated, saturated, counts, plane, _cells(plane), warnings)


def coverage(cell: Tensor, weights: Tensor) -> float:
    """Effective number of cells that weights ``[N]`` visit, as a share of what uniform weights do.

    The effective number is the exponential of the entropy of the distribution over cells.
    """

    def cells(mass: Tensor) -> float:
        share = torch.zeros(GRID * GRID, dtype=torch.float64).index_add_(0, cell, mass.double())
        share = share[share > 0] / share.sum()
        return float((-(share * share.log()).sum()).exp())

    return cells(weights) / cells(torch.ones_like(weights))


def _values(transitions: TensorDict) -> list[str]:
    """Columns of observations that never change, and observations and rewards that are impossible."""
    reward, ends, found = transitions["next", "reward"].unsqueeze(1), transitions["next", "done"], []
    if not has_frames(transitions):  # of a pixel it says nothing
        observation = transitions["observation"].flatten(1)
        found = [*_still("observation", observation), *_apart("observation", observation, torch.ones_like(ends))]
    return [
        *found,
        # What an episode ends with is often of another size.
        *_apart("reward", reward, ~ends),
        *_apart("reward at the end of an episode", reward, ends),
    ]


def _still(name: str, column: Tensor) -> list[str]:
    """Columns of ``[N, D]`` that never change."""
    found = []
    size, extent = column.abs().amax(0), column.amax(0) - column.amin(0)
    constant = extent <= 1e-6 * size
    if constant.any():
        found.append(f"{name} columns that never change, or by rounding only: {_numbers(constant)}")
    if (shifted := (extent <= 1e-4 * size) & ~constant).any():
        found.append(
            f"{name} columns that change by little around a large value, of which single precision keeps few "
            f"digits: {_numbers(shifted)}; subtract what is the same in all rows"
        )
    return found


def _choices(action: Tensor, counts: Tensor, low: Tensor, high: Tensor) -> list[str]:
    """Discrete actions ``[N]``, taken ``counts`` times, that are not there, or hardly."""
    found = []
    if (wrong := outside(action, low, high)).any():
        found.append(f"{_share(wrong)} of actions are none of {int(low)} to {int(high)}")
    if (never := counts == 0).any():
        found.append(f"actions that are never taken: {_numbers(never, int(low))}: nothing can be learnt about them")
    if (seldom := (counts > 0) & (counts < SELDOM * len(action))).any():
        found.append(
            f"actions that are taken in less than {SELDOM:.1%} of the rows: {_numbers(seldom, int(low))} "
            f"({int(counts[seldom].sum()):,} rows): little can be learnt about them"
        )
    return found


def _amounts(action: Tensor, low: Tensor, high: Tensor, saturated: Tensor) -> list[str]:
    """Columns of continuous actions ``[N, A]`` that never change, or are always at their bounds; impossible values."""
    wild = _apart("action", action, torch.ones(len(action), dtype=torch.bool))
    found = [*_still("action", action), *wild]
    if are_one_hot(action):
        found.append(ONE_HOT)
    if (wrong := outside(action, low, high)).any():
        found.append(
            f"{_share(wrong)} of actions lie outside their bounds: data.clip_actions brings them to the border"
        )
    if (stuck := saturated > 0.95).any() and not wild:
        found.append(f"action columns that are nearly always at their bounds: {_numbers(stuck)}")
    return found


def _apart(name: str, columns: Tensor, which: Tensor) -> list[str]:
    """Values of ``columns`` ``[N, D]``, in the rows ``which`` ``[N]``, that lie far from all others, by column."""
    rows = torch.nonzero(which).squeeze(1)
    columns = columns[rows].double()
    if len(columns) < 2:
        return []
    middle, spread = _middle(columns)
    # Most of a column may be one value; then the other columns say what is far.
    usual = spread[spread > 0].median().clamp(min=1) if (spread > 0).any() else torch.ones(())
    border = FAR * torch.where(spread > 0, spread, usual)
    found = []
    for place in torch.nonzero(((columns - middle).abs() > border).any(0)).squeeze(1).tolist():
        values = columns[:, place]
        distance = (values - middle[place]).abs()
        beyond = distance > border[place]
        if beyond.double().mean() > RARE:
            continue
        near = distance[~beyond].max().reshape(1)
        steps = torch.cat([near, distance[beyond].sort().values])
        gaps = torch.nonzero(steps[1:] >= GAP * steps[:-1]).squeeze(1)
        if len(gaps) == 0:  # a long tail, not a cluster of its own
            continue
        far = distance >= steps[1:][gaps[0]]
        entry = f"{name}[{place}]" if columns.shape[1] > 1 else name
        found.append(
            f"{entry}: {_share(far)} of values lie far from all others, {_range(values[far])} where the others are "
            f"{_range(values[~far])} (first: row {int(rows[far][0]):,}): impossible, or rare events?"
        )
    more = len(found) - 6
    return found if more < 2 else [*found[:6], f"and the same in {more} more columns of {name}s"]


def _middle(column: Tensor) -> tuple[Tensor, Tensor]:
    """Median and interquartile range of each of ``[N, D]``, of at most 100,000 rows."""
    step = max(1, len(column) // 100_000)
    low, middle, high = torch.quantile(column[::step], torch.tensor([0.25, 0.5, 0.75]).double(), dim=0)
    return middle, high - low


def _episodes(transitions: TensorDict, returns: Tensor, lengths: Tensor, frames: Frames | None) -> list[str]:
    """Episodes that are copies of others, or do not differ in return."""
    found = []
    count = len(returns)
    if count == 1:
        return ["only one episode: priorities from returns cannot tell transitions apart"]
    if returns.max() == returns.min():
        found.append(f"all episodes return {returns[0]:.4g}: priorities from returns (OPER-R, top x %, RW) say nothing")
    # What every step pays alike tells long episodes from short ones, as in CartPole.
    worthless = returns.max() == returns.min() or not transitions["next", "terminated"].any()
    if worthless and (transitions["next", "reward"] == transitions["next", "reward"][0]).all():
        found.append(f"every reward is {transitions['next', 'reward'][0]:.4g}: there is nothing to learn values from")
    if count > 2 and lengths.max() > lengths.sum() / 2:
        found.append(
            f"one episode holds {lengths.max() / lengths.sum():.0%} of all transitions: is the end of others missing?"
        )
    seen = set()
    key, sizes = seen_as(transitions), lengths.tolist()
    for observation, action in zip(transitions[key].split(sizes), transitions["action"].split(sizes), strict=True):
        # Of images the first and the last frame will do.
        values = observation if frames is None else frames.data[observation[[0, -1]]]
        digest = hashlib.sha256(values.contiguous().numpy().tobytes())
        digest.update(action.contiguous().numpy().tobytes())
        seen.add(digest.digest())
    if len(seen) < count:
        found.append(f"{count - len(seen):,} of {count:,} episodes are copies of others")
    return found


def _seams(transitions: TensorDict) -> list[str]:
    """Steps that do not follow from the step before, and episodes that begin where the one before ended."""
    found = []
    key, ends = seen_as(transitions), transitions["next", "done"][:-1]
    follows = transitions["next", key][:-1] == transitions[key][1:]
    follows = follows.flatten(1).all(1) if follows.dim() > 1 else follows
    jumps = ~follows & ~ends
    if jumps.any():
        row = int(torch.nonzero(jumps)[0])
        found.append(
            f"{_share(jumps)} of steps within episodes begin elsewhere than the one before ended "
            f"(first: row {row + 1:,}): steps are missing, or ends of episodes are"
        )
    missed = missed_ends(transitions)
    if len(leaps := missed[follows[missed]]):
        shown = ", ".join(f"{row:,}" for row in leaps[:8].tolist()) + (", …" if len(leaps) > 8 else "")
        found.append(
            f"{len(leaps):,} steps within episodes are over a hundred times as long as nearly all others (rows "
            f"{shown}): are ends of episodes missing there?"
        )
    joined = follows & ends
    if joined.any():
        found.append(
            f"{int(joined.sum()):,} of {int(ends.sum()) + 1:,} episodes begin exactly where the one before ended: "
            f"ends may be marked one step late, or episodes cut at will"
        )
    return found


def _cells(plane: Tensor) -> Tensor:
    """Cells of a grid over the plane ``[N, 2]``, between its 0.5 and 99.5 % quantiles."""
    step = max(1, len(plane) // 100_000)
    low, high = torch.quantile(plane[::step], torch.tensor([0.005, 0.995]).double(), dim=0)
    place = ((plane - low) / (high - low).clamp(min=1e-12) * GRID).long().clamp(0, GRID - 1)
    return place[:, 0] * GRID + place[:, 1]


def principal(observations: Tensor) -> Tensor:
    """The two leading principal components of standardised observations ``[N, ...]``, float64 ``[N, 2]``."""
    flat = observations.flatten(1).double()
    flat = (flat - flat.mean(0)) / flat.std(0, correction=0).clamp(min=1e-12)
    if flat.shape[1] < 2:
        return torch.cat([flat, torch.zeros_like(flat)], 1)
    _, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    return flat @ vectors[:, [-1, -2]]


def _share(rows: Tensor) -> str:
    return f"{rows.double().mean().item():.2%} ({int(rows.sum()):,})"


def _range(values: Tensor) -> str:
    low, high = values.min().item(), values.max().item()
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _numbers(which: Tensor, first: int = 0) -> str:
    """Numbers of the columns, counted from ``first``, for which a bool ``[D]`` is True."""
    places = (torch.nonzero(which).squeeze(1) + first).tolist()
    shown = ", ".join(map(str, places[:12]))
    return shown + (f" and {len(places) - 12} more" if len(places) > 12 else "")
