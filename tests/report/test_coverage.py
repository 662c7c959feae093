"""Where runs that interact have been."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import oper
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from oper_lightning.report.coverage import GRID, Visits, _visits, draw, entered


def fit(output: str, *words: str) -> None:
    code = oper(
        "fit", "--data=OnlineDataModule", "--data.parallel=2", "--data.warmup=300", "--data.batch_size=16",
        "--data.rollouts=null", "--data.updates_per_epoch=20", "--model=TD3BC", "--model.hidden_sizes=[8]",
        "--trainer.max_steps=40", f"--output={output}", *words,
    )  # fmt: skip
    assert code == 0


WALL = ("--data.source=PointMassWall", "--data.source.small=true", "--data.source.episodes=5")


def test_cells_are_counted_as_a_set_counts_them() -> None:
    generator = torch.Generator().manual_seed(0)
    recorded, gathered = torch.rand(50, 2, generator=generator) / 3, torch.rand(400, 2, generator=generator)
    everything = torch.cat([recorded, gathered])
    low, high = everything.amin(0), everything.amax(0)

    def cell(place: torch.Tensor) -> tuple[int, int]:
        share = (place - low) / (high - low)
        return min(int(share[0] * GRID), GRID - 1), min(int(share[1] * GRID), GRID - 1)

    known = {cell(place) for place in recorded}
    first, counts = entered(Visits("", recorded, gathered, 400, ("", "")), low, high)
    assert first == len(known)
    for place, count in zip(gathered, counts.tolist(), strict=True):
        known.add(cell(place))
        assert count == len(known)


def test_places_are_what_was_recorded_and_gathered_in_the_order_of_steps() -> None:
    fit("run", *WALL)
    seen = _visits(Path("run"), "mine")
    assert seen is not None
    log = torch.cat([load_file(file)["next_observation"] for file in sorted(Path("run/replay").iterdir())], 1)
    assert seen.steps == log.shape[0] * log.shape[1] == len(seen.gathered)
    expected = [log[copy, step] for step in range(log.shape[1]) for copy in range(2)]
    assert seen.gathered.equal(torch.stack(expected))
    assert len(seen.recorded) > 90
    assert seen.axes[0] == "first dimension of observations"


def test_the_report_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    fit("wall", *WALL)
    fit("alone", "--data.environment=Pendulum-v1", "--model.normalise_observations=false")
    assert oper("report", "wall", "alone", "--output=seen") == 0
    assert "report-coverage.png" in capsys.readouterr().out
    text = Path("seen/report.md").read_text()
    assert "## Where runs have been" in text
    assert f"of {GRID * GRID:,} cells recorded" in text
    assert ": 0 of 2,500 cells recorded" in text


def titles(figure: Any) -> list[str]:
    return [panel.get_title("left") for panel in figure.axes if panel.get_visible()]


def test_panels_say_what_they_show_and_a_long_name_pushes_none_away() -> None:
    generator = torch.Generator().manual_seed(0)
    recorded, gathered = torch.rand(50, 2, generator=generator), torch.rand(590, 2, generator=generator)
    parts = ["steps 1 to 148", "steps 149 to 296", "steps 297 to 444", "steps 445 to 590", "cells entered"]
    alone = Visits("a name " * 30, recorded[:0], gathered, 590, ("x", "y"))
    figure = draw([alone])
    assert [title.split("\n")[1] for title in titles(figure)] == parts  # no panel for what was not recorded
    figure.canvas.draw()
    widths = [panel.get_position().width for panel in figure.axes]
    starts = [panel.get_position().x0 for panel in figure.axes]
    assert max(after - before for before, after in pairwise(starts)) < 2 * min(widths)
    both = titles(draw([alone._replace(recorded=recorded), alone]))
    assert [title.split("\n")[1] for title in both] == ["recorded", *parts, "nothing recorded", *parts]
    # Of a long run every second row is looked at: its steps are counted all the same.
    assert titles(draw([alone._replace(steps=1180)]))[1].endswith("steps 297 to 592")


def test_a_log_that_is_broken_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    fit("wall", *WALL)
    sorted(Path("wall/replay").iterdir())[0].write_bytes(b"nothing")
    assert oper("report", "wall", "--output=seen") == 0
    assert any("where it has been is not drawn" in record.getMessage() for record in caplog.records)
    assert not Path("seen/report-coverage.png").exists()


def test_a_log_of_two_kinds_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    fit("alone", "--data.environment=Pendulum-v1", "--model.normalise_observations=false")
    last = sorted(Path("alone/replay").iterdir())[-1]
    with safe_open(last, "pt") as file:
        columns, about = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    for key in ("observation", "next_observation"):
        columns[key] = columns[key][..., :2].contiguous()
    save_file(columns, last, about)
    assert oper("report", "alone", "--output=seen") == 0
    assert any("where it has been is not drawn" in record.getMessage() for record in caplog.records)
