"""The idea of a source: whole episodes, in order."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from tensordict import TensorDict

from oper_lightning.errors import InputError, note


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
    """lowest action, shape ``[A]``, or ``[]`` for all columns"""
    action_high: np.ndarray | None = None
    reference: tuple[float, float] | None = None
    """returns that score 0 and 100, where they are stored with the data"""
    d4rl: bool = False
    """whether these are D4RL's own recordings"""


Bound = float | list[float]
"""lowest or highest action: one number, or one for each column"""


def action_box(low: Bound | None, high: Bound | None, origin: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """``action_low`` and ``action_high`` of an :class:`Origin` as a person named them for ``origin``.

    Raises:
        InputError: if only one was named, they are not finite, or the lowest is not below the highest.
    """
    if low is None and high is None:
        return None, None
    if low is None or high is None:
        raise InputError(f"{origin}: action_low and action_high are named together or not at all")
    try:
        lowest, highest = np.broadcast_arrays(np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32))
    except ValueError:
        raise InputError(f"{origin}: action_low {low} and action_high {high} are not for as many columns") from None
    if lowest.ndim > 1 or not (np.isfinite(lowest) & np.isfinite(highest) & (lowest < highest)).all():
        raise InputError(f"{origin}: action_low {low} must be below action_high {high}, and both finite")
    return lowest.copy(), highest.copy()


class Source(ABC):
    """Recorded transitions. To bring data in a format of your own, write a subclass of this."""

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: no open file, nor anything else that is made when first asked for."""
        made = {name for cls in type(self).__mro__ for name, v in vars(cls).items() if isinstance(v, cached_property)}
        return {key: value for key, value in self.__dict__.items() if key not in made}

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
