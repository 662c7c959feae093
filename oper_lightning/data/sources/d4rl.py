"""Flat HDF5 files in D4RL's layout: any file by path, D4RL's own by name.

Fu et al. 2020, arXiv 2004.07219. Addresses of the published files: ``torchrl.data.datasets.d4rl_infos``.
"""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.request
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from tensordict import TensorDict

from oper_lightning.data.sources.flat import OPTIONAL, REQUIRED, FlatEpisodes
from oper_lightning.data.sources.source import Bound, Origin, Source, action_box, environment_named_by_data
from oper_lightning.envs.scores import environment_of, family
from oper_lightning.errors import InputError, nearest, note
from oper_lightning.files import beside


class D4RL(Source):
    """A flat HDF5 file in D4RL's layout, by path, or one of D4RL's own, by name.

    Columns: observations, actions, rewards, terminals and, if there are any, timeouts and next_observations. The
    file's attributes env_id, ref_min_score and ref_max_score are heeded.

    Args:
        path: a file, or the name of a D4RL dataset such as hopper-medium-v2, which is downloaded once to
            $D4RL_DATASET_DIR (default ~/.d4rl/datasets).
        environment: Gymnasium id of the environment it was recorded in, if the file does not say.
        max_episode_steps: steps after which episodes were cut, for files without timeouts.
        qlearning_rows: keep exactly the rows of D4RL's qlearning_dataset, for weights published on those rows.
        action_low: lowest action that may be taken, one number or one for each column, where the environment does not
            say it or is not at hand.
        action_high: highest action likewise.
    """

    def __init__(
        self,
        path: str,
        environment: str | None = None,
        max_episode_steps: int | None = None,
        qlearning_rows: bool = False,
        action_low: Bound | None = None,
        action_high: Bound | None = None,
    ) -> None:
        self.path = path
        self.environment = environment
        self.max_episode_steps = max_episode_steps
        self.qlearning_rows = qlearning_rows
        self.box = action_box(action_low, action_high, path)

    def prepare(self) -> None:
        if not Path(self.path).exists() and self._name():
            download(self.path)

    def origin(self) -> Origin:
        attributes = self._file.attrs
        name = self._name()
        by_name = environment_of(name) if name else None
        environment, options = by_name or (None, {})
        if "env_id" in attributes:
            environment, options = environment_named_by_data(attributes["env_id"]), {}
        if self.environment is not None:
            environment, options = self.environment, {}
        scores = family(name) if name else None
        reference = (scores.low, scores.high) if scores else None
        if "ref_min_score" in attributes and "ref_max_score" in attributes:
            reference = (float(attributes["ref_min_score"]), float(attributes["ref_max_score"]))
        return Origin(
            dataset=name or Path(self.path).stem,
            environment=environment,
            environment_options=options,
            reference=reference,
            d4rl=name is not None,
            action_low=self.box[0],
            action_high=self.box[1],
        )

    def __str__(self) -> str:
        return self.path

    def __len__(self) -> int:
        return len(self._flat)

    def episodes(self) -> Iterator[TensorDict]:
        try:
            yield from self._flat.episodes()
        except OSError as error:
            raise InputError(f"{self.path}: broken HDF5 file: {error}") from None

    def _name(self) -> str | None:
        """The D4RL name, if ``path`` is one or is a file that was downloaded under D4RL's own file name."""
        names = _addresses()
        if self.path in names:
            return self.path
        if Path(self.path).resolve().parent != _folder().resolve():
            return None
        file = Path(self.path).name
        return next((name for name, address in names.items() if address.rsplit("/", 1)[-1] == file), None)

    @cached_property
    def _file(self) -> Any:
        import h5py

        name = self._name()
        path = _file_of(name) if name and not Path(self.path).exists() else Path(self.path)
        if not path.is_file():
            known = nearest(self.path, _addresses()) if "/" not in self.path and "." not in self.path else ""
            raise InputError(f"{self.path}: no such file, nor a D4RL dataset of that name; {known}".rstrip("; "))
        try:
            return h5py.File(path, "r")
        except OSError as error:
            reason = "truncated" if "truncated" in str(error) else "not an HDF5 file, or broken"
            raise InputError(f"{path}: {reason}; a flat HDF5 file in D4RL's layout is needed") from None

    @cached_property
    def _flat(self) -> FlatEpisodes:
        import h5py

        columns = {}
        for key in (*REQUIRED, *OPTIONAL):
            if key in self._file:
                if not isinstance(self._file[key], h5py.Dataset):
                    raise InputError(f"{self.path}: {key!r} is a group; an array is needed")
                columns[key] = self._file[key]
        steps = self.max_episode_steps
        name = self._name()
        if steps is None and name and (known := family(name)):
            steps = known.steps
        try:
            return FlatEpisodes(columns, self.path, steps, self.qlearning_rows)
        except OSError as error:
            raise InputError(f"{self.path}: broken HDF5 file: {error}") from None


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


def download(name: str) -> Path:
    """Fetches a D4RL dataset unless it is there, to a temporary file first.

    Raises:
        InputError: if it cannot be fetched; the line says from where to get it and where to put it.
    """
    target = _file_of(name)
    if target.is_file():
        return target
    address = _addresses()[name]
    new = beside(target)
    note(f"downloading {address} to {target}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(address, timeout=30) as answer, open(new, "wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
            expected = answer.headers.get("Content-Length")
        if expected is not None and new.stat().st_size != int(expected):
            raise OSError(f"{new.stat().st_size:,} of {int(expected):,} bytes came")
        os.replace(new, target)
    except (OSError, http.client.HTTPException) as error:
        new.unlink(missing_ok=True)
        reason = getattr(error, "reason", error)
        raise InputError(
            f"{name}: cannot download it ({reason}); fetch {address} yourself and put it at {target}"
        ) from None
    return target
