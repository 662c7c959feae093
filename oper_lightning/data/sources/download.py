"""Files from the web."""

from __future__ import annotations

import http.client
import os
import urllib.request
from pathlib import Path

from oper_lightning.data.progress import progress
from oper_lightning.errors import InputError, note
from oper_lightning.files import beside

CHUNK = 1 << 20  # bytes


def download(name: str, address: str, target: Path) -> Path:
    """Fetches a file unless it is there, to a temporary name first.

    Args:
        name: what a person calls it.
        address: where it is.
        target: where it is to be.

    Raises:
        InputError: if it cannot be fetched; the line says from where to get it and where to put it.
    """
    if target.is_file():
        return target
    note(f"downloading {address} to {target}")
    new = beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(address, timeout=30) as answer, open(new, "wb") as file:
            announced = answer.headers.get("Content-Length")
            expected = int(announced) if announced and announced.isdecimal() else None
            with progress(target.name, expected) as show:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    show(file.tell())
        if expected is not None and (size := new.stat().st_size) != expected:
            raise OSError(f"{size:,} of {expected:,} bytes came")
        os.replace(new, target)
    except (OSError, http.client.HTTPException) as error:
        new.unlink(missing_ok=True)
        reason = getattr(error, "reason", error)
        raise InputError(
            f"{name}: cannot download it ({reason}); fetch {address} yourself and put it at {target}"
        ) from None
    return target
