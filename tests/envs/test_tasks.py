"""Tasks against their formulas row by row, against recorded rewards, and the environments that they judge."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers import REACH, oper

from oper_lightning.envs import tasks
from oper_lightning.envs.rollouts import World
from oper_lightning.envs.scores import family_of_environment
from oper_lightning.errors import InputError

Row = Callable[[list[float], list[float], list[float]], float]


def _effort(action: list[float]) -> float:
    return sum(value**2 for value in action)


# What one step earns, written down a second time.
EARNED: dict[str, Row] = {
    "Ant": lambda s, a, n: s[13] - 0.1 * _effort(a) - 3 * (s[0] - 0.57) ** 2 + 1,
    "HalfCheetah": lambda s, a, n: s[8] - 0.1 * _effort(a),
    "CheetahRun": lambda s, a, n: 1.0 if s[8] >= 10 else s[8] / 10 if s[8] > 0 else 0.0,
    "Hopper": lambda s, a, n: n[5] - 0.001 * _effort(a) + 1,
    "Walker2d": lambda s, a, n: n[8] - 0.001 * _effort(a) + 1,
}


def _hopper_stands(n: list[float]) -> bool:
    sound = all(math.isfinite(value) for value in n) and all(abs(value) < 100 for value in n[1:])
    return sound and n[0] > 0.7 and abs(n[1]) < 0.2


STANDS: dict[str, Callable[[list[float]], bool]] = {
    "Hopper": _hopper_stands,
    "Walker2d": lambda n: 0.8 < n[0] < 2.0 and -1 < n[1] < 1,
}
SIZES = {"Ant": (27, 8), "HalfCheetah": (17, 6), "CheetahRun": (17, 6), "Hopper": (11, 3), "Walker2d": (17, 6)}


def judged(name: str, *rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    task = getattr(tasks, name)()
    return task.reward(*rows), task.terminated(*rows)


@pytest.mark.parametrize("name", EARNED)
def test_formulas(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    size, actions = SIZES[name]
    now, after = (torch.randn(500, size, generator=generator) * torch.tensor([0.8] * 2 + [8.0] * (size - 2)) + 0.5
                  for _ in range(2))  # fmt: skip
    action = 2 * torch.rand(500, actions, generator=generator) - 1
    reward, terminated = judged(name, now, action, after)
    rows = list(zip(now.tolist(), action.tolist(), after.tolist(), strict=True))
    assert reward.tolist() == pytest.approx([EARNED[name](*row) for row in rows], rel=1e-5, abs=1e-5)
    ends = [not STANDS[name](row[2]) if name in STANDS else False for row in rows]
    assert terminated.tolist() == ends
    assert terminated.dtype == torch.bool
    assert (name not in STANDS) or 0 < sum(ends) < 500


@pytest.mark.parametrize(
    ("name", "entry", "value", "ends"),
    [
        ("Hopper", 0, 0.7, True), ("Hopper", 0, 0.71, False), ("Hopper", 1, 0.2, True), ("Hopper", 1, -0.19, False),
        ("Hopper", 1, -0.21, True), ("Hopper", 10, 100.0, True), ("Hopper", 10, -99.0, False),
        ("Hopper", 0, 150.0, False), ("Hopper", 0, math.inf, True), ("Hopper", 4, math.nan, True),
        ("Walker2d", 0, 0.8, True), ("Walker2d", 0, 1.99, False), ("Walker2d", 0, 2.0, True),
        ("Walker2d", 1, 1.0, True), ("Walker2d", 1, -1.0, True), ("Walker2d", 1, 0.99, False),
        ("Walker2d", 0, math.nan, True), ("Walker2d", 12, 1e4, False),
        ("Ant", 0, -5.0, False), ("HalfCheetah", 1, 9.0, False), ("CheetahRun", 1, 9.0, False),
    ],
)  # fmt: skip
def test_termination_tables(name: str, entry: int, value: float, ends: bool) -> None:
    size, actions = SIZES[name]
    after = torch.zeros(2, size)
    after[:, 0] = 1.25
    after[1, entry] = value
    _, terminated = judged(name, torch.zeros(2, size), torch.zeros(2, actions), after)
    assert terminated.tolist() == [False, ends]


@pytest.mark.parametrize(
    ("name", "file", "explained", "ends"),
    [("HalfCheetahV5", "halfcheetah-replay.hdf5", 0.989, 0), ("HopperV5", "hopper-replay.hdf5", 0.9999, 2201)],
)
def test_gymnasiums_rewards_as_recorded(shared: Path, name: str, file: str, explained: float, ends: int) -> None:
    with h5py.File(shared / file) as recorded:
        keys = ("observations", "actions", "next_observations", "rewards", "terminals")
        *rows, reward, terminal = (torch.from_numpy(recorded[key][:]) for key in keys)
    estimate, terminated = judged(name, *rows)
    assert 1 - (estimate - reward).var() / reward.var() > explained
    assert torch.equal(terminated, terminal.bool())
    assert int(terminated.sum()) == ends


def test_gymnasiums_walker() -> None:
    world = World("Walker2d-v5", {})
    generator = np.random.default_rng(0)
    rows: list[Any] = []
    observation = world.reset(0, 0)
    for number in range(1500):
        if number % 6 == 0:
            action = generator.uniform(-1, 1, 6).astype(np.float32)
        following, reward, terminated, _ = world.step(0, action)
        rows.append((observation, action, following, reward, terminated))
        observation = world.reset(0, number) if terminated else following
    *arrays, reward, terminal = (torch.from_numpy(np.array(column)) for column in zip(*rows, strict=True))
    estimate, ends = judged("Walker2dV5", *arrays)
    assert 1 - (estimate - reward).var() / reward.var() > 0.999
    assert torch.equal(ends, terminal)
    assert ends.sum() > 20


@pytest.mark.parametrize("name", EARNED)
def test_environments_pay_by_the_formula(name: str) -> None:
    world = World(f"bremen/{name}-v0", {})
    assert world.observation_shape == (SIZES[name][0],)
    assert world.action_space.shape == (SIZES[name][1],)
    assert world.copies[0].spec.max_episode_steps == 1000
    generator = np.random.default_rng(0)
    observation, ended = world.reset(0, 0), 0
    for number in range(120):
        action = generator.uniform(-1.5, 1.5, SIZES[name][1]).astype(np.float32)  # some beyond the bounds
        following, reward, terminated, truncated = world.step(0, action)
        taken = action.clip(-1, 1).tolist()
        assert reward == pytest.approx(
            EARNED[name](observation.tolist(), taken, following.tolist()), rel=1e-4, abs=1e-4
        )
        assert terminated == (name in STANDS and not STANDS[name](following.tolist()))
        assert not truncated
        ended += terminated
        observation = world.reset(0, number) if terminated else following
    assert (ended > 1) == (name in STANDS)


@pytest.mark.parametrize(
    ("name", "positions", "speeds"),
    [("Ant", 0.1, 1.0), ("HalfCheetah", 0.1, 1.0), ("CheetahRun", 0.1, 1.0), ("Hopper", 0.005, 0.0055),
     ("Walker2d", 0.005, 0.0055)],
)  # fmt: skip
def test_observations_are_positions_and_speeds(name: str, positions: float, speeds: float) -> None:
    env = World(f"bremen/{name}-v0", {}).copies[0]
    data, hidden = env.unwrapped.data, 2 if name == "Ant" else 1
    first, _ = env.reset(seed=1)
    assert np.array_equal(first, np.concatenate([data.qpos[hidden:], data.qvel]))
    assert env.observation_space.contains(first)
    begin = env.unwrapped.init_qpos
    assert 0 < np.abs(data.qpos - begin).max() <= positions
    assert positions / 2 < np.abs(data.qvel).max() < speeds
    again, _ = env.reset(seed=1)
    assert np.array_equal(first, again)
    data.qvel[0] = 55.0  # Gymnasium's own hopper shows 10
    following, *_ = env.step(np.zeros(SIZES[name][1], np.float32))
    assert np.array_equal(following, np.concatenate([data.qpos[hidden:], data.qvel]))
    assert np.abs(following).max() > 10


def test_the_walkers_feet_are_the_published_ones() -> None:
    ours, newer = (World(name, {}).copies[0].unwrapped.model for name in ("bremen/Walker2d-v0", "Walker2d-v5"))
    feet = [{ours.geom(i).name: float(ours.geom_friction[i, 0]) for i in range(ours.ngeom)},
            {newer.geom(i).name: float(newer.geom_friction[i, 0]) for i in range(newer.ngeom)}]  # fmt: skip
    assert (feet[0]["foot_geom"], feet[0]["foot_left_geom"]) == (0.9, 1.9)
    assert (feet[1]["foot_geom"], feet[1]["foot_left_geom"]) == (1.9, 1.9)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("Ant", 300, 650), ("HalfCheetah", -450, -150), ("CheetahRun", 15, 35), ("Hopper", 8, 35), ("Walker2d", -5, 10)],
)
def test_random_actions_earn_what_is_known(name: str, least: float, most: float) -> None:
    generator = torch.Generator().manual_seed(0)
    world = World(f"bremen/{name}-v0", {}, parallel=2)
    returns, lengths = world.rollouts(
        lambda observation: 2 * torch.rand(len(observation), SIZES[name][1], generator=generator) - 1, range(4)
    )
    assert least < returns.mean() < most
    assert (lengths == 1000).all() == (name not in STANDS)


def test_their_returns_make_no_d4rl_score() -> None:
    assert family_of_environment("bremen/Hopper-v0") is None
    assert family_of_environment("oper/AntSparse-v0") is None
    assert family_of_environment("Hopper-v5") is not None


def test_a_misspelt_environment() -> None:
    with pytest.raises(InputError, match=r"'bremen/Hoper-v0' is not registered.*did you mean 'bremen/Hopper-v0'"):
        World("bremen/Hoper-v0", {})


MINE = f"""
from oper_lightning import BC
{REACH}

class Imagining(BC):
    def __init__(self, task: Task | None = None) -> None:
        super().__init__()
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.task=HalfCheetah"], "class_path: oper_lightning.envs.tasks.HalfCheetah"),
        (["--model.task=mytask.Reach", "--model.task.scale=2"], "scale: 2.0"),
        (["--model.task=null"], "task: null"),
        (["--model.task=HalfChetah"], "no class 'HalfChetah' of that kind; did you mean 'HalfCheetah'?"),
        (["--model.task=mytask.Rech"], "model.task: module 'mytask' has no class 'Rech'"),
        (["--model.task=mytask.Reach", "--model.task.scal=2"], "model.task: no argument 'scal'; did you mean 'scale'?"),
    ],
)
def test_naming_a_task(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mytask.py").write_text(MINE)
    monkeypatch.syspath_prepend(Path.cwd())
    data = ["--data.source=D4RL", "--data.source.path=x.hdf5", "--trainer.max_steps=3"]
    oper("fit", "--model=mytask.Imagining", *words, *data, "--print_config")
    assert said in "".join(capsys.readouterr())


def test_help_for_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert oper("fit", "--model.task.help=HopperV5") == 0
    assert "Hopper-v5 of Gymnasium" in capsys.readouterr().out
