"""A dataset in which something is missing: regions of the state space, rewards, or the ends of episodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.errors import InputError, log


@dataclass(frozen=True)
class Region:
    """A part of the state space.

    Args:
        centre: where it lies, a number for each of the observation's entries that count.
        radius: how far it reaches in the observation's own units.
        shape: ball is round; box reaches as far along each axis.
        entries: which entries of the observation count; by default the first ones.
    """

    centre: list[float]
    radius: float
    shape: Literal["ball", "box"] = "ball"
    entries: list[int] | None = None

    def holds(self, observations: Tensor) -> Tensor:
        """Whether observations ``[N, O]`` lie in it, bool ``[N]``."""
        entries = list(range(len(self.centre))) if self.entries is None else self.entries
        if len(entries) != len(self.centre) or not all(0 <= entry < observations.shape[1] for entry in entries):
            raise InputError(
                f"a region's centre has {len(self.centre)} numbers for the entries {entries} of observations with "
                f"{observations.shape[1]}; one number for each entry is needed"
            )
        away = observations[:, entries].double() - torch.tensor(self.centre, dtype=torch.float64)
        return (away.norm(dim=1) if self.shape == "ball" else away.abs().amax(1)) <= self.radius


class Filtered(Source):
    """A dataset without some of its rows, as the tasks with missing data need it; how many are kept is said.

    A row that is left out ends its episode before it, as truncated; the rows behind it are an episode of their own.

    Args:
        source: the dataset.
        regions: rows whose observation lies in one of these are left out.
        rewards_above: rows with a higher reward than this are left out.
        max_len: number of rows of each recorded episode, from its beginning on, that are kept.
        first: number of the dataset's rows, from its beginning on, that are looked at.
    """

    def __init__(
        self,
        source: Source,
        regions: list[Region] | None = None,
        rewards_above: float | None = None,
        max_len: int | None = None,
        first: int | None = None,
    ) -> None:
        self.source = source
        self.regions = regions or []
        self.rewards_above = rewards_above
        self.max_len = max_len
        self.first = first
        if not regions and {None} == {rewards_above, max_len, first}:
            raise InputError("Filtered: nothing to leave out; give regions, rewards_above, max_len or first")
        for name, number in (("max_len", max_len), ("first", first)):
            if number is not None and number < 1:
                raise InputError(f"Filtered: {name} is {number}; at least 1 is needed")

    def __str__(self) -> str:
        return str(self.source)

    def prepare(self) -> None:
        self.source.prepare()

    def origin(self) -> Origin:
        origin = self.source.origin()
        return replace(origin, dataset=f"{origin.dataset}, filtered")

    def __len__(self) -> int:
        return self._count

    def episodes(self) -> Iterator[TensorDict]:
        for episodes in self._looked_at():
            if len(kept := self._filtered(episodes)):
                yield kept

    @cached_property
    def _count(self) -> int:
        """Number of rows that are kept, for which all are read once."""
        count = sum(int(self._keep(episodes).sum()) for episodes in self._looked_at())
        if not count:
            raise InputError(f"{self}: no row is kept; let Filtered leave out less")
        log.info(f"{self}: {count:,} of {len(self.source):,} rows are kept")
        return count

    def _looked_at(self) -> Iterator[TensorDict]:
        """The source's episodes, of which the last may be cut off."""
        left = self.first or sys.maxsize
        for episodes in self.source.episodes():
            if len(episodes) > left:
                episodes = episodes[:left].clone()
                if left:
                    cut = ~episodes["next", "done"][-1]
                    episodes["next", "truncated"][-1] |= cut
                    episodes["next", "done"][-1] = True
            if len(episodes):
                yield episodes
            left -= len(episodes)
            if not left:
                return

    def _keep(self, episodes: TensorDict) -> Tensor:
        """Which rows of whole episodes ``[N]`` are kept."""
        observation, following = episodes["observation"], episodes["next"]
        keep = torch.ones(len(episodes), dtype=torch.bool)
        if self.regions and observation.dim() != 2:
            raise InputError(
                f"{self}: regions are for observations that are vectors, not {list(observation.shape[1:])}"
            )
        for region in self.regions:
            keep &= ~region.holds(observation)
        if self.rewards_above is not None:
            keep &= following["reward"].squeeze(-1) <= self.rewards_above
        if self.max_len is not None:
            row = torch.arange(len(episodes))
            begins = following["done"].squeeze(-1).roll(1)
            begins[:1] = True
            keep &= row - torch.where(begins, row, 0).cummax(0).values < self.max_len
        return keep

    def _filtered(self, episodes: TensorDict) -> TensorDict:
        keep = self._keep(episodes)
        cut = (~keep.roll(-1))[keep, None]  # the last row is the end of an episode anyway
        kept: TensorDict = episodes[keep]
        cut &= ~kept["next", "done"]
        kept["next", "truncated"] |= cut
        kept["next", "done"] |= cut
        return kept
