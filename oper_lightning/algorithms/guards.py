"""What stops a run with one line, before it does harm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oper_lightning.errors import InputError, TrainingError
from oper_lightning.nn import ranks

if TYPE_CHECKING:
    from oper_lightning.algorithms.base import OfflineAlgorithm

ADVICE = (
    "training stops; a checkpoint from before is good (look at the losses before it; a lower learning rate or reward "
    "scale may help)"
)


def possible(model: OfflineAlgorithm) -> None:
    """Refuses to train with a priority that no loss term sees."""
    data = model.trainer.datamodule  # type: ignore[attr-defined]
    if getattr(data, "priority", None) is not None and not {*data.roles} & {*model.reads}:
        raise InputError(
            f"data.prioritise has {', '.join(data.roles)}: of those {type(model).__name__} has no loss term here, so "
            f"that the priority would change nothing; it has {', '.join(model.reads)}"
        )


def same_networks(model: OfflineAlgorithm, checkpoint: dict[str, Any]) -> None:
    """Refuses a checkpoint whose networks have other shapes, and names the hyper-parameters that differ."""
    stored = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    here = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if stored == here:
        return
    theirs, mine = checkpoint["hyper_parameters"], dict(model.hparams)
    changed = [f"{key} {theirs.get(key)} there, {mine[key]} here" for key in mine if mine[key] != theirs.get(key)]
    reason = ", ".join(changed) or f"differing: {sorted(set(stored.items()) ^ set(here.items()))[0][0]}"
    raise InputError(f"the checkpoint's networks do not fit those at hand: {reason}")


def finite_losses(results: dict[str, list[tuple[int, Tensor]]]) -> None:
    """One look at all losses of a block, by name and update: a single wait for the device."""
    rows = sorted((number, name, value) for name, row in results.items() for number, value in row)
    values = torch.stack([value.float() for _, _, value in rows])
    wrong = ranks.sum_over_ranks((~values.isfinite()).float())
    if wrong.any():
        number, name, value = rows[int(wrong.nonzero()[0])]
        shown = "not finite on another rank" if value.isfinite() else value.item()
        raise TrainingError(f"{name} is {shown} at update {number + 1:,}: {ADVICE}")


def finite_parameters(model: OfflineAlgorithm, update: int) -> None:
    """One look at all parameters after so many updates."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    wrong = torch.stack([~parameter.isfinite().all() for parameter in parameters])
    if wrong.any():
        raise TrainingError(f"{names[int(wrong.nonzero()[0])]} is no longer finite at update {update:,}: {ADVICE}")
