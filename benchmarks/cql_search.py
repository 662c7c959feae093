"""A search like NeoRL-2's own, for CQL on DMSD: what differs from the settings of published_scores.py.

    python benchmarks/cql_search.py --data ../shared/data --jobs 2
    python benchmarks/cql_search.py --table

Seed 0, which is none of the published ones; the published ones too where the setting is the best of NeoRL-2's search.
Evaluations of 100 episodes every 10,000 updates. Finished runs are not run again, stopped ones go on from their last
checkpoint. Raw results: benchmarks/raw/neorl2/search.
"""

from __future__ import annotations

import json

from intervals import interval
from published_scores import NEORL2
from scores import Run, grid

CQL = NEORL2.algorithms["cql"]
DMSD = NEORL2.tasks["DMSD"]
RAW = NEORL2.raw / "search"
BEST = "best of NeoRL-2's search"
SETTINGS: dict[str, list[str]] = {
    "as it is": [],
    "weight 10": ["--model.cql_weight=10"],
    "weight 1": ["--model.cql_weight=1"],
    "policy rate 1e-4": ["--model.policy_learning_rate=1e-4"],
    "gap 5": ["--model.lagrange_gap=5"],
    "gap 10": ["--model.lagrange_gap=10"],
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
    # Its threshold of 10 counts the weighted penalty: a gap of 2. The penalty of a critic that is the same for all
    # actions grows by the logarithm of their number, so that 4 of each kind instead of 10 take ln 2.5 from it.
    BEST: [
        "--model.lagrange_gap=1.08",
        "--model.initial_lagrange=1",
        "--model.backup_entropy=true",
        "--model.policy_learning_rate=1e-4",
        "--model.policy_hidden_sizes=[256,256,256]",
        "--model.critic_hidden_sizes=[256,256,256]",
        "--model.normalise_observations=false",
        "--model.tau=0.005",
        "--model.bc_updates=20000",
        "--trainer.max_steps=100000",
    ],
}


def run(called: str, words: list[str], seed: int = 0) -> Run:
    """A run with what differs from the settings of published_scores.py."""
    given = [*CQL.words, *DMSD.source, f"--seed_everything={seed}", "--trainer.max_steps=20000"]
    given += ["--data.updates_per_epoch=10000", "--data.rollouts.episodes=100", "--data.rollouts.parallel=50"]
    return Run(called.replace(" ", "-").replace(",", "").replace("'", ""), [*given, *words])


RUNS = {setting: run(setting, words) for setting, words in SETTINGS.items()}
PUBLISHED = {f"{BEST}, seed {seed}": seed for seed in NEORL2.seeds}  # shorter than with seed 0
RUNS |= {
    called: run(called, [*SETTINGS[BEST], "--trainer.max_steps=60000"], seed) for called, seed in PUBLISHED.items()
}


def table() -> str:
    """Scores of every run that has a result, at every evaluation; then the last ones over the published seeds."""
    files = {called: RAW / f"{known.name}.json" for called, known in RUNS.items()}
    curves = {
        called: json.loads(file.read_text())["curves"]["eval/score"]["values"]
        for called, file in files.items()
        if file.is_file()
    }
    lines = ["| setting | scores after 10,000, 20,000 … updates |", "|---|---|"]
    lines += [f"| {called} | {', '.join(f'{score:.1f}' for score in curve)} |" for called, curve in curves.items()]
    last = [curves[called][-1] for called in PUBLISHED if called in curves]
    return "\n".join([*lines, "", f"{BEST}, published seeds: {interval(last)}"])


if __name__ == "__main__":
    grid(__doc__, list(RUNS.values()), RAW, table)
