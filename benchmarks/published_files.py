"""What BREMEN's published policies earn, and how long a data set of BRAC takes to read.

    python benchmarks/published_files.py --data ../shared/data/bremen
    python benchmarks/published_files.py --table

One thread. A policy is converted by `oper convert` and plays 100 episodes; what is in raw/published_files.json is not
measured again. The data set is synthetic, as no published one was at hand.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from oper_lightning import BC
from oper_lightning.cli import main as oper
from oper_lightning.data.sources import crc32c
from oper_lightning.data.sources.brac import BRAC
from oper_lightning.envs.rollouts import World

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "benchmarks" / "raw" / "published_files.json"
SEEDS = range(10_000, 10_100)  # the first ten are those of `oper validate`
BARS = {"Ant": 2700, "HalfCheetah": 5000, "Hopper": 900, "Walker2d": None}
ROWS, OBSERVATIONS, ACTIONS = 600_000, 17, 6


def statistics(data: Path, name: str, folder: Path) -> tuple[Path, str]:
    """The file of a policy's statistics, and what they are."""
    if (fitted := data / f"{name}_fitted_norm.npz").is_file():
        return fitted, "fitted"
    first = np.load(data / f"{name}_first_deployment_stats.npz")
    np.savez(folder / "first.npz", mean=first["bc_mean_obs"], std=first["bc_std_obs"])
    return folder / "first.npz", "first deployment"


def policy(data: Path, name: str) -> dict[str, Any]:
    """Converts a policy and lets it play."""
    with tempfile.TemporaryDirectory() as folder:
        file, kind = statistics(data, name, Path(folder))
        words = [f"--statistics={file}", f"--environment=bremen/{name}-v0", f"--output={folder}/policy"]
        assert oper(["convert", str(data / f"{name}.npz"), "--to=checkpoint", *words]) == 0
        model = BC.load_from_checkpoint(f"{folder}/policy/last.ckpt", map_location="cpu", weights_only=True)
    returns, lengths = World(f"bremen/{name}-v0", {}, parallel=10).rollouts(model.act, SEEDS)
    return {"statistics": kind, "returns": returns.tolist(), "lengths": lengths.tolist()}


def reading() -> dict[str, Any]:
    """Writes a data set of BRAC by the tests' writer, and reads it five times."""
    sys.path.append(str(ROOT / "tests"))
    import tf_bundles

    tf_bundles.checksum = lambda data: crc32c.masked(crc32c.crc32c(data))  # a byte at a time takes a minute
    generator = np.random.default_rng(0)
    observations = generator.standard_normal((ROWS + 1, OBSERVATIONS), np.float32)
    stored = tf_bundles.brac(
        {
            "observations": observations[:-1],
            "next_observations": observations[1:],
            "actions": generator.uniform(-1, 1, (ROWS, ACTIONS)).astype(np.float32),
            "rewards": generator.standard_normal(ROWS, np.float32),
            "terminals": np.arange(ROWS) % 1000 == 999,
        }
    )
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        tf_bundles.write_bundle(Path(folder) / "data", stored)
        for _ in range(5):
            begin = time.process_time()
            assert len(BRAC(f"{folder}/data")) == ROWS
            seconds.append(round(time.process_time() - begin, 3))
    return {"rows": ROWS, "bytes": sum(array.nbytes for array in stored.values()), "cpu_seconds": seconds}


def table(found: dict[str, Any]) -> None:
    """Prints what was measured, in Markdown."""
    print("| policy | statistics | ten episodes | bar | 100 episodes | below half of the median | length |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name, bar in BARS.items():
        returns, lengths = (np.array(found[name][key]) for key in ("returns", "lengths"))
        ten, all_ = (f"{part.mean():,.0f} ± {part.std():,.0f}" for part in (returns[:10], returns))
        fell = int((returns < np.median(returns) / 2).sum())
        print(
            f"| {name} | {found[name]['statistics']} | {ten} | {bar or '–'} | {all_} | {fell} | {lengths.mean():.0f} |"
        )
    read = found["BRAC"]
    print(f"\n{read['bytes'] / 1e6:.0f} MB, {read['rows']:,} rows: {', '.join(map(str, read['cpu_seconds']))} CPU s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "bremen")
    parser.add_argument("--table", action="store_true", help="only print what the raw results say")
    arguments = parser.parse_args()
    found = json.loads(RAW.read_text()) if RAW.is_file() else {}
    for name in () if arguments.table else [*BARS, "BRAC"]:
        if name not in found:
            found[name] = reading() if name == "BRAC" else policy(arguments.data, name)
            RAW.write_text(json.dumps(found, indent=1))
    table(found)


if __name__ == "__main__":
    main()
