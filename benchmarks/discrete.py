"""CartPole and Pendulum: whether each algorithm learns from data that tell algorithms apart.

    python benchmarks/discrete.py --data ../shared/data
    python benchmarks/discrete.py --table

Scripted controllers make the data (into runs/discrete), and every run is `oper fit` in this process, on one thread.
Raw results (words, evaluations, CPU seconds) go to benchmarks/raw/discrete; runs that are there are not run again. The
replays of d3rlpy do not come with this repository; without them their runs are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from intervals import interval, number
from kept import keep

from oper_lightning.cli import main as oper
from oper_lightning.files import whole
from oper_lightning.report.curves import final, read_curves

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "runs" / "discrete"
RAW = ROOT / "benchmarks" / "raw" / "discrete"
SEEDS = (0, 1, 2)

# The data --------------------------------------------------------------------------------------------------------

Controller = Callable[[np.ndarray, np.random.Generator], Any]


def balance(observation: np.ndarray) -> int:
    """The expert of CartPole: pushes to where the pole falls, a little towards the middle; 500 in each episode."""
    position, velocity, angle, turning = observation
    return int(angle + 0.4 * turning + 0.05 * position + 0.1 * velocity > 0)


def biased(observation: np.ndarray, noise: np.random.Generator, chance: float) -> int:
    """The expert, but for action 0 in its place with this chance."""
    return 0 if noise.random() < chance else balance(observation)


def random_at_times(observation: np.ndarray, noise: np.random.Generator, epsilon: float = 0.2) -> int:
    """The expert, but for any action in its place with chance epsilon."""
    return int(noise.integers(2)) if noise.random() < epsilon else balance(observation)


def swing_up(observation: np.ndarray, noise: np.random.Generator, gain: float, bias: float) -> np.ndarray:
    """Brings Pendulum's energy to that of standing upright, and holds it there; with noise, and a bias in torque."""
    cosine, sine, speed = observation
    if cosine > 0.85:
        torque = -20 * np.arctan2(sine, cosine) - 4 * speed
    else:
        torque = gain * np.sign(speed) * (5 - speed**2 / 6 - 5 * cosine)
    return np.clip([torque + bias + 0.5 * noise.standard_normal()], -2, 2).astype(np.float32)


def anything(observation: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """Uniform torques."""
    return noise.uniform(-2, 2, 1).astype(np.float32)


class Part(NamedTuple):
    """Episodes of one controller: as many as make up the steps."""

    controller: Controller
    steps: int


def bias_of(chance: float) -> list[Part]:
    """15,000 steps of the biased expert, 5,000 of one that is only random at times."""
    return [Part(lambda seen, noise: biased(seen, noise, chance), 15_000), Part(random_at_times, 5_000)]


GOOD = Part(lambda seen, noise: swing_up(seen, noise, gain=0.9, bias=0.0), 34 * 200)
MEDIOCRE = Part(lambda seen, noise: swing_up(seen, noise, gain=0.5, bias=0.9), 33 * 200)
MADE = {
    "cartpole-0.8": ("CartPole-v1", bias_of(0.8)),
    "cartpole-0.6": ("CartPole-v1", bias_of(0.6)),
    "pendulum": ("Pendulum-v1", [GOOD, MEDIOCRE, Part(anything, 33 * 200)]),
}
FILES = {"cartpole-replay": "CartPole-v1", "pendulum-replay": "Pendulum-v1"}


def make(name: str) -> Path:
    """Records a dataset; returns of the episodes of each part go beside it."""
    file = WORK / "data" / f"{name}.npz"
    if file.is_file():
        return file
    environment, parts = MADE[name]
    world, noise = gymnasium.make(environment), np.random.default_rng(0)
    columns: dict[str, list[Any]] = {}
    returns: list[list[float]] = []
    episode = 0
    for part in parts:
        steps, earned = 0, []
        while steps < part.steps:
            observation, ended, cut, total = world.reset(seed=episode)[0], False, False, 0.0
            while not (ended or cut):
                action = part.controller(observation, noise)
                following, reward, ended, cut, _ = world.step(action)
                row = {
                    "observations": observation,
                    "actions": action,
                    "rewards": reward,
                    "next_observations": following,
                    "terminals": ended,
                    "timeouts": cut,
                }
                for column, value in row.items():
                    columns.setdefault(column, []).append(value)
                observation, total, steps = following, total + float(reward), steps + 1
            earned.append(total)
            episode += 1
        returns.append(earned)
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as out:
        np.savez(out, **{column: np.asarray(values) for column, values in columns.items()})
    kept = {"rows": len(columns["rewards"]), "mean returns": [float(np.mean(part)) for part in returns]}
    with whole(RAW / "data" / f"{name}.json") as out:
        out.write((json.dumps(kept) + "\n").encode())
    return file


def source(name: str, folder: str) -> list[str] | None:
    """Arguments that name a dataset; None if its file is missing."""
    if name in MADE:
        place = make(name).relative_to(ROOT)
        return ["--data.source=Npz", f"--data.source.path={place}", f"--data.source.environment={MADE[name][0]}"]
    if not (ROOT / folder / f"{name}.h5").is_file():
        return None
    return [
        "--data.source=D4RL",
        f"--data.source.path={folder}/{name}.h5",
        f"--data.source.environment={FILES[name]}",
        "--data.clip_actions=" + str(name.startswith("pendulum")).lower(),
    ]


# The runs --------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """One call of `oper fit` with each seed; settings are the same for all seeds."""

    name: str
    words: tuple[str, ...]
    updates: int
    bar: tuple[str, float] | None = None
    """what the mean over seeds is to be"""


SMALL = ("--model.hidden_sizes=[64,64]", "--model.learning_rate=1e-3", "--data.batch_size=64")
SLOWER = ("--model.hidden_sizes=[64,64]", "--model.learning_rate=5e-4", "--data.batch_size=128")
CARTPOLE = ("--data.rollouts.episodes=10", "--data.rollouts.parallel=10")
PENDULUM = ("--data.rollouts.episodes=20", "--data.rollouts.parallel=20")
EVALUATIONS = 6
WEIGHTS = "runs/discrete/{dataset}-OperA"

CLONE = ("--model=DiscreteBC", *SMALL, *CARTPOLE)
PRIORITIES = {
    "OPER-R": ("--data.priority=OperR",),
    "OPER-A": ("--data.priority=WeightsFile", f"--data.priority.path={WEIGHTS}-{{seed}}/weights.safetensors"),
    "best tenth": ("--data.priority=TopFraction", "--data.priority.fraction=0.1"),
}
STAGE_1 = (
    "--model=OperA",
    "--model.iterations=3",
    "--model.seeds=2",
    "--model.tau=0.02",
    *SMALL,
    "--data.rollouts=null",
)
BCQ_DISCRETE = (
    "--model=DiscreteBCQ",
    "--model.threshold=0.6",
    "--model.n_step=3",
    "--model.hidden_sizes=[64,64]",
    "--data.batch_size=64",
    *CARTPOLE,
)
CQL_DISCRETE = ("--model=DiscreteCQL", "--model.target_update=200", "--model.quantiles=16", *SMALL, *CARTPOLE)
IQL_DISCRETE = (
    "--model=DiscreteIQL",
    "--model.expectile=0.9",
    "--model.temperature=1",
    "--model.tau=0.02",
    "--model.hidden_sizes=[64,64]",
    "--model.learning_rate=1e-3",
    "--data.batch_size=128",
    *CARTPOLE,
)
CRR = ("--model=CRR", "--model.target_update=100", *SLOWER, *CARTPOLE)
# In the replay few episodes end at the edge of the track: what ends there must reach values in few renewals of targets.
CRR_REPLAY = (*CRR, "--model.n_step=3")
CQL_REPLAY = (*CQL_DISCRETE, "--model.n_step=20", "--model.cql_weight=0.2")
BCQ = ("--model=BCQ", "--model.vae_hidden_sizes=[128,128]", "--model.normalise_observations=true", "--model.tau=0.02")
CQL = (
    "--model=CQL",
    "--model.sampled_actions=4",
    "--model.cql_weight=0.02",
    "--model.entropy_temperature=0.02",
    "--model.tau=0.02",
    "--model.policy_hidden_sizes=[64,64]",
    "--model.critic_hidden_sizes=[64,64]",
    "--model.policy_learning_rate=1e-3",
    "--model.critic_learning_rate=1e-3",
    "--data.batch_size=128",
)
TD3BC = ("--model=TD3BC", "--model.alpha=10", "--model.tau=0.02")
# A swing takes some 30 steps: values look 20 ahead, and are a few units large.
VALUES = ("--model.discount=0.95", "--data.reward_scale=0.1")
IQL = ("--model=IQL", "--model.expectile=0.9", "--model.tau=0.02")
ONESTEP = ("--model=OnestepRL", "--model.phases=[2,1,3]", "--model.temperature=0.1", "--model.tau=0.02")
PENDULUM_RUNS = [
    Run("BC", ("--model=BC", *SMALL, *PENDULUM), 3_000),
    Run("TD3BC", (*TD3BC, *SMALL, *VALUES, *PENDULUM), 6_000, ("at least", -300)),
    Run("BCQ", (*BCQ, *SLOWER, *VALUES, *PENDULUM), 6_000, ("at least", -300)),
    Run("CQL", (*CQL, *VALUES, *PENDULUM), 6_000, ("at least", -300)),
    Run("IQL", (*IQL, *SMALL, *VALUES, *PENDULUM), 6_000),
    Run("OnestepRL", (*ONESTEP, *SMALL, *VALUES, *PENDULUM), 24_000),
]


def prioritised(run: Run) -> list[Run]:
    """A run once more under each priority."""
    return [Run(f"{run.name} {name}", (*run.words, *words), run.updates) for name, words in PRIORITIES.items()]


CARTPOLE_RUNS = [
    Run("DiscreteBC", CLONE, 3_000),
    Run("DiscreteBCQ", BCQ_DISCRETE, 6_000),
    Run("DiscreteCQL", CQL_REPLAY, 6_000),
    Run("DiscreteIQL", IQL_DISCRETE, 3_000),
    Run("CRR", CRR_REPLAY, 6_000),
]
GRID = {
    "cartpole-0.8": [
        Run("DiscreteBC", CLONE, 3_000, ("below", 100)),
        Run("CRR", CRR, 6_000, ("at least", 450)),
        Run("DiscreteBC OPER-R", (*CLONE, *PRIORITIES["OPER-R"]), 3_000, ("at least", 350)),
        Run("OperA", STAGE_1, 3_000),
        Run("DiscreteBC OPER-A", (*CLONE, *PRIORITIES["OPER-A"]), 3_000),
    ],
    "cartpole-0.6": [
        Run("DiscreteBC", CLONE, 3_000),
        Run("DiscreteBCQ", BCQ_DISCRETE, 6_000, ("at least", 400)),
        Run("DiscreteCQL", CQL_DISCRETE, 6_000, ("at least", 400)),
        Run("DiscreteIQL", IQL_DISCRETE, 3_000, ("at least", 400)),
    ],
    "cartpole-replay": [Run("OperA", STAGE_1, 3_000), *CARTPOLE_RUNS, *chain(*map(prioritised, CARTPOLE_RUNS))],
    "pendulum": PENDULUM_RUNS,
    "pendulum-replay": [
        Run("OperA", (*STAGE_1, *VALUES), 3_000),
        *PENDULUM_RUNS,
        *chain(*map(prioritised, PENDULUM_RUNS)),
    ],
}
# What the tests of Tianshou and of RLlib ask of their own algorithms, on data of their own (20,000 steps, Tianshou's).
THRESHOLDS = {
    "DiscreteBCQ": "Tianshou 185",
    "DiscreteCQL": "Tianshou 170",
    "CRR": "Tianshou 180",
    "TD3BC": "Tianshou −1200",
    "BCQ": "Tianshou −1100",
    "CQL": "Tianshou −1200, RLlib −700",
}


def file_of(dataset: str, run: Run, seed: int) -> Path:
    """Where the raw result of a run lies."""
    return RAW / f"{dataset}-{run.name.replace(' ', '-')}-{seed}.json"


def execute(dataset: str, run: Run, seed: int, data: list[str]) -> None:
    """Trains and evaluates; leaves the result as JSON. A run that was interrupted begins anew."""
    folder = WORK / f"{dataset}-{run.name.replace(' ', '-')}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    words = [
        "fit",
        *(word.format(dataset=dataset, seed=seed) for word in run.words),
        *data,
        f"--trainer.max_steps={run.updates}",
        f"--data.updates_per_epoch={run.updates // EVALUATIONS}",
        f"--seed_everything={seed}",
        f"--output={folder.relative_to(ROOT)}",
    ]
    began = time.process_time()
    if oper([*words, "--trainer.enable_progress_bar=false"]):
        sys.exit(f"{folder.name} failed: oper {' '.join(words)}")
    curves = read_curves(folder)
    curve = curves.get("eval/return")
    record = {
        "command": "oper " + " ".join(words),
        "cpu seconds": round(time.process_time() - began, 1),
        "eval/return": curve and {"updates": curve.updates, "values": [round(value, 1) for value in curve.values]},
        "last": {name: round(curve.values[-1], 3) for name, curve in curves.items() if name.startswith("train/")},
    }
    keep(file_of(dataset, run, seed), record)


def records(dataset: str, run: Run) -> list[dict[str, Any]]:
    """The raw results of the seeds that are there."""
    files = [file_of(dataset, run, seed) for seed in SEEDS]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def finals(found: list[dict[str, Any]]) -> list[float]:
    """Mean of the last three evaluations of each."""
    return [final(record["eval/return"]["values"]) for record in found if record["eval/return"]]


def by_priority() -> str:
    """The replays: a row for each algorithm, with 95 % intervals, beside what other packages ask."""
    lines = [f"| data | algorithm | asked elsewhere | none | {' | '.join(PRIORITIES)} |", "|---|---|---|" + "---:|" * 4]
    for dataset, runs in (("cartpole-replay", CARTPOLE_RUNS), ("pendulum-replay", PENDULUM_RUNS)):
        for run in runs:
            cells = [dataset, run.name, THRESHOLDS.get(run.name, "–")]
            cells += [interval(finals(records(dataset, one)), digits=0) for one in (run, *prioritised(run))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table() -> str:
    """Mean of the last three evaluations by run, its seeds, and the longest run's CPU seconds."""
    lines = ["| data | run | bar | mean | seeds | longest, CPU s |", "|---|---|---|---:|---|---:|"]
    for dataset, runs in GRID.items():
        for run in runs:
            found = records(dataset, run)
            if values := finals(found):
                bar = f"{run.bar[0]} {number(run.bar[1])}" if run.bar else "reported"
                mean, each = number(statistics.mean(values)), " ".join(map(number, values))
                longest = max(record["cpu seconds"] for record in found)
                lines.append(f"| {dataset} | {run.name} | {bar} | {mean} | {each} | {longest:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, one seed after the other, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="folder of d3rlpy's replays")
    parser.add_argument("--only", default="", help="run only what has this in its name, such as pendulum-BCQ")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    if not arguments.table:
        for seed in SEEDS:
            for dataset, runs in GRID.items():
                data = source(dataset, arguments.data)
                if data is None:
                    print(f"{dataset}: left out, there is no {arguments.data}/{dataset}.h5", flush=True)
                    continue
                missing = [
                    run
                    for run in runs
                    if arguments.only in f"{dataset}-{run.name}" and not file_of(dataset, run, seed).is_file()
                ]
                if any(run.words[-1] == PRIORITIES["OPER-A"][-1] for run in missing):
                    first = next(run for run in runs if run.name == "OperA")
                    # A fresh clone has the results of stage 1, but not the weights; a stopped one has weights only.
                    weights = Path(WEIGHTS.format(dataset=dataset) + f"-{seed}", "weights.safetensors")
                    if not (weights.is_file() and file_of(dataset, first, seed).is_file()):
                        missing = [first, *missing]
                for run in dict.fromkeys(missing):
                    execute(dataset, run, seed, data)
    print(table(), by_priority(), sep="\n\n")


if __name__ == "__main__":
    main()
