"""Checkpoints that are whole or absent, and read without running anything found in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from oper_lightning.cli import folders, signals
from oper_lightning.files import whole
from oper_lightning.training.stored import read_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and reads it without running what is in it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes the file whole, or leaves the old one."""
        folders.still_there()
        with signals.held(), whole(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a file that :func:`read_checkpoint` accepts."""
        return read_checkpoint(path)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the highest mean evaluation return; idle in a run without evaluation."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Knows the score of the best.ckpt that lies here, wherever the folder was when it was written."""
        best = Path(str(self.dirpath)) / "best.ckpt"
        if best.is_file() and state_dict["best_model_path"]:
            self.best_model_score = self.kth_value = state_dict["best_model_score"]
            self.best_model_path = self.kth_best_model_path = str(best)
            self.best_k_models = {str(best): state_dict["best_model_score"]}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the return just measured: the networks are those that earned it."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)


class LastCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoint: from the end of every epoch, and from before every evaluation, which may fail."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what has been trained; at the end of the epoch it is written again, with what the evaluation said."""
        if not self._should_skip_saving_checkpoint(trainer):
            trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt")


def checkpoint_callbacks(folder: Path) -> list[ModelCheckpoint]:
    """best.ckpt after evaluations, last.ckpt at the end of every epoch; best first, so that last.ckpt knows of it."""
    return [
        BestCheckpoint(
            dirpath=folder,
            filename="best",
            monitor="eval/return",
            mode="max",
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        ),
        LastCheckpoint(
            dirpath=folder,
            filename="last",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
    ]
