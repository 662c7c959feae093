"""What was written before names changed is still read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import oper
from safetensors.torch import load_file

from oper_lightning.algorithms.oper_a import OperA

OLD = {
    "oper_lightning.OperA": "oper_lightning.algorithms.advantage.AdvantageWeights",
    "rollouts:": "evaluation:",
    "location:": "storage:",
}


def test_runs_from_before_the_names_changed(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data.source=D4RL", f"--data.source.path={small_file}", "--data.updates_per_epoch=10"]
    old = [*words, "--model=AdvantageWeights", "--model.iterations=1", "--data.evaluation=null"]
    old += ["--data.storage=memory"]
    assert oper("fit", *old, "--trainer.max_steps=10", "--output=run") == 0
    assert "--data.evaluation=null is --data.rollouts=null today" in capsys.readouterr().err
    text = Path("run/config.yaml").read_text()
    for new, before in OLD.items():
        assert new in text
        text = text.replace(new, before)
    Path("run/config.yaml").write_text(text)
    checkpoint = torch.load("run/last.ckpt", weights_only=True)
    checkpoint["class_path"] = OLD["oper_lightning.OperA"]
    torch.save(checkpoint, "run/last.ckpt")
    assert len(OperA.load_from_checkpoint("run/last.ckpt", weights_only=True).weights) == 1
    assert oper("predict", "--ckpt_path=run/last.ckpt") == 0
    assert load_file("run/predictions.safetensors")["value"].shape == (1000, 3)
