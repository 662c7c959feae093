"""What the batches of an update are made of: which rows each role sees, and with what weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.draws import ByWeight, Chosen, Draws, Either, EveryRow, Stretches
from oper_lightning.data.transitions import episode_of
from oper_lightning.errors import InputError, note
from oper_lightning.nn import ranks
from oper_lightning.priorities.priority import Priority, checked, in_percent, statistics
from oper_lightning.priorities.returns import doubts
from oper_lightning.spec import ROLES, Batch, Role

Mode = Literal["resample", "reweight"]


def weigh(priority: Priority, transitions: TensorDict) -> Tensor:
    """Asks a priority for the weights ``[N]`` of transitions, and says what is doubtful about them; mean 1, float64.

    Raises:
        InputError: if the weights cannot be used, or the priority changes the transitions.
    """
    name = type(priority).__name__
    leaves = [*transitions.values(True, True)]
    versions = [leaf._version for leaf in leaves]  # operations in place count them up
    weights = checked(priority(transitions.clone(recurse=False)), len(transitions), name)
    if versions != [leaf._version for leaf in leaves]:
        raise InputError(f"{name}: changes the transitions that it weighs; let it work on transitions.clone()")
    for doubt in doubts(priority, transitions, weights):
        note(doubt)
    return weights


class Share(NamedTuple):
    """A part of every batch."""

    stream: str
    """name of its stream of random numbers, so that one share more leaves the draws of the others alone"""
    draws: Draws
    rows: int
    """of it in each process's batch"""


@dataclass(frozen=True)
class Upsample:
    """A part of every batch for what was good: rows drawn with replacement, whatever the priority.

    Args:
        rows: number of rows of each batch that are good ones.
        rule: which are: reward takes those whose reward as recorded is at least ``value``, episode all rows of episodes
            with such a reward, best those with the highest reward of all.
        value: for reward and episode.
        mode: replace gives them a part of the batch; append makes the batch larger.
        among: look for them among all rows, or among the gathered ones only: those behind the first of joined sources.
    """

    rows: int
    rule: Literal["reward", "episode", "best"] = "best"
    value: float | None = None
    mode: Literal["replace", "append"] = "replace"
    among: Literal["all", "gathered"] = "all"

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InputError(f"data.upsample.rows is {self.rows}; at least 1 is needed")
        if (self.value is None) != (self.rule == "best"):
            remedy = "has no use for a value" if self.rule == "best" else "needs a value"
            raise InputError(f"data.upsample: the rule {self.rule} {remedy}")

    def good(self, transitions: TensorDict, first: int) -> Tensor:
        """Numbers, int64 ``[n]``, of the good ones among transitions ``[N]``; gathered ones begin at row ``first``.

        If there are none, a note says so.
        """
        begin = first if self.among == "gathered" else 0
        among = transitions[begin:]
        reward = among["next", "reward"]
        if self.value is not None:
            good = reward >= self.value
        else:  # where all rewards are equal, none was earned by being good
            good = (reward == reward.max()) & (reward.min() < reward.max()) if len(reward) else reward > 0
        if self.rule == "episode" and len(reward):
            episode = episode_of(among["next", "done"])
            good = torch.isin(episode, episode[good])
        rows = begin + torch.nonzero(good).squeeze(1)
        if not len(rows):
            note(f"data.upsample: no row is good by the rule {self.rule}: batches are drawn without it")
        return rows


class Mixture:
    """Draws blocks of batches: uniformly, in proportion to weights, or uniformly with weights beside.

    What is drawn is a function of the seed and of the number of the block's first update, and of nothing else. All
    ranks draw the row numbers of all ranks, and each keeps its own, so that R ranks see what one process would see.

    Args:
        rows: number N of rows that are recorded.
        weights: float64 ``[N]``, mean 1; ``[S, N]`` for S seeds that train together; None for uniform. If there are
            more of them, the rest belongs to the gathered rows.
        device: where row numbers are drawn.
        gathered: rows behind the recorded ones.
        offline_share: part of every batch that is recorded; None draws recorded and gathered rows alike.
        good: row numbers, int64 ``[n]``, of which ``upsample.rows`` are in every batch.
        upsample: how they are.
        held_out: which recorded rows are never drawn, bool ``[N]``.
    """

    def __init__(
        self,
        rows: int,
        weights: Tensor | None,
        device: torch.device,
        gathered: Stretches | None = None,
        offline_share: float | None = None,
        good: Tensor | None = None,
        upsample: Upsample | None = None,
        held_out: Tensor | None = None,
    ) -> None:
        training = None if held_out is None else torch.nonzero(~held_out).squeeze(1)
        self.rows = rows if training is None else len(training)
        self.device = device
        self.weights = weights
        self.seeds = torch.Size() if weights is None else weights.shape[:-1]
        self.gathered = gathered
        self.offline_share = offline_share
        self.upsample = upsample if good is not None and len(good) else None
        if self.seeds and (gathered is not None or self.upsample is not None):
            raise InputError(
                "seeds that train together draw from recorded rows alone: leave out data.offline_share "
                "and data.upsample"
            )
        self.good = Chosen(good) if good is not None else None
        every = EveryRow(rows) if training is None else Chosen(training)
        self.draws: dict[bool, tuple[Draws, Draws | None]] = {False: (every, gathered)}
        """by whether weights count: what draws recorded and gathered rows"""
        # Equal weights are no priority: the run is then the uniform one, draw for draw.
        if weights is not None and held_out is not None:
            weights = mean_one_among(weights, held_out)
        counted = weights if weights is None or training is None else weights[..., training]
        if weights is not None and counted is not None and bool((counted != counted[..., :1]).any()):
            self.loss_weights = weights.float()
            later: Draws | None = gathered
            if gathered is not None and weights.shape[-1] > rows:
                later, weights = ByWeight(_only(weights, slice(rows, None))), _only(weights, slice(rows))
            self.draws[True] = ByWeight(weights), later

    def draw(
        self,
        take: Callable[[Tensor], TensorDict],
        mode: Mode,
        roles: Sequence[Role],
        seed: int,
        number: int,
        updates: int,
        batch_size: int,
    ) -> Batch:
        """A block ``[K, B]``, or ``[K, S, B]`` for S seeds.

        Args:
            take: gives the transitions ``[...]`` with row numbers ``[...]``.
            mode: resample draws the prioritised roles by weight; reweight draws all roles uniformly.
            roles: the roles that see the priority.
            seed: seed of the run.
            number: number of the block's first update.
            updates: number K of updates.
            batch_size: number B of rows for each update, without those that are appended.
        """
        prioritised = {*roles} if True in self.draws else set()

        def drawn(weighted: bool) -> tuple[Tensor, TensorDict]:
            index = self._index(self.shares(weighted, batch_size), seed, number, updates)
            part = take(index)
            part["weight"] = torch.ones(index.shape, device=index.device)
            return index, part

        parts: dict[bool, TensorDict] = {}
        if mode == "reweight" or len(prioritised) < len(ROLES):
            index, parts[False] = drawn(False)
        if prioritised and mode == "resample":
            _, parts[True] = drawn(True)
        elif prioritised:
            # The same transitions, sharing everything but their weight.
            parts[True] = parts[False].clone(recurse=False).set("weight", self._weights_of(index))
        return Batch(*(parts[role in prioritised] for role in ROLES))

    def _weights_of(self, index: Tensor) -> Tensor:
        """Weights of rows; those that were gathered without a priority have 1."""
        if self.seeds:
            return self.loss_weights.expand(len(index), *self.loss_weights.shape).gather(-1, index)
        count = self.loss_weights.shape[-1]
        if self.gathered is None:
            return self.loss_weights[index]
        return self.loss_weights[index.clamp(max=count - 1)].masked_fill(index >= count, 1)

    def summary(self, name: str) -> str:
        """The weights in a few words: their name, and how much of the data they leave."""
        if self.weights is None or self.weights.dim() > 1:
            return name
        return f"{name}, effective share {in_percent(statistics(self.weights)['ess'])}"

    def shares(self, weighted: bool, batch_size: int) -> list[Share]:
        """What each process's batch is made of, with or without regard to the weights.

        Raises:
            InputError: if there is no row to draw.
        """
        stream = "priority" if weighted else "uniform"
        recorded, gathered = self.draws[weighted]
        later = self.gathered.total if self.gathered is not None else 0
        extra = []
        if self.upsample is not None and self.good is not None:
            extra.append(Share("upsample", self.good, self.upsample.rows))
            batch_size -= self.upsample.rows if self.upsample.mode == "replace" else 0
        if not self.rows and not later:
            raise InputError("no transition can be drawn yet: let data.warmup be longer, at least an episode")
        if gathered is None or not later:
            return [Share(stream, recorded, batch_size), *extra]
        if not self.rows:
            return [Share(stream, gathered, batch_size), *extra]
        if self.offline_share is None:
            either = Either(recorded, gathered, self.rows / (self.rows + later))
            return [Share(stream, either, batch_size), *extra]
        old = round(self.offline_share * batch_size)
        return [Share(stream, recorded, old), Share(f"{stream} gathered", gathered, batch_size - old), *extra]

    def _index(self, shares: Sequence[Share], seed: int, number: int, updates: int) -> Tensor:
        """Row numbers ``[K, B]`` or ``[K, S, B]`` of this rank: the batches of all ranks, and of these its columns."""
        parts = []
        for share in shares:
            generator = torch.Generator(self.device).manual_seed(ranks.stream_seed(seed, share.stream, number))
            batch = share.rows * ranks.world_size()
            index = share.draws.draw((*self.seeds, updates * batch), generator)
            parts.append(index.reshape(*self.seeds, updates, batch))
        index = torch.cat(parts, -1).movedim(-2, 0)
        size = index.shape[-1] // ranks.world_size()
        return index[..., ranks.rank() * size :][..., :size]


def mean_one_among(weights: Tensor, held_out: Tensor) -> Tensor:
    """Weights ``[N]`` or ``[S, N]`` that are zero where rows are held out, bool ``[N]``, and have mean 1 elsewhere.

    Raises:
        InputError: if all others are zero.
    """
    left = weights.masked_fill(held_out, 0)
    mean = left.sum(-1, keepdim=True) / (~held_out).sum()
    if not bool((mean > 0).all()):
        raise InputError("data.holdout: the priority leaves only rows that are held out; leave out one of the two")
    return left / mean


def _only(weights: Tensor, rows: slice) -> Tensor:
    """Weights ``[N]`` with zeros outside some rows.

    Raises:
        InputError: if there is nothing but zeros.
    """
    some = torch.zeros_like(weights)
    some[rows] = weights[rows]
    if not bool(some.any()):
        which = "first of the joined sources" if rows.start is None else "sources behind the first"
        raise InputError(f"data.offline_share: the priority leaves no row of the {which}")
    return some
