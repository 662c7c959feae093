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


def run(setting: str, seed: int = 0) -> Run:
    """The setting's run, over a published seed a shorter one."""
    words = [*CQL.words, *DMSD.source, f"--seed_everything={seed}", "--trainer.max_steps=20000"]
    words += ["--data.updates_per_epoch=10000", "--data.rollouts.episodes=100", "--data.rollouts.parallel=50"]
    name = setting.replace(" ", "-").replace(",", "").replace("'", "") + (f"-seed-{seed}" if seed else "")
    return Run(name, [*words, *SETTINGS[setting], *(["--trainer.max_steps=60000"] if seed else [])])


def scores(setting: str, seed: int = 0) -> list[float]:
    """Scores of all its evaluations; none while it has no result."""
    file = RAW / f"{run(setting, seed).name}.json"
    return json.loads(file.read_text())["curves"]["eval/score"]["values"] if file.is_file() else []


def table() -> str:
    """Scores by setting, at every evaluation; then the best setting's last ones over the published seeds."""
    lines = ["| setting | scores after 10,000, 20,000 … updates |", "|---|---|"]
    curves = {setting: scores(setting) for setting in SETTINGS}
    curves |= {f"{BEST}, seed {seed}": scores(BEST, seed) for seed in NEORL2.seeds}
    lines += [f"| {name} | {', '.join(f'{score:.1f}' for score in curve)} |" for name, curve in curves.items() if curve]
    last = [curve[-1] for seed in NEORL2.seeds if (curve := scores(BEST, seed))]
    return "\n".join([*lines, "", f"{BEST}, published seeds: {interval(last)}"])


if __name__ == "__main__":
    published = [run(BEST, seed) for seed in NEORL2.seeds]
    grid(__doc__, [*(run(setting) for setting in SETTINGS), *published], RAW, table)
