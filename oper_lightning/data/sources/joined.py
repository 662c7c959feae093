"""Several sources, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from tensordict import TensorDict

from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.transitions import RETURN, episode_returns, has_returns
from oper_lightning.errors import InputError


class Joined(Source):
    """Several sources, one after another: what was recorded, and what an online run gathered.

    The environment, the bounds of actions and the reference are those of the first one.

    Args:
        sources: the parts.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise InputError("Joined: no sources; name at least one")
        self.sources = list(sources)

    def __str__(self) -> str:
        return " + ".join(map(str, self.sources))

    def prepare(self) -> None:
        for source in self.sources:
            source.prepare()

    def origin(self) -> Origin:
        return self.sources[0].origin()

    def lengths(self) -> list[int]:
        """Number of transitions of each part."""
        return [len(source) for source in self.sources]

    def __len__(self) -> int:
        return sum(self.lengths())

    def episodes(self) -> Iterator[TensorDict]:
        first: TensorDict | None = None
        for source in self.sources:
            for episodes in source.episodes():
                first = episodes[:0].clone() if first is None else first
                _check(episodes, first, source, self.sources[0])
                yield _with_returns(episodes) if has_returns(first) else episodes


def _check(episodes: TensorDict, first: TensorDict, source: Source, beside: Source) -> None:
    """Compares types and shapes of one part with those of the first.

    Raises:
        InputError: if they differ.
    """
    for key in ("observation", "action"):
        kinds = [
            f"{str(part[key].dtype).removeprefix('torch.')} {list(part[key].shape[1:])}" for part in (episodes, first)
        ]
        if kinds[0] != kinds[1]:
            raise InputError(f"{source}: {key}s are {kinds[0]}, but {kinds[1]} in {beside}: these cannot be joined")
    if has_returns(episodes) and not has_returns(first):
        raise InputError(f"{source}: it says what whole episodes returned, and {beside} does not: name it first")


def _with_returns(episodes: TensorDict) -> TensorDict:
    """Whole episodes with what each of them returned."""
    if not has_returns(episodes):
        following = episodes["next"]
        returns = episode_returns(following["reward"].squeeze(-1), following["done"].squeeze(-1))
        episodes[RETURN] = returns.to(torch.float32)[:, None]
    return episodes
