"""What a case is, and mutations that know nothing of what is in a file: bytes, and entries of nested values."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

LARGEST_FILE = 4 << 30  # bytes that a case may write into one file


@dataclass
class Told:
    """What is expected of a command on a mutated input."""

    must: str = "either"
    """refuse, accept, or either: it may be harmless"""
    words: str = ""
    """to add to the command"""
    command: str = ""
    """in place of the kind's own commands"""
    names: tuple[str, ...] = ()
    """one of which a refusal must hold; by default the kind's"""


REFUSE, ACCEPT, EITHER = Told("refuse"), Told("accept"), Told()
Mutation = Callable[[Random], Told]


@dataclass
class Kind:
    """A kind of input: where it lies in the working folder, what reads it, and what may be wrong with it."""

    file: Callable[[Random], str]
    """chooses the file that is mutated by bytes"""
    names: tuple[str, ...]
    commands: Callable[[Random], str]
    mutations: dict[str, Mutation] = field(default_factory=dict)
    bytes: bool = True
    own: bool = False
    """a person named it on the command line: it may hold code of their own, and say where to write"""

    def all(self) -> dict[str, Mutation]:
        """Mutations by name; those of bytes several times, as no two of them are alike."""
        by_bytes = {f"bytes: {name}": self._on_file(function) for name, function in BYTES.items()} if self.bytes else {}
        again = {f"{name} {n}": by_bytes[name] for name in list(by_bytes)[:4] for n in (2, 3)}
        return {**self.mutations, **by_bytes, **again}

    def _on_file(self, function: Callable[[Path, Random], Told]) -> Mutation:
        return lambda rng: function(Path(self.file(rng)), rng)


# Bytes ---------------------------------------------------------------------------------------------------------------


def _flip(path: Path, rng: Random) -> Told:
    data = bytearray(path.read_bytes())
    reach = rng.choice([64, 512, 4096, len(data)])  # headers are short and break more
    for _ in range(rng.choice([1, 4, 32])):
        data[rng.randrange(min(reach, len(data)))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return EITHER


def _random_bytes(path: Path, rng: Random) -> Told:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 8])):
        start = rng.randrange(len(data))
        data[start : start + 8] = rng.choice([b"\xff" * 8, b"\x00" * 8, rng.randbytes(8), b"\x7f" + b"\xff" * 7])
    path.write_bytes(data)
    return EITHER


def _truncate(path: Path, rng: Random) -> Told:
    data = path.read_bytes()
    path.write_bytes(data[: rng.choice([rng.randrange(len(data)), len(data) // 2, len(data) - 1, min(8, len(data))])])
    return EITHER


def _insert(path: Path, rng: Random) -> Told:
    data = path.read_bytes()
    place = rng.randrange(len(data))
    path.write_bytes(data[:place] + rng.randbytes(rng.choice([1, 7, 512])) + data[place:])
    return EITHER


def _zeros(path: Path, rng: Random) -> Told:
    data = bytearray(path.read_bytes())
    start, size = rng.randrange(len(data)), rng.choice([16, 256, 4096])
    data[start : start + size] = bytes(len(data[start : start + size]))
    path.write_bytes(data)
    return EITHER


def _append(path: Path, rng: Random) -> Told:
    path.write_bytes(path.read_bytes() + rng.randbytes(100))
    return EITHER


def _empty(path: Path, rng: Random) -> Told:
    path.write_bytes(b"")
    return EITHER  # an empty yaml is one


def _noise(path: Path, rng: Random) -> Told:
    path.write_bytes(rng.randbytes(3000))
    return REFUSE


def _other_format(path: Path, rng: Random) -> Told:
    others = ["data.hdf5", "data.npz", "published.npy", "runs/BC/last.ckpt", "weights.safetensors"]
    others = [name for name in others if Path(name).suffix != path.suffix and Path(name).exists()]
    shutil.copy(rng.choice(others), path)
    return REFUSE


def _text(path: Path, rng: Random) -> Told:
    path.write_text(rng.choice(["observations", "null", "[]", "0", "{", "\ufeff", "a: [b", "\t- x", "'"]))
    return EITHER


def _folder(path: Path, rng: Random) -> Told:
    path.unlink()
    path.mkdir()
    return REFUSE


def _fifo(path: Path, rng: Random) -> Told:
    path.unlink()
    os.mkfifo(path)
    return REFUSE


def _endless(path: Path, rng: Random) -> Told:
    path.unlink()
    path.symlink_to("/dev/zero")
    return REFUSE


def _loop(path: Path, rng: Random) -> Told:
    path.unlink()
    path.symlink_to(path.name)
    return EITHER  # not there; a configuration beside a checkpoint may be missing


def _gone(path: Path, rng: Random) -> Told:
    path.unlink()
    return EITHER


def _enormous(path: Path, rng: Random) -> Told:
    os.truncate(path, LARGEST_FILE)  # takes no room on the disk
    return EITHER


BYTES: dict[str, Callable[[Path, Random], Told]] = {
    "flips": _flip,
    "random bytes": _random_bytes,
    "truncated": _truncate,
    "inserted": _insert,
    "zeros": _zeros,
    "appended": _append,
    "empty": _empty,
    "noise": _noise,
    "another format": _other_format,
    "text": _text,
    "a folder": _folder,
    "a fifo": _fifo,
    "a device": _endless,
    "a link to itself": _loop,
    "gone": _gone,
    "gigabytes of nothing": _enormous,
}

# Nested values -------------------------------------------------------------------------------------------------------

NASTY: list[Any] = [
    *(None, [], {}, "", "text", True, False, 0, -1, -8, 3.5, 1e308, float("inf"), float("nan"), 10**12, 10**30),
    *(
        "x" * 3000,
        "../../outside",
        "null",
        [[[[[]]]]],
        {"a": {"b": [1]}},
        ["a", None],
        "\x07\u202e",
        "1e5",
        [1, "a", {}],
    ),
    *(
        "trap_module.Trap",
        {"class_path": "trap_module.Trap"},
        {"class_path": "os.system", "init_args": {"command": "touch sprung"}},
    ),
]
# What a person asks for with these is to work long or on other machines, not to read something broken.
LASTING = {
    "max_steps",
    "max_epochs",
    "min_steps",
    "min_epochs",
    "updates_per_epoch",
    "episodes",
    "parallel",
    "max_time",
}
ELSEWHERE = {"devices", "num_nodes", "strategy", "output", "folder"}


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all entries of nested dicts and lists."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = []
    for key, value in list(entries)[:50]:
        found += [(*path, key), *places(value, (*path, key))]
    return found


def spoil(tree: Any, rng: Random, values: list[Any] = NASTY, within: tuple[Any, ...] = ()) -> str:
    """Replaces or removes one entry in place; says which."""
    candidates = [path for path in places(tree) if path[: len(within)] == within and not ELSEWHERE & {*map(str, path)}]
    path = rng.choice(candidates)
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    if rng.random() < 0.2:
        del parent[path[-1]]
        return f"{path} removed"
    value = rng.choice(values)
    if path[-1] in LASTING and isinstance(value, int | float) and value > 1000:
        value = -1
    parent[path[-1]] = value
    return f"{path} = {str(value)[:40]}"


def nested(depth: int, opening: str, closing: str) -> str:
    """Brackets in brackets."""
    return opening * depth + closing * depth


DEEP = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
"""a pickle of lists in lists"""
