"""`oper convert`: published .npy weights into a weights file."""

from __future__ import annotations

from pathlib import Path

import torch

from oper_lightning.data.sources.d4rl import D4RL
from oper_lightning.data.sources.source import Source
from oper_lightning.data.storage import fill, transitions_in
from oper_lightning.data.transitions import fingerprint
from oper_lightning.errors import InputError
from oper_lightning.priorities.file import FORMAT, save_tensors
from oper_lightning.priorities.priority import statistics
from oper_lightning.priorities.published import published_weights


def convert(files: list[str], source: Source, output: str = "weights.safetensors") -> None:
    """Turn the OPER authors' published .npy weights into a weights file for WeightsFile.

    It reads arrays, numbers and strings only; nothing in such a file can run.

    Args:
        files: published files, one per seed; files of the older layout, without iterations, are averaged into one seed.
        source: the dataset that the weights were made for; with D4RL, set its qlearning_rows to true.
        output: the weights file to write.
    """
    if isinstance(source, D4RL) and not source.qlearning_rows:
        raise InputError(
            "source: published weights belong to the rows of D4RL's qlearning_dataset: --source.qlearning_rows=true"
        )
    if Path(output).exists():
        raise InputError(f"{output}: exists already; name another --output")
    source.prepare()
    transitions = transitions_in(fill(source, torch.device("cpu")))
    tensors = published_weights(files, len(transitions))
    name = source.origin().dataset
    metadata = {
        "format": FORMAT,
        "fingerprint": fingerprint(transitions),
        "rows": len(transitions),
        "dataset": name,
        "hyper_parameters": {"published": [Path(file).name for file in files]},
        "statistics": [[statistics(row) for row in iteration] for iteration in tensors["weights"]],
    }
    save_tensors(Path(output), tensors, metadata)
    iterations, count, rows = tensors["weights"].shape
    print(f"{output}: {iterations} iterations, {count} seeds, {rows:,} transitions of {name}")
