"""CartPole-v1 by QR-DQN on what it gathers itself: how long until a checkpoint holds the pole for all 500 steps.

    python benchmarks/cartpole_online.py
    python benchmarks/cartpole_online.py --table

Every run is `oper fit` with configs/qrdqn/cartpole.yaml in this process, on one thread; best.ckpt, which evaluation
chose over 50 episodes, then plays 100 others. Raw results go to benchmarks/raw/cartpole_online; runs that are there are
not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

import torch
from kept import keep

from oper_lightning import QRDQN, Rollouts
from oper_lightning.cli import main as oper
from oper_lightning.envs.rollouts import World
from oper_lightning.report.curves import read_curves

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "benchmarks" / "raw" / "cartpole_online"
SEEDS = (0, 1, 2)
EPISODES = 100


def execute(seed: int) -> None:
    """Trains and judges; leaves the result as JSON. A run that was interrupted begins anew."""
    folder = ROOT / "runs" / "cartpole_online" / str(seed)
    shutil.rmtree(folder, ignore_errors=True)
    words = [
        "fit",
        "--config=configs/qrdqn.yaml",
        "--config=configs/qrdqn/cartpole.yaml",
        f"--seed_everything={seed}",
        f"--output={folder.relative_to(ROOT)}",
    ]
    began, began_wall = time.process_time(), time.monotonic()
    if oper([*words, "--trainer.enable_progress_bar=false"]):
        sys.exit(f"seed {seed} failed: oper {' '.join(words)}")
    cpu, wall = time.process_time() - began, time.monotonic() - began_wall
    curve = read_curves(folder)["eval/return"]
    world = World("CartPole-v1", {}, parallel=10)
    policy = QRDQN.load_from_checkpoint(folder / "best.ckpt", weights_only=True)
    returns, _ = world.rollouts(policy.act, Rollouts(episodes=EPISODES).seeds(test=True))
    world.close()
    record = {
        "command": "oper " + " ".join(words),
        "cpu seconds": round(cpu, 1),
        "wall seconds": round(wall, 1),
        "load": round(os.getloadavg()[0], 1),
        "eval/return": {"updates": curve.updates, "values": [round(value, 1) for value in curve.values]},
        "best": {"mean": round(float(returns.mean()), 1), "lowest": float(returns.min())},
    }
    keep(RAW / f"{seed}.json", record)


def table() -> str:
    """By seed: evaluations, when the first one was perfect, what the best checkpoint returned, and the time."""
    lines = [
        "| seed | first evaluation of 500 | last evaluation | best.ckpt over 100 other episodes, lowest | CPU s | s |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for seed in SEEDS:
        if (file := RAW / f"{seed}.json").is_file():
            record = json.loads(file.read_text())
            updates, values = record["eval/return"]["updates"], record["eval/return"]["values"]
            perfect = [update for update, value in zip(updates, values, strict=True) if value == 500]
            first = f"update {perfect[0]:,}, step {2 * perfect[0] + 744:,}" if perfect else "–"
            best = f"{record['best']['mean']:.1f}, {record['best']['lowest']:.0f}"
            seconds = f"{record['cpu seconds']:.0f} | {record['wall seconds']:.0f} (load {record['load']:.0f})"
            lines.append(f"| {seed} | {first} | {values[-1]:.0f} | {best} | {seconds} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    for seed in SEEDS:
        if not arguments.table and not (RAW / f"{seed}.json").is_file():
            execute(seed)
    print(table())


if __name__ == "__main__":
    main()
