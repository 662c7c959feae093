"""The idea of a source: whole episodes, in order."""

from __future__ import annotations

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from tensordict import TensorDict

from oper_lightning.errors import InputError, reading


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
    bounded_by: str = "action_low and action_high"
    """what a person gives the source if these are not known"""
    reference: tuple[float, float] | None = None
    """returns that score 0 and 100, where they are given or stored with the data"""
    reference_from: str = "stored in the dataset"
    """who says so"""
    d4rl: bool = False
    """whether these are D4RL's own recordings, to be played where D4RL plays them, with D4RL's references"""


GIVEN = "given as the source's reference"
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
        raise InputError(f"{origin}: give both action_low and action_high, or neither")
    try:
        lowest, highest = np.broadcast_arrays(np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32))
    except ValueError:
        raise InputError(f"{origin}: action_low {low} and action_high {high} have different lengths") from None
    if lowest.ndim > 1 or not (np.isfinite(lowest) & np.isfinite(highest) & (lowest < highest)).all():
        raise InputError(f"{origin}: action_low {low} must be below action_high {high}, and both finite")
    return lowest.copy(), highest.copy()


def given_reference(reference: tuple[float, float] | None, origin: str) -> tuple[float, float] | None:
    """Returns that score 0 and 100 as a person named them for ``origin``.

    Raises:
        InputError: if they make no score.
    """
    if reference is not None and not (all(map(math.isfinite, reference)) and reference[0] < reference[1]):
        raise InputError(f"{origin}: reference {list(reference)}: the return that scores 0 must be below that of 100")
    return reference


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

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: no open file, nor anything else that is made when first asked for."""
        made = {name for cls in type(self).__mro__ for name, v in vars(cls).items() if isinstance(v, cached_property)}
        return {key: value for key, value in self.__dict__.items() if key not in made}

    def prepare(self) -> None:
        """Downloads or makes what is missing on disk. Runs on one process per machine, before anything else."""
        return

    def elsewhere(self, path: str) -> Source:
        """The same, with another file in place of the one that it reads.

        Raises:
            InputError: if it does not read a file.
        """
        if getattr(self, "path", None) is None:
            raise InputError(f"data.holdout is {path!r}, but {self} is no file; give a share of the episodes instead")
        other = copy.copy(self)
        other.path = path  # type: ignore[attr-defined]
        return other

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
