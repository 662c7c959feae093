"""What loggers left is found and read, or named."""

from __future__ import annotations

from pathlib import Path

import pytest

from oper_lightning.errors import InputError
from oper_lightning.report.curves import Curve, read_curves, read_logged


def metrics(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(text)


def test_csv_logger(tmp_path: Path) -> None:
    versions = tmp_path / "lightning_logs"
    metrics(versions / "version_0", "epoch,eval/return,step,train/loss\n,,10,0.5\n0,-3.5,20,\n1,-2,40,nan\n")
    metrics(versions / "version_1", "eval/return,step\n-1.5,40\n-1,60\n")  # resumed from update 20
    curves = read_curves(tmp_path)
    assert curves["eval/return"] == Curve([20, 40, 60], [-3.5, -1.5, -1])
    assert curves["train/loss"].updates == [10, 40]
    assert read_logged(tmp_path).ended is None


@pytest.mark.parametrize(
    "text", ["step,eval/return\nmany,1\n", "a,b\n1,2\n", "step,eval/return\n1,2,3,4\n", "step,x\n1\x00,3\n"]
)
def test_broken_csv_is_one_line(tmp_path: Path, text: str) -> None:
    metrics(tmp_path / "run", text)
    with pytest.raises(InputError, match=r"metrics\.csv: cannot read it as metrics\.csv of Lightning's CSVLogger"):
        read_curves(tmp_path / "run")


def test_other_loggers_are_named(tmp_path: Path) -> None:
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    with pytest.raises(InputError, match="logged with Weights & Biases, whose records are not read here"):
        read_curves(tmp_path)
    with pytest.raises(InputError, match="no TensorBoard events"):
        read_curves(tmp_path / "wandb")
    metrics(tmp_path / "empty", "step,eval/return\n")
    with pytest.raises(InputError, match="nothing was logged"):
        read_curves(tmp_path / "empty")


def test_broken_events_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"\x00\x01broken" * 50)
    with pytest.raises(InputError, match="nothing was logged, or it is broken"):
        read_curves(tmp_path)
