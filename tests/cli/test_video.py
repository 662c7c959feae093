"""`oper video`: films of policies, in an environment that draws without a library of graphics."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from helpers import oper

Refused = Callable[..., str]


class Light(gymnasium.Env[Any, Any]):
    """A light that an action makes brighter; an episode has 12 steps, each of which pays its brightness."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's)
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, render_mode: str | None = None, broken: bool = False) -> None:
        self.render_mode, self.broken, self.drawn = render_mode, broken, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.level = 0, 0.0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps, self.level = self.steps + 1, float(action[0])
        return np.array([self.level, 0], np.float32), self.level, False, self.steps == 12, {}

    def render(self) -> Any:
        if self.broken:
            raise RuntimeError("no display")
        return np.full((64, 64, 3), int(100 + 100 * self.level), np.uint8)


gymnasium.register("Light-v0", Light)

CONTROLLER = """
import numpy as np


def half(observations):
    return np.full((len(observations), 1), 0.5, np.float32)
"""


@pytest.fixture(autouse=True)
def _controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "dimmer.py").write_text(CONTROLLER)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    importlib.sys.modules.pop("dimmer", None)  # type: ignore[attr-defined]


WORDS = ["video", "--ckpt_path=dimmer.half", "--environment=Light-v0", "--output=films"]


def test_every_episode_becomes_a_film(capsys: pytest.CaptureFixture[str]) -> None:
    clips = pytest.importorskip("moviepy", reason="the extra 'video' is not installed")
    assert oper(*WORDS, "--episodes=2") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"films/dimmer.half-episode-{number}.mp4: return 6.00" for number in range(2)
    ]
    for number in range(2):
        film = clips.VideoFileClip(f"films/dimmer.half-episode-{number}.mp4")
        pictures = [picture.mean() for picture in film.iter_frames()]
        assert film.fps == 10
        assert len(pictures) == 13  # the first observation and twelve steps
        assert abs(pictures[0] - 100) < 8
        assert abs(pictures[-1] - 150) < 8


def test_a_run_is_filmed_beside_its_checkpoint(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("moviepy", reason="the extra 'video' is not installed")
    words = ["collect", "--environment=Light-v0", "--steps=120", "--output=d/light-v0"]
    assert oper(*words) == 0
    words = ["--data.source=Minari", "--data.source.id=d/light-v0", "--data.rollouts.episodes=1"]
    words += ["--data.batch_size=16", "--data.updates_per_epoch=10", "--trainer.max_steps=10", "--output=run"]
    assert oper("fit", "--model=BC", "--model.hidden_sizes=[8]", *words) == 0
    assert oper("video", "--ckpt_path=run") == 0
    assert Path("run/videos/BC-episode-0.mp4").stat().st_size > 0


def test_what_is_missing_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    here = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "moviepy" else here(name, *more)
    )
    assert "pip install 'oper-lightning[video]'" in refused(*WORDS)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: object() if name == "moviepy" else here(name))
    line = refused(*WORDS, "--environment_options={broken: true}")
    assert "cannot be drawn here (no display); on a machine without a screen set" in line
    assert "random: name a checkpoint" in refused("video", "--ckpt_path=random", *WORDS[2:])
    assert refused(*WORDS, "--episodes=0") == "episodes is 0; at least 1 is needed"
    assert "dimmer.half: name the folder of the films" in refused(*WORDS[:3])
