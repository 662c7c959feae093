"""What is to be written: some episodes of a table, and what is known beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from oper_lightning.data import matching
from oper_lightning.data.table import Table
from oper_lightning.data.transitions import is_discrete
from oper_lightning.envs.rollouts import registered
from oper_lightning.errors import InputError


class Episode(NamedTuple):
    """One whole episode of T transitions."""

    observations: np.ndarray
    """float32 or, of images, uint8 ``[T, ...]``"""
    next_observations: np.ndarray
    actions: np.ndarray
    """float32 ``[T, A]`` or int64 ``[T]``"""
    rewards: np.ndarray
    """float32 ``[T]``"""
    terminated: bool
    """else it was truncated"""

    @property
    def observed(self) -> np.ndarray | None:
        """All observations ``[T + 1, ...]``; None if a step does not begin where the step before ended."""
        if not (self.observations[1:] == self.next_observations[:-1]).all():
            return None
        return np.concatenate([self.observations, self.next_observations[-1:]])

    @property
    def frames(self) -> np.ndarray | None:
        """Single frames ``[T + 1, H, W]`` of which all stacks are made, the first repeated; None if they are not."""
        whole = self.observed
        if whole is None or not (whole[0] == whole[0, :1]).all() or not (whole[1:, :-1] == whole[:-1, 1:]).all():
            return None
        newest: np.ndarray = whole[:, -1]
        return newest


class Recording:
    """Episodes of a table that are to be written.

    Args:
        table: all transitions.
        fraction: share of the episodes to take, drawn without regard to what is in them; at least one is taken.
        seed: of the draw; with the same seed a smaller share is part of a larger one.
    """

    moved: Callable[[int], None]
    """called with the number of transitions that are written, after every episode"""

    def __init__(self, table: Table, fraction: float, seed: int) -> None:
        self.table, self.moved = table, lambda rows: None
        self.origin = table.source.origin()
        stops = (torch.nonzero(table.transitions["next", "done"]).squeeze(1) + 1).tolist()
        spans = list(zip([0, *stops[:-1]], stops, strict=True))
        self.total = len(spans)
        if fraction < 1:
            drawn = np.random.default_rng(seed).permutation(len(spans))[: max(1, round(fraction * len(spans)))]
            spans = [spans[number] for number in sorted(drawn.tolist())]
        self.spans: Sequence[tuple[int, int]] = spans
        """first row of each episode, and the row after its last"""

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.spans)

    def __str__(self) -> str:
        return str(self.table.source)

    def __iter__(self) -> Iterator[Episode]:
        written = 0
        for start, stop in self.spans:
            yield self._episode(start, stop)
            written += stop - start
            self.moved(written)

    def _episode(self, start: int, stop: int) -> Episode:
        rows = self.table.rows(slice(start, stop))
        return Episode(
            rows["observation"].numpy(),
            rows["next", "observation"].numpy(),
            rows["action"].numpy(),
            rows["next", "reward"].numpy(),
            bool(rows["next", "terminated"][-1]),
        )

    @property
    def discrete(self) -> bool:
        """Whether actions are numbers of discrete ones."""
        return is_discrete(self.table.transitions["action"])

    @cached_property
    def stack(self) -> int:
        """How many single frames an observation is made of; 1 where it is not made of single frames."""
        frames = self.table.frames
        if frames is None or frames.stack == 1 or frames.data.dim() != 4 or frames.data.shape[1] != 1:
            return 1
        made = all(self._episode(start, stop).frames is not None for start, stop in self.spans)
        return frames.stack if made else 1

    def bounds(self) -> tuple[Tensor, Tensor, bool]:
        """Lowest and highest action, and whether they are known; see :func:`matching.action_bounds`."""
        return matching.action_bounds(self.table.source, self.table.transitions["action"], None, self.origin, ask=True)

    def gaps(self, row: int, layout: str) -> InputError:
        """What to say of an episode that begins at a row and that has no unbroken sequence of observations."""
        return InputError(
            f"{self}: in the episode from row {row:,} a step does not begin where the step before ended, which "
            f"{layout} cannot say; --to=d4rl can"
        )

    def environment(self, with_options: bool) -> tuple[str | None, str]:
        """The environment that may be written beside the episodes, and a sentence on why not, if it may not be."""
        name = self.origin.environment
        if name is None:
            return None, ""
        if self.origin.observation_keys:
            return None, f"the environment {name}: its observations have entries, here joined to one vector"
        options, own = self.origin.environment_options, _by_itself(name)
        if not with_options and any(key not in own or own[key] != value for key, value in options.items()):
            return None, f"the environment {name}: there is no place for its options"
        return name, ""


def attributes(recording: Recording) -> tuple[dict[str, Any], list[str]]:
    """What is kept of a recording's origin as attributes of an HDF5 file, and sentences on what is not."""
    origin = recording.origin
    environment, lost = recording.environment(with_options=False)
    kept: dict[str, Any] = {} if environment is None else {"env_id": environment}
    if origin.reference is not None:
        kept |= dict(zip(("ref_min_score", "ref_max_score"), map(float, origin.reference), strict=True))
    losses = [lost] if lost else []
    if origin.action_low is not None and origin.action_high is not None and environment is None:
        low, high = np.min(origin.action_low), np.max(origin.action_high)
        losses.append(f"bounds of actions ({low:g} to {high:g}): give them to the source as action_low and action_high")
    return kept, losses


def _by_itself(name: str) -> dict[str, Any]:
    """The options that a recording may repeat of an environment without saying anything new: those of its name."""
    known = registered(name)
    if known is None:
        return {}
    return {**known.kwargs, **({"max_episode_steps": known.max_episode_steps} if known.max_episode_steps else {})}
