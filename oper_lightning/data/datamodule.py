"""The LightningDataModule: a source in torchrl storage, drawn by priority, handed out in blocks of updates."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data import matching
from oper_lightning.data.bonuses.bonus import Bonus, bring, paid
from oper_lightning.data.buffer import replay_buffer
from oper_lightning.data.draws import Stretches
from oper_lightning.data.frames import moved
from oper_lightning.data.holdout import HeldOut, HeldOutBatches, chosen
from oper_lightning.data.loaded import LoadedData, Location
from oper_lightning.data.loaders import (
    Batches,
    Blocks,
    Episodes,
    InOrder,
    own_episodes,
    shared_out,
)
from oper_lightning.data.mixture import Mixture, Mode, Upsample, mean_one_among, weigh
from oper_lightning.data.rl import TensorDictReplayBuffer
from oper_lightning.data.sources.joined import Joined
from oper_lightning.data.sources.source import Source
from oper_lightning.data.table import Columns, Table
from oper_lightning.envs.rollouts import Rollouts
from oper_lightning.errors import InputError, nearest, note
from oper_lightning.nn import ranks
from oper_lightning.priorities.priority import Priority, checked
from oper_lightning.spec import ROLES, Batch, Role


class OfflineDataModule(LoadedData):
    """Recorded transitions for offline reinforcement learning, for this package's algorithms or for a loop of your own.

    In a loop of your own call ``data = OfflineDataModule(source, priority); data.setup()``. Then take batches from
    ``data.draw(1)`` or from ``data.replay_buffer(256)``, or use ``data.storage`` and ``data.weights``. After
    ``data.priority = another`` the next ``setup()`` computes the weights anew. A datamodule can be pickled and copied;
    the copy belongs to no trainer and opens files anew.

    Args:
        source: where the transitions come from.
        priority: how much each transition matters; by default all matter the same.
        mode: resample draws transitions in proportion to the priority; reweight draws uniformly and multiplies losses
            by it.
        prioritise: the roles of the loss terms that see the priority: one or several of evaluation, improvement and
            constraint; by default those of the priority's paper (OPER-A: improvement and constraint; OPER-R and the
            rest: all).
        batch_size: number of transitions for each update, in each process.
        updates_per_epoch: number of gradient updates between evaluations and checkpoints.
        updates_per_block: number of gradient updates that pass through Lightning's loop together; by default the
            largest divisor of updates_per_epoch up to 50. Modules other than this package's algorithms get one batch at
            a time.
        rollouts: how policies are scored in an environment; null trains without scores.
        reward_scale: factor of the rewards that critics see; OPER-R sees rewards as recorded. return_range is 1000 over
            the distance between best and worst return (IQL on locomotion); sign makes rewards -1, 0 or 1 (Atari).
        reward_shift: number that is added to the scaled reward (antmaze: -1).
        clip_actions: whether to move recorded actions that lie outside the action bounds to the nearest bound instead
            of refusing the data.
        offline_share: the part of every batch that comes from the first of joined sources (null: all rows are alike).
        upsample: a part of every batch for what was good; none by default.
        holdout: transitions whose losses are logged as holdout/… after each epoch, and which nothing learns from: a
            share of the episodes, evenly spread over the recording and the same in every run; or another file (with
            Minari: dataset) of the source's kind, such as a validation split.
        bonus: what novelty is worth: added to the rewards that critics see, and never stored.
        location: where transitions are kept: on the training device, in main memory, or memory-mapped on disk.
        memmap_folder: folder of memory-mapped transitions; by default memmap in the trainer's folder or, without a
            trainer, a temporary folder that is removed with the datamodule.
        seed: seed by which transitions are drawn; by default that of Lightning's seed_everything (which `oper` sets),
            or of torch.
    """

    def __init__(
        self,
        source: Source,
        priority: Priority | None = None,
        mode: Mode = "resample",
        prioritise: Role | list[Role] | None = None,
        batch_size: int = 256,
        updates_per_epoch: int = 5000,
        updates_per_block: int | None = None,
        rollouts: Rollouts | None = Rollouts(),  # noqa: B008 (frozen)
        reward_scale: matching.Scale = 1.0,
        reward_shift: float = 0.0,
        clip_actions: bool = False,
        offline_share: float | None = None,
        upsample: Upsample | None = None,
        holdout: float | str = 0.0,
        bonus: Bonus | None = None,
        location: Location = "device",
        memmap_folder: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(source, batch_size, clip_actions, location, memmap_folder)
        self.priority = priority
        self.mode: Mode = mode
        self.prioritise = prioritise
        self.updates_per_epoch = updates_per_epoch
        self.updates_per_block = updates_per_block
        self.rollouts = rollouts
        self.reward_scale = reward_scale
        self.reward_shift = reward_shift
        self.offline_share = offline_share
        self.upsample = upsample
        self.holdout = holdout
        self.bonus = bonus
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed())) if seed is None else int(seed)
        self.drawn = 0
        """gradient updates whose transitions have been drawn"""
        self.held_out: Tensor | None = None
        """which transitions are kept from training, bool ``[N]``"""
        self.judged: tuple[Table, Tensor] | None = None
        """a table and the numbers of its rows, int64 ``[n]``, whose losses are logged and which nothing learns from"""
        self._apart: Table | None = None  # the rows of a holdout that is a file of its own
        self._mixture: Mixture
        self._weights: Tensor | None = None
        self._weights_of = ""  # name of the priority that gave the weights, for messages
        self._weighed_by: Priority | None = None  # the priority that was asked last
        self._bonus_built = False
        for name in ("batch_size", "updates_per_epoch", "updates_per_block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"data.{name} is {value}; at least 1 is needed")
        for name in ("reward_scale", "reward_shift"):
            value = getattr(self, name)
            if not isinstance(value, str) and not torch.tensor(value, dtype=torch.float32).isfinite():
                raise InputError(f"data.{name} is {value}; a number that float32 holds is needed")
        if offline_share is not None and not 0 <= offline_share <= 1:
            raise InputError(f"data.offline_share is {offline_share}; a share from 0 to 1 is needed")
        if not isinstance(holdout, str) and not 0 <= holdout <= 1:
            raise InputError(f"data.holdout is {holdout}; a share of the episodes from 0 to 1 is needed")
        if upsample is not None and upsample.rows > batch_size:
            raise InputError(f"data.upsample.rows {upsample.rows} is more than data.batch_size {batch_size}")
        for role in self.roles:
            if role not in ROLES:
                raise InputError(f"data.prioritise has {role!r}; {nearest(role, ROLES)}")
        if priority is not None and not self.roles:
            raise InputError("data.prioritise names no loss term; leave data.priority out to train uniformly")

    @property
    def roles(self) -> tuple[Role, ...]:
        """The loss terms that see the priority."""
        published: tuple[Role, ...] = getattr(self.priority, "roles", ROLES)
        if self.prioritise is None:
            return published
        return (self.prioritise,) if isinstance(self.prioritise, str) else tuple(self.prioritise)

    # Loading -----------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Downloads, makes or maps what is missing on disk; one process per machine."""
        super().prepare_data()
        if isinstance(self.holdout, str):
            self._prepare(self.source.elsewhere(self.holdout), "holdout")

    def setup(self, stage: str | None = None) -> None:
        """Loads and checks the data, weighs them and, under a trainer, makes the environment.

        Each is done once, and again if ``source`` or ``priority`` has been replaced since.

        Raises:
            InputError: if something about the data, the priority or the environment does not fit.
        """
        if stage == "fit" and self._takes_blocks():
            self._epoch()  # refuses lengths that do not fit before anything slow is done
        judges = self.trainer is not None and stage in ("fit", "validate", "test")
        if judges and self.rollouts is not None and self.world is None:
            self.world = matching.make_world(self.source, self.rollouts)
        loaded, self._loaded = self._loaded, None
        fresh = loaded is None or loaded.source is not self.source
        if loaded is not None and stage == "fit":  # judging makes no room for what is gathered
            fresh = fresh or len(loaded.all) - len(loaded) != self._room()
        # Judging draws nothing and needs no weights. Those of several seeds are of the module that trained before.
        draws = self.trainer is None or stage == "fit"
        of_seeds = self._weights is not None and self._weights.dim() == 2
        weighs = draws and (fresh or of_seeds or self._weighed_by is not self.priority)
        # Weights and fingerprint belong to the data as recorded, before actions are clipped.
        reads = fresh or (weighs and self.clip_actions)
        if loaded is None or reads:
            loaded = self._read()
        if draws and 0 < len(loaded) < self.batch_size and not self._room():
            raise InputError(
                f"{self.source}: data.batch_size {self.batch_size} is larger than the dataset "
                f"({len(loaded):,} transitions)"
            )
        if fresh:
            self._weighed_by, self._bonus_built = None, False
            share = 0.0 if isinstance(self.holdout, str) else self.holdout
            self.held_out = chosen(loaded, share, stage in ("fit", None))
            self._apart = None
            if self.held_out is not None and self.offline_share is not None and isinstance(self.source, Joined):
                raise InputError("data.offline_share and data.holdout do not go together: leave out one of them")
            self._hold(loaded, None, "")
        if weighs:
            self._weigh(loaded)
        if reads:
            self._match(loaded)
        scaled = loaded.arrange(self.reward_scale, self.reward_shift)
        self._spec = dataclasses.replace(self._spec, reward_range=loaded.reward_range(scaled))
        columns = getattr(self.trainer.lightning_module, "columns", None) if self.trainer is not None else None
        if columns is not None and (stage in ("fit", "predict") or self.held_out is not None):
            loaded.add(columns, scaled)
        self.judged = None if stage == "predict" else self._to_judge(loaded, columns)
        if self.bonus is not None and draws and not self._bonus_built:
            if loaded.frames is not None:
                raise InputError(
                    f"{self.source}: images, which {type(self.bonus).__name__} is not for; leave out data.bonus"
                )
            self.bonus.build(self._spec, self._device(), self.seed)
            self.bonus.seen(loaded.transitions)
            self._bonus_built = True
        self._loaded = loaded

    def _weigh(self, loaded: Table) -> None:
        weights = None if self.priority is None else weigh(self.priority, loaded.transitions)
        self._hold(loaded, weights, type(self.priority).__name__)
        self._weighed_by = self.priority

    def _to_judge(self, loaded: Table, columns: Columns | None) -> tuple[Table, Tensor] | None:
        if self.held_out is not None:
            return loaded, torch.nonzero(self.held_out).squeeze(1)
        if not isinstance(self.holdout, str):
            return None
        source = self.source.elsewhere(self.holdout)
        if self._apart is None or str(self._apart.source) != str(source):
            self._apart = Table(source, self._kept(source, "holdout"))
            self._apart.check_like(loaded)
            actions = self._apart.transitions["action"]
            low, high = self._spec.action_low.to(actions), self._spec.action_high.to(actions)
            matching.check_actions(source, actions, low, high, self.clip_actions)
        scaled = self._apart.arrange(loaded.factor, self.reward_shift)
        if columns is not None:
            self._apart.add(columns, scaled)
        return self._apart, torch.arange(len(self._apart), device=self._apart.device)

    @property
    def weights(self) -> Tensor | None:
        """The priority, float64 ``[N]``, mean 1; ``[S, N]`` while S seeds train together; None if uniform."""
        self._at_hand("weights")
        return self._weights

    def __repr__(self) -> str:
        """What is loaded and how it is weighed, in a line."""
        if self._loaded is None:
            return f"OfflineDataModule({type(self.source).__name__}, not loaded: call setup())"
        name = f"{self._weights_of}, {self.mode} for {', '.join(self.roles)}"
        weighed = self._mixture.summary(name) if self._weights is not None else "uniform"
        return f"OfflineDataModule({self._loaded.summary(self._spec)}; {weighed}; batches of {self.batch_size})"

    __str__ = __repr__

    def training_rows(self) -> Tensor:
        """Numbers of the transitions that are not held out, int64 ``[n]``."""
        loaded = self._at_hand("rows")
        if self.held_out is None:
            return torch.arange(len(loaded), device=loaded.device)
        return torch.nonzero(~self.held_out).squeeze(1)

    # Drawing -----------------------------------------------------------------------------------------------------

    def set_weights(self, weights: object) -> None:
        """Puts weights ``[N]``, a tensor or array, in the place of the priority's; None for uniform.

        They stay until :meth:`setup` finds another priority than before, or weights of seeds in their place.

        Raises:
            InputError: if they are not one finite, non-negative number per transition, with one above 0.
        """
        loaded = self._at_hand("transitions to weigh")
        given = None if weights is None else checked(weights, len(loaded), "set_weights")
        self._hold(loaded, given, "weights set by hand")

    def set_weights_of_seeds(self, weights: Tensor) -> None:
        """Sets weights ``[S, N]`` for S seeds that train together; each seed then gets its own rows in every batch."""
        loaded = self._at_hand("transitions to weigh")
        if weights.dim() != 2 or weights.shape[1] != len(loaded):
            raise InputError(f"weights of seeds have shape {list(weights.shape)}; [S, {len(loaded)}] is needed")
        self._hold(loaded, weights, f"weights of {len(weights)} seeds")

    def _hold(self, loaded: Table, weights: Tensor | None, name: str) -> None:
        self._weights_of = name
        self._weights = None if weights is None else weights.to(loaded.device)
        self._mixture = self._mixed(loaded)

    def _mixed(self, loaded: Table) -> Mixture:
        """What batches are made of."""
        rows, later = len(loaded), None
        if self.offline_share is not None:
            if not isinstance(self.source, Joined):
                raise InputError(
                    "data.offline_share is a part of every batch for the first of several sources: join "
                    "them with data.source Joined, or leave it out"
                )
            rows = self.source.lengths()[0]
            later = Stretches(torch.tensor([rows], device=loaded.device))
            later.reach(torch.tensor([len(loaded) - rows]))
        weights, share, held = self._weights, self.offline_share, self.held_out
        return Mixture(rows, weights, loaded.device, later, share, self._good(loaded), self.upsample, held)

    def _good(self, loaded: Table) -> Tensor | None:
        """Recorded rows, int64 ``[n]``, that are drawn more often and not held out; None if none are wanted."""
        if self.upsample is None:
            return None
        first = self.source.lengths()[0] if isinstance(self.source, Joined) else 0
        if self.upsample.among == "gathered" and not first:
            raise InputError(
                "data.upsample.among: gathered rows are those behind the first of several sources: "
                "join them with data.source Joined, or leave it out"
            )
        rows = self.upsample.good(loaded.transitions, first)
        return rows if self.held_out is None else rows[~self.held_out[rows]]

    def replay_buffer(self, batch_size: int | None = None) -> TensorDictReplayBuffer:
        """A torchrl replay buffer over the raw transitions, drawing or weighing by the priority.

        Draws by weight follow ``seed``; uniform ones follow torch's global seed, as torchrl's do.
        """
        weights = self.weights
        if self.held_out is not None:
            ones = torch.ones(len(self.held_out), dtype=torch.float64, device=self.held_out.device)
            weights = mean_one_among(ones if weights is None else weights, self.held_out)
        return replay_buffer(self.storage, weights, self.mode, self.seed, batch_size or self.batch_size)

    def draw(self, updates: int) -> Batch:
        """The next block: transitions for ``updates`` updates, ``[K, B]``, or ``[K, S, B]`` under ``[S, N]`` weights.

        What is drawn is a function of the seed and the number of the first update. All ranks draw the rows of all
        ranks, and each keeps its own.
        """
        rows = self._at_hand("batches").rows
        block = self._mixture.draw(rows, self.mode, self.roles, self.seed, self.drawn, updates, self.batch_size)
        if self.bonus is not None:
            block = self.transfer_batch_to_device(block, self._device(), 0)
            block, numbers = paid(block, self.bonus, self.seed, self.drawn)
            self._log_bonus(numbers, updates)
        self.drawn += updates
        return block

    def _log_bonus(self, numbers: dict[str, Tensor], updates: int) -> None:
        """Logs means over all ranks as bonus/…, as often as the trainer logs."""
        every, done = getattr(self.trainer, "log_every_n_steps", 0), self.drawn + updates
        if every and (done // every > self.drawn // every or done == self.trainer.max_steps):  # type: ignore[union-attr]
            means = ranks.sum_over_ranks(torch.stack([*numbers.values()])) / ranks.world_size()
            logged = dict(zip([f"bonus/{name}" for name in numbers], means.tolist(), strict=True))
            for logger in self.trainer.loggers:  # type: ignore[union-attr]
                logger.log_metrics(logged, step=done)

    # What Lightning asks for -------------------------------------------------------------------------------------

    def train_dataloader(self) -> Blocks | Batches:
        """The next epoch: blocks of updates for this package's algorithms, single batches for other modules."""
        return Blocks(self, *self._epoch()) if self._takes_blocks() else Batches(self, self.updates_per_epoch)

    def _takes_blocks(self) -> bool:
        return self.trainer is not None and getattr(self.trainer.lightning_module, "takes_blocks", False)

    def _epoch(self) -> tuple[int, int]:
        """Blocks per epoch and updates per block."""
        assert self.trainer is not None
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return int(self.trainer.fast_dev_run), 1  # type: ignore[attr-defined]
        return shared_out(self.updates_per_epoch, self.trainer.max_steps, self.updates_per_block)

    def val_dataloader(self) -> list[Any]:
        """A loader whose only item is this rank's share of the episodes, where there is an environment; and one for its
        share of the held-out rows, where there are any. Modules other than this package's algorithms get them as
        batches.
        """
        loaders: list[Any] = [*own_episodes(self.world, self.rollouts, test=False)]
        if self.judged is not None:
            held = HeldOut(*self.judged, self.batch_size)
            loaders.append(held if self._takes_blocks() else HeldOutBatches(held))
        return loaders

    def test_dataloader(self) -> list[Episodes]:
        """A loader like :meth:`val_dataloader`'s, with the episode seeds of the test."""
        return own_episodes(self.world, self.rollouts, test=True)

    def predict_dataloader(self) -> InOrder:
        """All transitions in row order."""
        return InOrder(self._at_hand("rows"))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves transitions to the training device; roles that were the same object stay so."""
        if isinstance(batch, Batch):
            return batch.map(lambda part: moved(part, device))
        return moved(batch, device) if isinstance(batch, TensorDict) else batch

    def state_dict(self) -> dict[str, Any]:
        """Seed and number of updates drawn, which decide what is drawn next; the number of rows of an update; scale and
        shift of the rewards; what the bonus has learnt.
        """
        rows = self.batch_size * ranks.world_size()
        state = {"seed": self.seed, "drawn": self.drawn, "rows": rows, "rewards": self._scaling()}
        return state if self.bonus is None else {**state, "bonus": self.bonus.state_dict()}

    def _scaling(self) -> str:
        return f"data.reward_scale {self.reward_scale} and data.reward_shift {self.reward_shift}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on drawing where the checkpoint was written."""
        self.seed, self.drawn = state_dict["seed"], state_dict["drawn"]
        now = self.batch_size * ranks.world_size()
        if (before := state_dict.get("rows", now)) != now:
            note(
                f"updates see {now:,} rows now (data.batch_size {self.batch_size:,} in each of {ranks.world_size()} "
                f"processes), {before:,} before: from here on the run differs from one with the old batches"
            )
        if (was := state_dict.get("rewards", self._scaling())) != self._scaling():
            note(f"{self._scaling()} now, {was:.100} before: what critics have learnt is in the old units")
        if self.bonus is not None and "bonus" in state_dict:
            bring(self.bonus, state_dict["bonus"], getattr(self.trainer, "ckpt_path", None) or "the checkpoint")
