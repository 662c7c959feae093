"""The grid of scores: trains every run through the command line and keeps what each one logged.

    python benchmarks/scores.py --data ../shared/data --jobs 2

Runs that are finished are not run again; an interrupted one goes on from its last checkpoint. Checkpoints lie in
runs/scores, the raw results (commands, evaluations, seconds) in benchmarks/raw/scores; benchmarks/score_table.py makes
tables and pictures of what is there.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from kept import keep

from oper_lightning.report.curves import read_curves

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "runs" / "scores"
RAW = ROOT / "benchmarks" / "raw" / "scores"
COUPLED = "--data.prioritise=[evaluation,improvement,constraint]"
DECOUPLED = "--data.prioritise=[improvement,constraint]"
REPLAY = ["--data.source=D4RL", "--data.rollouts.episodes=20", "--data.rollouts.parallel=20"]
REACHER = ["--data.source=Reacher", "--data.updates_per_epoch=500"]
DATASETS = {
    "hopper-replay": [*REPLAY, "--data.source.path={data}/hopper-replay.hdf5"],
    "halfcheetah-replay": [*REPLAY, "--data.source.path={data}/halfcheetah-replay.hdf5"],
    "reacher": [*REACHER, "--data.rollouts.episodes=50", "--data.rollouts.parallel=50"],
}
PRIORITIES = ("uniform", "oper_r", "oper_a", "oper_a-coupled", "top10", "aw")


class Run(NamedTuple):
    """One call of `oper fit`."""

    name: str
    words: list[str]
    order: tuple[bool, int, bool, int] = (False, 0, False, 0)
    """Reacher first, then a seed after the other, the grid before what is beside it, cheaper algorithms first"""


class Contender(NamedTuple):
    """An algorithm in the grid."""

    updates: int
    """on the replay data"""
    reacher: int
    """updates on the embedded Reacher"""
    iteration: int
    """of OPER-A's weights, as published for the algorithm"""
    words: tuple[str, ...] = ()
    """what differs from the yaml, to fit the budget"""
    on_reacher: tuple[str, ...] = ()
    """what differs there only"""
    on_replay: tuple[str, ...] = ()
    """what differs on the replay data only"""
    beside: tuple[str, ...] = ()
    """what is run there beside the grid: priorities, or one with a setting of the algorithm, such as uniform-alpha5"""


SMALL_ONESTEP = ("--model.hidden_sizes=[256,256]", "--model.learning_rate=3e-4", "--data.batch_size=256")
# A critic looks about updates * tau / target_freq steps ahead, and the discount asks for several hundred: where so few
# updates are to be enough, targets follow faster than published (0.005).
ALGORITHMS = {
    "bc": Contender(30_000, 3_000, 4),
    # Published shares are 5, 20 and 1: here the last three evaluations are of the policy.
    "onestep": Contender(
        50_000,
        5_000,
        4,
        words=SMALL_ONESTEP,
        on_reacher=("--model.phases=[3,4,3]",),
        on_replay=("--model.phases=[1,6,3]", "--model.tau=0.02"),
        beside=("aw-temperature0.1",),
    ),
    # The paper scales rewards by the range of returns on locomotion only.
    "iql": Contender(
        50_000,
        3_000,
        4,
        on_reacher=("--data.reward_scale=1.0",),
        on_replay=("--model.tau=0.02",),
        beside=("oper_a-temperature1",),  # as published
    ),
    # Its own constraint swept on uniform data; the default is 2.5.
    "td3_bc": Contender(
        50_000, 3_000, 5, beside=("oper_r-decoupled", "uniform-alpha1", "uniform-alpha5", "uniform-alpha10")
    ),
    "cql": Contender(
        30_000,
        2_000,
        5,
        words=("--model.sampled_actions=4",),
        on_replay=("--model.tau=0.02", "--data.updates_per_epoch=2500"),
    ),
}
# What ended below BC with the same priority, and what to compare it with, once more with three times the updates.
LONGER = (
    ("hopper-replay", "td3_bc", "oper_r"),
    ("hopper-replay", "td3_bc", "uniform"),
    ("hopper-replay", "onestep", "oper_r"),
    ("hopper-replay", "onestep", "aw"),
    ("hopper-replay", "iql", "top10"),
    ("hopper-replay", "iql", "aw"),
    ("halfcheetah-replay", "onestep", "oper_a-coupled"),
    ("halfcheetah-replay", "onestep", "top10"),
    ("halfcheetah-replay", "onestep", "aw"),
    ("halfcheetah-replay", "iql", "oper_a"),
    ("halfcheetah-replay", "td3_bc", "oper_a-coupled"),
    ("hopper-replay", "cql", "oper_r"),
    ("hopper-replay", "cql", "oper_a"),
    ("halfcheetah-replay", "cql", "oper_a-coupled"),
    ("reacher", "td3_bc", "top10"),
    ("reacher", "td3_bc", "aw"),
    ("reacher", "onestep", "top10"),
    ("reacher", "iql", "oper_a"),
    ("reacher", "cql", "uniform"),
    ("reacher", "cql", "oper_a"),
)


SEEDS = 3  # of a cell; longer runs, and settings tried, have one
COMPILED = "--model.compile=default"
LOW = "--trainer.precision=bf16-mixed"


def way(dataset: str, algorithm: str, name: str, seed: int) -> list[str]:
    """Arguments for how updates run: without any they run as they are written, in float32.

    Compiled are seeds 1 and 2 of IQL, CQL and OnestepRL, and of BC and TD3+BC with the best tenth and AW; and CQL's
    longer runs. Of these all are in bfloat16 but OnestepRL's, and those without a priority or with OPER-R, by which
    precision.py compares bfloat16 with float32.
    """
    if name.endswith("-longer"):
        return [LOW, COMPILED] if algorithm == "cql" and dataset != "reacher" else []
    if dataset == "reacher" or not seed or (algorithm in ("bc", "td3_bc") and name not in ("top10", "aw")):
        return []
    return [COMPILED] if algorithm == "onestep" or name in ("uniform", "oper_r") else [LOW, COMPILED]


def stage_one(dataset: str) -> Run:
    """OPER-A's weights: 5 iterations of 30,000 updates, 3 seeds at once; on Reacher 3 of 1,000, 2 seeds."""
    if dataset == "reacher":
        return Run("reacher-oper_a", ["--config=configs/oper_a.yaml", "--config=configs/oper_a/reacher.yaml"])
    words = ["--config=configs/oper_a.yaml", f"--data.source.path={{data}}/{dataset}.hdf5"]
    return Run(f"{dataset}-oper_a", [*words, "--trainer.max_steps=150000", "--data.updates_per_epoch=10000"])


def weights(dataset: str) -> str:
    """Where stage 1 leaves them."""
    return f"runs/scores/{stage_one(dataset).name}/weights.safetensors"


def priority(name: str, dataset: str, iteration: int) -> list[str]:
    """Arguments of a priority by its name in the table."""
    file = [
        "--data.priority=WeightsFile",
        f"--data.priority.path={weights(dataset)}",
        f"--data.priority.iteration={3 if dataset == 'reacher' else iteration}",
    ]
    return {
        "uniform": [],
        "oper_r": ["--data.priority=OperR", COUPLED],
        "oper_r-decoupled": ["--data.priority=OperR", DECOUPLED],
        "oper_a": [*file, DECOUPLED],
        "oper_a-coupled": [*file, COUPLED],
        "top10": ["--data.priority=TopFraction", "--data.priority.fraction=0.1"],
        "aw": ["--data.priority=AdvantageWeighting"],
    }[name]


def setting_of(name: str) -> tuple[str, str, str]:
    """The priority, the setting and its value in a name such as uniform-alpha5; without a setting both are empty."""
    found = re.fullmatch(r"(\w+)-([a-z]+)([\d.]+)", name)
    return (found[1], found[2], found[3]) if found else (name, "", "")


def fitted(dataset: str, algorithm: str, updates: int, seed: int) -> list[str]:
    """Arguments of an algorithm on a dataset, without a priority."""
    contender = ALGORITHMS[algorithm]
    differs = contender.on_reacher if dataset == "reacher" else contender.on_replay
    words = [f"--config=configs/{algorithm}.yaml", *DATASETS[dataset], *contender.words, *differs]
    return [*words, f"--trainer.max_steps={updates}", f"--seed_everything={seed}"]


def policies(dataset: str) -> list[Run]:
    """Every algorithm under every priority, and what is beside that; a setting is tried with one seed."""
    runs = []
    for order, (algorithm, contender) in enumerate(ALGORITHMS.items()):
        # A clone has one loss: coupled or not is the same.
        names = [name for name in PRIORITIES if (algorithm, name) != ("bc", "oper_a-coupled")]
        variants = []
        for name in (*names, *(contender.beside if dataset != "reacher" else ())):
            base, setting, value = setting_of(name)
            words = priority(base, dataset, contender.iteration) + ([f"--model.{setting}={value}"] if setting else [])
            variants.append((name, words, 1 if setting else SEEDS))
        updates = contender.reacher if dataset == "reacher" else contender.updates
        for name, words, seeds in variants:
            lengths = [(name, seed, updates) for seed in range(seeds)]
            if (dataset, algorithm, name) in LONGER:
                lengths.append((f"{name}-longer", 0, 3 * updates))
            for called, seed, length in lengths:
                given = [*fitted(dataset, algorithm, length, seed), *words, *way(dataset, algorithm, called, seed)]
                place = (dataset != "reacher", seed, called not in PRIORITIES, order)
                runs.append(Run(f"{dataset}-{algorithm}-{called}-{seed}", given, place))
    return runs


def kept_curves(folder: Path, *beginnings: str) -> dict[str, dict[str, list[float]]]:
    """What a run logged under names that begin so, to six digits."""
    return {
        name: {"updates": curve.updates, "values": [float(f"{value:.6g}") for value in curve.values]}
        for name, curve in read_curves(folder).items()
        if name.startswith(beginnings)
    }


def execute(run: Run, data: str, kept_in: Path = RAW) -> None:
    """Runs it and leaves the result as JSON in a folder."""
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
    record = {
        "command": "oper " + " ".join(words),
        "seconds": round(time.monotonic() - began),
        "curves": kept_curves(WORK / run.name, "eval/", "weights/", "train/"),
    }
    keep(kept_in / f"{run.name}.json", record)
    print(f"{run.name}: done in {record['seconds']} s", flush=True)


def grid(about: str, runs: list[Run], kept_in: Path, table: Callable[[], str]) -> None:
    """The command line of another grid: runs what is missing in a folder, then prints its table."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="folder of the data")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--only", default="", help="run only runs whose name contains this")
    parser.add_argument("--table", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    if not arguments.table:
        WORK.mkdir(parents=True, exist_ok=True)
        missing = [run for run in runs if arguments.only in run.name and not (kept_in / f"{run.name}.json").is_file()]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda run: execute(run, arguments.data, kept_in), missing))
    print(table())


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="folder of the .hdf5 files")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--only", default="", help="run only runs whose name contains this")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    missing = [
        run
        for dataset in DATASETS
        for run in (stage_one(dataset), *policies(dataset))
        if arguments.only in run.name and not (RAW / f"{run.name}.json").is_file()
    ]
    read = {word for run in missing for word in run.words}
    first = []
    for dataset, run in zip(DATASETS, map(stage_one, DATASETS), strict=True):
        # A fresh clone has the results of stage 1, but not the weights.
        absent = not (ROOT / weights(dataset)).is_file() and f"--data.priority.path={weights(dataset)}" in read
        if run in missing or absent:
            first.append(run)
    second = sorted((run for run in missing if run not in first), key=lambda run: run.order)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for runs in (first, second):
            list(pool.map(lambda run: execute(run, arguments.data), runs))


if __name__ == "__main__":
    main()
