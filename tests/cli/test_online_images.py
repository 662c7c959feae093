"""Online runs of images by the command: they learn, go on, and can be killed."""

from __future__ import annotations

import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import test_kill
import torch
from helpers import image_columns, oper
from test_kill import FORKS, finished, readable, wait_for_checkpoints
from test_online import gathered, same

from oper_lightning.data import log

SIDE, LENGTH = 36, 25


class Bars(gymnasium.Env[np.ndarray, np.int64]):
    """A bright bar over a third of the picture; the action that names it pays 1."""

    observation_space = gymnasium.spaces.Box(0, 255, (SIDE, SIDE), np.uint8)
    action_space = gymnasium.spaces.Discrete(3, start=5)

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self.picture(), {}

    def picture(self) -> np.ndarray:
        self.bar = int(self.np_random.integers(3))
        picture = self.np_random.integers(0, 64, (SIDE, SIDE), dtype=np.uint8)
        picture[:, 12 * self.bar : 12 * self.bar + 12] += 192
        return picture

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert 5 <= action <= 7
        reward = float(action == self.bar + 5)
        self.count += 1
        return self.picture(), reward, False, self.count == LENGTH, {}


def bars(stack: int = 4) -> Any:
    return gymnasium.wrappers.FrameStackObservation(Bars(), stack)


gymnasium.register("Bars-v0", bars, disable_env_checker=True)


def words(output: str | Path, steps: int, *others: str) -> list[str]:
    return [
        "fit", "--data=OnlineDataModule", "--data.environment=Bars-v0", "--data.parallel=2", "--data.warmup=100",
        "--data.batch_size=16", "--data.updates_per_epoch=20", "--data.updates_per_block=10",
        "--data.updates_per_step=0.5", "--data.rollouts={episodes: 4, parallel: 4}", "--model=QRDQN",
        "--model.hidden_sizes=[32]", "--model.quantiles=4", "--model.target_update=10", "--model.n_step=2",
        "--model.epsilon_decay=50", "--model.discount=0.5", "--model.learning_rate=1e-3",
        f"--trainer.max_steps={steps}", f"--output={output}", *others,
    ]  # fmt: skip


def fit(output: str, steps: int = 60, *others: str) -> int:
    return oper(*words(output, steps, *others))


def test_it_learns_what_the_picture_says_and_writes_every_frame_once() -> None:
    assert fit("run", 200, "--model.discount=0", "--model.n_step=1") == 0
    best = torch.load("run/best.ckpt", weights_only=True)
    assert best["metrics"]["eval/return"] > 0.8 * LENGTH
    warmup = log.read(log.files(Path("run/replay"))[0][2])[0]["action"][:, :50]
    assert (torch.bincount(warmup.flatten())[5:] > 20).all(), "100 random actions out of 5, 6 and 7"
    networks = sum(value.nbytes for value in best["state_dict"].values())
    assert Path("run/last.ckpt").stat().st_size < 2.5 * networks
    frames = [log.read(path)[0]["frames"] for _, _, path in log.files(Path("run/replay"))]
    assert frames[0].shape[1:] == (1, SIDE, SIDE)
    # The warm-up covers the first block's steps.
    steps = (100 - 20) + 2 * 200
    episodes, files, blocks = steps // LENGTH + 2, len(frames), steps // 64
    assert steps < sum(map(len, frames)) <= steps + 4 * (episodes + 2 * files + blocks)


@pytest.mark.parametrize("location", ["device", "memory", "memmap"])
def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(location: str) -> None:
    where = f"--data.location={location}"
    assert fit("whole") == 0
    assert fit("part", 40, where) == 0
    assert fit("part", 60, where, "--ckpt_path=last") == 0
    assert same("whole", "part")
    assert len(list(Path("whole/replay").iterdir())) == 3


def test_it_takes_up_recorded_images(tmp_path: Path) -> None:
    rows = image_columns([25] * 8)
    np.savez("play.npz", **{**rows, "actions": rows["actions"] + 5})
    recorded = [
        "--data.source=Npz",
        "--data.source.path=play.npz",
        "--data.offline_share=0.25",
        "--data.priority=OperR",
    ]
    assert fit("whole", 60, *recorded) == 0
    assert fit("part", 40, *recorded) == 0
    assert fit("part", 60, *recorded, "--ckpt_path=last") == 0
    assert same("whole", "part")


def test_its_log_trains_offline() -> None:
    assert fit("run") == 0
    offline = ["--data.source=OnlineLog", "--data.source.path=run", "--data.source.environment=Bars-v0"]
    assert oper(
        "fit", "--model=DiscreteBC", "--model.hidden_sizes=[16]", *offline, "--data.batch_size=16",
        "--data.updates_per_epoch=10", "--trainer.max_steps=20", "--data.rollouts=null", "--output=clone",
    ) == 0  # fmt: skip
    assert torch.load("clone/last.ckpt", weights_only=True)["spec"]["rows"] == 80 + 2 * 60


def run(arguments: list[str]) -> None:
    """In a process that has imported this file, and so knows the environment."""
    test_kill.run(arguments, None)


def test_kills_lose_nothing_but_time(tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"

    def begun(folder: Path) -> BaseProcess:
        process = FORKS.Process(target=run, args=(words(folder, 200, "--data.rollouts=null", "--ckpt_path=last"),))
        process.start()
        return process

    assert finished(begun(alone))
    chance, reached = random.Random(), [0]
    for _ in range(4):
        process = begun(killed)
        wait_for_checkpoints(process, killed, chance.randint(0, 3))
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        reached.append(readable(killed))
    assert reached == sorted(reached)
    assert reached[-1] > 0
    assert finished(begun(killed))
    assert same(str(alone), str(killed)), reached
    assert gathered(str(alone))["reward"].shape == (2, 40 + 200)


def test_a_bonus_for_images_is_refused_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert fit("run", 60, "--data.bonus=RND") == 1
    assert "Bars-v0: images, which RND is not for; leave out data.bonus" in capfd.readouterr().err.splitlines()[-1]


def test_a_report_on_it_draws_no_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("run") == 0
    assert oper("report", "run", "--output=page") == 0
    assert "coverage" not in capsys.readouterr().out
    assert "Where runs have been" not in Path("page/report.md").read_text()
