"""Options and callbacks of Lightning: those that cannot work here, and those that count batches instead of updates.

A batch of Lightning's is a block of K updates here, and algorithms step their optimisers themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.callbacks.spike import SpikeDetection
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from oper_lightning.errors import InputError

REFUSED: dict[type[Callback], str] = {
    BaseFinetuning: "it regroups parameters of optimisers that belong to the algorithm",
    BatchSizeFinder: "the batch size is a part of the method: name it in data.batch_size",
    GradientAccumulationScheduler: "every batch makes an update: take a larger data.batch_size",
    LearningRateFinder: "learning rates are a part of the method: name them in model",
    ModelPruning: "it replaces parameters that the algorithm's optimisers hold",
    OnExceptionCheckpoint: "it could save within a block of updates; last.ckpt is whole",
    SpikeDetection: "it leaves batches out, but the seed and the number of the update fix what is drawn",
    StochasticWeightAveraging: "it needs learning rates that Lightning sets; WeightAveraging does without",
}


def refuse(callbacks: Sequence[Callback]) -> None:
    """Refuses callbacks that cannot work with any settings.

    Raises:
        InputError: if there is one; says why.
    """
    for callback in callbacks:
        name = type(callback).__name__
        for kind, reason in REFUSED.items():
            if isinstance(callback, kind):
                raise InputError(f"{name} does not work here: {reason}")
        if isinstance(callback, ModelCheckpoint) and callback.save_on_exception:
            raise InputError(f"{name}: save_on_exception could save within a block of updates; last.ckpt is whole")


def possible(trainer: Any) -> None:
    """Refuses options and callbacks of a Trainer that cannot do here what Lightning says they do.

    Raises:
        InputError: names the first of them, why, and what does it instead.
    """
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise InputError(f"trainer.precision {trainer.precision} does not work; choose 32-true or bf16-mixed")
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise InputError(f"trainer.strategy {type(trainer.strategy).__name__} does not work; choose auto or ddp")
    if trainer.accumulate_grad_batches != 1:
        raise InputError("trainer.accumulate_grad_batches: every batch makes an update; take a larger data.batch_size")
    if trainer.gradient_clip_val is not None or trainer.gradient_clip_algorithm is not None:
        raise InputError("trainer.gradient_clip_val: the algorithms step their optimisers themselves and do not clip")
    if trainer.overfit_batches or (trainer.limit_train_batches != 1.0 and not trainer.fast_dev_run):
        name = "overfit_batches" if trainer.overfit_batches else "limit_train_batches"
        raise InputError(f"trainer.{name}: an epoch is as long as data.updates_per_epoch says; set that")
    if not hasattr(trainer, "val_check_interval"):
        trainer.val_check_interval = None  # Lightning leaves it out where it is a time, but its callbacks read it
    updates, epoch = _block(trainer)
    if (interval := _interval(trainer)) is not None:
        _multiple("trainer.val_check_interval", interval, updates)
        if interval > epoch and trainer.check_val_every_n_epoch is not None:
            raise InputError(
                f"trainer.val_check_interval {interval:,} is more than the {epoch:,} updates of an epoch: set "
                f"trainer.check_val_every_n_epoch to null, and it counts on across epochs"
            )
    refuse(trainer.callbacks)
    for callback in trainer.callbacks:
        name = type(callback).__name__
        if isinstance(callback, WeightAveraging) and updates > 1:
            raise InputError(f"{name} averages after a block of {updates} updates: set data.updates_per_block to 1")
        if isinstance(callback, LearningRateMonitor) and callback.logging_interval == "step" and updates > 1:
            raise InputError(f"{name} looks between blocks of {updates} updates only: set logging_interval to epoch")
        if isinstance(callback, ModelCheckpoint):
            _checkpoints(callback, name, updates)


def _checkpoints(callback: ModelCheckpoint, name: str, updates: int) -> None:
    """Refuses ways to save that do nothing here, or that would save a network other than the one meant."""
    if callback._train_time_interval is not None:
        raise InputError(f"{name}: Lightning saves nothing by train_time_interval here; use every_n_train_steps")
    if every := callback._every_n_train_steps:
        _multiple(f"{name}: every_n_train_steps", every, updates)
        if (callback.monitor or "").startswith("eval/"):
            raise InputError(f"{name}: a return is known after an evaluation only: leave every_n_train_steps out")


def scored(trainer: Any) -> None:
    """Refuses callbacks that monitor an evaluation if the run has none.

    Raises:
        InputError: if one does; names it.
    """
    if trainer.enable_validation and getattr(trainer.datamodule, "world", None) is not None:
        return
    for callback in trainer.callbacks:
        if type(callback) in (EarlyStopping, ModelCheckpoint) and (callback.monitor or "").startswith("eval/"):
            name = type(callback).__name__
            raise InputError(f"{name} monitors {callback.monitor}, but nothing is scored in this run: no environment")


def in_blocks(trainer: Any) -> None:
    """Lets Lightning count a validation interval that was given in updates by blocks."""
    if (interval := _interval(trainer)) is not None:
        trainer.val_check_interval = interval // _block(trainer)[0]


def in_updates(trainer: Any) -> None:
    """The interval as it was given."""
    if (interval := _interval(trainer)) is not None:
        trainer.val_check_interval = interval * _block(trainer)[0]


def _interval(trainer: Any) -> int | None:
    """A validation interval that is given as a number of updates."""
    interval: Any = trainer.val_check_interval
    return interval if isinstance(interval, int) and not trainer.fast_dev_run else None


def _block(trainer: Any) -> tuple[int, int]:
    """Updates of a block and of an epoch; batches of Lightning's, where the data come from something else."""
    blocks = trainer.datamodule.train_dataloader() if trainer.datamodule is not None else []
    updates = getattr(blocks, "updates", 1)
    return updates, updates * len(blocks)


def _multiple(name: str, value: int, updates: int) -> None:
    if value % updates:
        near = max(value // updates, 1) * updates
        raise InputError(
            f"{name} {value:,} is no multiple of the {updates} updates of a block: choose {near:,}, or another "
            f"data.updates_per_block"
        )
