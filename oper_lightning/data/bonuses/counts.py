"""A bonus by counting visits: the space is divided into cells, and a cell is worth less with each visit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.bonuses.bonus import Bonus
from oper_lightning.errors import InputError
from oper_lightning.files import fits_memory
from oper_lightning.spec import DataSpec

MOST_CELLS = 2**31


class CountBonus(Bonus):
    """1 / sqrt(n + 1) for a cell with n visits (point-mass-wall of arXiv 2310.08558). For few dimensions.

    Recorded transitions count as well as gathered ones. In each dimension the centres of cells are evenly spaced, and
    what lies beyond the last one belongs to its cell. Nothing of it is in a checkpoint: a run that goes on counts anew.

    Args:
        low: centre of the first cell, for each dimension.
        high: centre of the last one.
        cells: number of cells, for each dimension.
        of: what is counted: the next observation, of which the first so many numbers count as there are dimensions; or
            the observation and behind it the action (published).
        options: see :class:`oper_lightning.data.bonuses.bonus.Bonus`.
    """

    def __init__(
        self,
        low: Sequence[float],
        high: Sequence[float],
        cells: Sequence[int],
        of: Literal["next_observation", "observation_and_action"] = "next_observation",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not len(low) == len(high) == len(cells) > 0:
            raise InputError(
                f"data.bonus: low, high and cells have lengths {len(low)}, {len(high)} and {len(cells)}; each needs an "
                f"entry for every dimension"
            )
        spans = zip(low, high, strict=True)
        if not all(math.isfinite(last - first) and first < last for first, last in spans) or min(cells) < 2:
            raise InputError("data.bonus: low must be below high, and cells at least 2, in every dimension")
        if math.prod(cells) > MOST_CELLS:
            raise InputError(f"data.bonus.cells: {math.prod(cells):,} cells; at most {MOST_CELLS:,} are possible")
        self.low, self.high, self.cells, self.of = low, high, cells, of
        self.count: Tensor
        """visits of each cell, ``[prod(cells)]``"""

    def build(self, spec: DataSpec, device: torch.device, seed: int) -> None:
        if spec.discrete and self.of == "observation_and_action":
            raise InputError(f"{spec.dataset}: data.bonus.of: discrete actions have no cells; take next_observation")
        dimensions = spec.observation_size
        if self.of == "observation_and_action":
            dimensions += spec.action_size
            fits = dimensions == len(self.cells)
        else:
            fits = dimensions >= len(self.cells)
        if not fits:
            raise InputError(
                f"{spec.dataset}: data.bonus has cells in {len(self.cells)} dimensions, and {self.of} has {dimensions}"
            )
        fits_memory(8 * math.prod(self.cells), "data.bonus.cells", f"{math.prod(self.cells):,} cells")
        self.count = torch.zeros(math.prod(self.cells), dtype=torch.int64, device=device)
        self._low = torch.tensor(self.low, dtype=torch.float64, device=device)
        self._last = torch.tensor(self.cells, device=device) - 1
        self._per_unit = self._last / (torch.tensor(self.high, dtype=torch.float64, device=device) - self._low)

    def seen(self, transitions: TensorDict) -> None:
        cell = self.cell(transitions).to(self.count.device)
        self.count += torch.bincount(cell, minlength=len(self.count))

    def __call__(self, block: TensorDict) -> Tensor:
        return (self.count[self.cell(block)] + 1).float().rsqrt()

    def cell(self, transitions: TensorDict) -> Tensor:
        """Numbers of the cells, int64 ``[...]``, of transitions ``[...]``."""
        if self.of == "observation_and_action":
            place = torch.cat([transitions["observation"], transitions["action"]], -1)
        else:
            place = transitions["next", "observation"][..., : len(self.cells)]
        low, per_unit, last = (value.to(place.device) for value in (self._low, self._per_unit, self._last))
        nearest = ((place - low) * per_unit).round().clamp(min=0).minimum(last).long()
        number = torch.zeros_like(nearest[..., 0])
        for dimension, cells in enumerate(self.cells):
            number = number * cells + nearest[..., dimension]
        return number
