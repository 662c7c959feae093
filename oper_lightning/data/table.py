"""Loaded transitions: as recorded, and as algorithms get them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data import matching
from oper_lightning.data.rl import TensorStorage, stored
from oper_lightning.data.sources.source import Source
from oper_lightning.data.transitions import fingerprint, squeezed

PART = 8192  # rows that are looked at together where order matters


class Table:
    """The N transitions of a source in torchrl storage, and beside them what algorithms get of each.

    Args:
        source: where they came from.
        storage: all of them in TED layout.
    """

    def __init__(self, source: Source, storage: TensorStorage) -> None:
        self.source = source
        self.storage = storage
        self.transitions = squeezed(storage[:])
        """the storage's memory as a TensorDict ``[N]`` in which reward and flags are ``[N]``"""
        self.recorded = fingerprint(self.transitions)
        self.arrange(1.0, 0.0)

    def __len__(self) -> int:
        return len(self.transitions)

    @property
    def device(self) -> torch.device:
        """The device that holds the transitions."""
        return self.transitions.device or torch.device("cpu")

    def arrange(self, scale: float | Literal["return_range"], shift: float) -> TensorDict:
        """Makes ``entries``, TensorDict ``[N]``: what algorithms get, with rewards scaled and shifted.

        Returns the whole transitions with those rewards, from which an algorithm may make columns of its own.
        """
        self.scaling = scale, shift
        scaled = matching.scaled_rewards(self.source, self.transitions, scale, shift)
        following = {key: scaled["next", key] for key in ("observation", "reward", "terminated")}
        self.entries = TensorDict(
            {"observation": scaled["observation"], "action": scaled["action"], "next": following},
            batch_size=scaled.batch_size,
            device=scaled.device,
        )
        return scaled

    def rows(self, index: Tensor | slice) -> TensorDict:
        """The transitions with row numbers ``[...]`` (or a slice), as algorithms get them: scaled, with columns."""
        part: TensorDict = self.entries[index]
        if ("next", "row") in part.keys(include_nested=True):  # n-step targets end at other rows
            part["next", "observation"] = self.transitions["next", "observation"][part["next"].pop("row")]
        return part

    def in_order(self, size: int = PART) -> Iterator[TensorDict]:
        """All transitions in row order, as from :meth:`rows`; whole episodes, ``size`` rows or more at a time."""
        start = 0
        for stop in self.cuts(size):
            yield self.rows(slice(start, stop))
            start = stop

    def cuts(self, size: int = PART) -> list[int]:
        """Where :meth:`in_order` cuts: the last end of an episode before each multiple of ``size``, and the end."""
        ends = torch.nonzero(self.transitions["next", "done"]).squeeze(1).cpu() + 1
        block = torch.div(ends, size, rounding_mode="floor")
        first = torch.cat([block[1:] != block[:-1], torch.ones(1, dtype=torch.bool)])
        return [int(end) for end in ends[first]]

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: the rows, from whose memory all else is made again."""
        made = ("storage", "transitions", "entries")
        return {"rows": self.storage[:], **{key: v for key, v in self.__dict__.items() if key not in made}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.storage = stored(state.pop("rows"))
        self.__dict__.update(state)
        self.transitions = squeezed(self.storage[:])
        self.arrange(*self.scaling)
