"""The grid of scores: trains every run through the command line, keeps what each one logged, prints the table.

    python benchmarks/scores.py --data ../shared/data --jobs 2

Runs that are finished are not run again; an interrupted one goes on from its last checkpoint. Checkpoints lie in
runs/scores, the raw results (commands, evaluations, seconds) in benchmarks/raw/scores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

import oper_lightning
from oper_lightning.report.curves import final, read_curves

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "runs" / "scores"
RAW = ROOT / "benchmarks" / "raw" / "scores"
DATASETS = ("hopper-replay", "halfcheetah-replay")
SEEDS = (0, 1, 2)
COUPLED = "--data.prioritise=[evaluation,improvement,constraint]"
DECOUPLED = "--data.prioritise=[improvement,constraint]"


class Run(NamedTuple):
    """One call of `oper fit`."""

    name: str
    words: list[str]


def stage_one(dataset: str) -> Run:
    """OPER-A's weights: 5 iterations of 30,000 updates, 3 seeds at once."""
    words = ["--config=configs/oper_a.yaml", f"--data.source.path={{data}}/{dataset}.hdf5"]
    return Run(f"{dataset}-oper_a", [*words, "--trainer.max_steps=150000", "--data.updates_per_epoch=10000"])


def priority(name: str, dataset: str, iteration: int) -> list[str]:
    """Arguments of a priority by its name in the table."""
    weights = f"runs/scores/{dataset}-oper_a/weights.safetensors"
    file = [
        "--data.priority=WeightsFile",
        f"--data.priority.path={weights}",
        f"--data.priority.iteration={iteration}",
    ]
    return {
        "uniform": [],
        "oper_r": ["--data.priority=OperR", COUPLED],
        "oper_r-decoupled": ["--data.priority=OperR", DECOUPLED],
        "oper_a": [*file, DECOUPLED],
        "oper_a-coupled": [*file, COUPLED],
    }[name]


def policies(dataset: str) -> list[Run]:
    """BC at 30,000 updates and TD3+BC at 50,000, each under its priorities, over the seeds."""
    runs = []
    grids = (
        ("bc", 30_000, 4, ("uniform", "oper_r", "oper_a")),
        ("td3_bc", 50_000, 5, ("uniform", "oper_r", "oper_r-decoupled", "oper_a-coupled", "oper_a")),
    )
    for algorithm, updates, iteration, names in grids:
        for name in names:
            for seed in SEEDS:
                words = [
                    f"--config=configs/{algorithm}.yaml",
                    f"--data.source.path={{data}}/{dataset}.hdf5",
                    f"--trainer.max_steps={updates}",
                    "--data.evaluation.episodes=20",
                    "--data.evaluation.parallel=20",
                    f"--seed_everything={seed}",
                    *priority(name, dataset, iteration),
                ]
                runs.append(Run(f"{dataset}-{algorithm}-{name}-{seed}", words))
    return runs


def execute(run: Run, data: str) -> None:
    """Runs it unless its result is there; leaves the result as JSON."""
    result = RAW / f"{run.name}.json"
    if result.is_file():
        return
    words = ["fit", *run.words, f"--output=runs/scores/{run.name}", "--ckpt_path=last"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    command = [sys.executable, "-m", "oper_lightning", *(word.format(data=data) for word in words)]
    log = WORK / f"{run.name}.log"
    with open(log, "a") as output:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=False).returncode
    if code:
        print(f"{run.name}: failed, see {log.relative_to(ROOT)}", flush=True)
        return
    curves = read_curves(WORK / run.name)
    kept = {name: curve._asdict() for name, curve in curves.items() if name.startswith(("eval/", "weights/"))}
    record = {
        "command": "oper " + " ".join(words),
        "seconds": round(time.monotonic() - began),
        "machine": f"{platform.machine()}, one thread, {torch.get_num_threads()} cores shared",
        "versions": {"oper-lightning": oper_lightning.__version__, "torch": torch.__version__},
        "curves": kept,
    }
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(record, indent=1))
    print(f"{run.name}: done in {record['seconds']} s", flush=True)


def score_of(name: str) -> float | None:
    """Mean of a run's last three normalised scores."""
    file = RAW / f"{name}.json"
    if not file.is_file():
        return None
    return final(json.loads(file.read_text())["curves"]["eval/score"]["values"])


def table() -> str:
    """The results as Markdown: mean over seeds, and each seed."""
    lines = ["| dataset | algorithm | priority | score | seeds |", "|---|---|---|---|---|"]
    for dataset in DATASETS:
        groups: dict[str, list[float]] = {}
        for run in policies(dataset):
            if (score := score_of(run.name)) is not None:
                groups.setdefault(run.name.removeprefix(f"{dataset}-").rsplit("-", 1)[0], []).append(score)
        for group, scores in groups.items():
            algorithm, name = group.split("-", 1)
            spread = " ".join(f"{score:.1f}" for score in scores)
            lines.append(f"| {dataset} | {algorithm} | {name} | {statistics.mean(scores):.1f} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="folder of the .hdf5 files")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    parser.add_argument("--only", default="", help="run only runs whose name contains this")
    arguments = parser.parse_args()
    if not arguments.table:
        WORK.mkdir(parents=True, exist_ok=True)
        first = [stage_one(dataset) for dataset in DATASETS]
        second = [run for dataset in DATASETS for run in policies(dataset)]
        # Short runs come first.
        queue = [*first, *sorted(second, key=lambda run: ("td3_bc" in run.name, "hopper" in run.name))]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            chosen = [run for run in queue if arguments.only in run.name]
            list(pool.map(lambda run: execute(run, arguments.data), chosen))
    print(table())


if __name__ == "__main__":
    main()
