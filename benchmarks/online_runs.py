"""What an online run withstands, and what it holds in memory and on disk.

    python benchmarks/online_runs.py kills [--count 100] [--data ../shared/data/halfcheetah-replay.hdf5]
    python benchmarks/online_runs.py soak [--steps 1000000]

`kills` sends SIGKILL to an online run at random moments, starts it again from last.ckpt each time, and compares what
it ends with against the run that was left alone: parameters, bonus, and all that was gathered, bit for bit. Two copies
of HalfCheetah-v5 (episodes of 1,000 steps), recorded rows beside the gathered ones, a bonus by random network
distillation.

`soak` gathers a million steps with a tiny network, and watches the memory that the process holds for itself (RssAnon)
and the size of the checkpoint. Both write into benchmarks/raw/online_runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from oper_lightning.cli import main as oper
from oper_lightning.data import log

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "benchmarks" / "raw" / "online_runs"
UPDATES = 6_000
# Processes that start with everything imported, so that kills come in training.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["oper_lightning.cli.verbs"])


def words(data: Path, output: Path) -> list[str]:
    """The run that is killed."""
    return [
        "fit", "--model=RLPD", "--model.critics=3", "--model.hidden_sizes=[32,32]", "--model.policy_freq=2",
        "--data=OnlineDataModule", "--data.source=D4RL", f"--data.source.path={data}",
        "--data.environment=HalfCheetah-v5", "--data.offline_share=0.5", "--data.parallel=2", "--data.warmup=500",
        "--data.bonus=RND", "--data.bonus.hidden_sizes=[32]", "--data.bonus.features=32",
        "--data.batch_size=64", "--data.updates_per_epoch=100",
        "--data.rollouts=null", f"--trainer.max_steps={UPDATES}", f"--output={output}", "--ckpt_path=last",
    ]  # fmt: skip


def run(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    with open("terminal.txt", "a") as terminal:
        os.dup2(terminal.fileno(), 1)
        os.dup2(terminal.fileno(), 2)
    os._exit(oper(arguments))


def start(arguments: list[str]) -> BaseProcess:
    process = FORKS.Process(target=run, args=(arguments,))
    process.start()
    return process


def updates(folder: Path) -> int:
    path = folder / "last.ckpt"
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else 0


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Entries of nested dicts and lists by their place."""
    if isinstance(tree, dict | list):
        entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: value for at, entry in entries for key, value in flat(entry, f"{name}.{at}").items()}
    return {name: tree}


def differing(first: Path, second: Path) -> list[str]:
    """Names of what differs between two finished runs."""
    checkpoints = [torch.load(folder / "last.ckpt", weights_only=True) for folder in (first, second)]
    parts = ("state_dict", "optimizer_states", "OnlineDataModule", "global_step")
    trees = [flat({part: checkpoint[part] for part in parts}) for checkpoint in checkpoints]
    for tree, folder in zip(trees, (first, second), strict=True):
        files = [log.read(path)[0] for _, _, path in log.files(folder / log.FOLDER)]
        tree |= {f"replay.{key}": torch.cat([part[key] for part in files], 1) for key in files[0]}
    assert trees[0].keys() == trees[1].keys()

    def same(one: Any, other: Any) -> bool:
        return bool(torch.equal(one, other)) if isinstance(one, torch.Tensor) else bool(one == other)

    return [key for key, value in trees[0].items() if not same(value, trees[1][key])]


def kills(count: int, data: Path) -> dict[str, Any]:
    data, chance = data.resolve(), random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        begun = time.time()
        process = start(words(data, Path("alone")))
        process.join()
        assert process.exitcode == 0, Path("terminal.txt").read_text()
        whole = time.time() - begun
        reached: list[int] = []
        while len(reached) < count:
            process = start(words(data, Path("killed")))
            # On average a run comes so far that the whole takes as many kills as it is to get.
            process.join(3 + chance.uniform(0, 2.5 * whole / count))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            reached.append(updates(Path("killed")))
            print(f"kill {len(reached)}: update {reached[-1]:,} of {UPDATES:,}", flush=True)
        while process.exitcode != 0:
            process = start(words(data, Path("killed")))
            process.join()
        result = differing(Path("alone"), Path("killed"))
        os.chdir(ROOT)
    return {"kills": len(reached), "updates at the kills": reached, "updates": UPDATES, "differing": result}


def own_memory() -> float:
    """Megabytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1024


def soak(steps: int) -> dict[str, Any]:
    from lightning.pytorch import Callback, Trainer, seed_everything

    from oper_lightning.algorithms.td3_bc import TD3BC
    from oper_lightning.cli.checkpoints import AtomicCheckpointIO, checkpoint_callbacks
    from oper_lightning.data.online import OnlineDataModule

    class Watch(Callback):
        def __init__(self) -> None:
            self.kept: dict[int, float] = {}

        def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
            self.kept[trainer.datamodule.gathered.steps * 10] = round(own_memory(), 1)  # type: ignore[attr-defined]

    torch.set_num_threads(1)
    seed_everything(0)
    folder = ROOT / "runs" / "soak"
    shutil.rmtree(folder, ignore_errors=True)
    model = TD3BC(hidden_sizes=(8,), normalise_observations=False)
    data = OnlineDataModule(
        "Pendulum-v1", parallel=10, updates_per_step=0.1, batch_size=32, updates_per_epoch=steps // 200, rollouts=None
    )
    watch, seconds = Watch(), time.process_time()
    trainer = Trainer(
        accelerator="cpu", max_steps=steps // 10, default_root_dir=folder, logger=False, num_sanity_val_steps=0,
        callbacks=[watch, *checkpoint_callbacks(folder)], plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(model, data)
    taken = 10 * torch.load(folder / "last.ckpt", weights_only=True)["OnlineDataModule"]["steps"]
    size = (folder / "last.ckpt").stat().st_size
    replay = sum(path.stat().st_size for path in (folder / log.FOLDER).iterdir())
    return {
        "steps": taken,
        "own memory (MB) by steps": watch.kept,
        "checkpoint (bytes)": size,
        "replay (MB)": round(replay / 1e6, 1),
        "CPU seconds": round(time.process_time() - seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "soak"])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "halfcheetah-replay.hdf5")
    arguments = parser.parse_args()
    result = kills(arguments.count, arguments.data) if arguments.what == "kills" else soak(arguments.steps)
    RAW.mkdir(parents=True, exist_ok=True)
    (RAW / f"{arguments.what}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
