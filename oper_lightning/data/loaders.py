"""What the datamodule hands to Lightning's loops: sized iterables over blocks, episodes and rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tensordict import TensorDict
from torch import Tensor

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


class InOrder:
    """A loader over all transitions in row order, whole episodes at a time."""

    def __init__(self, data: Table) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.cuts())

    def __iter__(self) -> Iterator[TensorDict]:
        return self.data.in_order()
