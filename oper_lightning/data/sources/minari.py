"""Minari datasets, from the local store, by download, or by folder; HDF5 and Arrow."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tensordict import TensorDict

from oper_lightning.data.frames import stacked
from oper_lightning.data.sources.minari_files import FORMATS, Episodes, open_episodes
from oper_lightning.data.sources.recorded import environment_of_spec, frames_of_a_stack, reference_named_by_data
from oper_lightning.data.sources.source import GIVEN, Origin, Source, given_reference
from oper_lightning.data.transitions import transitions_from, wrong_flag
from oper_lightning.envs.observations import entries, joined
from oper_lightning.envs.rollouts import ends_of
from oper_lightning.errors import InputError, first_line, note, reading
from oper_lightning.files import place, read_json


class Minari(Source):
    """A Minari dataset, by id or by folder, or several of them, one after another in the order given.

    Its files are closed once its transitions are in the storage. If its metadata have a field frame_stack, its
    observations are single frames, of which so many make an observation; the first one of an episode is repeated.

    Args:
        id: the dataset's id, such as mujoco/hopper/medium-v0, or a folder that holds one; or a list of these, whose
            observations and actions must be of the same spaces. Environment and reference are those of the first one.
        download: whether to fetch it if it is not in the local store ($MINARI_DATASETS_PATH, default
            ~/.minari/datasets).
        observation_keys: for Dict and Tuple observations, the entries to join into one vector, in this order; a/b names
            entry b of entry a, and the entries of a Tuple are called 0, 1, …; Discrete entries become one-hot columns.
        reference: the two returns that score 0 and 100; by default what the dataset says, else D4RL's for the
            environment's robot, if it has any.
        skip_broken: whether to leave out episodes that cannot be read, with a note, instead of refusing the dataset.
            Every episode is then read twice.
    """

    def __init__(
        self,
        id: str | list[str],
        download: bool = False,
        observation_keys: list[str] | None = None,
        skip_broken: bool = False,
        reference: tuple[float, float] | None = None,
    ) -> None:
        first, *others = [id] if isinstance(id, str) else id or [""]
        if not first:
            raise InputError("Minari: no id; name a dataset or its folder")
        self.id = first
        self.others = [Minari(other, download, observation_keys, skip_broken, reference) for other in others]
        self.download = download
        self.observation_keys = tuple(observation_keys or ())
        self.skip_broken = skip_broken
        self.reference = given_reference(reference, first)

    def elsewhere(self, path: str) -> Minari:
        """The same of another dataset."""
        return Minari(path, self.download, [*self.observation_keys], self.skip_broken, self.reference)

    def prepare(self) -> None:
        if self.download and not self._folder.is_dir():
            from minari.storage import hosting

            try:
                hosting.download_dataset(self.id)
            except Exception as error:  # whatever the remote's client raises
                folder = self._folder.parent
                raise InputError(
                    f"{self.id}: cannot download it ({first_line(error)}); put the dataset's folder at {folder}"
                ) from None
        for other in self.others:
            other.prepare()

    def origin(self) -> Origin:
        self._alike()
        return self._origin

    def __str__(self) -> str:
        return " + ".join([self.id, *map(str, self.others)])

    def __len__(self) -> int:
        self._alike()
        return sum(self._steps.values()) + sum(map(len, self.others))

    def episodes(self) -> Iterator[TensorDict]:
        self._alike()
        yield from self._own_episodes()
        for other in self.others:
            yield from other.episodes()

    def _alike(self) -> None:
        """Compares the other datasets with the first.

        Raises:
            InputError: if one has other spaces of observations or actions or other stacks of frames, or is named twice,
                so that what is held out of it would be trained on.
        """
        folders = [one._folder.resolve() for one in (self, *self.others)]
        for number, other in enumerate(self.others, 1):
            if folders[number] in folders[:number]:
                raise InputError(f"{other}: named twice in the source's id; once is enough")
            for what, one, first in zip(("observations", "actions"), other._kinds, self._kinds, strict=True):
                if one != first:
                    raise InputError(
                        f"{other}: its {what} are {one}, but {first} in {self.id}; leave it out of the source's id"
                    )

    def _own_episodes(self) -> Iterator[TensorDict]:
        """The episodes of the first dataset."""
        unfinished = 0
        with open_episodes(self._folder, self._metadata["data_format"]) as stored:
            for number in self._steps:
                episode, finished = self._episode(stored, number)
                unfinished += not finished
                yield episode
        vars(self).pop("_steps", None)  # the storage has them now
        if unfinished:
            note(f"{self.id}: {unfinished:,} unfinished episodes count as truncated")

    def _episode(self, stored: Episodes, number: int) -> tuple[TensorDict, bool]:
        """The transitions of an episode, and whether it was recorded to its end."""
        where = stored.where(number)
        with reading(where, "an episode"):
            parts = [
                (stored.column(number, "observations", path, space), space, "/".join(path))
                for path, space in self._entries
            ]
            for values, space, name in parts:
                _fits(values, space, len(values), f"{where}: observations {name}".rstrip())
            observations = joined(parts, where)
            actions = stored.column(number, "actions", (), self._spaces[1])
            rewards = stored.column(number, "rewards", (), None).reshape(-1)
            steps = len(rewards)
            if steps == 0 or len(observations) != steps + 1:
                raise InputError(f"{where}: {len(observations):,} observations for {steps:,} rewards; one more needed")
            _fits(actions, self._spaces[1], steps, f"{where}: actions")
            actions = _of_kind(actions, self._spaces[1], f"{where}: actions")
            flags = []
            for name in ("terminations", "truncations"):
                flags.append(np.array(stored.column(number, name, (), None)).reshape(-1))
                if flags[-1].dtype.kind not in "fiub" or len(flags[-1]) != steps:
                    raise InputError(f"{where}: {name!r}: {len(flags[-1]):,} {flags[-1].dtype}, but {steps:,} rewards")
                if (row := wrong_flag(flags[-1])) is not None:
                    raise InputError(f"{where}: {name!r} is {flags[-1][row]} at step {row:,}; a flag is 0 or 1")
            for name, column in (("observations", observations), ("actions", actions), ("rewards", rewards)):
                if column.dtype.kind not in "fiub":
                    raise InputError(f"{where}: {name!r} holds {column.dtype}; real numbers are needed")
                if not (finite := np.isfinite(column).reshape(len(column), -1).all(1)).all():
                    raise InputError(
                        f"{where}: {name!r} is not finite at step {int(np.argmin(finite)):,}; repair or remove that "
                        f"episode, or set the source's skip_broken"
                    )
            finished = bool(flags[0][-1] or flags[1][-1])
            flags[1][-1] |= not finished
            seen, after = observations[:-1], observations[1:]
            if self._stack > 1:
                seen, after = stacked(observations, self._stack)
            return transitions_from(seen, actions, rewards, after, *flags), finished

    @cached_property
    def _steps(self) -> dict[int, int]:
        """Steps of each episode that is to be read, by its number.

        Raises:
            InputError: if they are not what the metadata announce.
        """
        file = self._folder / "metadata.json"
        with open_episodes(self._folder, self._metadata["data_format"]) as stored:
            present = stored.numbers()
            announced = self._metadata.get("total_episodes", len(present))
            found, broken = {}, {}
            for number in sorted({*present, *range(min(announced, len(present) + 1))}):
                try:
                    with reading(stored.where(number), "an episode"):
                        found[number] = (
                            len(self._episode(stored, number)[0]) if self.skip_broken else (stored.steps(number))
                        )
                except InputError as error:
                    if not self.skip_broken:
                        raise
                    broken[number] = error
        if broken:
            numbers = ", ".join(map(str, list(broken)[:20])) + (", …" if len(broken) > 20 else "")
            first = next(iter(broken.values()))
            note(f"{self.id}: {len(broken):,} of {len(broken) + len(found):,} episodes left out ({numbers}): {first}")
        elif announced != len(found):
            raise InputError(f"{file}: total_episodes is {announced:,}, but the data hold {len(found):,} episodes")
        steps = sum(found.values())
        if steps == 0:
            raise InputError(f"{self.id}: empty dataset: no transitions in {self._folder}")
        if not broken and self._metadata.get("total_steps", steps) != steps:
            raise InputError(
                f"{file}: total_steps is {self._metadata['total_steps']:,}, but the episodes have {steps:,} steps"
            )
        return found

    @property
    def _folder(self) -> Path:
        """Folder of the data files."""
        for folder in (place(self.id) / "data", place(self.id)):
            if (folder / "metadata.json").is_file():
                return folder
        root = place(os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets"))
        return root / self.id / "data"

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        """The dataset's metadata; what is used of it has the right type."""
        file = self._folder / "metadata.json"
        if not file.is_file():
            in_it = "in this folder, nor " if place(self.id).is_dir() else ""
            raise InputError(
                f"{self.id}: no Minari dataset {in_it}at {self._folder}; "
                f"give the id of a local one, a folder, or download=true"
            )
        metadata = read_json(file)
        if not isinstance(metadata, dict):
            raise InputError(f"{file}: {type(metadata).__name__} where the fields of a dataset are expected")
        # Minari would make the environment from an entry point named in this file, and so run it.
        for key in ("observation_space", "action_space", "data_format"):
            if metadata.get(key) is None:
                raise InputError(f"{file}: no field {key!r}; load and save the dataset with a current Minari")
        if metadata["data_format"] not in FORMATS:
            raise InputError(f"{file}: data_format is {metadata['data_format']!r}; known: {', '.join(FORMATS)}")
        for key in ("total_episodes", "total_steps"):
            value = metadata.get(key)
            if value is None:
                metadata.pop(key, None)
            elif not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InputError(f"{file}: {key} is {str(value)[:60]!r}; a number of {key[6:]} is needed")
        return metadata

    @cached_property
    def _spaces(self) -> tuple[Any, Any]:
        """Spaces of observations and actions."""
        from minari.serialization import deserialize_space

        file, spaces = self._folder / "metadata.json", []
        for key in ("observation_space", "action_space"):
            with reading(f"{file}: field {key!r}", "a space"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                spaces.append(deserialize_space(self._metadata[key]))
        if type(spaces[1]).__name__ not in ("Box", "Discrete"):
            raise InputError(f"{file}: action space {spaces[1]}; only Box and Discrete actions work")
        return spaces[0], spaces[1]

    @property
    def _kinds(self) -> tuple[str, str]:
        """Observations and actions in words that differ where the transitions, or the bounds of actions, would."""
        parts = []
        for path, space in self._entries:
            kind = "images" if space.dtype == np.uint8 else "numbers" if type(space).__name__ == "Box" else str(space)
            parts.append(" ".join(["/".join(path), kind, str(list(space.shape))]).strip())
        actions = self._spaces[1]
        if type(actions).__name__ == "Discrete":
            return f"{', '.join(parts)} in stacks of {self._stack}", f"{actions.n} from {actions.start} on"
        ends = " to ".join(str(end.tolist()) for end in map(np.asarray, ends_of(actions)))
        return f"{', '.join(parts)} in stacks of {self._stack}", f"{list(actions.shape)} from {ends}"

    @cached_property
    def _stack(self) -> int:
        """How many frames make an observation."""
        file = self._folder / "metadata.json"
        stack = frames_of_a_stack(self._metadata.get("frame_stack", 1), file, "frame_stack")
        space = self._spaces[0]
        if stack > 1 and (space.dtype != np.uint8 or len(space.shape or ()) not in (2, 3)):
            raise InputError(f"{file}: frame_stack is {stack}, but {space} is no space of frames")
        return stack

    @cached_property
    def _entries(self) -> list[Any]:
        return entries(self._spaces[0], self.observation_keys, self.id)

    @cached_property
    def _origin(self) -> Origin:
        metadata, file = self._metadata, self._folder / "metadata.json"
        low, high = map(np.asarray, ends_of(self._spaces[1]))
        environment: str | None = None
        options: dict[str, Any] = {}
        if text := metadata.get("eval_env_spec") or metadata.get("env_spec"):
            try:
                spec = json.loads(text)
            except (TypeError, ValueError, RecursionError):
                spec = text
            environment, options = environment_of_spec(spec, file)
        dataset = metadata.get("dataset_id") or self.id
        if self.others:
            dataset = f"{dataset} and {len(self.others)} more"
        recorded = reference_named_by_data(metadata.get("ref_min_score"), metadata.get("ref_max_score"), file)
        return Origin(
            dataset=" ".join(str(dataset).split())[:200],
            environment=environment,
            environment_options=options,
            observation_keys=self.observation_keys,
            action_low=low,
            action_high=high,
            reference=self.reference or recorded,
            reference_from=GIVEN if self.reference else Origin.reference_from,
        )


def _of_kind(actions: np.ndarray, space: Any, where: str) -> np.ndarray:
    """Actions in the type that says whether they are discrete, which here the space does.

    Raises:
        InputError: if the space is Discrete, and they are no whole numbers.
    """
    if type(space).__name__ == "Box":
        return actions.astype(np.float32) if actions.dtype.kind in "iub" else actions
    if actions.dtype.kind not in "iu":
        raise InputError(f"{where} hold {actions.dtype}, but the space of the dataset is {space}: whole numbers needed")
    return actions


def _fits(values: np.ndarray, space: Any, steps: int, where: str) -> None:
    """Compares a column with its declared space.

    Raises:
        InputError: if its shape is another.
    """
    if values.shape != (steps, *space.shape):
        raise InputError(f"{where} have shape {values.shape}, but the space of the dataset is {space}")
