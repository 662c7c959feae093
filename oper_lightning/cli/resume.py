"""What a training run that goes on, or ends before its length, has to say about it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from oper_lightning.cli.words import flat
from oper_lightning.errors import note


def changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Notes what is not as it was in a run that goes on; ``before`` and ``now`` are its configurations."""
    was, is_now = flat(before), flat(now)
    for key in sorted(was.keys() | is_now.keys()):
        pair = was.get(key), is_now.get(key)
        if key.endswith("class_path"):  # a class may be found in several modules
            pair = str(pair[0]).rpartition(".")[2], str(pair[1]).rpartition(".")[2]
        if key.startswith(("model.", "data.", "seed")) and pair[0] != pair[1]:
            note(f"{key} was {_short(was.get(key))} in this run, now it is {_short(is_now.get(key))}")


def _short(value: Any) -> str:
    return " ".join(str(value).split())[:80]


def ended_early(trainer: Trainer) -> str:
    """Why a run of a given length ended before it; empty if it did not."""
    if not trainer.global_step < trainer.max_steps or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return ""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    stoppers = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]  # type: ignore[attr-defined]
    if any((left := timer.time_remaining()) is not None and left <= 0 for timer in timers):
        reason = "trainer.max_time is over"
    elif trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        reason = f"trainer.max_epochs {trainer.max_epochs} is reached"
    elif any(stopper.stopped_epoch for stopper in stoppers):
        reason = "EarlyStopping stopped it"
    else:
        reason = "a callback or a limit of the trainer stopped it"
    return f" of {trainer.max_steps:,}: {reason}"
