"""Runs that interact: RLPD from scratch, with and without prior data, and what interaction costs.

    python benchmarks/online.py --data ../shared/data
    python benchmarks/online.py --table

Every run is `oper fit` in this process, on one thread; an interrupted one goes on from its last checkpoint. Raw results
(words, evaluations by environment steps, CPU seconds) go to benchmarks/raw/online; runs that are there are not run
again. Prior data do not come with this repository; without them their runs are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from kept import keep

from oper_lightning.algorithms.rlpd import RLPD
from oper_lightning.cli import main as oper
from oper_lightning.data.online import OnlineDataModule
from oper_lightning.envs.players import Players
from oper_lightning.report.curves import final, read_curves

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "runs" / "online"
RAW = ROOT / "benchmarks" / "raw" / "online"
SEEDS = (0, 1, 2)


class Run(NamedTuple):
    """One call of `oper fit` with each seed; settings are the same for all seeds."""

    name: str
    words: tuple[str, ...]
    updates: int
    per_epoch: int
    """updates between evaluations"""
    warmup: int
    """environment steps before the first block's own, which are part of the warm-up"""
    ratio: int
    """updates per environment step"""


PENDULUM = (
    "--model=RLPD",
    "--model.policy_freq=4",
    "--model.hidden_sizes=[64,64]",
    "--model.learning_rate=1e-3",
    "--data=OnlineDataModule",
    "--data.environment=Pendulum-v1",
    "--data.warmup=1000",
    "--data.updates_per_step=4",
    "--data.updates_per_block=20",
    "--data.batch_size=64",
    "--data.rollouts.episodes=20",
    "--data.rollouts.parallel=20",
)
PLAIN = ("--model.critics=2", "--model.subset=null", "--model.layer_norm=false")
HOPPER = (
    "--model=RLPD",
    "--model.critics=5",
    "--model.policy_freq=2",
    "--data=OnlineDataModule",
    "--data.environment=Hopper-v5",
    "--data.warmup=1000",
    "--data.updates_per_step=2",
    "--data.updates_per_block=20",
    "--data.rollouts.episodes=10",
    "--data.rollouts.parallel=10",
)
PRIOR = ("--data.source=D4RL", "--data.source.path={data}/hopper-replay.hdf5", "--data.offline_share=0.5")
RUNS = [
    Run("pendulum", (*PENDULUM, "--model.critics=5"), 12_000, 2_000, 995, 4),
    Run("pendulum plain", (*PENDULUM, *PLAIN), 12_000, 2_000, 995, 4),
    Run("hopper prior", (*HOPPER, *PRIOR), 38_000, 2_000, 990, 2),
    Run("hopper scratch", HOPPER, 38_000, 2_000, 990, 2),
]


def file_of(name: str, seed: int) -> Path:
    """Where the raw result of a run lies."""
    return RAW / f"{name.replace(' ', '-')}-{seed}.json"


def execute(run: Run, seed: int, data: str) -> None:
    """Trains and evaluates, from the last checkpoint if there is one; leaves the result as JSON."""
    folder = WORK / f"{run.name.replace(' ', '-')}-{seed}"
    words = [
        "fit",
        *(word.format(data=data) for word in run.words),
        f"--trainer.max_steps={run.updates}",
        f"--data.updates_per_epoch={run.per_epoch}",
        f"--seed_everything={seed}",
        f"--output={folder.relative_to(ROOT)}",
    ]
    began = time.process_time()
    if oper([*words, "--ckpt_path=last", "--trainer.enable_progress_bar=false"]):
        sys.exit(f"{folder.name} failed: oper {' '.join(words)}")
    curves = read_curves(folder)
    curve = curves["eval/return"]
    record = {
        "command": "oper " + " ".join(words),
        "cpu seconds": round(time.process_time() - began, 1),
        "eval/return": {
            "updates": curve.updates,
            "steps": [run.warmup + round(updates / run.ratio) for updates in curve.updates],
            "values": [round(value, 1) for value in curve.values],
        },
        "last": {name: round(curve.values[-1], 3) for name, curve in curves.items() if name.startswith("train/")},
    }
    keep(file_of(run.name, seed), record)


# What interaction costs ------------------------------------------------------------------------------------------

CHEETAH = (
    "--config=configs/sac.yaml",
    "--data.environment=HalfCheetah-v5",
    "--data.warmup=1000",
    "--data.rollouts=null",
    "--data.updates_per_block=10",
)
UPDATES = 3_000


class Clock:
    """CPU seconds by part of a run, from the end of the first block's draw, with its warm-up, to the last update."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.began = self.last = 0.0

    def watch(self, owner: type, method: str) -> None:
        """Counts the time spent in a method, what it calls included."""
        plain = getattr(owner, method)

        def timed(*arguments: Any) -> Any:
            start = time.process_time()
            result = plain(*arguments)
            self.last = time.process_time()
            if method == "draw" and not self.began:
                self.spent, self.began = dict.fromkeys(self.spent, 0.0), self.last
            else:
                self.spent[method] = self.spent.get(method, 0.0) + self.last - start
            return result

        setattr(owner, method, timed)


def share(seed: int) -> None:
    """CPU seconds of SAC on HalfCheetah-v5, one update per step, by part."""
    clock, words = Clock(), [*CHEETAH, f"--trainer.max_steps={UPDATES}", f"--seed_everything={seed}"]
    parts = [(OnlineDataModule, "draw"), (OnlineDataModule, "_gather"), (RLPD, "explore"), (Players, "step")]
    for owner, method in (*parts, (RLPD, "training_step")):
        clock.watch(owner, method)
    folder = WORK / f"share-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    if oper(["fit", *words, f"--output={folder.relative_to(ROOT)}", "--trainer.enable_progress_bar=false"]):
        sys.exit(f"share failed: oper fit {' '.join(words)}")
    draw, gather, explore, step, update = (clock.spent[name] for _, name in (*parts, ("", "training_step")))
    seconds = {
        "all": clock.last - clock.began,
        "updates": update,
        "explore": explore,
        "environment": step,
        "storage and columns": gather - explore - step,
        "drawing": draw - gather,
    }
    each = {name: round(1000 * value / (UPDATES - 10), 3) for name, value in seconds.items()}
    record = {"command": "oper fit " + " ".join(words), "cpu milliseconds per update": each}
    keep(file_of("share", seed), record)


# The table -------------------------------------------------------------------------------------------------------


def records(name: str) -> list[dict[str, Any]]:
    """Raw results of a run, one per seed."""
    return [json.loads(file.read_text()) for seed in SEEDS if (file := file_of(name, seed)).is_file()]


def table() -> str:
    """Means of the last three evaluations; Hopper's by steps; the parts of an update's time."""
    lines = ["| run | mean | seeds | longest, CPU s |", "|---|---:|---|---:|"]
    for run in RUNS:
        if found := records(run.name):
            finals = [final(record["eval/return"]["values"]) for record in found]
            each = " ".join(f"{value:.0f}" for value in finals)
            longest = max(record["cpu seconds"] for record in found)
            lines.append(f"| {run.name} | {sum(finals) / len(finals):.0f} | {each} | {longest:.0f} |")
    for name in ("hopper prior", "hopper scratch"):
        for seed, record in enumerate(records(name)):
            curve = record["eval/return"]
            points = zip(curve["steps"], curve["values"], strict=True)
            lines.append(f"{name}, seed {seed}: " + ", ".join(f"{steps:,}: {value:.0f}" for steps, value in points))
    for record in records("share"):
        each = record["cpu milliseconds per update"]
        rest = each["all"] - each["updates"]
        lines.append(f"share {sum(list(each.values())[2:]) / each['all']:.1%} (all but updates {rest:.2f} ms): {each}")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, one seed after the other, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="folder of hopper-replay.hdf5")
    parser.add_argument("--only", default="", help="run only what has this in its name, such as pendulum-0")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    for seed in SEEDS if not arguments.table else ():
        for run in RUNS:
            if "{data}" in " ".join(run.words) and not Path(arguments.data, "hopper-replay.hdf5").is_file():
                print(f"{run.name}: left out, there is no {arguments.data}/hopper-replay.hdf5", flush=True)
            elif arguments.only in file_of(run.name, seed).stem and not file_of(run.name, seed).is_file():
                execute(run, seed, arguments.data)
        if arguments.only in f"share-{seed}" and not file_of("share", seed).is_file():
            share(seed)
    print(table())


if __name__ == "__main__":
    main()
