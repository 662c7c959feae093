"""Weights are shown as training uses them, and where they are blind it is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers import columns, oper, transitions, write_hdf5
from test_pages import weights

from oper_lightning.data.datamodule import OfflineDataModule
from oper_lightning.data.sources.d4rl import D4RL
from oper_lightning.priorities.file import WeightsFile
from oper_lightning.priorities.priority import statistics
from oper_lightning.report.weighing import extremes, shifts


def test_what_is_shown_is_what_training_draws_by(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = weights(small_file, "stage1")
    capsys.readouterr()
    words = ["--priority=WeightsFile", f"--priority.path={file}", "--priority.std=5", "--priority.iteration=1"]
    assert oper("inspect", small_file, "stage1", *words, "--output=out") == 0
    out = capsys.readouterr().out
    for settings, priority in (
        ("std 2, floor 0.1", WeightsFile(str(file))),
        ("std 5, floor 0.1", WeightsFile(str(file), std=5, iteration=1)),
    ):
        data = OfflineDataModule(D4RL(str(small_file)), priority, rollouts=None)
        data.setup()
        assert data.weights is not None
        used = statistics(data.weights)
        line = re.search(rf"\| OPER-A, as used: {settings} .*", out)
        assert line, out
        cells = [cell.strip() for cell in line.group().split("|")]
        assert cells[3] == f"{used['std']:.2f}"
        assert cells[6] == f"{used['max']:.2f}"
    # What stage 1 left stands beside it, once.
    assert len(re.findall(r"\| OPER-A, iteration \d", out)) == 2


def test_a_priority_of_returns_as_used(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert oper("inspect", small_file, "--priority=TopFraction", "--priority.fraction=0.2", "--output=out") == 0
    out = capsys.readouterr().out
    assert re.search(r"\| top x %, as used +\|.* 20% \|", out)
    assert "What top x % favours" in out
    assert len(re.findall(r"\| most \(8 alike\) +\| +3\d \|", out)) == 5


def test_episodes_that_weigh_most_and_least() -> None:
    returns, lengths = torch.arange(20.0), torch.arange(1, 21)
    table = extremes(returns, lengths, (returns - 10).abs())
    assert [row[0] for row in table.rows] == ["most"] * 5 + ["least"] * 5
    assert [row[1] for row in table.rows[:3]] == ["0", "1", "19"]
    assert table.rows[2][2:] == ["190", "20", "19.00", "9"]
    assert table.rows[5][1] == "10"
    assert len(extremes(returns[:7], lengths[:7], returns[:7]).rows) == 7


def test_columns_that_weights_move() -> None:
    data = transitions(columns([20] * 10))
    favoured = (data["observation"][:, 1] > 0).double()
    table = shifts(data, favoured / favoured.mean())
    assert table.rows[0][0] == "observation[1]"
    values = data["observation"][:, 1].double()
    moved = (values[values > 0].mean() - values.mean()) / values.std(correction=0)
    assert float(table.rows[0][3]) == pytest.approx(moved.item(), abs=0.01)
    assert abs(float(table.rows[-1][3])) < 0.8


def test_where_returns_are_blind_the_page_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """35 days that differ by little beside 7 disasters."""
    rewards = torch.tensor([-3.0 - 0.1 * day for day in range(35)] + [-1000.0] * 7)
    arrays = columns([100] * 42)
    arrays["rewards"][:] = rewards.repeat_interleave(100).numpy()
    file = write_hdf5(tmp_path / "days.hdf5", arrays)
    assert oper("inspect", file, "--output=blind") == 0
    assert "OperR: 83% of the transitions weigh nearly the same" in capsys.readouterr().out
    assert oper("inspect", file, "--output=ranked", "--priority=TopFraction", "--priority.returns=rank") == 0
    out = capsys.readouterr().out
    assert "OperR: 83%" in out
    assert "TopFraction:" not in out
