"""Tasks on whose data others have published scores, and ours beside them.

    python benchmarks/published_scores.py neorl2 --data ../shared/data --jobs 2
    python benchmarks/published_scores.py door --data ../shared/data --jobs 2      # needs '.[robotics]'
    python benchmarks/published_scores.py neorl2 --table

Each algorithm without a priority, with OPER-R and with OPER-A, three seeds each; a run's score is that of its last
policy in the 100 episodes of `oper test`. Runs that are finished are not run again, stopped ones go on from their last
checkpoint. Checkpoints lie in runs/published, raw results in benchmarks/raw/neorl2 and benchmarks/raw/door.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from intervals import interval
from kept import keep
from scores import COMPILED, LOW, kept_curves

from oper_lightning.training.stored import read_checkpoint

ROOT = Path(__file__).resolve().parent.parent
EPISODES = 100  # of the test
EVALUATIONS = 4  # during a run, of ten episodes
PRIORITIES = {"uniform": "none", "oper_r": "OPER-R", "oper_a": "OPER-A"}


class Contender(NamedTuple):
    """An algorithm in the grid."""

    called: str
    updates: int
    iteration: int
    """of OPER-A's weights, as published for the algorithm"""
    words: tuple[str, ...] = ()
    """its yamls, and what differs from them, as there are few updates"""
    oper_a: tuple[str, ...] = ()
    """how it uses OPER-A's weights"""


class Task(NamedTuple):
    """A dataset and its scores."""

    source: tuple[str, ...]
    recorded: float
    """mean score of the recorded episodes"""
    published: dict[str, str]
    """by algorithm"""


class Suite(NamedTuple):
    """Tasks with the same algorithms."""

    name: str
    tasks: dict[str, Task]
    algorithms: dict[str, Contender]
    seeds: tuple[int, ...]

    @property
    def folder(self) -> str:
        return f"runs/published/{self.name}"

    @property
    def raw(self) -> Path:
        """Folder of the raw results."""
        return ROOT / "benchmarks" / "raw" / self.name

    def file(self, run: str) -> Path:
        """A run's raw result."""
        return self.raw / f"{run}.json"


# Both together an update takes 0.25 to 0.4 of its time, where the processor has bfloat16's instructions.
QUICK = (LOW, COMPILED)
# A critic looks about updates * tau / policy_freq steps ahead: targets follow faster than published (0.005).
FASTER = "--model.tau=0.02"
FEWER = "--model.sampled_actions=4"
# 5 iterations of 4,000 updates, 3 seeds at once
STAGE_1 = ("--config=configs/oper_a.yaml", "--trainer.max_steps=20000", "--data.updates_per_epoch=2000")


def yamls(*names: str) -> tuple[str, ...]:
    return tuple(f"--config=configs/{name}.yaml" for name in names)


# arXiv 2503.19267: score and spread over three seeds, of the best of the settings searched, after a million updates
NEORL2 = Suite(
    "neorl2",
    {
        task: Task(("--data.source=Npz", f"--data.source.path={{data}}/neorl2-{task}-train.npz"), recorded, published)
        for task, recorded, published in (
            ("DMSD", 56.64, {"bc": "65.09 ± 1.64", "td3_bc": "60.01 ± 0.79", "cql": "70.24 ± 1.12"}),
            ("SafetyHalfCheetah", 73.56, {"bc": "70.16 ± 0.38", "td3_bc": "68.58 ± 0.39", "cql": "71.18 ± 0.61"}),
        )
    },
    {
        "bc": Contender("BC", 20_000, 4, yamls("bc", "bc/neorl2")),
        "td3_bc": Contender("TD3+BC", 10_000, 5, (*yamls("td3_bc", "td3_bc/neorl2"), FASTER)),
        "iql": Contender("IQL", 8_000, 4, (*yamls("iql", "iql/neorl2"), FASTER)),
        "cql": Contender(
            "CQL", 40_000, 5, (*yamls("cql", "cql/neorl2"), FASTER, FEWER, "--model.bc_updates=1000", *QUICK)
        ),
    },
    seeds=(7, 42, 210),  # as published
)
# OPER's settings for adroit: all loss terms see the weights.
ADROIT = ("--data.priority.std=0.5", "--data.prioritise=[evaluation,improvement,constraint]")
# What a user of Minari got with CORL's IQL: https://github.com/Farama-Foundation/Minari/issues/303
HUMAN = Task(("--data.source=Minari", "--data.source.id=D4RL/door/human-v2"), 28.42, {"iql": "7"})
DOOR = Suite(
    "door",
    {"door": HUMAN},
    {
        "bc": Contender("BC", 20_000, 4, yamls("bc"), ADROIT[:1]),
        "iql": Contender("IQL", 50_000, 4, (*yamls("iql", "iql/kitchen_adroit"), *QUICK), ADROIT),
        "cql": Contender("CQL", 10_000, 4, (*yamls("cql", "cql/corl_adroit"), FASTER, FEWER, *QUICK), ADROIT),
    },
    seeds=(0, 1, 2),
)
SUITES = {suite.name: suite for suite in (NEORL2, DOOR)}


class Run(NamedTuple):
    """One call of `oper fit`, and of `oper test` where it leaves a policy."""

    name: str
    words: list[str]
    policy: bool = True


def stage_one(suite: Suite, task: str) -> Run:
    """OPER-A's weights."""
    return Run(f"{task}-weights", [*STAGE_1, *suite.tasks[task].source, "--seed_everything=0"], policy=False)


def policies(suite: Suite, times: int) -> list[Run]:
    """All tasks with every algorithm and priority: a seed after the other, without a priority first."""
    runs = []
    for seed in suite.seeds:
        for priority in PRIORITIES:
            for algorithm, contender in suite.algorithms.items():
                for task in suite.tasks:
                    file = f"{suite.folder}/{stage_one(suite, task).name}/weights.safetensors"
                    weighed = ["--data.priority=WeightsFile", f"--data.priority.path={file}", *contender.oper_a]
                    weighed += [f"--data.priority.iteration={contender.iteration}"]
                    words = [*contender.words, *suite.tasks[task].source, f"--seed_everything={seed}"]
                    words += {"uniform": [], "oper_r": ["--data.priority=OperR"], "oper_a": weighed}[priority]
                    updates = times * contender.updates
                    words += [f"--trainer.max_steps={updates}", f"--data.updates_per_epoch={updates // EVALUATIONS}"]
                    words += ["--data.rollouts.episodes=10", "--data.rollouts.parallel=10"]
                    runs.append(Run(name_of(task, algorithm, priority, seed, times), words))
    return runs


def name_of(task: str, algorithm: str, priority: str, seed: int, times: int) -> str:
    return f"{task}-{algorithm}-{priority}-{seed}" + (f"-times{times}" if times > 1 else "")


def oper(words: list[str], log: Path, data: str) -> float:
    """One command in a process of its own; its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {"MINARI_DATASETS_PATH": str(ROOT / data / "minari"), **os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "a") as output:
        command = [sys.executable, "-m", "oper_lightning", *words]
        subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def execute(suite: Suite, data: str, run: Run) -> None:
    """Runs it and keeps its result."""
    folder = f"{suite.folder}/{run.name}"
    log = ROOT / f"{folder}.log"
    commands = [["fit", *run.words, f"--output={folder}", "--ckpt_path=last"]]
    if run.policy:
        last = f"--ckpt_path={folder}/last.ckpt"
        commands.append(["test", last, f"--data.rollouts.episodes={EPISODES}", "--data.rollouts.parallel=50"])
    try:
        seconds = sum(oper([word.format(data=data) for word in words], log, data) for words in commands)
    except subprocess.CalledProcessError:
        print(f"{run.name}: failed, see {log.relative_to(ROOT)}", flush=True)
        return
    record: dict[str, Any] = {
        "commands": ["oper " + " ".join(words).format(data="../shared/data") for words in commands],
        "cpu seconds": round(seconds, 1),
    }
    if run.policy:
        tested = json.loads((ROOT / folder / "test.json").read_text())
        record["test"] = {key: round(tested[key], 3) for key in ("return", "return_std", "score", "episodes")}
        record["curves"] = kept_curves(ROOT / folder, "eval/")
    keep(suite.file(run.name), record)
    print(f"{run.name}: {record.get('test', {}).get('score', 'done')}, {seconds:.0f} CPU s", flush=True)


def finished(suite: Suite, run: Run) -> bool:
    """Whether stage 1 is at its end here."""
    file = ROOT / suite.folder / run.name / "last.ckpt"
    return file.is_file() and f"--trainer.max_steps={read_checkpoint(file)['global_step']}" in run.words


def scores_of(suite: Suite, task: str, algorithm: str, times: int = 1) -> dict[str, list[float]]:
    """Scores of the seeds that are there by priority, of runs of the present length."""
    asked = f"--trainer.max_steps={times * suite.algorithms[algorithm].updates} "
    found = {}
    for priority, called in PRIORITIES.items():
        files = [suite.file(name_of(task, algorithm, priority, seed, times)) for seed in suite.seeds]
        records = [json.loads(file.read_text()) for file in files if file.is_file()]
        found[called] = [record["test"]["score"] for record in records if asked in record["commands"][0]]
    return found


def table(suite: Suite, times: int) -> str:
    """A row for each task and algorithm: updates, published score, ours by priority, then single seeds."""
    heads = ["data", "recorded", "algorithm", "updates", "published", *PRIORITIES.values(), "seeds"]
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---|---:|---:|---:|---:|---:|---|"]
    for task, known in suite.tasks.items():
        for algorithm, contender in suite.algorithms.items():
            ours = [*scores_of(suite, task, algorithm, times).values()]
            cells = [task, f"{known.recorded:.2f}", contender.called, f"{times * contender.updates:,}"]
            cells.append(known.published.get(algorithm, "–"))
            cells += [interval(values) for values in ours]
            cells.append("; ".join(" ".join(f"{value:.1f}" for value in values) or "–" for values in ours))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Makes what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES, help="which tasks")
    parser.add_argument(
        "--data", default="../shared/data", help="folder of the .npz files, or with Minari's in minari/"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--only", default="", help="run only runs whose name contains this")
    parser.add_argument("--times", type=int, default=1, help="factor of the numbers of updates")
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    suite = SUITES[arguments.suite]
    if not arguments.table:
        (ROOT / suite.folder).mkdir(parents=True, exist_ok=True)
        runs = policies(suite, arguments.times)
        second = [run for run in runs if arguments.only in run.name and not suite.file(run.name).is_file()]
        asked = " ".join(word for run in second for word in run.words)
        first = [run for task in suite.tasks if f"/{(run := stage_one(suite, task)).name}/weights" in asked]
        # A fresh clone has the results of stage 1, but not the weights; a stopped stage 1 has weights, but no results.
        first = [run for run in first if not (finished(suite, run) and suite.file(run.name).is_file())]
        with ProcessPoolExecutor(arguments.jobs) as pool:  # each counts the CPU seconds of its own children
            for group in (first, second):
                list(pool.map(partial(execute, suite, arguments.data), group))
    print(table(suite, arguments.times))


if __name__ == "__main__":
    main()
