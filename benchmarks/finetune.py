"""Offline, then online: does what was learnt offline outlast the switch?

    python benchmarks/finetune.py --data ../shared/data

Cal-QL and IQL are trained on hopper-replay for 20,000 updates. They go on from there for 5,000 steps in the
environment, one update for each, and are scored every 1,000 steps. Raw results (curves) go to benchmarks/raw/finetune;
runs that are there are not made again, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from oper_lightning.report.curves import read_curves

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "benchmarks" / "raw" / "finetune"
WORK = ROOT / "runs" / "finetune"
# Targets follow faster than published, as in the table of scores: there are few updates.
CAL_QL = ("--model.sampled_actions=4", "--model.tau=0.02", "--model.policy_learning_rate=3e-4")
METHODS: dict[str, dict[str, Any]] = {
    "cal_ql": {
        "seeds": 3,
        "yamls": ("configs/cal_ql.yaml", "configs/cal_ql/finetune.yaml"),
        "words": CAL_QL,
    },
    "cal_ql-bf16": {
        "seeds": 3,
        "yamls": ("configs/cal_ql.yaml", "configs/cal_ql/finetune.yaml"),
        "words": (*CAL_QL, "--trainer.precision=bf16-mixed"),
    },
    "iql": {
        "seeds": 3,
        "yamls": ("configs/iql.yaml", "configs/iql/finetune.yaml"),
        "words": ("--model.schedule=none", "--model.tau=0.02"),
    },
}
EVERY = 1_000
OFFLINE = ("--trainer.max_steps=20000", "--data.updates_per_epoch=2500")
ONLINE = ("--trainer.max_steps=5000", f"--data.updates_per_epoch={EVERY}")


def execute(name: str, seed: int, data: str) -> None:
    """Makes both runs of a method with a seed, and keeps their curves."""
    method, folder = METHODS[name], WORK / f"{name}-{seed}"
    source = ("--data.source=D4RL", f"--data.source.path={data}/hopper-replay.hdf5", f"--seed_everything={seed}")
    offline, online = (f"--config={yaml}" for yaml in method["yamls"])
    commands = {
        "offline": [offline, *method["words"], *source, *OFFLINE],
        "online": [f"--start={folder.relative_to(ROOT)}/offline", offline, online, *source, *ONLINE],
    }
    record: dict[str, Any] = {}
    for stage, words in commands.items():
        words = ["fit", *words, f"--output={folder.relative_to(ROOT)}/{stage}", "--ckpt_path=last"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "oper_lightning", *words], cwd=ROOT, env=environment, check=True)
        curves = read_curves(folder / stage)
        scores = {key: curves[key]._asdict() for key in ("eval/score", "eval/return", "train/value")}
        record[stage] = {"command": " ".join(["oper", *words]).replace(data, "../shared/data"), **scores}
    RAW.mkdir(parents=True, exist_ok=True)
    (RAW / f"{name}-{seed}.json").write_text(json.dumps(record, indent=1))


def table() -> str:
    """Scores at the end of the offline run and at each evaluation online, by method and seed."""
    steps = range(EVERY, 5_001, EVERY)
    lines = [
        f"| | seed | offline | {' | '.join(f'{step:,} steps' for step in steps)} | at 1,000 of offline |",
        f"|---|---|---|{'---|' * (len(steps) + 1)}",
    ]
    for file in sorted(RAW.glob("*.json")):
        name, _, seed = file.stem.rpartition("-")
        record = json.loads(file.read_text())
        before, after = (record[stage]["eval/score"]["values"] for stage in ("offline", "online"))
        cells = [name, seed, *(f"{value:.1f}" for value in (before[-1], *after)), f"{after[0] / before[-1]:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Makes what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="folder of the .hdf5 files")
    parser.add_argument("--methods", nargs="*", default=[*METHODS], choices=[*METHODS], help="which to run")
    arguments = parser.parse_args()
    for name in arguments.methods:
        for seed in range(METHODS[name]["seeds"]):
            if not (RAW / f"{name}-{seed}.json").is_file():
                execute(name, seed, arguments.data)
    print(table())


if __name__ == "__main__":
    main()
