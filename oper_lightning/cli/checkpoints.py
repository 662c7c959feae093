"""Checkpoints that are whole or absent, and read without running anything found in them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from oper_lightning import renamed
from oper_lightning.cli import folders, signals
from oper_lightning.errors import InputError, first_line
from oper_lightning.files import whole


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of this package onto the CPU.

    Raises:
        InputError: if it is missing, broken, or of another make.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = first_line(error)
        raise InputError(f"{path}: not a whole checkpoint ({reason}); try best.ckpt or last.ckpt beside it") from None
    if not isinstance(checkpoint, dict) or not {"class_path", "spec", "hyper_parameters"} <= checkpoint.keys():
        raise InputError(f"{path}: not a checkpoint of oper-lightning (no class_path, spec and hyper_parameters)")
    checkpoint["class_path"] = renamed.class_path(checkpoint["class_path"])
    return checkpoint


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

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the epoch's evaluation."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)


def checkpoint_callbacks(folder: Path) -> list[ModelCheckpoint]:
    """best.ckpt and last.ckpt at the end of every epoch; best first, so that last.ckpt knows of it."""
    return [
        BestCheckpoint(
            dirpath=folder,
            filename="best",
            monitor="eval/return",
            mode="max",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
        ModelCheckpoint(
            dirpath=folder,
            filename="last",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
    ]
