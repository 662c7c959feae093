"""`oper fit --start`: a run that begins with what another run has learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from oper_lightning.algorithms.bremen import BREMEN
from oper_lightning.algorithms.dynamics import DynamicsEnsemble
from oper_lightning.algorithms.stage import Stage
from oper_lightning.data.bonuses.bonus import Bonus, bring
from oper_lightning.errors import InputError, note
from oper_lightning.spec import DataSpec
from oper_lightning.training import stored
from oper_lightning.training.stored import read_checkpoint


class Start(Callback):
    """Gives a run the networks, targets, optimisers and bonus of a checkpoint, before its first update.

    Counters begin at 0, and the data may be others, of the same shapes. Observations stay normalised as the networks
    know them. A run that goes on from a checkpoint of its own has no use for this.

    Args:
        path: the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Loads what the checkpoint has.

        Raises:
            InputError: if its networks, optimisers or bonus do not fit those at hand.
        """
        assert isinstance(pl_module, Stage)
        checkpoint = read_checkpoint(self.path)
        begin(pl_module, checkpoint)
        trainer.strategy.load_optimizer_state_dict(checkpoint)
        bonus = trainer.datamodule.bonus  # type: ignore[attr-defined]
        learnt = _learnt_by_bonus(checkpoint)
        if bonus is not None and learnt is not None:
            _bring(bonus, learnt, self.path)
        elif bonus is not None or learnt is not None:
            which = "data.bonus begins anew: it has none" if bonus is not None else "its bonus is left behind"
            note(f"{self.path}: {which}")
        note(f"beginning with {self.path}, which has {checkpoint['global_step']:,} updates behind it")


def begin(model: Stage, checkpoint: dict[str, Any]) -> None:
    """Gives a model the networks of a checkpoint, after looking at its optimisers as well.

    Raises:
        InputError: if they do not fit those at hand.
    """
    assert model.spec is not None
    if isinstance(model, BREMEN | DynamicsEnsemble):  # which know what of an earlier run they have a use for
        raise InputError(f"{type(model).__name__} begins with an earlier run by --model.start, not by --start")
    name, here, there = stored.origin(checkpoint), model.spec, DataSpec.from_dict(checkpoint["spec"])
    if different := there.difference(here):
        raise InputError(f"{name} was made for other data ({there.dataset}): {different}")
    for bound in ("action_low", "action_high"):
        was, now = getattr(there, bound), getattr(here, bound)
        if not torch.allclose(was, now):
            raise InputError(
                f"{name}: {bound} was {was.tolist()}, here it is {now.tolist()}; policies act between these bounds: "
                f"give the source's action_low and action_high"
            )
    stored.networks(model, checkpoint)
    stored.optimisers(model, checkpoint)
    model.spec = here.as_learnt(there)
    model.load_state_dict(checkpoint["state_dict"])


def _learnt_by_bonus(checkpoint: dict[str, Any]) -> Any:
    """What the bonus of a run had learnt, whichever datamodule it belonged to; None if there was none."""
    data = [part for part in checkpoint.values() if isinstance(part, dict) and "drawn" in part]
    return data[0].get("bonus") if data else None


def _bring(bonus: Bonus, learnt: Any, path: Path) -> None:
    if wrong := stored.unlike(learnt, bonus.state_dict()):
        raise InputError(f"{path}: its bonus is none for {type(bonus).__name__}: {wrong}")
    bring(bonus, learnt, path)
