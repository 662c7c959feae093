"""Ways to draw row numbers: all alike, by weight, from given ones, from stretches that grow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from oper_lightning.data.sampler import WeightedSampler


class Draws(ABC):
    """Draws row numbers with replacement."""

    @abstractmethod
    def at(self, uniform: Tensor) -> Tensor:
        """The rows ``[...]`` at float64 places ``[...]`` in [0, 1), each place as likely as another."""

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Row numbers of this shape."""
        return self.at(torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device))


class EveryRow(Draws):
    """All of the first N rows alike."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def at(self, uniform: Tensor) -> Tensor:
        return (uniform * self.rows).long()

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randint(self.rows, shape, generator=generator, device=generator.device)


class ByWeight(Draws):
    """Rows in proportion to weights ``[N]``, or ``[S, N]``."""

    def __init__(self, weights: Tensor) -> None:
        self.sampler = WeightedSampler(weights)

    def at(self, uniform: Tensor) -> Tensor:
        return self.sampler.at(uniform)


class Chosen(Draws):
    """Rows with given numbers, int64 ``[n]``, all alike."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def at(self, uniform: Tensor) -> Tensor:
        return self.rows[(uniform * len(self.rows)).long()]


class Stretches(Draws):
    """All rows of several stretches alike, each of which grows at its end.

    Args:
        starts: first row of each, int64 ``[E]``.
    """

    def __init__(self, starts: Tensor) -> None:
        self.starts = starts
        self.reach(torch.zeros_like(starts, device="cpu"))

    def reach(self, lengths: Tensor) -> None:
        """Sets how many rows there are in each stretch, int64 ``[E]`` on the CPU."""
        self.total = int(lengths.sum())
        self.ends = lengths.cumsum(0).to(self.starts.device)
        self.before = self.ends - lengths.to(self.starts.device)

    def at(self, uniform: Tensor) -> Tensor:
        place = (uniform * self.total).long()
        stretch = torch.searchsorted(self.ends, place, right=True)
        return self.starts[stretch] + place - self.before[stretch]


class Either(Draws):
    """One of two kinds of rows, with the chance ``share`` of the first."""

    def __init__(self, first: Draws, second: Draws, share: float) -> None:
        self.first = first
        self.second = second
        self.share = share

    def at(self, uniform: Tensor) -> Tensor:
        below = torch.nextafter(torch.ones_like(uniform), torch.zeros_like(uniform))
        first = self.first.at((uniform / self.share).minimum(below))
        second = self.second.at(((uniform - self.share) / (1 - self.share)).clamp(min=0).minimum(below))
        return torch.where(uniform < self.share, first, second)
