"""Pong end to end at small scale: played by the script in benchmarks/, learnt by every algorithm that takes images."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import oper

from oper_lightning.algorithms.stage import Stage
from oper_lightning.data import log
from oper_lightning.data.sources.online_log import OnlineLog
from oper_lightning.envs.rollouts import World
from oper_lightning.trust import descendants, load_all

pytest.importorskip("ale_py", reason="the extra 'atari' is not installed (ale-py)")
pytest.importorskip("cv2", reason="the extra 'atari' is not installed (opencv-python-headless)")

load_all()
OURS = [cls for cls in descendants(Stage) if cls.__module__.startswith("oper_lightning.")]
ALGORITHMS = {cls.__name__: cls for cls in OURS if cls.images and "discrete" in cls.kinds}
STEPS, EPISODES = 60, 2


def script() -> Any:
    """benchmarks/pong.py as a module."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "pong.py"
    spec = importlib.util.spec_from_file_location("pong", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pong") / "pong.npz"
    returns = script().record(path, steps=1200, longest=300)
    assert len(returns) == 4
    assert max(returns[:2]) > returns[-1]  # the random player's
    return path


def test_the_script_is_the_same_twice_and_its_rows_follow_each_other(recording: Path) -> None:
    first, second = (list(script().episodes(60, noises=(0.3, 1.0))) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    rows = np.load(recording)
    going_on = ~(rows["terminals"] | rows["timeouts"])[:-1]
    assert rows["observations"].dtype == np.uint8
    assert (rows["next_observations"][:-1] == rows["observations"][1:]).all((1, 2, 3))[going_on].all()
    assert (rows["observations"][1:, :-1] == rows["observations"][:-1, 1:]).all((1, 2, 3))[going_on].all()


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_pong_end_to_end(name: str, recording: Path) -> None:
    words = [
        f"--model={name}",
        "--model.hidden_sizes=[64]",
        "--data.source=Npz",
        f"--data.source.path={recording}",
        "--data.source.environment=oper/Pong-v0",
        "--data.priority=OperR",
        "--data.batch_size=16",
        "--data.updates_per_epoch=15",
        f"--data.rollouts.episodes={EPISODES}",
        f"--data.rollouts.parallel={EPISODES}",
        f"--data.rollouts.steps={STEPS}",
        "--trainer.max_steps=30",
        "--output=run",
    ]
    assert oper("fit", *words) == 0
    checkpoint = torch.load("run/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 30
    assert checkpoint["metrics"]["eval/length"] == STEPS
    # The checkpoint alone, in a loop of somebody else's: raw pictures in, numbers of actions out.
    policy = ALGORITHMS[name].load_from_checkpoint("run/last.ckpt")
    (env,) = World("oper/Pong-v0", {"max_episode_steps": STEPS}).copies
    returns = []
    for seed in range(10_000, 10_000 + EPISODES):
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action = policy.act(torch.from_numpy(observation[None]))
            observation, reward, terminated, truncated, _ = env.step(int(action))
            total, over = total + reward, terminated or truncated
        returns.append(total)
    assert checkpoint["metrics"]["eval/return"] == pytest.approx(np.mean(returns))


def test_pong_is_gathered_learnt_and_judged() -> None:
    """With the settings of configs/, but smaller: pictures of 40 + 2 * 40 steps, each kept once."""
    configs = Path(__file__).resolve().parents[2] / "configs"
    words = [
        f"--config={configs / 'qrdqn.yaml'}",
        f"--config={configs / 'qrdqn' / 'pong.yaml'}",
        "--model.hidden_sizes=[64]",
        "--model.quantiles=8",
        "--data.parallel=2",
        "--data.warmup=60",
        "--data.batch_size=8",
        "--data.updates_per_step=0.25",
        "--data.updates_per_epoch=10",
        "--data.updates_per_block=5",
        f"--data.rollouts.episodes={EPISODES}",
        f"--data.rollouts.parallel={EPISODES}",
        f"--data.rollouts.steps={STEPS}",
        "--trainer.max_steps=20",
        "--output=run",
    ]
    assert oper("fit", *words) == 0
    checkpoint = torch.load("run/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 20
    assert checkpoint["metrics"]["eval/length"] == STEPS
    steps = 60 - 20 + 80
    frames = [log.read(path)[0]["frames"] for _, _, path in log.files(Path("run/replay"))]
    assert frames[0].shape[1:] == (1, 84, 84)
    assert steps < sum(map(len, frames)) <= steps + 4 * 2 * (len(frames) + 1 + steps // 64)
    source = OnlineLog("run")
    assert source.origin().environment == "oper/Pong-v0"
    rows = torch.cat(list(source.episodes()))
    assert len(rows) == steps
    going_on = ~rows["next", "done"].squeeze(1)[:-1]
    assert rows["observation"].shape[1:] == (4, 84, 84)
    assert (rows["next", "observation"][:-1] == rows["observation"][1:]).all((1, 2, 3))[going_on].all()
    assert (rows["observation"][1:, :-1] == rows["observation"][:-1, 1:]).all((1, 2, 3))[going_on].all()
