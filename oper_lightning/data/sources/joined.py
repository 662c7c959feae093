"""Several sources, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tensordict import TensorDict

from oper_lightning.data.sources.source import Origin, Source
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
        for source in self.sources:
            yield from source.episodes()
