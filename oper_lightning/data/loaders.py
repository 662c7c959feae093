"""What the datamodule hands to Lightning's loops: sized iterables over blocks, episodes and rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.transitions import episode_of
from oper_lightning.envs.rollouts import Act, Rollouts, World
from oper_lightning.errors import InputError
from oper_lightning.nn import ranks
from oper_lightning.spec import Batch

if TYPE_CHECKING:
    from oper_lightning.data.datamodule import OfflineDataModule
    from oper_lightning.data.table import Table


LARGEST_BLOCK = 50  # updates


def shared_out(updates: int, steps: int, block: int | None) -> tuple[int, int]:
    """How many blocks an epoch has, and how many updates each.

    Args:
        updates: of an epoch.
        steps: updates of the whole run; below 1 if it has no end.
        block: updates of a block, if they are not to be chosen here.

    Raises:
        InputError: if they do not divide each other.
    """
    if 0 < steps < updates:
        updates = steps
    if steps > 0 and steps % updates:
        raise InputError(
            f"trainer.max_steps {steps:,} is not a multiple of data.updates_per_epoch {updates:,}; "
            f"evaluations and checkpoints come at the end of an epoch"
        )
    block = block or max(k for k in range(1, LARGEST_BLOCK + 1) if updates % k == 0)
    if updates % block:
        raise InputError(f"data.updates_per_block {block} does not divide the {updates:,} updates of an epoch")
    return updates // block, block


class Blocks:
    """A loader of known length over one epoch's blocks. Draws when asked, so that new weights count at once."""

    def __init__(self, data: OfflineDataModule, count: int, updates: int) -> None:
        self.data = data
        self.count = count
        self.updates = updates

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        # A run that goes on within an epoch gets the rest of that epoch.
        trainer = self.data.trainer
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready if trainer is not None else 0
        for _ in range(done, self.count):
            yield self.data.draw(self.updates)


class Batches:
    """A loader of known length over one epoch's updates, one batch of TensorDicts ``[B]`` at a time."""

    def __init__(self, data: OfflineDataModule, count: int) -> None:
        self.data = data
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.count):
            yield self.data.draw(1).unbind()[0]


class Episodes:
    """The episodes that a rank plays in a validation, and the loader whose only item they are.

    A sampler that shared out episodes over ranks would pad: 7 episodes on 2 ranks would become 8.
    """

    def __init__(self, world: World, seeds: list[int]) -> None:
        self.world = world
        self.seeds = seeds

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Episodes]:
        yield self

    def __call__(self, act: Act) -> tuple[Tensor, Tensor]:
        """Returns and lengths, float64, of the rank's episodes under the policy ``act``."""
        return self.world.rollouts(act, self.seeds)


def own_episodes(world: World | None, rollouts: Rollouts | None, test: bool) -> list[Episodes]:
    """A loader over this rank's share of the episodes of a validation or of the test; none without an environment."""
    if world is None or rollouts is None:
        return []
    return [Episodes(world, rollouts.seeds(test)[ranks.rank() :: ranks.world_size()])]


HELD_OUT_BATCHES = 40  # that a validation of losses looks at


class HeldOut:
    """A rank's share of the rows that are kept from training, and the loader whose only item they are.

    Args:
        data: all transitions.
        rows: numbers of the held-out ones, int64 ``[n]``.
        batch_size: rows of a batch.
    """

    def __init__(self, data: Table, rows: Tensor, batch_size: int) -> None:
        self.data = data
        self.of_all = rows
        self.rows = rows[ranks.rank() :: ranks.world_size()]
        self.alike = len(rows) // ranks.world_size()  # that every rank has at least
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


class InOrder:
    """A loader over all transitions in row order, whole episodes at a time."""

    def __init__(self, data: Table) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.cuts())

    def __iter__(self) -> Iterator[TensorDict]:
        return self.data.in_order()
