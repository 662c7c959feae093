"""Transitions that a LightningDataModule has read, checked, and matched with an environment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data import matching, storage
from oper_lightning.data.rl import TensorStorage
from oper_lightning.data.sources.source import Source
from oper_lightning.data.table import Table
from oper_lightning.data.transitions import are_images, is_discrete
from oper_lightning.envs.rollouts import World
from oper_lightning.errors import InputError
from oper_lightning.files import place
from oper_lightning.spec import Batch, DataSpec

Location = Literal["device", "memory", "memmap"]


class LoadedData(LightningDataModule, ABC):
    """Reads a source into storage, and holds it. What is drawn from it is for the class below to say.

    Args:
        source: where the transitions come from.
        batch_size: number of transitions of a batch.
        clip_actions: whether actions outside their bounds are moved to the nearest bound.
        location: where transitions are kept.
        memmap_folder: folder of memory-mapped transitions.
    """

    def __init__(
        self, source: Source, batch_size: int, clip_actions: bool, location: Location, memmap_folder: str | None
    ) -> None:
        super().__init__()
        self.source = source
        self.batch_size = batch_size
        self.clip_actions = clip_actions
        self.location = location
        self.memmap_folder = memmap_folder
        self.world: World | None = None
        self._loaded: Table | None = None
        self._spec: DataSpec
        self._temporary: str | None = None

    @abstractmethod
    def draw(self, updates: int) -> Batch:
        """The transitions of the next updates, ``[K, B]``."""

    # Reading -----------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Downloads, makes or maps what is missing on disk; one process per machine."""
        self._prepare(self.source, "transitions", self._room())

    def _prepare(self, source: Source, folder: str, room: int = 0) -> None:
        source.prepare()
        if self.location == "memmap":
            storage.map_new(source, self._map_folder(folder), self._look_at, room)

    def _kept(self, source: Source, folder: str, room: int = 0) -> TensorStorage:
        """All transitions of a source, in the place that :attr:`location` names."""
        if self.trainer is None:
            self._prepare(source, folder, room)
        if self.location == "memmap":
            return storage.load_mapped(self._map_folder(folder))
        device = self._device() if self.location == "device" else torch.device("cpu")
        return storage.fill(source, device, look_at=self._look_at, room=room)

    def _read(self) -> Table:
        kept = self._kept(self.source, "transitions", self._room())
        # Not the source's length: a source that has been read may have to look into its files again to know it.
        loaded = Table(self.source, kept, len(kept) - self._room())
        if self.world is not None:
            matching.check_shapes(self.source, loaded.observation_shape, loaded.transitions["action"], self.world)
        return loaded

    def _device(self) -> torch.device:
        """Where training is done."""
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    def _room(self) -> int:
        """Number of rows for transitions that are yet to be gathered."""
        return 0

    def _look_at(self, episodes: TensorDict) -> None:
        """Asks the trained module, as soon as some episodes are there, whether it is for such data."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        if check := getattr(module, "check_data", None):
            kind = "discrete" if is_discrete(episodes["action"]) else "continuous"
            check(kind, are_images(episodes["observation"]), self.source)

    def _match(self, loaded: Table) -> None:
        """Brings data and environment together."""
        origin, actions, ask = self.source.origin(), loaded.transitions["action"], self.trainer is not None
        low, high, _ = matching.action_bounds(self.source, actions, self.world, origin, ask)
        if not is_discrete(actions) and not (low < high).all():
            raise InputError(
                f"{self.source}: action bounds {low.tolist()} to {high.tolist()}: the lowest must be below "
                f"the highest; leave out an action that is always the same"
            )
        if self.clip_actions and self.location == "memmap" and self.trainer is not None:
            self.trainer.strategy.barrier("clip")  # all ranks share the map: each must have read what is recorded
        matching.check_actions(self.source, actions, low, high, self.clip_actions)
        self._spec = matching.spec(
            loaded.transitions, loaded.observation_shape, origin, self.world, (low.cpu(), high.cpu()), loaded.recorded
        )

    def teardown(self, stage: str) -> None:
        """Closes the environments; :meth:`setup` makes them anew."""
        if self.world is not None:
            self.world.close()
            self.world = None

    def _map_folder(self, name: str) -> Path:
        if self.memmap_folder is not None:
            return place(self.memmap_folder) / name
        if self.trainer is not None:
            return Path(self.trainer.default_root_dir) / "memmap" / name
        if self._temporary is None:
            self._temporary = storage.temporary_folder(self)
        return Path(self._temporary) / name

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: all but the trainer, the environments and a temporary folder to tidy up."""
        return {**self.__dict__, "trainer": None, "world": None, "_temporary": None}

    # What is loaded ----------------------------------------------------------------------------------------------

    def _at_hand(self, what: str) -> Table:
        if self._loaded is None:
            raise InputError(f"OfflineDataModule has no {what} before the data are loaded: call setup() first")
        return self._loaded

    @property
    def spec(self) -> DataSpec:
        """What an algorithm needs to know of the data."""
        self._at_hand("spec")
        return self._spec

    @property
    def storage(self) -> TensorStorage:
        """All N transitions as recorded, in torchrl's TED layout: reward and flags are ``[N, 1]``.

        Images are put together from frames when rows are asked for: ``storage[:]`` would make all of them.
        """
        return self._at_hand("storage").storage

    @property
    def transitions(self) -> TensorDict:
        """The memory of :attr:`storage` as a TensorDict ``[N]`` in which reward and flags are ``[N]``.

        In place of images it has numbers of frames, see :mod:`oper_lightning.data.transitions`; :meth:`rows` has them.
        """
        return self._at_hand("transitions").transitions

    @property
    def table(self) -> TensorDict:
        """The transitions as algorithms get them, TensorDict ``[N]``: rewards scaled, with the algorithm's columns."""
        return self._at_hand("table").entries

    def rows(self, index: Tensor | slice) -> TensorDict:
        """The transitions with row numbers ``[...]`` (or a slice), as algorithms get them: scaled, with columns."""
        return self._at_hand("rows").rows(index)

    def in_order(self, size: int | None = None) -> Iterator[TensorDict]:
        """All transitions in row order, as from :meth:`rows`; whole episodes, ``size`` rows or more at a time.

        By default 8192 rows, or 1024 of images.
        """
        return self._at_hand("rows").in_order(size)
