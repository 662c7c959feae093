"""Does bfloat16 hold its scores? The grid's cells once more, in bf16-mixed and compiled, beside those in float32.

    python benchmarks/precision.py --data ../shared/data          # runs what is missing
    python benchmarks/precision.py --table                        # only the table

Settings, lengths and data are those of benchmarks/scores.py, whose results in float32 are taken as they are. Raw
results go to benchmarks/raw/precision; a run that was stopped goes on.
"""

from __future__ import annotations

import json

import scores
from intervals import difference, interval

from oper_lightning.report.curves import final

RAW = scores.ROOT / "benchmarks" / "raw" / "precision"
ALGORITHMS = ("td3_bc", "iql", "cql", "bc")
PRIORITIES = ("uniform", "oper_r")
DATASETS = ("hopper-replay", "halfcheetah-replay")


def runs() -> list[scores.Run]:
    """What there is to run."""
    found = []
    for priority in PRIORITIES:
        for dataset in DATASETS:
            for seed in range(scores.SEEDS):
                for algorithm in ALGORITHMS:
                    contender = scores.ALGORITHMS[algorithm]
                    words = scores.fitted(dataset, algorithm, contender.updates, seed)
                    words += scores.priority(priority, dataset, contender.iteration)
                    name = f"{dataset}-{algorithm}-{priority}-{seed}-bf16"
                    found.append(scores.Run(name, [*words, scores.LOW, scores.COMPILED]))
    return found


def score(folder: str, name: str) -> float | None:
    """Mean score of a run's last evaluations."""
    file = scores.RAW.parent / folder / f"{name}.json"
    if not file.is_file():
        return None
    return final(json.loads(file.read_text())["curves"]["eval/score"]["values"])


def table() -> str:
    """Scores by cell in both precisions: mean over seeds, and each seed."""
    lines = [
        "| data | algorithm | priority | float32 | each seed | bfloat16 | each seed | difference |",
        "|---|---|---|---:|---|---:|---|---:|",
    ]
    for dataset in DATASETS:
        for algorithm in ALGORITHMS:
            for priority in PRIORITIES:
                cells = [f"{dataset}-{algorithm}-{priority}-{seed}" for seed in range(scores.SEEDS)]
                low = [value for cell in cells if (value := score("precision", f"{cell}-bf16")) is not None]
                full = [value for cell in cells if (value := score("scores", cell)) is not None]
                if not low or not full:
                    continue
                parts = [dataset, algorithm, priority]
                for values in (full, low):
                    parts += [interval(values), ", ".join(f"{value:.1f}" for value in values)]
                parts.append(difference(full, low) if min(len(full), len(low)) == scores.SEEDS else "–")
                lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    scores.grid(__doc__, runs(), RAW, table)
