"""A search like NeoRL-2's own, for CQL on DMSD: what differs from the settings of published_scores.py.

    python benchmarks/cql_search.py --data ../shared/data --jobs 2
    python benchmarks/cql_search.py --table

Seed 0, which is none of the published ones; evaluations of 100 episodes every 10,000 updates. Finished runs are not run
again, stopped ones go on from their last checkpoint. Raw results: benchmarks/raw/neorl2/search.
"""

from __future__ import annotations

import json

from published_scores import NEORL2
from scores import Run, grid

CQL = NEORL2.algorithms["cql"]
DMSD = NEORL2.tasks["DMSD"]
RAW = NEORL2.raw / "search"
SETTINGS: dict[str, list[str]] = {
    "as it is": [],
    "weight 10": ["--model.cql_weight=10"],
    "weight 1": ["--model.cql_weight=1"],
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


def run(setting: str) -> Run:
    """The setting's run."""
    words = [*CQL.words, *DMSD.source, "--seed_everything=0", "--trainer.max_steps=20000"]
    words += ["--data.updates_per_epoch=10000", "--data.rollouts.episodes=100", "--data.rollouts.parallel=50"]
    return Run(setting.replace(" ", "-").replace(",", ""), [*words, *SETTINGS[setting]])


def table() -> str:
    """Scores by setting, at every evaluation."""
    lines = ["| setting | scores after 10,000, 20,000 … updates |", "|---|---|"]
    for setting in SETTINGS:
        file = RAW / f"{run(setting).name}.json"
        if file.is_file():
            scores = json.loads(file.read_text())["curves"]["eval/score"]["values"]
            lines.append(f"| {setting} | {', '.join(f'{score:.1f}' for score in scores)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    grid(__doc__, [run(setting) for setting in SETTINGS], RAW, table)
