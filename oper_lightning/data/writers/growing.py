"""A Minari dataset that grows by whole episodes, and goes on where its process was killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oper_lightning.data.writers.minari import new_storage
from oper_lightning.errors import InputError, first_line, reading
from oper_lightning.files import read_json, whole

if TYPE_CHECKING:
    from minari.data_collector import EpisodeBuffer

LEDGER = "collected.json"


@dataclass
class Progress:
    """How far a dataset is."""

    episodes: int = 0
    steps: int = 0
    returns: float = 0.0
    """sum of the episodes' returns"""
    squares: float = 0.0
    """and of their squares"""
    finished: bool = False


class Growing:
    """The dataset: Arrow, with a folder for each episode, beside its place until it is finished.

    Beside the episodes lies collected.json, which says what was asked for, and how many episodes are whole and on the
    disk. Whatever else a killed process left is removed when the dataset is opened again.

    Args:
        target: folder of the finished dataset.
        asked: what was asked for, as plain data; only the same request goes on.

    Raises:
        InputError: if there is another dataset.
    """

    def __init__(self, target: Path, asked: dict[str, Any]) -> None:
        self.target, self.asked = target, asked
        self.folder = working_folder(target)
        self.now = Progress()
        for folder in (target, self.folder):
            if (folder / LEDGER).is_file():
                self.now = _read(folder / LEDGER, asked)
                break
            if folder == target and os.path.lexists(target):
                raise InputError(f"{target}: exists already; name another --output")
        if self.now.finished and not target.exists():  # killed just before it was moved
            self.move()
        self.finished = self.now.finished

    def begin(self, observations: Any, actions: Any, spec: Any | None, about: dict[str, Any]) -> None:
        """Opens it to be written.

        Args:
            observations: Gymnasium space of an observation.
            actions: Gymnasium space of an action.
            spec: Gymnasium's spec of the environment, if it may be written.
            about: further metadata.
        """
        data = self.folder / "data"
        with self._written(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            there = {int(path.name): path for path in data.glob("*") if re.fullmatch(r"\d{1,9}", path.name)}
            if missing := self.now.episodes - sum(number < self.now.episodes for number in there):
                lost = f"{missing:,} of {self.now.episodes:,} episodes are missing"
                raise InputError(f"{self.folder}: {lost}; delete it to begin anew")
            for path in [path for number, path in there.items() if number >= self.now.episodes]:
                shutil.rmtree(path)
            (data / "metadata.json").unlink(missing_ok=True)  # whether it is whole is not known
            self.storage = new_storage(self.folder, observations, actions, spec, "arrow")
            totals = {"total_episodes": self.now.episodes, "total_steps": self.now.steps}
            self.storage.update_metadata({**about, **totals})

    def add(self, episodes: Iterable[EpisodeBuffer], returns: Iterable[float]) -> None:
        """Writes episodes; when this is done, they are there to stay."""
        with self._written(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first = self.now.episodes
            self.storage.update_episodes(episodes)
            known = self.storage.metadata
            self.now.episodes, self.now.steps = int(known["total_episodes"]), int(known["total_steps"])
            for value in returns:
                self.now.returns += float(value)
                self.now.squares += float(value) ** 2
            for number in range(first, self.now.episodes):
                _on_disk(self.folder / "data" / str(number))
            self._note()

    def finish(self, about: dict[str, Any]) -> None:
        """Adds the last metadata, and moves the dataset to its place."""
        with self._written():
            self.storage.update_metadata({**about, "dataset_size": float(type(self.storage).get_size(self.storage))})
            _on_disk(self.folder / "data")
            self.now.finished = self.finished = True
            self._note()
            self.move()

    def move(self) -> None:
        """Moves it to its place."""
        (self.folder / ".lock").unlink(missing_ok=True)
        os.rename(self.folder, self.target)

    def _note(self) -> None:
        with whole(self.folder / LEDGER) as file:
            file.write(json.dumps({"asked": self.asked, **asdict(self.now)}, indent=1).encode())

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise InputError(f"{self.folder}: cannot write it ({reason}); the same command goes on") from None


def working_folder(target: Path) -> Path:
    """Where a dataset lies until it is finished; Minari does not look into it."""
    return target.with_name(f".{target.name}.collecting")


def _on_disk(folder: Path) -> None:
    """Makes sure that the files of a folder outlive the machine."""
    for path in folder.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _read(path: Path, asked: dict[str, Any]) -> Progress:
    """How far a dataset is, if it is the one that was asked for."""
    with reading(path, "what `oper collect` noted"):
        noted = dict(read_json(path))
        before = dict(noted.pop("asked"))
        kinds = {name: type(value) for name, value in asdict(Progress()).items()}
        right = noted.keys() == kinds.keys() and all(type(noted[name]) is kind for name, kind in kinds.items())
        if not right or noted["episodes"] < 0 or noted["steps"] < noted["episodes"]:
            raise InputError(f"{path}: not what `oper collect` noted; delete {path.parent}, or name another --output")
    # As JSON gives it back: without the difference between lists and tuples.
    wanted = json.loads(json.dumps(asked))
    other = [
        f"{name} {before.get(name)!r:.60} and not {value!r:.60}"
        for name, value in wanted.items()
        if before.get(name) != value
    ]
    if other:
        state = "was collected" if noted["finished"] else "was begun"
        raise InputError(f"{path.parent}: {state} with {', '.join(other)}; delete it, or name another --output")
    return Progress(**noted)
