"""Sends signals to `oper fit` at random moments, alone and on two ranks, and measures how it ends.

    python benchmarks/stops.py [--phase start] [--count 34] [--longest 15] [--output benchmarks/raw/stops.json]

A run writes a checkpoint and evaluates every 20 updates. Every case gets SIGTERM or SIGINT after a random time, counted
from its start or (--phase training) from its first checkpoint; of two ranks the first, the second, or both; some ranks
are killed. What should hold: all processes are gone within 10 seconds, the exit code is that of the signal (1 where a
rank was killed), one line after it says so, last.ckpt can be read. Results are added to the file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

WORDS = [
    "fit", "--model=BC", "--data.source=D4RL", "--data.source.path=small.hdf5", "--model.hidden_sizes=[32,32]",
    "--data.updates_per_epoch=20", "--data.rollouts.episodes=2", "--data.rollouts.parallel=2",
    "--trainer.max_steps=2000000", "--trainer.accelerator=cpu", "--output=run",
]  # fmt: skip
RANKS = ["--trainer.devices=2", "--trainer.strategy=ddp"]
CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": 1}
LIMIT = 10  # seconds


def data(path: Path) -> None:
    """A small file that Reacher-v5 fits: 40 episodes of 25 steps."""
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"] = file["next_observations"] = generator.normal(size=(1000, 10)).astype(np.float32)
        file["actions"] = generator.uniform(-1, 1, size=(1000, 2)).astype(np.float32)
        file["rewards"] = generator.normal(size=1000).astype(np.float32)
        file["terminals"] = np.zeros(1000, dtype=bool)
        file["timeouts"] = np.arange(1000) % 25 == 24
        file.attrs["env_id"] = "Reacher-v5"


def living(group: int) -> list[int]:
    """Processes of a process group that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def second_rank(first: int) -> int | None:
    """The process that the first rank started for the second one, if it is there yet."""
    for number in living(first):
        try:
            if number != first and b"LOCAL_RANK=1" in Path(f"/proc/{number}/environ").read_bytes().split(b"\0"):
                return number
        except OSError:
            continue
    return None


def case(chance: random.Random, ranks: int, phase: str, longest: float) -> dict[str, object]:
    """One run that is stopped."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data(folder / "small.hdf5")
        with open(folder / "terminal.txt", "w") as terminal:
            process = subprocess.Popen(
                [sys.executable, "-m", "oper_lightning", *WORDS, *(RANKS if ranks == 2 else [])],
                cwd=folder,
                stdout=terminal,
                stderr=terminal,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
            after = chance.uniform(0, longest)
            while phase == "training" and not (folder / "run" / "last.ckpt").exists() and process.poll() is None:
                time.sleep(0.01)
            time.sleep(after)
            kind = chance.choice(["SIGTERM", "SIGINT", "SIGKILL"] if ranks == 2 else ["SIGTERM", "SIGINT"])
            whom = chance.choice(["first", "second", "all"]) if ranks == 2 and kind != "SIGKILL" else "first"
            second = second_rank(process.pid) if ranks == 2 else None
            if kind == "SIGKILL":  # the first rank's own exit code cannot say anything then
                whom = "second"
            if whom == "second" and second is None:
                whom, kind = "first", kind if kind != "SIGKILL" else "SIGTERM"
            number = getattr(signal, kind)
            told = (folder / "terminal.txt").stat().st_size
            began = time.monotonic()
            if whom == "all":
                os.killpg(process.pid, number)
            else:
                os.kill(process.pid if whom == "first" else int(str(second)), number)
            left: list[int] = []
            while time.monotonic() - began < 60:
                process.poll()
                if not (left := living(process.pid)):
                    break
                time.sleep(0.02)
            seconds = time.monotonic() - began
            for number in left:
                os.kill(number, signal.SIGKILL)
            process.wait()
        text = (folder / "terminal.txt").read_bytes()[told:].decode()
        # A signal may find the run before its first words.
        progress = re.compile(r"BC +update |oper: (small.hdf5|read|BC): ?")
        lines = [line for line in text.splitlines() if line and not progress.match(line)]
        file = folder / "run" / "last.ckpt"
        updates = None
        if file.is_file():
            updates = torch.load(file, weights_only=True)["global_step"]  # raises if it is not whole
    good = seconds <= LIMIT and process.returncode == CODES[kind] and len(lines) == 1
    return {
        "ranks": ranks, "phase": phase, "signal": kind, "to": whom, "after": round(after, 3),
        "seconds": round(seconds, 3), "code": process.returncode, "lines": lines, "updates": updates, "good": good,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", choices=("start", "training"), default="start")
    parser.add_argument("--count", type=int, default=34)
    parser.add_argument("--longest", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("raw") / "stops.json")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    cases = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    for number in range(2 * arguments.count):
        found = case(chance, 1 + number % 2, arguments.phase, arguments.longest)
        cases.append(found)
        print(json.dumps(found), flush=True)
        arguments.output.write_text(json.dumps(cases, indent=1) + "\n")
    for ranks in (1, 2):
        mine = [found for found in cases if found["ranks"] == ranks and found["phase"] == arguments.phase]
        slowest = max(float(str(found["seconds"])) for found in mine)
        good = sum(bool(found["good"]) for found in mine)
        print(f"{arguments.phase}, {ranks} rank(s): {good} of {len(mine)} good, {slowest:.1f} s")


if __name__ == "__main__":
    main()
