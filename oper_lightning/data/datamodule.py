"""The LightningDataModule: a source in torchrl storage, drawn by priority, handed out in blocks of updates."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import RandomSampler, TensorDictReplayBuffer, TensorStorage

from oper_lightning.data import matching, storage
from oper_lightning.data.loaders import Blocks, Episodes, InOrder
from oper_lightning.data.sampler import WeightedSampler
from oper_lightning.data.sources.source import Source
from oper_lightning.data.transforms import LossWeight
from oper_lightning.data.transitions import fingerprint, squeezed
from oper_lightning.envs.rollouts import Rollouts, World
from oper_lightning.errors import InputError
from oper_lightning.nn import ranks
from oper_lightning.priorities.priority import Priority
from oper_lightning.spec import ROLES, Batch, DataSpec, Role

LARGEST_BLOCK = 50  # updates
PART = 8192  # rows that are looked at together where order matters


class OfflineDataModule(LightningDataModule):
    """Recorded transitions for offline reinforcement learning, for this package's algorithms or for your own loop.

    In a loop of your own: ``data = OfflineDataModule(source, priority); data.setup()``, then draw TED TensorDicts
    from ``data.replay_buffer(256)``, or use ``data.storage`` and ``data.weights`` as you like.

    Args:
        source: where the transitions come from.
        priority: how much each transition matters; all the same by default.
        mode: resample draws transitions in proportion to the priority, reweight draws uniformly and weighs losses.
        prioritise: the loss terms that see the priority, of evaluation, improvement and constraint; by default those
            of the priority's paper (OPER-A: improvement and constraint; OPER-R and the rest: all).
        batch_size: transitions per update and process.
        updates_per_epoch: gradient updates between evaluations and checkpoints.
        updates_per_block: gradient updates that pass through Lightning's loop together; by default the largest
            divisor of updates_per_epoch up to 50.
        rollouts: how policies are scored in an environment; null to train without.
        reward_scale: rewards are multiplied by this before targets are built; OPER-R sees raw rewards. return_range:
            1000 over the distance between best and worst return (IQL on locomotion).
        reward_shift: added to the scaled reward (antmaze: -1).
        clip_actions: bring recorded actions that lie outside the action space to its border instead of refusing them.
        location: keep transitions on the training device, in main memory, or memory-mapped on disk.
        memmap_folder: where memory-mapped transitions lie; memmap in the run's folder by default.
    """

    def __init__(
        self,
        source: Source,
        priority: Priority | None = None,
        mode: Literal["resample", "reweight"] = "resample",
        prioritise: list[Role] | None = None,
        batch_size: int = 256,
        updates_per_epoch: int = 5000,
        updates_per_block: int | None = None,
        rollouts: Rollouts | None = Rollouts(),  # noqa: B008 (frozen)
        reward_scale: float | Literal["return_range"] = 1.0,
        reward_shift: float = 0.0,
        clip_actions: bool = False,
        location: Literal["device", "memory", "memmap"] = "device",
        memmap_folder: str | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.priority = priority
        self.mode = mode
        published = getattr(priority, "roles", ROLES)
        self.roles: tuple[Role, ...] = published if prioritise is None else tuple(prioritise)
        self.batch_size = batch_size
        self.updates_per_epoch = updates_per_epoch
        self.updates_per_block = updates_per_block
        self.rollouts = rollouts
        self.reward_scale = reward_scale
        self.reward_shift = reward_shift
        self.clip_actions = clip_actions
        self.location = location
        self.memmap_folder = memmap_folder
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))
        self.drawn = 0
        """gradient updates whose transitions have been drawn"""
        self._prioritises = False
        self.weights: Tensor | None = None
        """the priority, float64 ``[N]``, mean 1; ``[S, N]`` while S seeds train together; None if uniform"""
        self.world: World | None = None
        self._spec: DataSpec | None = None
        for name in ("batch_size", "updates_per_epoch", "updates_per_block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"data.{name} is {value}; at least 1 is needed")
        if priority is not None and not self.roles:
            raise InputError("data.prioritise names no loss term; leave data.priority out to train uniformly")

    # Loading -----------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Downloads, makes or maps what is missing on disk; one process per machine."""
        self.source.prepare()
        if self.location == "memmap":
            storage.map_new(self.source, self._map_folder())

    def setup(self, stage: str | None = None) -> None:
        """Loads and checks the data and, under a trainer, makes the environment; each once.

        Raises:
            InputError: if something about the data, the priority or the environment does not fit.
        """
        if self.trainer is not None and stage == "fit":
            self._epoch()  # refuses lengths that do not fit before anything slow is done
        judges = self.trainer is not None and stage in ("fit", "validate", "test")
        if judges and self.rollouts is not None and self.world is None:
            self.world = matching.make_world(self.source, self.rollouts)
        if self._spec is None or (stage == "fit" and self.priority is not None and self.weights is None):
            self._load(stage)
        scaled = matching.scaled_rewards(self.source, self.transitions, self.reward_scale, self.reward_shift)
        following = {key: scaled["next", key] for key in ("observation", "reward", "terminated")}
        self.table = TensorDict(
            {"observation": scaled["observation"], "action": scaled["action"], "next": following},
            batch_size=scaled.batch_size,
            device=scaled.device,
        )
        if self.trainer is not None and stage in ("fit", "predict"):
            columns = getattr(self.trainer.lightning_module, "columns", None)
            self.table.update(columns(scaled) if columns else {})

    def _load(self, stage: str | None) -> None:
        if self.trainer is None:
            self.prepare_data()
        origin = self.source.origin()
        if self.location == "memmap":
            self.storage = storage.load_mapped(self._map_folder())
        else:
            device = torch.device("cpu")
            if self.location == "device" and self.trainer is not None:
                device = self.trainer.strategy.root_device
            self.storage = storage.fill(self.source, device)
        self.transitions = squeezed(self.storage[:])
        rows = len(self.transitions)
        if rows < self.batch_size:
            raise InputError(f"data.batch_size {self.batch_size} is larger than the dataset ({rows:,} transitions)")
        if self.world is not None:
            matching.check_shapes(self.source, self.transitions, self.world)
        # Weights and fingerprint belong to the data as recorded, before actions are clipped. Judging needs no weights.
        recorded = fingerprint(self.transitions)
        if self.priority is not None and (self.trainer is None or stage == "fit"):
            self.set_weights(self.priority(self.transitions))
        low, high = matching.action_bounds(self.transitions["action"], self.world, origin, self.trainer is not None)
        matching.check_actions(self.source, self.transitions["action"], low, high, self.clip_actions)
        self._spec = matching.spec(self.transitions, origin, self.world, (low.cpu(), high.cpu()), recorded)

    def teardown(self, stage: str) -> None:
        """Closes the environments; :meth:`setup` makes them anew."""
        if self.world is not None:
            self.world.close()
            self.world = None

    @property
    def spec(self) -> DataSpec:
        """What an algorithm needs to know of the data."""
        if self._spec is None:
            raise RuntimeError("OfflineDataModule.setup() has not been called")
        return self._spec

    def _map_folder(self) -> Path:
        if self.memmap_folder is None:
            under = self.trainer.default_root_dir if self.trainer is not None else tempfile.mkdtemp(prefix="oper-")
            self.memmap_folder = str(Path(under) / "memmap")
        return Path(self.memmap_folder) / "transitions"

    # Drawing -----------------------------------------------------------------------------------------------------

    def set_weights(self, weights: Tensor | None) -> None:
        """Replaces the priority: weights ``[N]``, or ``[S, N]`` for S seeds that train together; None for uniform."""
        self.weights = None if weights is None else weights.to(self.transitions.device or "cpu")
        self._loss_weights = torch.empty(0) if self.weights is None else self.weights.float()
        # Equal weights are no priority: the run is then the uniform one, draw for draw.
        self._prioritises = self.weights is not None and bool((self.weights != self.weights[..., :1]).any())
        self._sampler = WeightedSampler(self.weights) if self.weights is not None and self._prioritises else None

    def replay_buffer(self, batch_size: int | None = None) -> TensorDictReplayBuffer:
        """A torchrl replay buffer over the raw transitions, drawing or weighing by the priority."""
        kept, sampler, transform = self.storage, RandomSampler(), None
        if self.weights is not None and self.mode == "resample":
            sampler = WeightedSampler(self.weights, self.seed)
        elif self.weights is not None:
            transform = LossWeight(self.weights)
            rows = self.storage[:].clone(recurse=False)
            kept = TensorStorage(rows.set("index", torch.arange(len(rows), device=rows.device)))
        size = batch_size or self.batch_size
        return TensorDictReplayBuffer(storage=kept, sampler=sampler, transform=transform, batch_size=size)

    def rows(self, index: Tensor | slice) -> TensorDict:
        """The transitions with row numbers ``[...]`` (or a slice), as algorithms get them: scaled, with columns."""
        part: TensorDict = self.table[index]
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

    def draw(self, updates: int) -> Batch:
        """The next block: transitions for ``updates`` updates, ``[K, B]``, or ``[K, S, B]`` under ``[S, N]`` weights.

        What is drawn is a function of the seed and the number of the first update. All ranks draw the rows of all
        ranks, and each keeps its own.
        """
        seeds = self.weights.shape[:-1] if self.weights is not None else torch.Size()
        prioritised = self.roles if self._prioritises else ()
        parts: dict[bool, TensorDict] = {}
        resample = self.mode == "resample"
        if not resample or len(prioritised) < len(ROLES):
            parts[False] = self._part(self._index("uniform", updates, seeds))
        if prioritised:
            parts[True] = (
                self._part(self._index("priority", updates, seeds)) if resample else self._weighted(parts[False])
            )
        self.drawn += updates
        return Batch(*(parts[role in prioritised] for role in ROLES))

    def _index(self, stream: str, updates: int, seeds: torch.Size) -> Tensor:
        """Row numbers ``[K, B]`` or ``[K, S, B]`` of this rank."""
        batch = self.batch_size * ranks.world_size()
        seed = ranks.stream_seed(self.seed, stream, self.drawn)
        if stream == "priority":
            assert self._sampler is not None
            self._sampler.generator.manual_seed(seed)
            index = self._sampler.draw(updates * batch)
        else:
            device = self.table.device or torch.device("cpu")
            generator = torch.Generator(device).manual_seed(seed)
            shape = (*seeds, updates * batch)
            index = torch.randint(len(self.table), shape, generator=generator, device=device)
        index = index.reshape(*seeds, updates, batch).movedim(-2, 0)
        return index[..., ranks.rank() * self.batch_size :][..., : self.batch_size]

    def _part(self, index: Tensor) -> TensorDict:
        part = self.rows(index)
        if self.mode == "reweight":
            part["index"] = index
        part["weight"] = torch.ones(index.shape, device=index.device)
        return part

    def _weighted(self, part: TensorDict) -> TensorDict:
        """The same transitions with the priority as their weight."""
        return part.clone(recurse=False).set("weight", self._loss_weights[part["index"]])

    # What Lightning asks for -------------------------------------------------------------------------------------

    def train_dataloader(self) -> Blocks:
        """Blocks for the next epoch; see :meth:`draw`."""
        return Blocks(self, *self._epoch())

    def _epoch(self) -> tuple[int, int]:
        """Blocks per epoch and updates per block."""
        if self.trainer is not None and self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return int(self.trainer.fast_dev_run), 1  # type: ignore[attr-defined]
        updates = self.updates_per_epoch
        steps = self.trainer.max_steps if self.trainer is not None else -1
        if 0 < steps < updates:
            updates = steps
        if steps > 0 and steps % updates:
            raise InputError(
                f"trainer.max_steps {steps:,} is not a multiple of data.updates_per_epoch {updates:,}; "
                f"evaluations and checkpoints come at the end of an epoch"
            )
        block = self.updates_per_block or max(k for k in range(1, LARGEST_BLOCK + 1) if updates % k == 0)
        if updates % block:
            raise InputError(f"data.updates_per_block {block} does not divide the {updates:,} updates of an epoch")
        return updates // block, block

    def val_dataloader(self) -> list[Episodes]:
        """One loader whose only item is this rank's share of the episodes; none without an environment."""
        return self._episodes(test=False)

    def test_dataloader(self) -> list[Episodes]:
        """The same on other episode seeds."""
        return self._episodes(test=True)

    def _episodes(self, test: bool) -> list[Episodes]:
        if self.world is None or self.rollouts is None:
            return []
        seeds = self.rollouts.seeds(test)[ranks.rank() :: ranks.world_size()]
        return [Episodes(self.world, seeds)]

    def predict_dataloader(self) -> InOrder:
        """All transitions in row order."""
        return InOrder(self)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves transitions to the training device; roles that were the same object stay so."""
        if isinstance(batch, Batch):
            return batch.map(lambda part: part.to(device, non_blocking=True))
        return batch.to(device) if isinstance(batch, TensorDict) else batch

    def state_dict(self) -> dict[str, Any]:
        """Seed and number of updates drawn: all that the order of the data depends on."""
        return {"seed": self.seed, "drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where the checkpoint stood."""
        self.seed, self.drawn = state_dict["seed"], state_dict["drawn"]
