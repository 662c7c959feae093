"""Weights are shown as training uses them, and where they are blind it is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers import columns, oper, transitions
from test_pages import weights

from oper_lightning.data.datamodule import OfflineDataModule
from oper_lightning.data.sources.d4rl import D4RL
from oper_lightning.priorities.file import WeightsFile
from oper_lightning.priorities.priority import statistics
from oper_lightning.priorities.returns import OperR, TopFraction
from oper_lightning.report.weighing import blind, correlation, extremes, shifts
from oper_lightning.report.weights import episode_weights


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


def weighed(lengths: list[int], rewards: list[float], priority: OperR | TopFraction) -> list[str]:
    """What is said of episodes with these rewards per step."""
    arrays = columns(lengths)
    arrays["rewards"][:] = torch.repeat_interleave(torch.tensor(rewards), torch.tensor(lengths)).numpy()
    data = transitions(arrays)
    returns, mean = episode_weights(data, priority(data))
    return blind("OPER-R", returns, torch.tensor(lengths), mean)


def test_a_few_disasters_that_set_the_scale_are_named() -> None:
    usual = [-3.0 - 0.1 * day for day in range(35)]
    days = [*usual, *[-1000.0] * 7]
    found = weighed([100] * 42, days, OperR())
    assert len(found) == 1
    assert "35 of 42 episodes weigh within 2 % of each other, though they return -640 to -300" in found[0]
    assert "7 far worse ones (-1e+05 to -1e+05) set the scale" in found[0]
    assert weighed([100] * 35, usual, OperR()) == []
    assert weighed([100] * 42, days, TopFraction(0.3)) == []


def test_returns_that_only_measure_length_are_named() -> None:
    lengths = [5, 10, 20, 40, 80, 15, 30, 60, 90, 7, 25, 50]
    worse = [1.2, 1.1, 1.0, 1.0, 0.9, 1.1, 1.0, 0.9, 0.9, 1.2, 1.0, 1.0]
    found = weighed(lengths, worse, OperR())
    assert len(found) == 1
    assert "weights go with the length of an episode" in found[0]
    # Where who earns more per step also lasts longer, there is nothing to say.
    assert weighed(lengths, [0.5 + length / 100 for length in lengths], OperR()) == []


def test_correlation_without_variation() -> None:
    assert correlation(torch.ones(4), torch.arange(4.0)) == 0
    assert correlation(torch.arange(4.0), 2 * torch.arange(4.0)) == pytest.approx(1)
