"""A search like NeoRL-2's own, for CQL on DMSD: what differs from the settings of published_scores.py.

    python benchmarks/cql_search.py --data ../shared/data --jobs 2
    python benchmarks/cql_search.py --table

Seed 0, which is none of the published ones; evaluations of 100 episodes every 10,000 updates. Finished runs are not run
again, stopped ones go on from their last checkpoint. Raw results: benchmarks/raw/neorl2/search.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from kept import keep
from published_scores import NEORL2, ROOT, oper
from scores import kept_curves

CQL = NEORL2.algorithms["cql"]
DMSD = NEORL2.tasks["DMSD"]
RAW = NEORL2.raw / "search"
FOLDER = "runs/published/search"
SETTINGS: dict[str, list[str]] = {
    "as it is": [],
    "weight 10": ["--model.cql_weight=10"],
    "policy rate 1e-4": ["--model.policy_learning_rate=1e-4"],
    "threshold 5": ["--model.lagrange_gap=5"],
    "threshold 10": ["--model.lagrange_gap=10"],
    "version 2": ["--model.importance_sampling=false"],
    "10 actions": ["--model.sampled_actions=10"],
    "observations as recorded": ["--model.normalise_observations=false"],
    "weight 10, observations as recorded": [
        "--model.cql_weight=10",
        "--model.normalise_observations=false",
        "--trainer.max_steps=40000",
    ],
    "targets by 0.005": ["--model.tau=0.005", "--trainer.max_steps=40000"],
    "cloning at first, observations as recorded": [
        "--model.normalise_observations=false",
        "--model.bc_updates=40000",
        "--trainer.max_steps=60000",
    ],
}


def called(setting: str) -> str:
    """Its name in files."""
    return setting.replace(" ", "-").replace(",", "")


def execute(data: str, setting: str) -> None:
    """Runs it and keeps its result."""
    folder = f"{FOLDER}/{called(setting)}"
    words = ["fit", *CQL.words, *DMSD.source, "--seed_everything=0", "--trainer.max_steps=20000"]
    words += ["--data.updates_per_epoch=10000", "--data.rollouts.episodes=100", "--data.rollouts.parallel=50"]
    words += [*SETTINGS[setting], f"--output={folder}", "--ckpt_path=last"]
    seconds = oper([word.format(data=data) for word in words], ROOT / f"{folder}.log", data)
    command = "oper " + " ".join(words).format(data="../shared/data")
    curves = kept_curves(ROOT / folder, "eval/score", "train/")
    keep(RAW / f"{called(setting)}.json", {"command": command, "cpu seconds": round(seconds, 1), "curves": curves})


def table() -> str:
    """Scores by setting, at every evaluation."""
    lines = ["| setting | scores after 10,000, 20,000 … updates |", "|---|---|"]
    for setting in SETTINGS:
        file = RAW / f"{called(setting)}.json"
        if file.is_file():
            scores = json.loads(file.read_text())["curves"]["eval/score"]["values"]
            lines.append(f"| {setting} | {', '.join(f'{score:.1f}' for score in scores)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="folder of the .npz files")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--only", default="", help="run only settings whose name contains this")
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        (ROOT / FOLDER).mkdir(parents=True, exist_ok=True)
        missing = [name for name in SETTINGS if arguments.only in name and not (RAW / f"{called(name)}.json").is_file()]
        with ProcessPoolExecutor(arguments.jobs) as pool:  # each counts the CPU seconds of its own children
            list(pool.map(partial(execute, arguments.data), missing))
    print(table())


if __name__ == "__main__":
    main()
