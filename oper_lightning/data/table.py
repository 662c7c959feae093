"""Loaded transitions: as recorded, and as algorithms get them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data import matching
from oper_lightning.data.frames import held, observation_shape, storage_of
from oper_lightning.data.rl import TensorStorage
from oper_lightning.data.sources.source import Source
from oper_lightning.data.transitions import fingerprint, seen_as, squeezed
from oper_lightning.errors import InputError
from oper_lightning.spec import DataSpec

PART = 8192  # rows that are looked at together where order matters,
PART_OF_IMAGES = 1024  # and rows of images
Columns = Callable[[TensorDict], TensorDict]
"""what an algorithm makes of transitions for itself"""


class Table:
    """The N transitions of a source in torchrl storage, and beside them what algorithms get of each.

    Args:
        source: where they came from.
        storage: all of them in TED layout; images apart from the rest, as frames.
        recorded: number N of transitions, if rows for others follow in the storage.
    """

    def __init__(self, source: Source, storage: TensorStorage, recorded: int | None = None) -> None:
        self.source = source
        table, self.frames = held(storage)
        self._hold(table, len(table) if recorded is None else recorded)
        digest = self.frames.digest if self.frames is not None else ""
        self.recorded = fingerprint(self.transitions, digest) if len(self) else ""
        self.arrange(1.0, 0.0)

    def _hold(self, table: TensorDict, recorded: int) -> None:
        self.storage = storage_of(table[:recorded], self.frames)
        self.all = squeezed(table)
        """the storage's memory as a TensorDict ``[M]`` in which reward and flags are ``[M]``"""
        self.transitions = self.all[:recorded]
        """the N recorded rows of :attr:`all`"""

    def __len__(self) -> int:
        return len(self.transitions)

    @property
    def device(self) -> torch.device:
        """The device that holds the transitions."""
        return self.transitions.device or torch.device("cpu")

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return observation_shape(self.transitions, self.frames)

    def check_like(self, other: Table) -> None:
        """Compares observations and actions with those of another.

        Raises:
            InputError: if shapes or kinds differ.
        """
        own, others = self.transitions["action"], other.transitions["action"]
        for what, here, there in (
            ("observations of shape", self.observation_shape, other.observation_shape),
            ("actions of shape", tuple(own.shape[1:]), tuple(others.shape[1:])),
            ("actions of type", own.dtype, others.dtype),
        ):
            if here != there:
                raise InputError(f"{self.source}: {what} {here}, but {there} in {other.source}")

    def arrange(self, scale: matching.Scale, shift: float) -> TensorDict:
        """Makes ``entries``, TensorDict ``[M]``: what algorithms get, with rewards scaled and shifted.

        Returns the whole transitions ``[M]`` with those rewards, from which an algorithm may make columns of its own.
        """
        self.scaling = scale, shift
        self.factor = matching.factor_of(self.source, self.transitions, scale)
        scaled = matching.scaled(self.all, self.factor, shift)
        seen = seen_as(scaled)
        following = {key: scaled["next", key] for key in (seen, "reward", "terminated")}
        self.entries = TensorDict(
            {seen: scaled[seen], "action": scaled["action"], "next": following},
            batch_size=scaled.batch_size,
            device=scaled.device,
        )
        return scaled

    def reward_range(self, scaled: TensorDict) -> tuple[float, float] | None:
        """Lowest and highest reward of the N recorded transitions; None if there are none.

        Args:
            scaled: what :meth:`arrange` returned.
        """
        rewards = scaled["next", "reward"][: len(self)]
        return (float(rewards.min()), float(rewards.max())) if len(self) else None

    def add(self, columns: Columns, scaled: TensorDict) -> None:
        """Puts an algorithm's columns of the N recorded transitions into ``entries``; zeros for the rows behind.

        Args:
            columns: makes them.
            scaled: what :meth:`arrange` returned.
        """
        behind = len(self.all) - len(self)
        if not behind:
            self.entries.update(columns(scaled))
            return
        made = columns(scaled[: len(self)]) if len(self) else columns(one_cut_off(scaled))[:0]
        self.entries.update(torch.cat([made, made.new_zeros(behind)]))

    def summary(self, spec: DataSpec) -> str:
        """Name, size and shapes in a few words."""
        episodes = int(self.transitions["next", "done"].sum())
        actions = f"{spec.actions:,} discrete actions" if spec.discrete else f"actions {list(spec.action_shape)}"
        shapes = f"observations {list(spec.observation_shape)}, {actions}"
        return f"{spec.dataset}: {len(self):,} transitions, {episodes:,} episodes, {shapes}"

    def rows(self, index: Tensor | slice) -> TensorDict:
        """The transitions with row numbers ``[...]`` (or a slice), as algorithms get them: scaled, with columns."""
        part: TensorDict = self.entries[index].clone(recurse=False)  # of [:] a TensorDict gives itself
        part["next"] = part["next"].clone(recurse=False)
        if ("next", "row") in part.keys(include_nested=True):  # n-step targets end at other rows
            seen = seen_as(self.transitions)
            part["next", seen] = self.all["next", seen][part["next"].pop("row")]
        if self.frames is not None:
            first, following = part.pop("first"), part["next"].pop("first")
            part["observation"], part["next", "observation"] = self.frames.pair(first, following)
        return part

    def in_order(self, size: int | None = None) -> Iterator[TensorDict]:
        """All transitions in row order, as from :meth:`rows`; whole episodes, ``size`` rows or more at a time."""
        start = 0
        for stop in self.cuts(size):
            yield self.rows(slice(start, stop))
            start = stop

    def cuts(self, size: int | None = None) -> list[int]:
        """Where :meth:`in_order` cuts: the last end of an episode before each multiple of ``size``, and the end."""
        size = size or (PART if self.frames is None else PART_OF_IMAGES)
        ends = torch.nonzero(self.transitions["next", "done"]).squeeze(1).cpu() + 1
        block = torch.div(ends, size, rounding_mode="floor")
        first = torch.cat([block[1:] != block[:-1], torch.ones(1, dtype=torch.bool)])
        return [int(end) for end in ends[first]]

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: the rows, from whose memory all else is made again."""
        made = ("storage", "all", "transitions", "entries")
        return {"rows": held(self.storage)[0], **{key: v for key, v in self.__dict__.items() if key not in made}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rows = state.pop("rows")
        self.__dict__.update(state)
        self._hold(rows, len(rows))
        self.arrange(*self.scaling)


def one_cut_off(transitions: TensorDict) -> TensorDict:
    """The first of transitions ``[M]`` as an episode of its own that was cut off."""
    one: TensorDict = transitions[:1].clone()
    one["next", "truncated"], one["next", "done"] = torch.ones(2, 1, dtype=torch.bool, device=one.device).unbind(0)
    return one
