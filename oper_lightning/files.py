"""Files that are written whole or not at all, and read within bounds."""

from __future__ import annotations

import difflib
import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from oper_lightning.errors import InputError, first_line, reading

LARGEST_TEXT = 16 << 20  # bytes of a configuration or of a dataset's metadata
MUCH = 1 << 30  # bytes that may be packed however tightly
PACKED = 500  # to one; recorded data, however dull, are not packed more tightly
LITTLE = 1 << 16  # bytes that are always free; asking costs more than they do
LARGEST_YAML = 100_000  # entries, those behind aliases counted each time


def place(path: str | Path) -> Path:
    """A path as a person writes it: ``~`` is the home folder."""
    return Path(path).expanduser()


def existing(path: str | Path, what: str = "file") -> Path:
    """The path of a file that must exist.

    Raises:
        InputError: if it is not; the line says where it was looked for.
    """
    found = place(path)
    if not found.is_file():
        where = "" if str(found.absolute()) == str(path) else f" (looked for at {found.absolute()})"
        reason = "is a folder, not a file" if found.is_dir() else "is no regular file" if found.exists() else None
        raise InputError(f"{path}: {reason or f'no such {what}'}{where}{'' if reason else _like(found)}")
    return found


def _like(missing: Path) -> str:
    """A phrase that names what lies in the folder under a name like the missing one, if anything does."""
    try:
        names = sorted(os.listdir(missing.parent))
    except OSError:
        return f"; there is no folder {missing.parent}{_like(missing.parent)}" if missing.parent.name else ""
    close = [name for name in names if name.lower() == missing.name.lower()]
    close = close or difflib.get_close_matches(missing.name, names, n=2, cutoff=0.6)
    return "; did you mean " + " or ".join(repr(name) for name in close) + "?" if close else ""


def read_text(path: str | Path) -> str:
    """The text of a small UTF-8 file.

    Raises:
        InputError: if it is missing, too large for what it should be, or not UTF-8.
    """
    file = existing(path)
    with reading(path, "text in UTF-8"):
        if (size := file.stat().st_size) > LARGEST_TEXT:
            raise InputError(f"{path}: {size:,} bytes; such a file has at most {LARGEST_TEXT:,}")
        return file.read_text(encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: if it cannot be read.
    """
    text = read_text(path)
    with reading(path, "JSON"):
        return json.loads(text)


def read_yaml(path: str | Path) -> Any:
    """What a yaml file holds; plain values only.

    Raises:
        InputError: if it cannot be read, or aliases make it larger than any configuration.
    """
    import yaml

    text = read_text(path)
    with reading(path, "yaml"):
        try:
            root = yaml.compose(text, yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
            raise InputError(f"{path}: not valid yaml: {error.problem}{where}") from None
        if root is not None and _entries(root, {}) > LARGEST_YAML:
            raise InputError(f"{path}: more than {LARGEST_YAML:,} entries (aliases counted each time)")
        tree = yaml.safe_load(text)
        repr(tree)  # a number of too many digits fails here, where the file is known
        return tree


def _entries(node: Any, counted: dict[int, int]) -> int:
    """How many entries a yaml node stands for, in time that does not grow with the aliases in it."""
    if id(node) in counted:
        return counted[id(node)]
    counted[id(node)] = LARGEST_YAML  # a node inside itself never ends
    value = node.value if isinstance(node.value, list) else []
    children = [child for entry in value for child in (entry if isinstance(entry, tuple) else (entry,))]
    counted[id(node)] = 1 + sum(_entries(child, counted) for child in children)
    return counted[id(node)]


def free_memory() -> int:
    """Bytes of main memory that can be taken without swapping; what the machine has where that is not known."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fits_memory(size: int, origin: object, what: str) -> None:
    """Refuses to take ``size`` bytes of memory if fewer are free.

    Raises:
        InputError: if fewer are free; the line names ``origin``, and ``what`` needs the memory.
    """
    if size > LITTLE and size > (free := free_memory()):
        raise InputError(
            f"{origin}: {what} would take {size / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are free"
        )


def read_torch(path: str | Path) -> Any:
    """What a file of PyTorch holds, on the CPU: tensors and plain values. Nothing in it is run.

    Raises:
        InputError: if it is missing or broken, or holds anything else.
    """
    import zipfile

    import torch

    file = existing(path, "checkpoint")
    try:
        with zipfile.ZipFile(file) as archive:
            # What PyTorch writes is not compressed: what is could be of any size once it is read.
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
        if compressed:
            raise InputError(f"{path}: not a checkpoint of oper-lightning: its entries are compressed")
        fits_memory(file.stat().st_size, path, "its tensors")
        return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # whatever a broken file makes PyTorch raise
        reason = first_line(error)
        raise InputError(f"{path}: not a whole checkpoint ({reason}); try best.ckpt or last.ckpt beside it") from None


def plausibly_packed(packed: int, size: int, origin: object, what: str) -> None:
    """Refuses ``size`` bytes that are packed into ``packed``, if they are many and no recording could be packed so.

    Raises:
        InputError: if so; the line names ``origin``, and ``what`` is packed.
    """
    if size > MUCH and size > PACKED * packed:
        raise InputError(
            f"{origin}: {what} unpacks from {packed:,} bytes to {size:,}, which no recording does; if they are "
            f"wanted all the same, save them without compression"
        )


def beside(path: Path) -> Path:
    """A temporary name beside ``path``: this process writes there, and then moves the result to ``path``.

    Removes what processes of this machine that no longer run left under such names.
    """
    start = f".{path.name}.{os.uname().nodename}."
    for left in path.parent.glob(f"{glob.escape(start)}*"):
        process = left.name.removeprefix(start)
        if process.isdecimal() and int(process) != os.getpid() and not _runs(int(process)):
            remove(left)
    return path.with_name(f"{start}{os.getpid()}")


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it, as far as that is possible."""
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _runs(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # a process of another user
        return True
    return True


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Opens a file beside ``path``, makes sure that it is on the disk, and moves it there in one step.

    Raises:
        InputError: if it cannot be written; what was at ``path`` stays.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, OSError):  # torch makes a RuntimeError of a full disk's
            reason = reason.__context__
        if reason is None or isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot write it ({reason.strerror}); name another folder") from None
