"""Checks that stop a run with one line before it does harm."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.errors import InputError, TrainingError
from oper_lightning.nn import ranks
from oper_lightning.spec import Batch, Role
from oper_lightning.training.judging import untied

if TYPE_CHECKING:
    from oper_lightning.algorithms.stage import Stage

ADVICE = (
    "training stops; the checkpoint before it is good (look at the losses up to there; a lower learning rate or reward "
    "scale may help)"
)


def possible(model: Stage) -> None:
    """Refuses a priority or a bonus that no loss term sees, episodes without a policy, and bounds of values beside a
    bonus.
    """
    data = model.trainer.datamodule  # type: ignore[attr-defined]
    # Bounds are those of returns without a bonus. They would cut off the values that exploration is worth.
    if getattr(model, "value_bounds", None) is not None and getattr(data, "bonus", None) is not None:
        raise InputError("model.value_bounds would cut off what data.bonus adds to values: leave out one of the two")
    if getattr(data, "bonus", None) is not None and "evaluation" not in model.reads:
        raise InputError(f"data.bonus is added to rewards, and {type(model).__name__} reads none: leave it out")
    if getattr(data, "world", None) is not None and not hasattr(model, "act"):
        model.no_policy()
    if getattr(data, "priority", None) is not None and not {*data.roles} & {*model.reads}:
        raise InputError(
            f"data.prioritise names {', '.join(data.roles)}, but {type(model).__name__} has no such loss term, so that "
            f"the priority would change nothing; it has {', '.join(model.reads)}"
        )


class Hears:
    """Refuses to reweight with an algorithm that reads no weight: its run would be the same as a uniform one.

    An update of a copy of the model is tried with weights that are NaN. If the algorithm reads them, its losses become
    NaN. This is tried once for each branch of the update, until one has read weights, because an algorithm may use its
    prioritised terms only later in the run.
    """

    def __init__(self, model: Stage) -> None:
        data = model.trainer.datamodule  # type: ignore[attr-defined]
        self.model = model
        self.roles: tuple[Role, ...] = ()
        """roles whose weights no update has read yet"""
        if getattr(data, "priority", None) is not None and data.mode == "reweight":
            self.roles = data.roles
        self.tried: set[Hashable] = set()

    def __call__(self, batch: Batch) -> None:
        """Looks at the update that is about to be made.

        Raises:
            InputError: if it reads transitions that are weighed, and not their weights.
        """
        if not self.roles or self.model.branch in self.tried:
            return
        self.tried.add(self.model.branch)
        if self._spoilt(batch, lambda part: part.clone(recurse=False).set("weight", _no_numbers(part["weight"]))):
            self.roles = ()
        elif self._spoilt(batch, lambda part: part.apply(_no_numbers)):
            name = type(self.model).__name__
            raise InputError(
                f"{name} does not multiply its losses by batch.{self.roles[0]}['weight'], so that data.mode=reweight "
                f"would change nothing: multiply them by it, or set data.mode to resample"
            )

    def _spoilt(self, batch: Batch, spoil: Callable[[TensorDict], TensorDict]) -> bool:
        """Whether an update of a copy gives numbers that are not finite once the weighed transitions are spoilt."""
        weighed = {id(getattr(batch, role)) for role in self.roles}
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            copied = untied(self.model)
            try:
                # The class's own: what stands in an instance for its update may belong to the original.
                spoilt = batch.map(lambda part: spoil(part) if id(part) in weighed else part)
                results = type(copied).update(copied, spoilt)
            except Exception:  # an update that cannot be tried here will work, or fail with its own error, in training
                return False
        left = [*results.values(), *copied.parameters()]
        return not all(bool(value.isfinite().all()) for value in left)


def _no_numbers(values: Tensor) -> Tensor:
    return torch.full_like(values, math.nan) if values.is_floating_point() else values


def finite_losses(results: dict[str, list[tuple[int, Tensor]]]) -> None:
    """Checks that all losses of a block are finite, with a single wait for the device.

    Raises:
        TrainingError: if one is not; names the loss and the update.
    """
    rows = sorted((number, name, value) for name, row in results.items() for number, value in row)
    values = torch.stack([value.float() for _, _, value in rows])
    wrong = ranks.sum_over_ranks((~values.isfinite()).float())
    if wrong.any():
        number, name, value = rows[int(wrong.nonzero()[0])]
        shown = "not finite on another rank" if value.isfinite() else value.item()
        raise TrainingError(f"{name} is {shown} at update {number + 1:,}: {ADVICE}")


def finite_parameters(model: Stage, update: int) -> None:
    """Checks that all parameters are finite after ``update`` updates."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    wrong = torch.stack([~parameter.isfinite().all() for parameter in parameters])
    if wrong.any():
        raise TrainingError(f"{names[int(wrong.nonzero()[0])]} is no longer finite at update {update:,}: {ADVICE}")
