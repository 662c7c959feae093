"""What `oper inspect` says of discrete actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import columns, image_columns, oper, transitions, write_hdf5
from test_recording import against, recorded

from oper_lightning.data.sources.source import Origin
from oper_lightning.report.describe import describe
from oper_lightning.report.draw_data import draw_data
from oper_lightning.report.recording import judge
from oper_lightning.report.weighing import shifts

LENGTHS = [50] * 40


def taken(actions: np.ndarray) -> Any:
    """Transitions with these actions."""
    return transitions({**columns(LENGTHS), "actions": actions})


def said(actions: np.ndarray, low: int, high: int) -> list[str]:
    return describe(taken(actions), torch.tensor(low), torch.tensor(high)).warnings


def test_actions_are_counted_and_what_is_missing_is_named() -> None:
    actions = np.random.default_rng(0).choice([-1, 0, 2], 2000)
    facts = describe(taken(actions), torch.tensor(-2), torch.tensor(3))
    assert facts.counts is not None
    assert facts.counts.tolist() == [int((actions == number).sum()) for number in range(-2, 4)]
    assert facts.warnings == ["actions that are never taken: -2, 1, 3: nothing can be learnt about them"]
    assert said(actions.clip(-1, 0), -1, 0) == []
    actions[7] = 1
    assert said(actions, -1, 2) == [
        "actions that are taken in less than 0.1% of the rows: 1 (1 rows): little can be learnt about them"
    ]
    assert said(actions, 0, 2)[0].endswith("of actions are none of 0 to 2")


def test_rewards_that_never_change_are_worth_something_where_episodes_end() -> None:
    """CartPole pays 1 for every step."""
    arrays = columns([20, 30] * 10)
    arrays["rewards"][:] = 1
    assert not [
        line for line in describe(transitions(arrays), -torch.ones(2), torch.ones(2)).warnings if "is 1" in line
    ]
    cut = columns([20, 30] * 10, terminal=False)
    cut["rewards"][:] = 1
    assert "every reward is 1: there" in " ".join(describe(transitions(cut), -torch.ones(2), torch.ones(2)).warnings)


def test_what_a_priority_favours() -> None:
    """Shares of actions with and without weights; moved in standard deviations of a column of zeros and ones."""
    actions = np.tile([0, 0, 0, 5], 500)
    weights = torch.tensor([0.4, 0.4, 0.4, 2.8]).double().repeat(500)
    rows = [row for row in shifts(taken(actions), weights).rows if row[0].startswith("action")]
    moved = (0.7 - 0.25) / np.std(actions == 5)
    assert rows == [["action is 0", "0.75", "0.3", f"{-moved:+.2f}"], ["action is 5", "0.25", "0.7", f"{moved:+.2f}"]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("environment", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1"])
def test_true_recordings_fit(environment: str) -> None:
    verdict = against(recorded(environment), environment)
    assert verdict.fits, verdict


def test_recordings_of_another_world_do_not_fit() -> None:
    data = recorded("CartPole-v1")
    data["action"] = 1 - data["action"]
    assert "differ from CartPole-v1's by" in " ".join(against(data, "CartPole-v1").warnings)
    data["action"] = data["action"] + 1
    assert against(data, "CartPole-v1").warnings == ["actions 1 to 2 are recorded, but CartPole-v1 takes 0 to 1"]
    data["action"] = data["action"].float()
    assert against(data, "CartPole-v1").warnings == ["actions are continuous, but CartPole-v1 has discrete ones"]
    declared = Origin(environment="CartPole-v1", action_low=np.asarray(0), action_high=np.asarray(2))
    assert "the data declare 2 as highest action" in " ".join(judge(recorded("CartPole-v1"), declared).warnings)


def test_bars_stand_at_the_numbers_of_actions() -> None:
    low, high = torch.tensor(-2), torch.tensor(3)
    data = taken(np.random.default_rng(0).choice([-1, 0, 2], 2000))
    facts = describe(data, low, high)
    panel = draw_data(data, facts, low, high).axes[2]
    assert [bar.get_x() + bar.get_width() / 2 for bar in panel.patches] == pytest.approx(range(-2, 4))
    assert [bar.get_height() for bar in panel.patches] == facts.counts.tolist()
    assert panel.lines[0].get_xdata().tolist() == [-2, 1, 3]


@pytest.mark.parametrize("kind", ["continuous", "discrete", "images"])
def test_pictures_reach_their_edges(kind: str) -> None:
    """Nothing that is not seen takes room at the left or at the bottom."""
    made = image_columns([9, 12]) if kind == "images" else columns([9, 12], 4, 2, discrete=kind == "discrete")
    write_hdf5(Path("a.hdf5"), made)
    assert oper("inspect", "a.hdf5", "--output=out") == 0
    for name in ("inspect", "inspect-weights"):
        pixels = plt.imread(f"out/{name}.png")[..., :3]
        height, width, _ = pixels.shape
        drawn = (pixels < 0.9).any(2)
        margins = [drawn.any(0).argmax() / width, drawn.any(1)[::-1].argmax() / height]
        assert max(margins) < 0.03, (name, margins)


def test_a_file_is_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = columns(LENGTHS, 4, 6, discrete=True)
    arrays["actions"][arrays["actions"] == 3] = 2
    write_hdf5(tmp_path / "a.hdf5", arrays)
    assert oper("inspect", tmp_path / "a.hdf5", "--priority=AdvantageWeighting", "--output=out") == 0
    out, err = capsys.readouterr()
    assert "6 (0 to 5) are taken, by what was recorded" in err
    assert "6 discrete ones, 0 to 5 (not known: read off the data)" in out
    assert "actions that are never taken: 3" in out
    assert "action is" in out
    assert "AW, as used" in out
    share = (arrays["actions"] == 0).mean()
    assert f"0: {share:.1%}, 1: " in out
    assert "how often each action was taken" in Path("out/inspect.html").read_text()
