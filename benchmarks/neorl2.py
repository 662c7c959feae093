"""Two tasks of NeoRL-2 (arXiv 2503.19267), beside the scores that were published for them.

    python benchmarks/neorl2.py --data ../shared/data --jobs 2
    python benchmarks/neorl2.py --table

BC, TD3+BC, IQL and CQL without a priority, with OPER-R and with OPER-A, three seeds each; a run's score is that of its
last policy in the 100 episodes of `oper test`. Runs that are finished are not run again, stopped ones go on from
their last checkpoint. Checkpoints lie in runs/neorl2-grid, raw results in benchmarks/raw/neorl2.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from speed import machine

import oper_lightning
from oper_lightning.files import whole
from oper_lightning.report.curves import read_curves

ROOT = Path(__file__).resolve().parent.parent
PLACE = "runs/neorl2-grid"
RAW = ROOT / "benchmarks" / "raw" / "neorl2"
SEEDS = (7, 42, 210)  # as published
STUDENT = 4.30  # quantile for 95 % of three
EPISODES = 100  # of the test, as published
PRIORITIES = {"uniform": "none", "oper_r": "OPER-R", "oper_a": "OPER-A"}
# Score and spread over three seeds, of the best of the settings that were searched, after a million updates.
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "DMSD": {"bc": (65.09, 1.64), "td3_bc": (60.01, 0.79), "cql": (70.24, 1.12)},
    "SafetyHalfCheetah": {"bc": (70.16, 0.38), "td3_bc": (68.58, 0.39), "cql": (71.18, 0.61)},
}
RECORDED = {"DMSD": 56.64, "SafetyHalfCheetah": 73.56}


class Contender(NamedTuple):
    """An algorithm in the grid."""

    called: str
    updates: int
    iteration: int
    """of OPER-A's weights, as published for the algorithm"""
    words: tuple[str, ...] = ()
    """what differs from the yamls, as there are few updates"""


# A critic looks about updates * tau / policy_freq steps ahead: targets follow faster than published (0.005).
FASTER = "--model.tau=0.02"
ALGORITHMS = {
    "bc": Contender("BC", 20_000, 4),
    "td3_bc": Contender("TD3+BC", 10_000, 5, (FASTER,)),
    "iql": Contender("IQL", 8_000, 4, (FASTER,)),
    # In bf16-mixed an update takes 0.4 of the time, where the processor has its instructions.
    "cql": Contender(
        "CQL",
        4_000,
        5,
        (FASTER, "--model.sampled_actions=4", "--model.bc_updates=1000", "--trainer.precision=bf16-mixed"),
    ),
}
EVALUATIONS = 4  # during a run, of ten episodes
STAGE_1 = ("--config=configs/oper_a.yaml", "--trainer.max_steps=20000", "--data.updates_per_epoch=2000")


class Run(NamedTuple):
    """One call of `oper fit`, and of `oper test` where it leaves a policy."""

    name: str
    words: list[str]
    policy: bool = True

    @property
    def folder(self) -> str:
        return f"{PLACE}/{self.name}"

    @property
    def file(self) -> Path:
        """Its raw result."""
        return RAW / f"{self.name}.json"


def source(task: str) -> list[str]:
    return ["--data.source=Npz", f"--data.source.path={{data}}/neorl2-{task}-train.npz"]


def stage_one(task: str) -> Run:
    """OPER-A's weights: 5 iterations of 4,000 updates, 3 seeds at once."""
    return Run(f"{task}-weights", [*STAGE_1, *source(task), "--seed_everything=0"], policy=False)


def policies(times: int) -> list[Run]:
    """Both tasks with every algorithm and priority: a seed after the other, without a priority first."""
    runs = []
    for seed in SEEDS:
        for priority in PRIORITIES:
            for algorithm, contender in ALGORITHMS.items():
                for task in PUBLISHED:
                    words = [f"--config=configs/{algorithm}.yaml", f"--config=configs/{algorithm}/neorl2.yaml"]
                    words += [*source(task), f"--seed_everything={seed}", *contender.words]
                    words += {"uniform": [], "oper_r": ["--data.priority=OperR"], "oper_a": oper_a(task, contender)}[
                        priority
                    ]
                    updates = times * contender.updates
                    words += [f"--trainer.max_steps={updates}", f"--data.updates_per_epoch={updates // EVALUATIONS}"]
                    words += ["--data.rollouts.episodes=10", "--data.rollouts.parallel=10"]
                    runs.append(Run(name_of(task, algorithm, priority, seed, times), words))
    return runs


def oper_a(task: str, contender: Contender) -> list[str]:
    """Arguments of the priority."""
    file = f"{stage_one(task).folder}/weights.safetensors"
    iteration = f"--data.priority.iteration={contender.iteration}"
    return ["--data.priority=WeightsFile", f"--data.priority.path={file}", iteration]


def name_of(task: str, algorithm: str, priority: str, seed: int, times: int) -> str:
    return f"{task}-{algorithm}-{priority}-{seed}" + (f"-times{times}" if times > 1 else "")


def oper(words: list[str], log: Path) -> float:
    """One command in a process of its own; its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "a") as output:
        command = [sys.executable, "-m", "oper_lightning", *words]
        subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def execute(run: Run, data: str) -> None:
    """Runs it and keeps its result."""
    log = ROOT / f"{run.folder}.log"
    commands = [["fit", *run.words, f"--output={run.folder}", "--ckpt_path=last"]]
    if run.policy:
        last = f"--ckpt_path={run.folder}/last.ckpt"
        commands.append(["test", last, f"--data.rollouts.episodes={EPISODES}", "--data.rollouts.parallel=50"])
    try:
        seconds = sum(oper([word.format(data=data) for word in words], log) for words in commands)
    except subprocess.CalledProcessError:
        print(f"{run.name}: failed, see {log.relative_to(ROOT)}", flush=True)
        return
    record: dict[str, Any] = {
        "commands": ["oper " + " ".join(words).format(data="../shared/data") for words in commands],
        "cpu seconds": round(seconds, 1),
        "machine": f"{machine()}, one thread of {len(os.sched_getaffinity(0))} shared cores",
        "versions": {"oper-lightning": oper_lightning.__version__, "torch": torch.__version__},
    }
    if run.policy:
        tested = json.loads((ROOT / run.folder / "test.json").read_text())
        record["test"] = {key: round(tested[key], 3) for key in ("return", "return_std", "score", "episodes")}
        curves = read_curves(ROOT / run.folder)
        record["curves"] = {
            name: {"updates": curve.updates, "values": [float(f"{value:.6g}") for value in curve.values]}
            for name, curve in curves.items()
            if name.startswith("eval/")
        }
    with whole(run.file) as file:
        file.write((json.dumps(record) + "\n").encode())
    print(f"{run.name}: {record.get('test', {}).get('score', 'done')}, {seconds:.0f} CPU s", flush=True)


def scores(task: str, algorithm: str, priority: str, times: int) -> list[float]:
    """Of the seeds that are there."""
    files = [RAW / f"{name_of(task, algorithm, priority, seed, times)}.json" for seed in SEEDS]
    return [json.loads(file.read_text())["test"]["score"] for file in files if file.is_file()]


def interval(values: list[float]) -> str:
    """Mean, and what Student's t makes of three seeds (95 %); of fewer their number."""
    if not values:
        return "–"
    mean = statistics.mean(values)
    if len(values) < len(SEEDS):
        return f"{mean:.1f} ({len(values)} seed{'s' * (len(values) > 1)})"
    return f"{mean:.1f} ± {STUDENT * statistics.stdev(values) / len(values) ** 0.5:.1f}"


def table(times: int) -> str:
    """A row for each task and algorithm: updates, published score, ours by priority, then single seeds."""
    heads = ["data", "recorded", "algorithm", "updates", "published", *PRIORITIES.values(), "seeds"]
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---|---:|---:|---:|---:|---:|---|"]
    for task, published in PUBLISHED.items():
        for algorithm, contender in ALGORITHMS.items():
            theirs = "{:.2f} ± {:.2f}".format(*published[algorithm]) if algorithm in published else "–"
            ours = [scores(task, algorithm, priority, times) for priority in PRIORITIES]
            seeds = "; ".join(" ".join(f"{value:.1f}" for value in values) or "–" for values in ours)
            cells = [task, f"{RECORDED[task]:.2f}", contender.called, f"{times * contender.updates:,}", theirs]
            lines.append(f"| {' | '.join([*cells, *map(interval, ours), seeds])} |")
    return "\n".join(lines)


def main() -> None:
    """Makes what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="folder of the .npz files")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--only", default="", help="run only runs whose name contains this")
    parser.add_argument("--times", type=int, default=1, help="factor of the numbers of updates")
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        (ROOT / PLACE).mkdir(parents=True, exist_ok=True)
        second = [run for run in policies(arguments.times) if arguments.only in run.name and not run.file.is_file()]
        asked = " ".join(word for run in second for word in run.words)
        # A fresh clone has the results of stage 1, but not the weights.
        first = [run for run in map(stage_one, PUBLISHED) if f"{run.folder}/weights" in asked]
        first = [run for run in first if not (run.file.is_file() and (ROOT / run.folder / "last.ckpt").is_file())]
        with ProcessPoolExecutor(arguments.jobs) as pool:  # each counts the CPU seconds of its own children
            for runs in (first, second):
                list(pool.map(execute, runs, [arguments.data] * len(runs)))
    print(table(arguments.times))


if __name__ == "__main__":
    main()
