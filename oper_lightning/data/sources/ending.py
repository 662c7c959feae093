"""A dataset whose episodes end where its environment ends them: with a reward that says that all is done."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.transitions import episode_of
from oper_lightning.errors import InputError, log


class Ending(Source):
    """A dataset whose episodes terminate with a reward, and nowhere else.

    For files that go on after the goal, or that mark the end of a demonstration as the end of the task (kitchen, adroit
    with rewards -1 and 0): recorded and gathered transitions are then of one task. Rows behind such a reward are an
    episode of their own; an episode that the file ends without one is truncated.

    Args:
        source: the dataset.
        reward: what a transition that terminates is rewarded with, at least.
        successful: whether to leave out what came after an episode's last such reward, and episodes without any.
    """

    def __init__(self, source: Source, reward: float, successful: bool = False) -> None:
        self.source = source
        self.reward = reward
        self.successful = successful

    def __str__(self) -> str:
        return str(self.source)

    def prepare(self) -> None:
        self.source.prepare()

    def origin(self) -> Origin:
        return self.source.origin()

    def __len__(self) -> int:
        return self._count if self.successful else len(self.source)

    def episodes(self) -> Iterator[TensorDict]:
        for episodes in self.source.episodes():
            kept: TensorDict = episodes[self._keep(episodes)] if self.successful else episodes.clone()
            there = kept["next", "reward"].reshape(-1, 1) >= self.reward
            kept["next", "done"] |= there
            kept["next", "terminated"] = there
            kept["next", "truncated"] = kept["next", "done"] & ~there
            if len(kept):
                yield kept

    @cached_property
    def _count(self) -> int:
        """Number of rows that are kept, for which all are read once."""
        count = sum(int(self._keep(episodes).sum()) for episodes in self.source.episodes())
        if not count:
            raise InputError(
                f"{self}: no reward of {self.reward:g} or more, so that Ending keeps no row; lower its reward"
            )
        log.info(f"{self}: {count:,} of {len(self.source):,} rows are kept")
        return count

    def _keep(self, episodes: TensorDict) -> Tensor:
        """Which rows of whole episodes ``[N]`` come no later than the last such reward of their episode."""
        there = episodes["next", "reward"].reshape(-1) >= self.reward
        episode = episode_of(episodes["next", "done"].reshape(-1))
        row = torch.arange(len(episodes))
        last = torch.full((len(episodes),), -1).scatter_reduce(0, episode, torch.where(there, row, -1), "amax")
        return row <= last[episode]
