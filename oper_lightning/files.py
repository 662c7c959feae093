"""Files that are whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from oper_lightning.errors import InputError


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Opens a file beside ``path``, makes sure that it is on the disk, and moves it there in one step.

    Raises:
        InputError: if it cannot be written; what was at ``path`` stays.
    """
    beside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"{path}: cannot write it ({error.strerror}); name another folder") from None
