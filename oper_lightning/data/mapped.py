"""Transitions that are looked at once, and lie on the disk meanwhile."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from oper_lightning.data.rl import TensorStorage
from oper_lightning.data.sources.source import Source
from oper_lightning.data.storage import fill
from oper_lightning.errors import InputError, first_line
from oper_lightning.files import beside, remove


@contextmanager
def mapped(source: Source) -> Iterator[TensorStorage]:
    """All transitions of a source, memory-mapped in a temporary folder that is removed at the end.

    Folders that killed processes left behind are removed, too. The folder lies where Python keeps temporary files
    ($TMPDIR).

    Raises:
        InputError: if there is no room for it, or the source is not what :func:`fill` takes.
    """
    folder = beside(Path(tempfile.gettempdir()) / "oper-transitions")
    remove(folder)  # an earlier process of the same number may have left it
    try:
        try:
            folder.mkdir(mode=0o700)
            storage = fill(source, torch.device("cpu"), folder)
        except OSError as error:
            raise InputError(
                f"{source}: no place for its transitions in {folder.parent} ({error.strerror or first_line(error)}); "
                f"set TMPDIR to a folder with room"
            ) from None
        yield storage
    finally:
        remove(folder)
