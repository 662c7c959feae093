"""Flat HDF5 files in D4RL's layout: any file by path, D4RL's own by name.

Fu et al. 2020, arXiv 2004.07219. Addresses of the published files: ``torchrl.data.datasets.d4rl_infos``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tensordict import TensorDict

from oper_lightning.data.sources import hdf5
from oper_lightning.data.sources.columns import FLAGS, OPTIONAL, mapping
from oper_lightning.data.sources.d3rlpy import is_dump
from oper_lightning.data.sources.download import download
from oper_lightning.data.sources.flat import FlatEpisodes
from oper_lightning.data.sources.recorded import attributes_of
from oper_lightning.data.sources.source import GIVEN, Bound, Origin, Source, action_box, given_reference
from oper_lightning.data.sources.tianshou_files import DATA
from oper_lightning.envs.scores import environment_of, family
from oper_lightning.errors import InputError, nearest
from oper_lightning.files import existing, place


class D4RL(Source):
    """A flat HDF5 file in D4RL's layout, by path, or one of D4RL's own, by name.

    Required columns: observations, actions, rewards, terminals. Optional ones: timeouts, next_observations,
    episode_terminals (d3rlpy's layout), masks (OGBench's). The attributes env_id, ref_min_score and ref_max_score of
    the file are used. The file is closed once its rows are in the storage.

    Args:
        path: a file, or the name of a D4RL dataset such as hopper-medium-v2, which is downloaded once to
            $D4RL_DATASET_DIR (default ~/.d4rl/datasets).
        environment: Gymnasium id of the environment that the data were recorded in; by default what the file says.
        max_episode_steps: number of steps after which episodes were cut, for files without timeouts.
        qlearning_rows: keep exactly the rows of D4RL's qlearning_dataset, for weights published on those rows.
        names: what the file calls its columns, if not by D4RL's names; keys are observations, actions, rewards,
            terminals, timeouts, next_observations, episode_terminals, masks; data/obs is a column inside a group.
        action_low: lowest action that may be taken: one number, or a list with one for each column; by default what the
            environment says, else what the data show.
        action_high: highest action that may be taken, in the same form.
        reference: the two returns that score 0 and 100; by default what the file says, else D4RL's for its dataset or
            for the environment's robot, if it has any.
        allow_external: whether to follow links to other files, and to read columns that are stored in other files.
    """

    def __init__(
        self,
        path: str,
        environment: str | None = None,
        max_episode_steps: int | None = None,
        qlearning_rows: bool = False,
        names: dict[str, str] | None = None,
        action_low: Bound | None = None,
        action_high: Bound | None = None,
        reference: tuple[float, float] | None = None,
        allow_external: bool = False,
    ) -> None:
        self.path = path
        self.environment = environment
        self.max_episode_steps = max_episode_steps
        self.qlearning_rows = qlearning_rows
        self.names = names
        self.allow_external = allow_external
        self.box = action_box(action_low, action_high, path)
        self.reference = given_reference(reference, path)

    def prepare(self) -> None:
        if not place(self.path).exists() and self._name():
            download(self.path, _addresses()[self.path], _file_of(self.path))

    def origin(self) -> Origin:
        return self._origin

    def __str__(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return len(self._flat)

    def episodes(self) -> Iterator[TensorDict]:
        flat = self._flat
        with self._columns() as columns:
            yield from flat.episodes(columns)
        vars(self).pop("_flat", None)  # the storage has the rows now

    @cached_property
    def _origin(self) -> Origin:
        with hdf5.opened(self._file) as opened:
            recorded_in, recorded = attributes_of(opened, self)
        name = self._name()
        by_name = environment_of(name) if name else None
        environment, options = by_name or (None, {})
        if self.environment is not None or recorded_in is not None:
            environment, options = self.environment or recorded_in, {}
        reference = self.reference or recorded
        reference_from = GIVEN if self.reference else Origin.reference_from
        scores = family(name) if name and reference is None else None
        if scores is not None:
            reference, reference_from = (scores.low, scores.high), "D4RL's own"
        return Origin(
            dataset=name or place(self.path).stem,
            environment=environment,
            environment_options=options,
            reference=reference,
            reference_from=reference_from,
            d4rl=scores is not None and by_name is not None and environment == by_name[0],
            action_low=self.box[0],
            action_high=self.box[1],
        )

    @cached_property
    def _flat(self) -> FlatEpisodes:
        name, steps = self._name(), self.max_episode_steps
        with self._columns() as columns:
            if steps is None and name and "timeouts" not in columns and (known := family(name)):
                steps = known.steps
            return FlatEpisodes(columns, self.path, steps, self.qlearning_rows)

    @contextmanager
    def _columns(self) -> Iterator[dict[str, Any]]:
        """Our columns in the file, which is open for so long."""
        with hdf5.opened(self._file, self.allow_external) as opened:
            if self.names is None and is_dump(opened):
                raise InputError(f"{self.path}: arrays of single episodes, as d3rlpy 2 dumps; read it with D3rlpy")
            if self.names is None and not opened.has("observations") and opened.has(DATA):
                raise InputError(f"{self.path}: a replay buffer of Tianshou; read it with the source Tianshou")
            columns = {}
            for ours, theirs in mapping(opened.arrays(), self.names, self.path, opened.described).items():
                columns[ours] = opened.array(theirs)
                if ours not in FLAGS:
                    hdf5.check_written(columns[ours], theirs, self.path)
            for name in OPTIONAL:
                if name not in columns and name not in (self.names or {}):
                    opened.array(name)  # refuses what is there but is no array
            yield columns

    def _name(self) -> str | None:
        """The D4RL name, if ``path`` is one or is a file that was downloaded under D4RL's own file name."""
        names = _addresses()
        if self.path in names:
            return self.path
        file = place(self.path)
        if file.resolve().parent != _folder().resolve():
            return None
        return next((name for name, address in names.items() if address.rsplit("/", 1)[-1] == file.name), None)

    @property
    def _file(self) -> Path:
        path = place(self.path)
        if path.exists():
            return path
        if name := self._name():
            path = _file_of(name)
        if not path.exists() and "/" not in self.path and "." not in self.path:
            known = nearest(self.path, _addresses())
            raise InputError(
                f"{self.path}: no such file (looked for at {path.absolute()}), nor a D4RL dataset of that name; {known}"
            )
        return existing(path)


def _addresses() -> dict[str, str]:
    """Address of every published dataset by name."""
    from oper_lightning.data import rl

    return rl.d4rl_addresses()


def known_names() -> list[str]:
    """Names of D4RL's own datasets."""
    return list(_addresses())


def _folder() -> Path:
    return Path(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")).expanduser()


def _file_of(name: str) -> Path:
    return _folder() / _addresses()[name].rsplit("/", 1)[-1]
