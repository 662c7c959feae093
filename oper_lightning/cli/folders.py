"""Where a run writes: one folder per run, never two runs in one."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only

from oper_lightning.errors import InputError

# Tells the processes that Lightning starts for further ranks which folder the first one took.
TAKEN = "OPER_RUN_FOLDER"


def _numbers(parent: Path) -> list[int]:
    return sorted(int(child.name) for child in parent.glob("*") if child.name.isdigit())


def latest(parent: Path) -> Path | None:
    """The latest numbered run in ``parent`` that left a checkpoint."""
    whole = [number for number in _numbers(parent) if (parent / str(number) / "last.ckpt").is_file()]
    return parent / str(whole[-1]) if whole else None


def claim_next(parent: Path) -> Path:
    """Makes and returns the next numbered folder in ``parent``.

    Raises:
        InputError: if it cannot be made.
    """
    if TAKEN in os.environ:
        return Path(os.environ[TAKEN])
    if _rank() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("several processes cannot agree on a numbered folder: name it with --output")
    number = max(_numbers(parent), default=-1) + 1
    while True:
        try:
            (parent / str(number)).mkdir(parents=True)
        except FileExistsError:  # another run was faster
            number += 1
        except OSError as error:
            raise _unwritable(parent, error) from None
        else:
            os.environ[TAKEN] = str(parent / str(number))
            return parent / str(number)


def claim(folder: Path, resume: bool) -> Path:
    """Makes the folder, or makes sure that an existing one may be written to.

    Raises:
        InputError: if it holds another run, or cannot be written.
    """
    if TAKEN in os.environ or _rank():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume and any(folder.iterdir()):
            raise InputError(
                f"{folder}: holds another run already; name another folder with --output, "
                f"or go on with that run by --ckpt_path=last"
            )
        probe = folder / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from None
    os.environ[TAKEN] = str(folder)
    return folder


def _rank() -> int:
    """Number of this process where something else than Lightning started several."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"{folder}: cannot write there ({error.strerror}); name another folder with --output")
