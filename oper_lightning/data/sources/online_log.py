"""What an online run gathered, read from its folder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data import log
from oper_lightning.data.sources.recorded import environment_of_spec
from oper_lightning.data.sources.source import GIVEN, Origin, Source, action_box, given_reference
from oper_lightning.data.transitions import transitions_from
from oper_lightning.errors import InputError, note, reading


class OnlineLog(Source):
    """The transitions that an online run gathered, whole or its first steps only, even while the run goes on.

    Episodes come in the order in which they ended; those that were still running come last and are truncated. What is
    read is what lay in the folder at the first look.

    Args:
        path: the run's folder, or the folder replay in it.
        steps: number of environment steps, of all copies of the environment together, from the run's beginning on; by
            default all of them.
        environment: Gymnasium id of the environment; by default the one that the run names, if it is a plain one.
        reference: the two returns that score 0 and 100; by default there is no score.
    """

    def __init__(
        self,
        path: str,
        steps: int | None = None,
        environment: str | None = None,
        reference: tuple[float, float] | None = None,
    ) -> None:
        if steps is not None and steps < 1:
            raise InputError(f"{path}: steps {steps}; at least 1 is needed")
        self.path = path
        self.steps = steps
        self.environment = environment
        self.reference = given_reference(reference, path)

    def __str__(self) -> str:
        return str(self.path)

    def origin(self) -> Origin:
        found = self._found
        keys = found.about.get("observation_keys", [])
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise InputError(f"{self.path}: observation_keys must be a list of names")
        environment, options = (self.environment, {}) if self.environment else environment_told(found.about, self.path)
        low, high = _bounds(found, self.path)
        run = log.folder_of(self.path).absolute().parent.name
        return Origin(
            dataset=run if self.steps is None else f"{run}, {self.steps:,} steps",
            environment=environment,
            environment_options=options,
            observation_keys=tuple(keys),
            action_low=low,
            action_high=high,
            reference=self.reference,
            reference_from=GIVEN if self.reference else Origin.reference_from,
        )

    def __len__(self) -> int:
        return self._found.steps

    def episodes(self) -> Iterator[TensorDict]:
        found = self._found
        running: list[list[dict[str, Tensor]]] = [[] for _ in range(found.copies)]  # each copy's running episode
        for first, path in found.files:
            columns = _columns(path)
            done = columns["terminated"] | columns["truncated"]
            counts = [found.of(copy) - first for copy in range(found.copies)]
            ends = [(end, copy) for copy, count in enumerate(counts) for end in _ends(done[copy, :count])]
            begun = [0] * found.copies
            for end, copy in sorted(ends):
                piece = log.part(columns, copy, slice(begun[copy], end + 1))
                yield _joined([*running[copy], piece], path)
                running[copy], begun[copy] = [], end + 1
            for copy, count in enumerate(counts):
                if begun[copy] < min(count, done.shape[1]):
                    rest = log.part(columns, copy, slice(begun[copy], count))
                    # A view would keep the whole file.
                    running[copy].append({key: value.clone() for key, value in rest.items()})
        for pieces in running:
            if pieces:
                cut = _joined(pieces, self.path)
                cut["next", "truncated"][-1] = cut["next", "done"][-1] = True
                yield cut

    @cached_property
    def _found(self) -> _Found:
        """The files to be read, and what their heads say."""
        folder = log.folder_of(self.path)
        present = _listed(folder)
        if not present:
            raise InputError(f"{self.path}: no online run has gathered anything there (no .safetensors in {folder})")
        one = log.head(present[0][2])
        there = present[-1][1] * one.copies
        steps = there if self.steps is None else self.steps
        if steps > there:
            raise InputError(f"{self.path}: steps {steps:,}, but the run has gathered {there:,}")
        files = [(first, path) for first, _, path in present if first * one.copies < steps]
        for _, path in files:
            other = log.head(path)
            if (other.copies, other.kinds) != (one.copies, one.kinds):
                raise InputError(
                    f"{path}: other copies, types or shapes than in {files[0][1].name}: not of the same run"
                )
        return _Found(files, one.copies, steps, one.about)


def _listed(folder: Path) -> list[tuple[int, int, Path]]:
    """The files of a log; a file that appears while the folder is read may hide the one before it."""
    try:
        return log.files(folder)
    except InputError:
        return log.files(folder)


def _columns(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: gone since the folder was read: its run went on from before; start again")
    return log.read(path)[0]


def _joined(pieces: list[dict[str, Tensor]], path: object) -> TensorDict:
    """The pieces of an episode as transitions."""
    with reading(path, "a file of an online run's log"):
        whole = [{key: value.numpy() for key, value in log.steps(piece, slice(None)).items()} for piece in pieces]
        return torch.cat([transitions_from(**piece) for piece in whole])


def _ends(done: Tensor) -> list[int]:
    ends: list[int] = torch.nonzero(done)[:, 0].tolist()
    return ends


def _bounds(found: _Found, origin: object) -> tuple[Any, Any]:
    """Lowest and highest action; of discrete ones the first and last number."""
    low, high = found.about.get("action_low"), found.about.get("action_high")
    if type(low) is int and type(high) is int:
        return np.asarray(low), np.asarray(high)
    return action_box(low, high, str(origin))


def environment_told(about: dict[str, Any], origin: object) -> tuple[str | None, dict[str, Any]]:
    """Id and options of the environment that a run's file names; none, with a note, if that cannot be made again."""
    name, options = about.get("environment"), about.get("environment_options", {})
    if isinstance(name, str) and ":" in name:
        note(
            f"{origin}: gathered in {name[:200]}, whose module would be imported; if you trust it, name it as the "
            f"source's environment"
        )
        return None, {}
    if not isinstance(options, dict):
        raise InputError(f"{origin}: environment_options must be names with values")
    wrappers = options.get("wrappers") or []
    listed = isinstance(wrappers, list) and all(isinstance(wrapper, dict) for wrapper in wrappers)
    if not listed:
        raise InputError(f"{origin}: wrappers of the environment must be a list of names with arguments")
    spec = {
        "id": name,
        "kwargs": {key: value for key, value in options.items() if key != "wrappers"},
        "additional_wrappers": [
            {"entry_point": f"gymnasium.wrappers:{wrapper.get('name')}", "kwargs": wrapper.get("kwargs")}
            for wrapper in wrappers
        ],
    }
    return environment_of_spec(spec, origin)


class _Found(NamedTuple):
    files: list[tuple[int, Path]]
    """first step of each, and its place"""
    copies: int
    steps: int
    """of all copies together"""
    about: dict[str, Any]

    def of(self, copy: int) -> int:
        """Steps of one copy: all take a step in turn."""
        return (self.steps - copy + self.copies - 1) // self.copies
