"""Memory and speed of `oper collect`, and what the chain of datasets on CartPole comes to.

    python benchmarks/collecting.py                    # all cases, five minutes of CPU time
    python benchmarks/collecting.py --case robot-1e6
    python benchmarks/collecting.py --table

Each case is a command in a process of its own: its CPU seconds, the largest resident memory that it ever had, and the
lines in which it tells of datasets; of a chain's datasets also the mean returns. Cases in the raw
file are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kept import machine

from oper_lightning import Minari

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "benchmarks" / "raw" / "collecting.json"
RUNS = ROOT / "runs" / "collecting"

ROBOT, PONG = "collect random --environment=HalfCheetah-v5", "collect random --environment=oper/Pong-v0"
CHAIN = "run configs/collect"
CASES = {
    "robot-1e4": f"{ROBOT} --steps=10000 --output={RUNS}/robot-1e4-v0",
    "robot-1e5": f"{ROBOT} --steps=100000 --output={RUNS}/robot-1e5-v0",
    "pong-1e4": f"{PONG} --steps=10000 --output={RUNS}/pong-1e4-v0",
    "pong-1e5": f"{PONG} --steps=100000 --output={RUNS}/pong-1e5-v0",
    "robot-1e6": f"{ROBOT} --steps=1000000 --output={RUNS}/robot-1e6-v0",
    "cartpole": f"{CHAIN}/discrete.yaml --folder {RUNS}/cartpole",
    "pendulum": f"{CHAIN}/continuous.yaml --folder {RUNS}/pendulum --steps 20000",
}


def measured(command: str) -> dict[str, Any]:
    """Runs a command; of its last lines only what it says of datasets is kept."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "oper_lightning", *command.split()],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, said
    lines = [
        line.replace(f"{RUNS}/", "") for line in said.splitlines() if "transitions" in line or "references" in line
    ]
    return {
        "command": command.replace(f"{RUNS}/", ""),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "wall_seconds": round(time.monotonic() - start, 1),
        "peak_megabytes": round(used.ru_maxrss / 1024, 1),
        "said": lines,
    }


def returns(folder: Path) -> dict[str, float]:
    """Mean return of the episodes of each dataset in a folder."""
    return {
        data.name: round(statistics.mean(float(one["next", "reward"].sum()) for one in Minari(str(data)).episodes()), 2)
        for data in sorted(folder.glob("*-v0"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="one of them")
    parser.add_argument("--table", action="store_true", help="only print what the raw runs say")
    arguments = parser.parse_args()
    kept = json.loads(RAW.read_text()) if RAW.exists() else {}
    for name, command in CASES.items():
        if arguments.table or name in kept or arguments.case not in (None, name):
            continue
        kept[name] = {**measured(command), "returns": returns(RUNS / name), "machine": machine()}
        RAW.write_text(json.dumps(kept, indent=1) + "\n")
    print("| case | CPU seconds | seconds | peak memory, MB |\n|---|---:|---:|---:|")
    for name, found in kept.items():
        print(f"| {name} | {found['cpu_seconds']} | {found['wall_seconds']} | {found['peak_megabytes']} |")
    for name, found in kept.items():
        print(
            "\n".join([f"\n{name}", *found["said"], *(f"{data}: {value}" for data, value in found["returns"].items())])
        )


if __name__ == "__main__":
    main()
