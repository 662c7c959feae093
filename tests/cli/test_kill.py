"""`oper fit`, killed with SIGKILL again and again, ends with the parameters of the run that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from helpers import oper
from safetensors.torch import load_file

from oper_lightning.data import log

# Processes that start with everything imported, so that a second is a second of training.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["oper_lightning.cli.verbs", "helpers"])

STAGES = {
    "stage 1": ["--model=OperA", "--model.iterations=3", "--data.rollouts=null"],
    "stage 2": ["--model=TD3BC", "--data.priority=OperR", "--data.rollouts={episodes: 2, parallel: 2}"],
    "discrete": ["--model=CRR", "--model.target_update=7", "--data.priority=OperR", "--data.rollouts=null"],
    "online": [
        "--data=OnlineDataModule", "--data.parallel=2", "--data.warmup=100", "--data.visible=episode",
        "--model=TD3BC", "--model.n_step=3", "--data.priority=OperR", "--data.rollouts=null",
        "--data.bonus={class_path: RND, init_args: {hidden_sizes: [16], features: 8}}",
    ],
}  # fmt: skip


def words(stage: str, file: Path, folder: Path) -> list[str]:
    return [
        "fit", *STAGES[stage], "--data.source=D4RL", f"--data.source.path={file}", "--model.hidden_sizes=[32,32]",
        "--data.updates_per_epoch=20", "--trainer.max_steps=600", f"--output={folder}", "--ckpt_path=last",
    ]  # fmt: skip


def run(arguments: list[str], temporary: str | None) -> None:
    """One `oper fit` in a process of its own; what it writes to the terminal goes to a file."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if temporary is not None:
        os.environ["TMPDIR"] = temporary
        tempfile.tempdir = None
    with open("terminal.txt", "a") as terminal:
        os.dup2(terminal.fileno(), 1)
        os.dup2(terminal.fileno(), 2)
    os._exit(oper(*arguments))


def start(arguments: list[str], temporary: str | None = None) -> BaseProcess:
    process = FORKS.Process(target=run, args=(arguments, temporary))
    process.start()
    return process


def readable(folder: Path) -> int:
    """Updates in last.ckpt; every file that is there by its name is whole."""
    steps = 0
    for path in folder.glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        steps = max(steps, checkpoint["global_step"])
    for path in folder.glob("*.safetensors"):
        load_file(path)
    return steps


def gathered(folder: Path) -> dict[str, torch.Tensor]:
    """All columns of an online run's log."""
    parts = [log.read(path)[0] for _, _, path in log.files(folder / "replay")]
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


def another_file_system(folder: Path) -> str | None:
    """A temporary directory on another file system than the folder."""
    shared = Path("/dev/shm")
    if shared.is_dir() and os.access(shared, os.W_OK) and shared.stat().st_dev != folder.stat().st_dev:
        return tempfile.mkdtemp(dir=shared)
    return None


def wait_for(process: BaseProcess, happens: Callable[[], bool]) -> None:
    """Waits until something happens or the process ends."""
    while process.is_alive() and not happens():
        time.sleep(1e-4)


def wait_for_checkpoints(process: BaseProcess, folder: Path, count: int) -> None:
    """Waits until that many more checkpoints have been written."""

    def version() -> int:
        return path.stat().st_mtime_ns if path.exists() else 0

    path = folder / "last.ckpt"
    versions = [version()]

    def written() -> bool:
        if versions[-1] != (now := version()):
            versions.append(now)
        return len(versions) > count

    wait_for(process, written)


def finished(process: BaseProcess) -> bool:
    """Waits for the end of a process; whether it was a good one."""
    process.join(120)
    assert process.exitcode == 0, Path("terminal.txt").read_text()
    return True


@pytest.mark.parametrize("stage", STAGES)
def test_kills_lose_nothing_but_time(stage: str, small_file: Path, small_discrete_file: Path, tmp_path: Path) -> None:
    file = small_discrete_file if stage == "discrete" else small_file
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert finished(start(words(stage, file, alone)))
    temporary = another_file_system(tmp_path)
    chance = random.Random()
    reached = [0]
    for attempt in range(6):
        process = start(words(stage, file, killed), temporary)
        # A random number of checkpoints later, at once or a little after; or, every second time, amid the next one.
        wait_for_checkpoints(process, killed, chance.randint(0, 7))
        if attempt % 2:
            wait_for(process, lambda: (killed / "last.ckpt.part").exists())
        else:
            time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        steps = readable(killed)
        assert steps >= reached[-1], f"went back to update {steps} after {reached}"
        reached.append(steps)
    assert reached[-1] > 0
    assert finished(start(words(stage, file, killed), temporary))
    if temporary is not None:
        assert not any(Path(temporary).iterdir())
        Path(temporary).rmdir()

    first, second = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (alone, killed))
    assert first["global_step"] == second["global_step"] == 600
    for name, value in first["state_dict"].items():
        assert value.equal(second["state_dict"][name]), f"{name} differs after kills at {reached}"
    if stage == "stage 1":
        weights = [load_file(folder / "weights.safetensors") for folder in (alone, killed)]
        assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
    elif stage == "stage 2":
        best = [torch.load(folder / "best.ckpt", weights_only=True)["global_step"] for folder in (alone, killed)]
        assert best[0] == best[1]
    elif stage == "online":
        logs = [gathered(folder) for folder in (alone, killed)]
        assert all(value.equal(logs[1][name]) for name, value in logs[0].items())
        assert logs[0]["reward"].shape == (2, 40 + 600 // 2)
        bonuses = [checkpoint["OnlineDataModule"]["bonus"] for checkpoint in (first, second)]
        assert all(value.equal(bonuses[1][name]) for name, value in bonuses[0].items())
    assert not list(killed.glob("*.part*"))
    print(f"{stage}: killed after updates {reached[1:]}")
