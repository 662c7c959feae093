"""What `oper validate` and `oper test` print and write of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.errors import InputError
from oper_lightning.files import whole
from oper_lightning.report.model import draw, in_a_line
from oper_lightning.spec import DataSpec
from oper_lightning.training.model_errors import Errors


def say(trainer: Trainer, verb: str, folder: Path | None, checkpoint: str) -> None:
    """Prints one line, and writes all numbers into ``<verb>.json`` of the folder; of a model also a picture.

    Raises:
        InputError: if nothing was judged.
    """
    metrics = trainer.callback_metrics
    if not metrics:
        holdout = "hold out episodes with data.holdout"
        if not isinstance(trainer.lightning_module, OfflineAlgorithm):
            raise InputError(f"nothing to score: this is no policy, and is judged by recorded rows: {holdout}")
        raise InputError(
            f"nothing to score: no environment is known; name one in data.rollouts.environment, or {holdout}"
        )
    spec: DataSpec = trainer.datamodule.spec  # type: ignore[attr-defined]
    returns = {key.rpartition("/")[2]: float(value) for key, value in metrics.items() if not _held_out(key)}
    others = {key: float(value) for key, value in metrics.items() if _held_out(key)}
    judged: Errors | None = getattr(trainer.lightning_module, "judged", None)
    if returns:
        print(_earned(returns, spec))
    if judged is not None:
        print(in_a_line(judged))
    elif others:
        print(", ".join(f"{name} {value:.4g}" for name, value in others.items()))
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"checkpoint": checkpoint, **returns, **others, "environment": spec.environment}
    if judged is not None:
        record |= {name: getattr(judged, name).tolist() for name in ("members", "columns", "episodes")}
        with whole(folder / "errors.png") as file:
            draw(judged).savefig(file, dpi=130, format="png", facecolor="white")
    with whole(folder / f"{verb}.json") as file:
        file.write(json.dumps(record, indent=1).encode())


def _held_out(key: str) -> bool:
    return key.startswith("holdout/")


def _earned(numbers: dict[str, float], spec: DataSpec) -> str:
    line = f"return {numbers['return']:.2f} ± {numbers['return_std']:.2f} over {numbers['episodes']:.0f} episodes"
    if "score" in numbers:
        line += f", {'D4RL score' if spec.d4rl else 'normalised score'} {numbers['score']:.1f}"
        line += "" if spec.d4rl else f" (references: {spec.reference_from})"
    return f"{line} ({spec.environment})"
