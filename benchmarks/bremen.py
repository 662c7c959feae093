"""BREMEN on two-core scale: from recorded data, and with three deployments.

    python benchmarks/bremen.py --data ../shared/data
    python benchmarks/bremen.py --table
    python benchmarks/bremen.py --picture

Every case is a chain of configs/bremen with one seed, on one thread; one that was stopped goes on. Raw results (curves,
errors of models, CPU seconds) go to benchmarks/raw/bremen, and cases that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from kept import keep

from oper_lightning.report.curves import Curve, read_curves
from oper_lightning.report.deployments import EARNED, PROMISED, draw
from oper_lightning.report.runs import Group, Run

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "runs" / "bremen_benchmark"
RAW = ROOT / "benchmarks" / "raw" / "bremen"
OFFLINE, RECURSIVE = "configs/bremen/offline_two_core.yaml", "configs/bremen/recursive_two_core.yaml"
SHOWN = (EARNED, PROMISED)
HEAD = "--model.likelihood_std=head"
# Chain, words, seeds; {data} is the folder of the recorded files.
CASES: dict[str, tuple[str, list[str], range]] = {
    "halfcheetah": (OFFLINE, ["--data", "--data.source.path={data}/halfcheetah-replay.hdf5"], range(3)),
    "halfcheetah-oper_r": (
        OFFLINE,
        ["--data", "--data.source.path={data}/halfcheetah-replay.hdf5", "--priority", "--data.priority=OperR"],
        range(3),
    ),
    "hopper": (
        OFFLINE,
        [
            "--data",
            "--data.source.path={data}/hopper-replay.hdf5",
            "--task",
            "--model.task=HopperV5",
            "--starts",
            "--data.priority=FirstObservations",
        ],
        range(3),
    ),
    "recursive": (RECURSIVE, [], range(5)),
    "recursive-100-updates": (RECURSIVE, ["--later", "100"], range(5)),
    "recursive-published-likelihood": (
        RECURSIVE,
        ["--later", "100", "--clones", "--model.policy=sampled", "--policies", HEAD],
        range(1),
    ),
}


def execute(case: str, seed: int, data: str) -> None:
    """Runs a chain, and keeps what came of it."""
    chain, words, _ = CASES[case]
    folder = WORK / f"{case}-{seed}"
    words = [word.format(data=data) for word in words]
    command = ["run", chain, *words, "--seed", str(seed), "--folder", str(folder.relative_to(ROOT))]
    print("$ oper", *command, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "oper_lightning", *command], cwd=ROOT, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    record: dict[str, Any] = {
        "test": tested(folder, environment),
        "command": " ".join(["oper", *command]).replace(data, "../shared/data"),
        "cpu seconds": round(seconds, 1),
        "policies": {run.name: curves_of(run) for run in sorted(folder.glob("policy*"))},
        "models": judged(folder, "dynamics*"),
        "foresights": judged(folder, "foresight*"),
    }
    keep(RAW / f"{case}-{seed}.json", record)


def picture() -> None:
    """What was earned and promised over the deployments of the recursive case, as `oper report` draws it."""
    groups: dict[str, list[Run]] = {}
    for record in results("recursive"):
        for policy, curves in record["policies"].items():
            number = int(policy.split("_")[1])
            config = {"data.source.id": [f"data_{earlier}" for earlier in range(number + 1)]}
            logged = {name: Curve(curves[name]["updates"], curves[name]["values"]) for name in SHOWN}
            groups.setdefault(f"{number}", []).append(Run(policy, config, logged))
    course = [Group(data, "BREMEN, 10,000 steps for each deployment", runs) for data, runs in sorted(groups.items())]
    draw([course]).savefig(ROOT / "benchmarks" / "bremen.png", dpi=110)


def judged(folder: Path, pattern: str) -> dict[str, Any]:
    """What `oper validate` found, by folder."""
    files = sorted(folder.glob(f"{pattern}/validate.json"))
    return {file.parent.name: json.loads(file.read_text()) for file in files}


def tested(folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What the last policy earns in twenty other episodes, which no evaluation has seen."""
    checkpoint = max(folder.glob("policy*")) / "last.ckpt"
    words = [f"--ckpt_path={checkpoint}", "--data.rollouts={episodes: 20, parallel: 20}", f"--output={folder}/test"]
    command = [sys.executable, "-m", "oper_lightning", "test", *words]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    found: dict[str, Any] = json.loads((folder / "test" / "test.json").read_text())
    return {name: found[name] for name in ("return", "return_std", "episodes", "environment")}


def curves_of(run: Path) -> dict[str, Any]:
    """Returns, imagined rewards and what leads out of the data, by updates."""
    curves = read_curves(run)
    names = (*SHOWN, "train/imagined_reward", "train/lost", "train/kl")
    return {
        name: {"updates": curves[name].updates, "values": [round(float(value), 4) for value in curves[name].values]}
        for name in names
        if name in curves
    }


def results(case: str) -> list[dict[str, Any]]:
    """What is there of a case, by seed."""
    files = [RAW / f"{case}-{seed}.json" for seed in CASES[case][2]]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def table() -> str:
    """For each case the last returns by seed, what was imagined, the model's errors, and CPU minutes."""
    lines = [
        "| case | last return by seed | median, mean | 20 other episodes | one-step error | largest KL | CPU minutes |",
        "|---|---|---:|---|---|---:|---:|",
    ]
    for case in CASES:
        found = results(case)
        if not found:
            continue
        rounds = [[*record["policies"].values()] for record in found]
        last = [rounds_of[-1]["eval/return"]["values"][-1] for rounds_of in rounds]
        shown = ", ".join(" → ".join(f"{p['eval/return']['values'][-1]:,.0f}" for p in of) for of in rounds)
        others = ", ".join(f"{record['test']['return']:,.0f} ± {record['test']['return_std']:,.0f}" for record in found)
        errors = ", ".join(
            f"{model['holdout/error']:.4f}" for record in found for model in [[*record["models"].values()][-1]]
        )
        kl = max(max(policy["train/kl"]["values"]) for of in rounds for policy in of)
        minutes = max(record["cpu seconds"] for record in found) / 60
        middle = f"{np.median(last):,.0f}, {np.mean(last):,.0f}"
        lines.append(f"| {case} | {shown} | {middle} | {others} | {errors} | {kl:.3f} | {minutes:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Makes what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="folder of the .hdf5 files")
    parser.add_argument("--cases", nargs="*", default=[*CASES], choices=[*CASES], help="which to run")
    parser.add_argument("--seeds", type=int, nargs="*", help="which of them")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    parser.add_argument("--picture", action="store_true", help="draw benchmarks/bremen.png, run nothing")
    arguments = parser.parse_args()
    if arguments.picture:
        return picture()
    for case in arguments.cases if not arguments.table else []:
        for seed in CASES[case][2]:
            wanted = arguments.seeds is None or seed in arguments.seeds
            if wanted and not (RAW / f"{case}-{seed}.json").is_file():
                execute(case, seed, arguments.data)
    print(table())


if __name__ == "__main__":
    main()
