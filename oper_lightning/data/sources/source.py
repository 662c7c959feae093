"""The idea of a source: whole episodes, in order."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tensordict import TensorDict

from oper_lightning.errors import reading


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
    """Recorded transitions. To bring data in a format of your own, write a subclass of this.

    Whatever a subclass raises while it reads becomes an ``InputError`` of one line that begins with ``str(source)``;
    the original exception is its cause.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("prepare", "origin", "__len__", "episodes"):
            if name in vars(cls):
                setattr(cls, name, _guarded(vars(cls)[name], name == "episodes"))

    def prepare(self) -> None:
        """Downloads or makes what is missing on disk. Runs on one process per machine, before anything else."""
        return

    @abstractmethod
    def origin(self) -> Origin:
        """What is known beside the transitions."""

    def __str__(self) -> str:
        """What messages call the data: the file, where there is one; else the class."""
        return type(self).__name__

    @abstractmethod
    def __len__(self) -> int:
        """Number N of transitions."""

    @abstractmethod
    def episodes(self) -> Iterator[TensorDict]:
        """Whole episodes, in order: one or several at a time, as from ``transitions_from``.

        The last transition of every episode is terminated or truncated and keeps its own next observation. Files are
        open only while this is being iterated over.
        """


def _guarded(method: Callable[..., Any], yields: bool) -> Callable[..., Any]:
    """The method of a source, with every exception turned into one line that names the source."""

    @functools.wraps(method)
    def returning(self: Source, *args: Any, **options: Any) -> Any:
        with reading(self, "recorded transitions"):
            return method(self, *args, **options)

    @functools.wraps(method)
    def yielding(self: Source, *args: Any, **options: Any) -> Iterator[Any]:
        with reading(self, "recorded transitions"):
            episodes = iter(method(self, *args, **options))
        while True:
            with reading(self, "recorded transitions"):
                try:
                    part = next(episodes)
                except StopIteration:
                    return
            yield part

    return yielding if yields else returning
