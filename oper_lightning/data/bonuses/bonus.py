"""The idea of a bonus: what novelty is worth, computed when transitions are drawn and never stored."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.errors import InputError, reading
from oper_lightning.nn import ranks
from oper_lightning.spec import Batch, DataSpec


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


def bring(bonus: Bonus, state: dict[str, Any], origin: object) -> None:
    """Gives a bonus what it had learnt by the checkpoint ``origin``.

    Raises:
        InputError: if it does not fit; the line names the checkpoint.
    """
    with reading(origin, f"what {type(bonus).__name__} has learnt"):
        try:
            bonus.load_state_dict(state)
        except InputError as error:
            raise InputError(f"{origin}: {error}") from None


def paid(block: Batch, bonus: Bonus, seed: int, number: int) -> tuple[Batch, dict[str, Tensor]]:
    """A block with the scaled bonus on the rewards that critics see.

    Args:
        block: of K updates, where training is done; it stays as it is.
        bonus: built.
        seed: seed of the run.
        number: number of the block's first update.

    Returns:
        the block, and what is to be logged, 0-d: the mean scaled bonus, the mean size of rewards without it, and what
        the bonus has to tell.

    Raises:
        InputError: if the bonus is not one number for each transition.
    """
    part = block.evaluation
    reward = part["next", "reward"]
    with torch.random.fork_rng([reward.device] if reward.is_cuda else []):
        torch.manual_seed(ranks.stream_seed(seed, "bonus", number))
        extra = bonus.scale * bonus(part)
    if extra.shape != reward.shape:
        raise InputError(f"{type(bonus).__name__}: a bonus of shape {list(extra.shape)} for {list(reward.shape)}")
    more = part.clone(recurse=False)
    more["next"] = more["next"].clone(recurse=False)
    more["next", "reward"] = reward + extra
    numbers = {"mean": extra.mean(), "reward": reward.abs().mean(), **bonus.numbers}
    return Batch(*(more if role is part else role for role in block)), numbers
