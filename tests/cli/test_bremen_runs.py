"""BREMEN from the command line, stage by stage, and after the stages before it are gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import oper

from oper_lightning.report.curves import read_curves

QUICK = [
    "--data.source=D4RL",
    "--data.updates_per_epoch=10",
    "--trainer.accelerator=cpu",
    "--model.hidden_sizes=[16,16]",
]


def same(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same networks, bit for bit."""
    one, two = (torch.load(path / "last.ckpt", weights_only=True)["state_dict"] for path in (first, second))
    return one.keys() == two.keys() and all(value.equal(two[name]) for name, value in one.items())


@pytest.fixture
def stages(small_file: Path) -> list[str]:
    """Trains a tiny ensemble and a clone; returns what a policy's run needs to know."""
    file = f"--data.source.path={small_file}"
    quick = [*QUICK, file, "--data.rollouts=null", "--trainer.max_steps=20"]
    assert oper("fit", "--model=DynamicsEnsemble", "--data.holdout=0.2", *quick, "--output=dynamics") == 0
    assert oper("fit", "--model=BC", *quick, "--output=clone") == 0
    rollouts = "--data.rollouts={episodes: 2, parallel: 2}"
    earlier = ["--model.dynamics=dynamics/last.ckpt", "--model.clone=clone/last.ckpt"]
    return ["--model=BREMEN", *QUICK, file, rollouts, *earlier, "--data.batch_size=10", "--model.horizon=5"]


def test_a_policy_acts_and_goes_on_without_the_stages_before_it(
    stages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    often = ["--data.updates_per_epoch=1", "--trainer.log_every_n_steps=1"]
    assert oper("fit", *stages, "--trainer.max_steps=20", *often, "--output=whole") == 0
    assert oper("fit", *stages, "--trainer.max_steps=10", *often, "--output=part") == 0
    for folder in ("dynamics", "clone"):
        shutil.rmtree(folder)
    assert oper("fit", "--ckpt_path=part/last.ckpt", "--trainer.max_steps=20") == 0
    assert same(Path("whole"), Path("part"))
    assert oper("validate", "--ckpt_path=part/last.ckpt") == 0
    assert "return" in capsys.readouterr().out
    curves = read_curves("whole")
    promised, length, imagined = (curves[name] for name in ("eval/promised", "eval/length", "train/imagined_reward"))
    assert promised.updates == length.updates == imagined.updates == [*range(1, 21)]
    assert promised.values == pytest.approx(np.multiply(imagined.values, length.values), rel=1e-5)


def test_a_run_says_which_stage_is_missing(stages: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("dynamics/last.ckpt").unlink()
    assert oper("fit", *stages, "--trainer.max_steps=20", "--output=run") == 1
    error = capsys.readouterr().err
    assert "dynamics/last.ckpt: no such checkpoint" in error
    assert "Traceback" not in error
