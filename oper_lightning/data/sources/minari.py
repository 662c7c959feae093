"""Minari datasets, from the local store, by download, or by folder; HDF5 and Arrow."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tensordict import TensorDict

from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.sources.recorded import environment_named_by_data
from oper_lightning.data.transitions import transitions_from
from oper_lightning.envs.rollouts import join_entries
from oper_lightning.errors import InputError, first_line, note


class Minari(Source):
    """A Minari dataset.

    Args:
        id: the dataset's id, such as mujoco/hopper/medium-v0, or a folder that holds one.
        download: fetch it if it is not in the local store ($MINARI_DATASETS_PATH, default ~/.minari/datasets).
        observation_keys: for Dict observations, the entries to join into one vector, in this order; a/b names entry b
            of entry a.
    """

    def __init__(self, id: str, download: bool = False, observation_keys: list[str] | None = None) -> None:
        self.id = id
        self.download = download
        self.observation_keys = tuple(observation_keys or ())

    def prepare(self) -> None:
        if self.download and not self._folder.is_dir():
            from minari.storage import hosting

            try:
                hosting.download_dataset(self.id)
            except Exception as error:  # whatever the remote's client raises
                place = self._folder.parent
                raise InputError(
                    f"{self.id}: cannot download it ({first_line(error)}); put the dataset's folder at {place}"
                ) from None

    def origin(self) -> Origin:
        environment, options = self._environment()
        low, high = self._metadata.get("ref_min_score"), self._metadata.get("ref_max_score")
        reference = (float(low), float(high)) if low is not None and high is not None else None
        space = self._dataset.action_space
        return Origin(
            dataset=str(self._metadata.get("dataset_id", self.id)),
            environment=environment,
            environment_options=options,
            observation_keys=self.observation_keys,
            action_low=getattr(space, "low", None),
            action_high=getattr(space, "high", None),
            reference=reference,
        )

    def __len__(self) -> int:
        return int(self._dataset.total_steps)

    def episodes(self) -> Iterator[TensorDict]:
        unfinished = 0
        for episode in self._raw_episodes():
            where = f"{self.id}: episode {episode.id}"
            observations = self._observations(episode.observations, where)
            steps = len(episode.rewards)
            columns = {
                "actions": np.asarray(episode.actions),
                "rewards": np.asarray(episode.rewards).reshape(-1),
                "terminations": np.asarray(episode.terminations),
                "truncations": np.array(episode.truncations),
            }
            if steps == 0 or len(observations) != steps + 1:
                raise InputError(f"{where}: {len(observations):,} observations for {steps:,} rewards; one more needed")
            for name, column in columns.items():
                if column.dtype.kind not in "fiub" or len(column) != steps:
                    raise InputError(f"{where}: {name!r}: {len(column):,} {column.dtype}, but {steps:,} rewards")
            if not (columns["terminations"][-1] or columns["truncations"][-1]):
                unfinished += 1
                columns["truncations"][-1] = True
            yield transitions_from(
                observations[:-1],
                columns["actions"],
                columns["rewards"],
                observations[1:],
                columns["terminations"],
                columns["truncations"],
            )
        if unfinished:
            note(f"{self.id}: {unfinished:,} unfinished episodes count as truncated")

    def _raw_episodes(self) -> Iterator[Any]:
        try:
            yield from self._dataset.iterate_episodes()
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{self.id}: broken data file in {self._folder}: {error}") from None

    def _observations(self, observations: Any, where: str) -> np.ndarray:
        if not isinstance(observations, dict):
            return np.asarray(observations)
        if not self.observation_keys:
            raise InputError(
                f"{self.id}: Dict observations; name the entries and their order in observation_keys, "
                f"of: {', '.join(_leaves(observations))}"
            )
        return join_entries(observations, self.observation_keys, where)

    @property
    def _folder(self) -> Path:
        """Folder of the data files."""
        for folder in (Path(self.id) / "data", Path(self.id)):
            if (folder / "metadata.json").is_file():
                return folder
        root = Path(os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")).expanduser()
        return root / self.id / "data"

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        file = self._folder / "metadata.json"
        if not file.is_file():
            raise InputError(
                f"{self.id}: no Minari dataset at {self._folder}; "
                f"give the id of a local one, a folder, or download=true"
            )
        try:
            metadata: dict[str, Any] = json.loads(file.read_text())
        except ValueError as error:
            raise InputError(f"{file}: broken metadata: {error}") from None
        for key in ("observation_space", "action_space", "data_format"):
            # Minari would make the environment from an entry point named in this file, and so run it.
            if key not in metadata:
                raise InputError(f"{file}: no field {key!r}; load and save the dataset with a current Minari")
        return metadata

    @cached_property
    def _dataset(self) -> Any:
        import minari

        assert self._metadata
        try:
            dataset = minari.MinariDataset(self._folder)
        except (ValueError, OSError, KeyError, AssertionError) as error:
            raise InputError(f"{self.id}: {first_line(error)}") from None
        if getattr(dataset.action_space, "low", None) is None:
            raise InputError(f"{self.id}: action space {dataset.action_space}; only continuous (Box) actions work yet")
        if dataset.total_steps == 0:
            raise InputError(f"{self.id}: empty dataset: no transitions")
        return dataset

    def _environment(self) -> tuple[str | None, dict[str, Any]]:
        """Id and options of the environment to evaluate in: of the file's spec only what Gymnasium knows itself."""
        text = self._metadata.get("eval_env_spec") or self._metadata.get("env_spec")
        if not text:
            return None, {}
        spec = json.loads(text)
        options = dict(spec.get("kwargs") or {})
        if spec.get("max_episode_steps") is not None:
            options["max_episode_steps"] = spec["max_episode_steps"]
        if spec.get("additional_wrappers"):
            note(f"{self.id}: recorded in an environment with further wrappers; evaluation goes without them")
        return environment_named_by_data(spec["id"]), options


def _leaves(entries: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in entries.items():
        names += _leaves(value, f"{prefix}{key}/") if isinstance(value, dict) else [prefix + key]
    return names
