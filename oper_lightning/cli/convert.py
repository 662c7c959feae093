"""`oper convert`: a dataset into another format, published .npy weights into a weights file, or a published policy into
a checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from tensordict import TensorDict

from oper_lightning.cli.outline import classes
from oper_lightning.cli.published_policy import convert_policy
from oper_lightning.data.sources.d4rl import D4RL
from oper_lightning.data.sources.source import Source
from oper_lightning.data.storage import fill, transitions_in
from oper_lightning.data.transitions import are_images, fingerprint
from oper_lightning.data.writers.dataset import To, write_dataset
from oper_lightning.errors import InputError
from oper_lightning.files import place
from oper_lightning.priorities.file import FORMAT, save_tensors
from oper_lightning.priorities.priority import statistics
from oper_lightning.priorities.published import published_weights
from oper_lightning.report.inspect import open_source


def convert(
    files: Sequence[str] = (),
    source: Source | None = None,
    to: To | Literal["checkpoint"] | None = None,
    output: str | None = None,
    fraction: float = 1.0,
    seed: int = 0,
    data_format: Literal["arrow", "hdf5"] = "arrow",
    statistics: str | None = None,
    environment: str | None = None,
) -> None:
    """Turn a dataset into another format, the OPER authors' published .npy weights into a weights file, or a policy of
    BREMEN's authors into a checkpoint.

    With --to, the dataset is read as training would read it, written whole or not at all, and read back: what is shown
    at the end is the fingerprint of the result. Without --to, .npy files become weights for WeightsFile. Nothing that
    is read can run.

    Args:
        files: with --to, the dataset: a .hdf5 or .npz file, the name of a D4RL dataset, the id or folder of a Minari
            dataset, a data set of BRAC, or the folder of a run (what it gathered, or else what it read). With
            --to=checkpoint, a published policy: a .npz file, or a checkpoint of TensorFlow. Without --to, published
            weights, one file per seed; files of the older layout, without iterations, are averaged into one seed.
        source: the dataset, if its source needs arguments; for weights the one that they were made for, which with
            D4RL has qlearning_rows set to true.
        to: minari, tianshou (a replay buffer as HDF5), d4rl (a flat HDF5 file), or checkpoint.
        output: what to write: a file, for minari and checkpoint a folder; weights go to weights.safetensors by default.
        fraction: share of the episodes to take, such as 0.1; which ones, chance decides.
        seed: seed of that choice; with the same seed, a smaller share is part of a larger one.
        data_format: of a Minari dataset, arrow or hdf5.
        statistics: for a policy, a .npz file with mean and std of the observations, by which it sees them normalised.
        environment: for a policy, the Gymnasium id of the environment that it acts in.
    """
    for name, given in (("statistics", statistics), ("environment", environment)):
        if given is not None and to != "checkpoint":
            raise InputError(f"{name} is for a policy: --to=checkpoint")
    if to is None:
        if fraction != 1:
            raise InputError("fraction: of a dataset, whose new format --to names; weights are for all transitions")
        return _weights(list(files), source, place(output or "weights.safetensors"))
    if not output:
        meant = f"; --output={files[1]}?" if len(files) == 2 else ""
        raise InputError(f"output must be given: the file to write, or the folder of a Minari dataset{meant}")
    if not 0 < fraction <= 1:
        raise InputError(f"fraction is {fraction:g}; a share of the episodes above 0 and up to 1 is needed")
    if data_format != "arrow" and to != "minari":
        raise InputError(f"data_format is {data_format}; only a Minari dataset has one, and --to is {to}")
    target = place(output)
    if to == "checkpoint":
        if source is not None or len(files) != 1 or fraction != 1:
            raise InputError("with --to=checkpoint name one policy, and neither --source nor --fraction")
        if os.path.lexists(target):
            raise InputError(f"{output}: exists already; name another --output")
        return convert_policy(files[0], statistics, environment, target)
    if to != "minari" and (output.endswith("/") or target.is_dir()):
        raise InputError(f"{output}: a folder; name the file to write, such as {target / 'replay.hdf5'}")
    if os.path.lexists(target):
        raise InputError(f"{target}: exists already; name another --output")
    if source is None:
        if len(files) != 1:
            raise InputError(f"{len(files)} datasets named; with --to name one, or --source")
        source = open_source(files[0])
    elif files:
        raise InputError(f"{files[0]}: the dataset is named by --source already")
    dataset(source, to, target, fraction, seed, data_format)


def dataset(
    source: Source, to: To, target: Path, fraction: float = 1.0, seed: int = 0, data_format: str = "arrow"
) -> None:
    """Writes a dataset in another format, and says what became of it; see :func:`write_dataset`."""
    (episodes, total), (count, rows), found, losses = write_dataset(source, to, target, fraction, seed, data_format)
    print(f"{target}: {episodes:,} of {total:,} episodes, {count:,} transitions, fingerprint {found}")
    for loss in losses:
        print(f"not kept: {loss}")
    if dropped := rows - count:
        print(f"{dropped:,} of {rows:,} transitions are not kept")


def _weights(files: list[str], source: Source | None, output: Path) -> None:
    """Published weights into a weights file."""
    if not files:
        raise InputError("name a dataset, and with --to the format that it is to have; or published .npy weights")
    if others := [file for file in files if not file.endswith(".npy")]:
        raise InputError(
            f"{others[0]}: no published weights (.npy); to turn a dataset into another format give --to=minari, "
            f"tianshou or d4rl, to turn a policy into a checkpoint --to=checkpoint, and --output"
        )
    if source is None:
        raise InputError(f"source must be given, one of {', '.join(classes('source'))}: what the weights are for")
    if isinstance(source, D4RL) and not source.qlearning_rows:
        raise InputError(
            "source: published weights belong to the rows of D4RL's qlearning_dataset: --source.qlearning_rows=true"
        )
    if os.path.lexists(output):
        raise InputError(f"{output}: exists already; name another --output")
    source.prepare()

    def vectors_only(episodes: TensorDict) -> None:
        if are_images(episodes["observation"]):
            raise InputError(f"{source}: images; OPER-A's weights are for vectors, and WeightsFile takes no others")

    transitions = transitions_in(fill(source, torch.device("cpu"), look_at=vectors_only))
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
    save_tensors(output, tensors, metadata)
    iterations, count, rows = tensors["weights"].shape
    print(f"{output}: {iterations} iterations, {count} seeds, {rows:,} transitions of {name}")
