"""Where in Lightning's loops a checkpoint stands, so that a run goes on from any moment as if never interrupted.

Lightning's own counters, read back, end an epoch again that had ended (and count it twice), and leave out a validation
or an epoch's end that was still to come. Here a checkpoint stands after a whole number of blocks. Either their epoch
has ended, or Lightning goes on within it: with the validation, if one is due that has not been, then with the blocks
that are left, then with the end of the epoch.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop

ALL = ("ready", "started", "processed", "completed")


def record(trainer: Trainer, loops: dict[str, Any], validated: bool) -> None:
    """Rewrites a checkpoint's counters in place.

    Args:
        trainer: whose checkpoint it is.
        loops: the checkpoint's state of the fit loop.
        validated: whether the networks have been validated as they are.
    """
    epochs, blocks = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    validation = loops["epoch_loop.val_loop.batch_progress"]
    begun = epochs["current"]["started"]
    done = blocks["current"]["processed"]
    # Training that was stopped early passes through the end of the epoch, too, but has blocks of it left.
    ended = begun == 0 or (epochs["current"]["processed"] >= begun and done >= trainer.num_training_batches)
    for part in ("total", "current"):
        epochs[part] = dict.fromkeys(ALL, begun if ended else begun - 1)
        blocks[part] = dict.fromkeys(ALL, 0 if ended and part == "current" else blocks["total"]["processed"])
        validation[part] = dict.fromkeys(ALL, 0)
    if ended:
        blocks["is_last_batch"] = validation["is_last_batch"] = False
        return
    blocks["current"] = dict.fromkeys(ALL, done)
    for part in ("total", "current"):
        epochs[part].update(ready=begun, started=begun)
        if not validated:  # what Lightning takes for a validation that was begun, and begins again
            validation[part].update(ready=1, started=1)


class FitLoop(_FitLoop):
    """Lightning's, but a run that has done all its updates still ends the epoch that they belong to."""

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        epochs: Any = self.epoch_progress.current
        late = epochs.started > epochs.processed and self.epoch_loop.global_step == self.max_steps
        return not late and super().done


def finish_epochs(trainer: Trainer) -> None:
    """Lets a trainer that goes on from a checkpoint within its last epoch end that epoch."""
    trainer.fit_loop.__class__ = FitLoop
