"""`oper convert`: a dataset into another format, or published .npy weights into a weights file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from oper_lightning.cli.outline import classes
from oper_lightning.data.sources.d4rl import D4RL
from oper_lightning.data.sources.source import Source
from oper_lightning.data.storage import fill, transitions_in
from oper_lightning.data.transitions import fingerprint
from oper_lightning.data.writers.dataset import write_dataset
from oper_lightning.errors import InputError
from oper_lightning.files import place
from oper_lightning.priorities.file import FORMAT, save_tensors
from oper_lightning.priorities.priority import statistics
from oper_lightning.priorities.published import published_weights
from oper_lightning.report.inspect import open_source

To = Literal["minari", "tianshou", "d4rl"]


def convert(
    files: Sequence[str] = (),
    source: Source | None = None,
    to: To | None = None,
    output: str | None = None,
    fraction: float = 1.0,
    seed: int = 0,
    data_format: Literal["arrow", "hdf5"] = "arrow",
) -> None:
    """Turn a dataset into another format, or the OPER authors' published .npy weights into a weights file.

    With --to, the dataset is read as training would read it, written whole or not at all, and read back: what is shown
    at the end is the fingerprint of the result. Without --to, .npy files become weights for WeightsFile. Nothing that
    is read can run.

    Args:
        files: with --to, the dataset: a .hdf5 or .npz file, the name of a D4RL dataset, the id or folder of a Minari
            dataset, or the folder of a run (what it gathered, or else what it read). Without, published weights, one
            file per seed; files of the older layout, without iterations, are averaged into one seed.
        source: the dataset, if its source needs arguments; for weights the one that they were made for, which with
            D4RL has qlearning_rows set to true.
        to: minari, tianshou (a replay buffer as HDF5) or d4rl (a flat HDF5 file).
        output: what to write: a file, for minari a folder; weights go to weights.safetensors by default.
        fraction: share of the episodes to take, such as 0.1; which ones, chance decides.
        seed: seed of that choice; with the same seed, a smaller share is part of a larger one.
        data_format: of a Minari dataset, arrow or hdf5.
    """
    if to is None:
        return _weights(list(files), source, output or "weights.safetensors")
    if output is None:
        raise InputError("output must be given: the file to write, or the folder of a Minari dataset")
    if not 0 < fraction <= 1:
        raise InputError(f"fraction is {fraction:g}; a share of the episodes above 0 and up to 1 is needed")
    if source is None:
        if len(files) != 1:
            raise InputError(f"{len(files)} datasets named; with --to name one, or --source")
        source = open_source(files[0])
    elif files:
        raise InputError(f"{files[0]}: the dataset is named by --source already")
    dataset(source, to, place(output), fraction, seed, data_format)


def dataset(
    source: Source, to: To, target: Path, fraction: float = 1.0, seed: int = 0, data_format: str = "arrow"
) -> None:
    """Writes a dataset in another format, and says what became of it; see :func:`write_dataset`."""
    (episodes, total), (rows, of), fingerprint, losses = write_dataset(
        source, to, target, fraction, seed, data_format, bar
    )
    print(f"{target}: {episodes:,} of {total:,} episodes, {rows:,} transitions, fingerprint {fingerprint}")
    for loss in losses:
        print(f"not kept: {loss}")
    if dropped := of - rows:
        print(f"{dropped:,} of {of:,} transitions are not kept")


@contextmanager
def bar(name: str, rows: int | None, what: str = "transitions") -> Iterator[Callable[[int], None]]:
    """A progress bar, by default over transitions, where the output is a terminal; gives what moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(f"{what},")]
    columns += [TimeRemainingColumn(compact=True), TextColumn("left")]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=rows)
        yield lambda count: bar.advance(task, count)


def _weights(files: list[str], source: Source | None, output: str) -> None:
    """Published weights into a weights file."""
    if source is None:
        what = "" if all(file.endswith(".npy") for file in files) else "; for another format than weights give --to"
        raise InputError(f"source must be given, one of {', '.join(classes('source'))}: what the weights are for{what}")
    if not files:
        raise InputError("name published .npy files; or with --to the format that the dataset is to have")
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
