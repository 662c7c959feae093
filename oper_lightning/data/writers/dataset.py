"""Writes a source as a dataset in another format, whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from oper_lightning.data.sources.d4rl import D4RL
from oper_lightning.data.sources.minari import Minari
from oper_lightning.data.sources.source import Source
from oper_lightning.data.sources.tianshou import Tianshou
from oper_lightning.data.storage import fill
from oper_lightning.data.table import Table
from oper_lightning.data.transitions import has_returns
from oper_lightning.data.writers import d4rl, minari, tianshou
from oper_lightning.data.writers.recording import Recording
from oper_lightning.errors import InputError, first_line
from oper_lightning.files import beside, place

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""shows progress: takes a name and a number of transitions, and gives what is called with those that were written"""


class Written(NamedTuple):
    """What was written."""

    episodes: tuple[int, int]
    """how many, of how many"""
    rows: tuple[int, int]
    fingerprint: str
    losses: list[str]
    """what the format has no place for"""


def write_dataset(
    source: Source,
    to: Literal["minari", "tianshou", "d4rl"],
    target: Path,
    fraction: float = 1.0,
    seed: int = 0,
    data_format: str = "arrow",
    bar: Bar = lambda name, rows: nullcontext(lambda count: None),
) -> Written:
    """Writes a dataset beside its place, reads it back, and moves it there.

    Args:
        source: the dataset.
        to: its new format.
        target: a file, or for minari a folder.
        fraction: share of the episodes to take.
        seed: of that choice.
        data_format: of a Minari dataset, arrow or hdf5.
        bar: shows progress.

    Raises:
        InputError: if it cannot be written, or is not what was read; nothing is left of it then.
    """
    if os.path.lexists(target):
        raise InputError(f"{target}: exists already; name another --output")
    name = dataset_id(target) if to == "minari" else ""
    source.prepare()
    recording = Recording(Table(source, fill(source, torch.device("cpu"))), fraction, seed)
    rows, episodes = len(recording), (len(recording.spans), recording.total)
    new = beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with bar(target.name, rows) as recording.moved:
            if to == "minari":
                losses = minari.write(recording, new, data_format, name)
            else:
                losses = {"tianshou": tianshou, "d4rl": d4rl}[to].write(recording, new)
        knew_returns = has_returns(recording.table.transitions)
        expected = recording.table.recorded if rows == len(recording.table) else None
        del recording  # what is read back needs the room of its table
        written = {"minari": Minari, "tianshou": Tianshou, "d4rl": D4RL}[to](str(new.absolute()))
        result = Table(written, fill(written, torch.device("cpu")))
        if expected != result.recorded and expected is not None and not losses:
            raise InputError(f"{target}: read back, it holds other data than {source}; nothing is left of it")
        os.rename(new, target)
    except OSError as error:
        raise InputError(f"{target}: cannot write it ({error.strerror or first_line(error)})") from None
    finally:
        shutil.rmtree(new) if new.is_dir() else new.unlink(missing_ok=True)
    if knew_returns:
        losses.append("what whole episodes returned: to priorities, single transitions will return their own rewards")
    return Written(episodes, (len(result), rows), result.recorded, losses)


def store() -> Path:
    """The folder of the local Minari datasets."""
    return place(os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")).absolute()


def dataset_id(folder: Path) -> str:
    """The id of a Minari dataset that is to lie in a folder: its place in the store, or else the folder's name.

    Raises:
        InputError: if Minari would not take it.
    """
    inside = folder.absolute().is_relative_to(store())
    name = str(folder.absolute().relative_to(store())) if inside else folder.name
    if not re.fullmatch(r"([\w./-]*/)?[\w.-]*[\w.]-v\d+", name):
        raise InputError(
            f"{folder}: a Minari dataset is named like name-v0, by letters, digits and -_.; rename --output"
        )
    return name
