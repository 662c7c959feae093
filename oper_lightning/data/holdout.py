"""Transitions that nothing learns from: which they are, and how their losses are taken."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.table import Table
from oper_lightning.data.transitions import episode_of
from oper_lightning.errors import InputError
from oper_lightning.nn import ranks
from oper_lightning.spec import Batch


def chosen(loaded: Table, share: float, trains: bool) -> Tensor | None:
    """Which transitions of a table are held out, bool ``[N]``; None for a share of 0.

    Args:
        loaded: the table.
        share: of its episodes, from 0 to 1.
        trains: whether some must be left to train on.

    Raises:
        InputError: if none or, while training, all would be held out.
    """
    if not share:
        return None
    held = spread_evenly(loaded.transitions["next", "done"], share, loaded.recorded)
    if not held.any() or (held.all() and trains):
        raise InputError(
            f"{loaded.source}: data.holdout {share} takes {int(held.sum()):,} of {len(held):,} transitions, as whole "
            f"episodes are held out: take another share, or more episodes"
        )
    return held


def spread_evenly(ends: Tensor, share: float, fingerprint: str) -> Tensor:
    """Rows of the episodes that are kept from training, bool ``[N]``: every (1 / share)-th one.

    They are spread evenly over the recording, because what was recorded early and late may differ. Which one is the
    first depends on the fingerprint alone, so that it is the same in every run on the same data.
    """
    offset = int(hashlib.sha256(fingerprint.encode()).hexdigest()[:8], 16) / 16**8
    passed = torch.floor(torch.arange(int(ends.sum()) + 1, dtype=torch.float64) * share + offset)
    return (passed[1:] > passed[:-1]).to(ends.device)[episode_of(ends)]


HELD_OUT_BATCHES = 40  # that a validation of losses looks at


class HeldOut:
    """A rank's share of the rows that are kept from training, and the loader whose only item they are.

    Args:
        data: the table that holds them.
        rows: numbers of the held-out ones, int64 ``[n]``.
        batch_size: rows of a batch.
    """

    def __init__(self, data: Table, rows: Tensor, batch_size: int) -> None:
        self.data = data
        self.of_all = rows
        self.rows = rows[ranks.rank() :: ranks.world_size()]
        self.alike = len(rows) // ranks.world_size()  # that every rank has at least
        if not self.alike:
            raise InputError(
                f"{data.source}: data.holdout takes {len(rows):,} transitions, fewer than there are processes "
                f"({ranks.world_size()}): name more of them"
            )
        self.batch_size = batch_size

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[HeldOut]:
        yield self

    def parts(self, size: int, of_all_ranks: bool = False) -> Iterator[TensorDict]:
        """The rank's rows, or those of all ranks, in order, ``size`` at a time, as algorithms get them."""
        for rows in (self.of_all if of_all_ranks else self.rows).split(size):
            yield self.data.rows(rows)

    def ends(self) -> Tensor:
        """Which of all ranks' rows are the last of an episode, bool ``[n]``."""
        return self.data.transitions["next", "done"][self.of_all]

    def episodes(self) -> Tensor:
        """The number, among those held out, of the episode that each of the rank's rows belongs to, int64 ``[n]``."""
        return episode_of(self.ends())[ranks.rank() :: ranks.world_size()]

    def batches(self) -> Iterator[Batch]:
        """At most 40 batches, as many on each rank; if there are more rows, evenly spread ones. Their weights are 1."""
        count = min(self.alike, HELD_OUT_BATCHES * self.batch_size)
        index = torch.arange(count, device=self.rows.device) * self.alike // max(count, 1)
        for rows in self.rows[index].split(self.batch_size):
            part = self.data.rows(rows)
            part["weight"] = torch.ones(len(rows), device=rows.device)
            yield Batch(part, part, part)


class HeldOutBatches:
    """A loader over the batches of held-out rows, for modules that are not this package's."""

    def __init__(self, held: HeldOut) -> None:
        self.given = [*held.batches()]

    def __len__(self) -> int:
        return len(self.given)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.given)
