"""The folders that runs write to: one folder for each run, never two runs in one folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from oper_lightning.errors import InputError
from oper_lightning.files import remove

# Tells the processes that Lightning starts for further ranks which folder the first one took.
TAKEN = "OPER_RUN_FOLDER"
# What a process that was killed while it wrote may leave in a run's folder.
LEFT = ("*.ckpt.part", "*.yaml.part", "*.safetensors.part", "replay.part")

_lock: IO[str] | None = None
_found: frozenset[Path] | None = None
"""what was in the claimed folder before; None if this process made it"""


def release() -> None:
    """Gives up the folder that this process has claimed, and removes it if no run has begun in it."""
    global _lock
    os.environ.pop(TAKEN, None)
    if _lock is None:
        return
    folder = Path(_lock.name).parent
    if folder.is_dir() and not _began(folder):
        for child in folder.iterdir():
            if child not in (_found or ()):
                remove(child)
        if _found is None:
            folder.rmdir()
    _lock.close()
    _lock = None


def still_there() -> None:
    """Makes sure that the folder which this process claimed has not been moved or removed since.

    Raises:
        InputError: if it has been: files written now would be only half of a run.
    """
    if _lock is None:
        return
    try:
        same = os.path.samestat(os.fstat(_lock.fileno()), os.stat(_lock.name))
    except OSError:
        same = False
    if not same:
        raise InputError(f"{Path(_lock.name).parent}: the run's folder was removed or moved while it trained")


def _began(folder: Path) -> bool:
    """Whether there is more in a folder than what a run that wrote no file of its own may leave."""
    left = {path for pattern in LEFT for path in folder.glob(pattern)}
    return any(not child.name.startswith((".lock", "events.out")) for child in {*folder.iterdir()} - left)


def _hold(folder: Path, found: frozenset[Path] | None) -> bool:
    """Keeps other processes out of the folder until this one ends, however it ends; whether that can be done here."""
    global _lock, _found
    os.environ[TAKEN] = str(folder)
    try:
        import fcntl
    except ImportError:  # not a Unix system
        return False
    _found = found
    _lock = open(folder / ".lock", "a")  # noqa: SIM115 (stays open)
    try:
        fcntl.flock(_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _lock.close()
        _lock = None
        raise InputError(f"{folder}: another process writes to it; wait for it, or name another --output") from None
    except OSError:  # a file system without locks
        return False
    return True


def writable(folder: Path) -> None:
    """Makes sure that files can be written to the folder.

    Raises:
        InputError: if they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from None


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
    if rank() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
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
            _hold(parent / str(number), None)
            return parent / str(number)


def claim(folder: Path, resume: bool) -> Path:
    """Makes the folder, or makes sure that an existing one may be written to.

    Raises:
        InputError: if it holds another run or other files, is in use, or cannot be written.
    """
    if TAKEN in os.environ or rank():
        return folder
    new = not folder.exists()
    writable(folder)
    alone = _hold(folder, None if new else frozenset(folder.iterdir()))
    if _began(folder) and not resume:
        if not new and folder / ".lock" not in (_found or ()):
            (folder / ".lock").unlink(missing_ok=True)
        run = any((folder / name).exists() for name in ("config.yaml", "last.ckpt", "memmap"))
        raise InputError(
            f"{folder}: holds {'another run' if run else 'other files'} already; name another folder with --output"
            + (", or go on with that run by --ckpt_path=last" if run else "")
        )
    for left in (path for pattern in LEFT if alone for path in folder.glob(pattern)):
        remove(left)
    return folder


def rank() -> int:
    """Number of this process among those that run the same command, from 0, as its launcher's variables say."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return 0


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"{folder}: cannot write there ({error.strerror}); name another folder with --output")
