"""Rewrites the counters of Lightning's loops in a checkpoint, so that a run goes on as if it was never interrupted.

If Lightning's own counters are restored, an epoch that had ended ends again and counts twice, and a validation or an
end of epoch that was still to come is left out. Here a checkpoint is always written after a whole number of blocks. If
the epoch has ended by then, the next one begins. If not, Lightning goes on within the epoch: first with the validation,
if one is due, then with the remaining blocks, then with the end of the epoch.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop

ALL = ("ready", "started", "processed", "completed")


def record(trainer: Trainer, loops: dict[str, Any], validated: bool) -> None:
    """Rewrites a checkpoint's counters in place.

    Args:
        trainer: the trainer that writes the checkpoint.
        loops: state of the fit loop in the checkpoint.
        validated: whether the present networks have been validated.
    """
    epochs, blocks = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    validation = loops["epoch_loop.val_loop.batch_progress"]
    begun = epochs["current"]["started"]
    done = blocks["current"]["processed"]
    # Training that was stopped early also passes through the end of the epoch, but has blocks left in it.
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
    """Lightning's fit loop, except that a run that has done all its updates still ends their epoch."""

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        epochs: Any = self.epoch_progress.current
        late = epochs.started > epochs.processed and self.epoch_loop.global_step == self.max_steps
        return not late and super().done


def finish_epochs(trainer: Trainer) -> None:
    """Lets a trainer that goes on from a checkpoint within its last epoch end that epoch."""
    trainer.fit_loop.__class__ = FitLoop
