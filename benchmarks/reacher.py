"""Reaching at several qualities: what priorities see in them, and where prioritising does not help.

    python benchmarks/reacher.py --data ../shared/data

1. Five recorded levels (reacher-five-levels.hdf5): mean weight by level, and Spearman's rank correlation of OPER-A's
   weights with the level, over the transitions.
2. The negative control: scripted levels that differ in gain only. A clone of their mixture is a controller of a
   middling gain, which reaches as well: OPER-R has next to nothing to gain.

Raw results go to benchmarks/raw/reacher.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from oper_lightning import D4RL, OfflineDataModule, OperR
from oper_lightning.envs.reacher import Level, record
from oper_lightning.priorities.file import load_weights
from oper_lightning.report.curves import final, read_curves

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "runs" / "reacher"
RAW = ROOT / "benchmarks" / "raw" / "reacher"
GAINS = {"gains 60 to 20": (60.0, 50.0, 40.0, 30.0, 20.0), "gains 60 to 4": (60.0, 30.0, 15.0, 8.0, 4.0)}
SHARES = (0.10, 0.15, 0.20, 0.25, 0.30)
SEEDS = (0, 1, 2)


def oper(*words: str) -> None:
    """One command, shown first."""
    print("$ oper", *words, flush=True)
    subprocess.run([sys.executable, "-m", "oper_lightning", *words], cwd=ROOT, check=True)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def levels(data: str) -> dict[str, list[float]]:
    """Weights of the five recorded levels, which lie one after another, best first."""
    file = f"{data}/reacher-five-levels.hdf5"
    folder = WORK / "five-levels"
    if not (folder / "weights.safetensors").is_file():
        oper(
            "fit", "--config=configs/oper_a.yaml", "--config=configs/oper_a/reacher.yaml", "--data.source=D4RL",
            f"--data.source.path={file}", "--model.seeds=3", f"--output={folder.relative_to(ROOT)}",
        )  # fmt: skip
    module = OfflineDataModule(D4RL(str(ROOT / file)), priority=OperR())
    module.setup()
    assert module.weights is not None
    results = {"OPER-R": module.weights.reshape(5, -1).mean(1).tolist()}
    weights = load_weights(folder / "weights.safetensors")[0]["weights"]
    quality = -ranks(np.repeat(np.arange(5), 1000))
    for iteration, row in enumerate(weights.mean(1), 1):
        results[f"OPER-A, iteration {iteration}"] = row.reshape(5, -1).mean(1).tolist()
        correlation = np.corrcoef(ranks(row.numpy()), quality)[0, 1]
        results[f"OPER-A, iteration {iteration}, rank correlation"] = [float(correlation)]
    return results


def control(name: str) -> dict[str, list[float]]:
    """Mean return of the last three evaluations over the seeds, uniform and by OPER-R, on levels of gain."""
    file = WORK / f"{name.replace(' ', '-')}.npz"
    if not file.is_file():
        mixture = [Level(share, turn=0, noise=0, gain=gain) for share, gain in zip(SHARES, GAINS[name], strict=True)]
        episodes = list(record(1000, mixture))
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            file,
            observations=np.concatenate([episode["observations"][:-1] for episode in episodes]),
            next_observations=np.concatenate([episode["observations"][1:] for episode in episodes]),
            actions=np.concatenate([episode["actions"] for episode in episodes]),
            rewards=np.concatenate([episode["rewards"] for episode in episodes]),
            terminals=np.concatenate([episode["terminations"] for episode in episodes]),
            timeouts=np.concatenate([episode["truncations"] for episode in episodes]),
        )
    results: dict[str, list[float]] = {}
    for priority, words in (("uniform", []), ("OPER-R", ["--data.priority=OperR"])):
        for seed in SEEDS:
            folder = WORK / f"{file.stem}-{priority}-{seed}"
            oper(
                "fit", "--config=configs/bc.yaml", "--config=configs/bc/reacher.yaml", "--data.source=Npz",
                f"--data.source.path={file.relative_to(ROOT)}", "--data.source.environment=Reacher-v5",
                f"--seed_everything={seed}", *words, f"--output={folder.relative_to(ROOT)}", "--ckpt_path=last",
            )  # fmt: skip
            results.setdefault(priority, []).append(final(read_curves(folder)["eval/return"].values))
    return results


def main() -> None:
    """Runs both, keeps and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="folder of reacher-five-levels.hdf5")
    torch.set_num_threads(1)
    results = {"five levels": levels(parser.parse_args().data), **{name: control(name) for name in GAINS}}
    RAW.mkdir(parents=True, exist_ok=True)
    (RAW / "reacher.json").write_text(json.dumps(results, indent=1))
    for part, rows in results.items():
        print(f"\n{part}")
        for name, values in rows.items():
            print(f"  {name:40s}", " ".join(f"{value:.3f}" for value in values))


if __name__ == "__main__":
    main()
