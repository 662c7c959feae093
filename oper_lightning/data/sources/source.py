"""The idea of a source: whole episodes, in order."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tensordict import TensorDict

from oper_lightning.errors import note


@dataclass
class Origin:
    """What a source knows beside its transitions; everything is optional."""

    dataset: str = "unnamed"
    """the dataset's id, for people"""
    environment: str | None = None
    """id of the Gymnasium environment that it was recorded in"""
    environment_options: dict[str, Any] = field(default_factory=dict)
    observation_keys: tuple[str, ...] = ()
    """entries of a Dict observation in the order in which they were joined"""
    action_low: np.ndarray | None = None
    """lowest action, shape ``[A]``"""
    action_high: np.ndarray | None = None
    reference: tuple[float, float] | None = None
    """returns that score 0 and 100, where they are stored with the data"""
    d4rl: bool = False
    """whether these are D4RL's own recordings"""


class Source(ABC):
    """Recorded transitions. To bring data in a format of your own, write a subclass of this."""

    def prepare(self) -> None:
        """Downloads or makes what is missing on disk. Runs on one process per machine, before anything else."""
        return

    @abstractmethod
    def origin(self) -> Origin:
        """What is known beside the transitions."""

    def __str__(self) -> str:
        """What messages call the data: the file, where there is one."""
        return self.origin().dataset

    @abstractmethod
    def __len__(self) -> int:
        """Number N of transitions."""

    @abstractmethod
    def episodes(self) -> Iterator[TensorDict]:
        """Whole episodes, in order: one or several at a time, as from ``transitions_from``.

        The last transition of every episode is terminated or truncated and keeps its own next observation.
        """


def environment_named_by_data(name: object) -> str | None:
    """A Gymnasium id found in a file; None, with a note, if it names a module: a file must not choose our imports."""
    text = name.decode() if isinstance(name, bytes) else str(name)
    if re.fullmatch(r"[\w./-]+", text):
        return text
    note(f"environment {text!r} named by the data is not a plain Gymnasium id; ignored")
    return None
