"""The idea of a bonus: what novelty is worth, computed when transitions are drawn and never stored."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.errors import InputError
from oper_lightning.spec import DataSpec


class Bonus(ABC):
    """A bonus for transitions that lead to what has been seen little. For one of your own write a subclass of this.

    Args:
        scale: what it is multiplied by before it is added to the reward.
    """

    def __init__(self, scale: float = 1.0) -> None:
        if not math.isfinite(scale):
            raise InputError(f"data.bonus.scale is {scale}; a finite number is needed")
        self.scale = scale
        self.numbers: dict[str, Tensor] = {}
        """what it has to tell of the last block, 0-d, to be logged as bonus/…"""

    @abstractmethod
    def build(self, spec: DataSpec, device: torch.device, seed: int) -> None:
        """Makes what it needs for such data."""

    def seen(self, transitions: TensorDict) -> None:
        """Takes notice of transitions ``[n]``, each of which comes once, those recorded first."""
        return

    @abstractmethod
    def __call__(self, block: TensorDict) -> Tensor:
        """The bonus ``[K, B]``, not yet scaled, of the transitions of K updates; learns from them where it learns.

        Noise comes from torch's global generator, which has been seeded for the block.
        """

    def state_dict(self) -> dict[str, Any]:
        """What it has learnt, for a checkpoint: tensors, numbers, strings, lists and dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, after :meth:`build` and after what was gathered has been :meth:`seen`."""
        return
