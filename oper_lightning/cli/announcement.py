"""Lines about a training run: what it read, what it will do, and why it ended before trainer.max_steps."""

from __future__ import annotations

import datetime

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from oper_lightning.data.datamodule import OfflineDataModule
from oper_lightning.data.online import OnlineDataModule
from oper_lightning.errors import log
from oper_lightning.nn import ranks
from oper_lightning.priorities.priority import in_percent, statistics


class Announcement(Callback):
    """Two or three lines, once everything is set up."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what was read and what will be done."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero and isinstance(data, OfflineDataModule):
            log.info(was_read(data))
            log.info(will_do(trainer, pl_module, data))
            if isinstance(data, OnlineDataModule):
                log.info(will_gather(trainer, data))


def was_read(data: OfflineDataModule) -> str:
    """The data and the priority."""
    if not len(data.transitions):
        return f"nothing is recorded: all transitions are gathered in {data.source}, and drawn uniformly"
    episodes = int(data.transitions["next", "done"].sum())
    line = f"read {data.source}: {len(data.transitions):,} transitions in {episodes:,} episodes"
    line += f", {data.spec.actions:,} discrete actions" if data.spec.discrete else ""
    if data.judged is not None:
        table, rows = data.judged
        of = "which" if data.held_out is not None else str(table.source)
        line += f", {len(rows):,} transitions of {of} are held out"
    if data.priority is None or data.weights is None:
        good = "" if data.upsample is None else f", but {data.upsample.rows:,} of every batch among good ones"
        return f"{line}; drawn uniformly{good}"
    # Which of S seeds it is makes little difference.
    share = statistics(data.weights.reshape(-1, data.weights.shape[-1])[0])["ess"]
    does = "draws" if data.mode == "resample" else "weighs the losses of"
    return (
        f"{line}; {type(data.priority).__name__} {does} {', '.join(data.roles)} (effective share {in_percent(share)})"
    )


def will_do(trainer: Trainer, model: LightningModule, data: OfflineDataModule) -> str:
    """The algorithm, the length of the run, and what comes of it."""
    blocks = data.train_dataloader()
    last = f"{trainer.max_steps:,}" if trainer.max_steps > 0 else "the end"
    batch = data.batch_size * ranks.world_size()
    line = f"{type(model).__name__}: updates {trainer.global_step + 1:,} to {last} with batches of {batch:,}"
    line += f" on {trainer.strategy.root_device} in {trainer.precision}"
    if trainer.checkpoint_callbacks:
        line += f"; a checkpoint every {blocks.count * getattr(blocks, 'updates', 1):,}"
    if data.world is None or data.rollouts is None or not trainer.enable_validation:
        judged = "judged on what is held out" if data.judged is not None else "nothing is scored"
        return f"{line}; without rollouts in an environment {judged}"
    line += f"; scored over {data.rollouts.episodes} episodes of {data.world.environment}"
    if data.spec.reference is None:
        return f"{line}, without a normalised score, as no reference is known (data.source.reference)"
    low, high = data.spec.reference
    return f"{line}, normalised from {low:g} to {high:g} ({data.spec.reference_from})"


def will_gather(trainer: Trainer, data: OnlineDataModule) -> str:
    """Where the policy acts, and for how many steps."""
    assert data.players is not None
    taken = data.gathered.steps * data.parallel
    first = data.steps_at(getattr(data.train_dataloader(), "updates", 1))
    steps = data.steps_at(trainer.max_steps) + (taken - data.steps_at(data.drawn) if taken else 0)
    copies = f" of {data.parallel:,} copies" if data.parallel > 1 else ""
    of_them = f"{taken:,} of them already taken" if taken else f"{first:,} of them before the first update"
    line = f"gathers in {data.players.world.environment}: {steps:,} environment steps{copies}"
    share = "" if data.offline_share is None else f"; {data.offline_share:.0%} of every batch are recorded rows"
    return f"{line}, {of_them}{share}"


def early_end(trainer: Trainer) -> str | None:
    """Why a run ended before trainer.max_steps; None if it did not."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return None
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0:
            passed = datetime.timedelta(seconds=int(callback.time_elapsed()))
            return f"the time is up, {passed} with earlier runs (trainer.max_time, or a Timer)"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if trainer.should_stop and isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            return callback.stopping_reason_message.removesuffix(" Signaling Trainer to stop.").removesuffix(".")
    if trainer.should_stop:
        return getattr(trainer.lightning_module, "stopped", None) or "a callback asked for it"
    if trainer.max_steps > 0 and trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return f"trainer.max_epochs {trainer.max_epochs} are over"
    return None
