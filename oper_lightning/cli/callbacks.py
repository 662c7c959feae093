"""What the command line adds to a training run: a progress bar, its configuration on disk, predictions on disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from oper_lightning import __version__
from oper_lightning.cli import folders
from oper_lightning.data.online import OnlineDataModule
from oper_lightning.files import whole
from oper_lightning.priorities.file import save_tensors


class Progress(ProgressBar):
    """One bar over the whole run, counted in gradient updates, and a line for every epoch and every evaluation.

    Where the output is no terminal only the lines are written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(stderr=True, highlight=False)
        self.bar: RichProgress | None = None
        self.enabled = True

    def disable(self) -> None:
        """Called on all ranks but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Called on the first rank."""
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar where the run stands."""
        self.began, self.first = time.monotonic(), trainer.global_step
        self.written = trainer.global_step  # updates done when the last line was written
        if not self.enabled or not self.console.is_terminal:
            return
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("updates, {task.fields[rate]:,.0f}/s,"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
            transient=True,
        )
        total = trainer.max_steps if trainer.max_steps > 0 else None
        name = type(pl_module).__name__
        self.task = self.bar.add_task(name, total=total, completed=trainer.global_step, rate=0.0)
        self.bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Moves the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=trainer.global_step, rate=self._rate(trainer))

    def _rate(self, trainer: Trainer) -> float:
        return (trainer.global_step - self.first) / max(time.monotonic() - self.began, 1e-9)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what was measured."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._line(trainer, pl_module, judged=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the line of an epoch without evaluation at its end."""
        if self.written != trainer.global_step:
            self._line(trainer, pl_module, judged=False)

    def _line(self, trainer: Trainer, pl_module: LightningModule, judged: bool) -> None:
        """Writes how the run stands; a return only if it was just measured."""
        self.written = trainer.global_step
        if not self.enabled:
            return
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        total = f"/{trainer.max_steps:,}" if trainer.max_steps >= trainer.global_step else ""
        line = f"{type(pl_module).__name__}  update {trainer.global_step:,}{total}"
        if isinstance(data := trainer.datamodule, OnlineDataModule):  # type: ignore[attr-defined]
            line += f"  {steps_taken(data.progress())}"
        if judged and "eval/return" in metrics:
            line += f"  return {metrics['eval/return']:.2f} ± {metrics['eval/return_std']:.2f}"
        if judged and "eval/promised" in metrics:
            line += f"  promised {metrics['eval/promised']:.2f}"
        if judged and "eval/score" in metrics:
            line += f"  score {metrics['eval/score']:.1f}"
        if judged and "holdout/error" in metrics:
            line += f"  held-out error {metrics['holdout/error']:.4f}"
        loss = getattr(pl_module, "main_loss", None)
        if loss in metrics:
            name = loss.removeprefix("train/")
            line += f"  {name} {metrics[loss]:.4g}"
            if judged and f"holdout/{name}" in metrics:
                line += f" (held out {metrics[f'holdout/{name}']:.4g})"
        rate = self._rate(trainer)
        digits = 0 if rate >= 1 else 1 if rate >= 0.1 else 3
        self.console.print(f"{line}  ({rate:,.{digits}f} updates/s)", soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the bar."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def steps_taken(progress: dict[str, float]) -> str:
    """How far a run that interacts is, in a few words."""
    said = f"steps {progress['steps']:,}"
    return f"{said}  return in training {progress['return']:.2f}" if "return" in progress else said


class Events(TensorBoardLogger):
    """TensorBoard events in the run's folder and nothing else; the configuration stands in config.yaml."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)

    def save(self) -> None:
        """Flushes the events; writes no second file of hyper-parameters."""
        self.experiment.flush()


class SaveConfig(SaveConfigCallback):
    """Writes a training run's full configuration into its folder, ready for another run or verb.

    It waits until training starts: a run that is refused leaves what an earlier one wrote.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning would write here."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes config.yaml, whole or not at all."""
        if not trainer.is_global_zero:
            return
        folders.still_there()
        config = self.config.clone()
        # Where this process read and wrote does not describe the run.
        for key in ("ckpt_path", "start", "output", "trainer.default_root_dir"):
            config[key] = None
        with whole(Path(trainer.default_root_dir) / "config.yaml") as file:
            file.write(f"# {versions()}\n{self.parser.dump(config, skip_unset=False)}".encode())


def versions() -> str:
    """What a run's results may depend on, for the first line of its configuration; `oper report` shows it."""
    return f"oper-lightning {__version__}, torch {torch.__version__}, lightning {lightning.__version__}"


class PredictionWriter(Callback):
    """Collects what the algorithm predicts for every transition and writes it to one safetensors file.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: list[dict[str, torch.Tensor]] = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keeps the part on the CPU."""
        self.parts.append({key: value.cpu() for key, value in outputs.items()})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes all parts, in row order, with the dataset's fingerprint."""
        if not trainer.is_global_zero:
            return
        spec = trainer.datamodule.spec  # type: ignore[attr-defined]
        tensors = {key: torch.cat([part[key] for part in self.parts]) for key in self.parts[0]}
        save_tensors(self.path, tensors, {"fingerprint": spec.fingerprint, "dataset": spec.dataset, "rows": spec.rows})
        shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in tensors.items())
        print(f"{self.path}: {shapes}")
