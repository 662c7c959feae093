"""Writes a source as a dataset in another format, whole or not at all."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from oper_lightning.data.mapped import mapped
from oper_lightning.data.progress import progress
from oper_lightning.data.sources.d4rl import D4RL
from oper_lightning.data.sources.minari import Minari
from oper_lightning.data.sources.source import Source
from oper_lightning.data.sources.tianshou import Tianshou
from oper_lightning.data.table import Table
from oper_lightning.data.transitions import has_returns
from oper_lightning.data.writers import d4rl, minari, tianshou
from oper_lightning.data.writers.recording import Recording
from oper_lightning.errors import InputError, first_line, log
from oper_lightning.files import beside, place, remove

To = Literal["minari", "tianshou", "d4rl"]


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
    to: To,
    target: Path,
    fraction: float = 1.0,
    seed: int = 0,
    data_format: str = "arrow",
) -> Written:
    """Writes a dataset beside its place, reads it back, and moves it there.

    Args:
        source: the dataset.
        to: its new format.
        target: a file, or for minari a folder.
        fraction: share of the episodes to take.
        seed: of that choice.
        data_format: of a Minari dataset, arrow or hdf5.

    Raises:
        InputError: if it cannot be written, or is not what was read; nothing is left of it then.
    """
    name = dataset_id(target) if to == "minari" else ""
    source.prepare()
    new = beside(target)
    try:
        with mapped(source) as storage:
            recording = Recording(Table(source, storage), fraction, seed)
            rows, episodes = len(recording), (len(recording.spans), recording.total)
            knew_returns = has_returns(recording.table.transitions)
            expected = recording.table.recorded if rows == len(recording.table) else None
            target.parent.mkdir(parents=True, exist_ok=True)
            remove(new)  # an earlier process of the same number may have left it
            with progress(target.name, rows, "transitions") as recording.moved:
                if to == "minari":
                    losses = minari.write(recording, new, data_format, name)
                else:
                    losses = {"tianshou": tianshou, "d4rl": d4rl}[to].write(recording, new)
        del recording, storage  # what is read back needs the room on the disk
        written = {"minari": Minari, "tianshou": Tianshou, "d4rl": D4RL}[to](str(new.absolute()))
        with _called(target, new.absolute()), mapped(written) as storage:
            result = Table(written, storage)
            count, found = len(result), result.recorded
        if expected not in (None, found) and not losses:
            raise InputError(f"{target}: read back, it holds other data than {source}; nothing is left of it")
        os.rename(new, target)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{target}: cannot write it, as {target.parent} is no folder; name another --output") from None
    except OSError as error:
        raise InputError(f"{target}: cannot write it ({error.strerror or first_line(error)})") from None
    finally:
        remove(new)
    if knew_returns:
        losses.append("what whole episodes returned: to priorities, single transitions will return their own rewards")
    return Written(episodes, (count, rows), found, losses)


def holds(target: Path, source: Source) -> bool:
    """Whether there is a Minari dataset with the very transitions and reference of a source."""
    found = []
    for one in (source, Minari(str(target.absolute()))):
        try:
            one.prepare()
            with mapped(one) as storage:
                found.append((Table(one, storage).recorded, one.origin().reference))
        except InputError:
            if one is source:
                raise
            return False  # something else lies there
    return found[0] == found[1]


@contextmanager
def _called(target: Path, new: Path) -> Iterator[None]:
    """Notes and errors on a file that lies under a temporary name call it as a person asked for it."""

    def named(text: object) -> str:
        return str(text).replace(str(new), str(target))

    def rename(record: logging.LogRecord) -> bool:
        record.msg = named(record.msg)
        return True

    log.addFilter(rename)
    try:
        yield
    except InputError as error:
        raise InputError(named(error)) from None
    finally:
        log.removeFilter(rename)


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
        raise InputError(f"{folder}: a Minari dataset is named like name-v0, by letters, digits and -_.; rename it")
    return name
