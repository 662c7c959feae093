"""What a report says of the returns that score 0 and 100."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import columns, oper, write_hdf5

SOURCE = ["--data.source=D4RL", "--data.source.path=data.hdf5"]
SMALL = ["--data.batch_size=32", "--data.updates_per_epoch=20", "--trainer.max_steps=20", "--model.hidden_sizes=[16]"]


def recorded(low: float) -> None:
    write_hdf5(Path("data.hdf5"), columns([20] * 10, 10, 2), env_id="Reacher-v5", ref_min_score=low, ref_max_score=0.0)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert oper("report", "run", "--output=out") == 0
    out = capsys.readouterr().out
    return next(line for line in out.splitlines() if line.startswith("Scores on data"))


def test_references_are_those_of_the_runs_or_said_to_be_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    recorded(-50.0)
    rollouts = "--data.rollouts={episodes: 2, parallel: 2}"
    assert oper("fit", "--model=BC", *SOURCE, *SMALL, rollouts, "--output=run") == 0
    assert said(capsys) == "Scores on data: 0 is a return of -50 and 100 one of 0 (stored in the dataset)."
    assert "0 is a return of -50" in Path("out/report.html").read_text()
    recorded(-40.0)
    assert "others than when these runs were made" in said(capsys)
    Path("data.hdf5").unlink()
    assert "not known any more (data.hdf5" in said(capsys)


def test_references_given_or_of_another_environment(capsys: pytest.CaptureFixture[str]) -> None:
    write_hdf5(Path("data.hdf5"), columns([20] * 10, 11, 3))
    rollouts = "--data.rollouts={episodes: 2, parallel: 2, environment: Hopper-v5}"
    assert oper("fit", "--model=BC", *SOURCE, *SMALL, rollouts, "--output=run") == 0
    assert said(capsys).endswith("(D4RL's for the robot of Hopper-v5).")
    given = "--data.source.reference=[1,20]"
    assert oper("fit", "--model=BC", *SOURCE, *SMALL, rollouts, given, "--output=given") == 0
    capsys.readouterr()
    assert oper("report", "given", "--output=out") == 0
    assert "0 is a return of 1 and 100 one of 20 (given as the source's reference)" in capsys.readouterr().out
