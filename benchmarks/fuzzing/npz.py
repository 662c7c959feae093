"""Numpy archives: the zip, the headers of its members, and their contents."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzzing import arrays
from fuzzing.arrays import ROWS
from fuzzing.case import ACCEPT, EITHER, REFUSE, Kind, Mutation, Told
from fuzzing.hdf5 import QUICK, commands, of_discrete

FILE = "case.npz"


class Trap:
    """Leaves a file behind if it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch sprung",)


def member(array: np.ndarray) -> bytes:
    """An array as numpy saves it."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    """The beginning of a .npy file with a header of one's own."""
    size = "<H" if version == (1, 0) else "<I"
    return b"\x93NUMPY" + bytes(version) + struct.pack(size, len(text) + 1) + text.encode("latin1") + b"\n"


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    """Writes an archive."""
    with zipfile.ZipFile(FILE, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _members() -> dict[str, bytes]:
    return {f"{name}.npy": member(array) for name, array in arrays.good().items()}


def _of(change: Callable[[arrays.Arrays, Random], Told]) -> Mutation:
    def mutate(rng: Random) -> Told:
        columns = arrays.good()
        told = change(columns, rng)
        rng.choice([np.savez, np.savez_compressed])(FILE, **columns)
        return told

    return mutate


def _in_place(data: Callable[[bytes], bytes], told: Told, method: int = zipfile.ZIP_STORED) -> Mutation:
    """Another member in place of one column."""

    def mutate(rng: Random) -> Told:
        members = _members()
        name = rng.choice(list(members))
        members[name] = data(members[name])
        zipped(members, method)
        return told

    return mutate


def _headed(text: str, told: Told = REFUSE, version: tuple[int, int] = (1, 0)) -> Mutation:
    return _in_place(lambda old: header(text, version) + old[-ROWS * 4 :], told)


def _objects(rng: Random) -> Told:
    columns = arrays.good()
    columns[rng.choice(arrays.EVERY)] = np.array([Trap()] * ROWS, dtype=object)
    np.savez(FILE, **columns)
    return REFUSE


def _duplicated(rng: Random) -> Told:
    members = _members()
    with zipfile.ZipFile(FILE, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        name = rng.choice(list(members))
        archive.writestr(name, rng.choice([members[name], member(np.full(ROWS, 7.0))]))
    return EITHER


def _flagged(rng: Random) -> Told:
    """Members that say they are encrypted."""
    zipped(_members())
    data = bytearray(Path(FILE).read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(magic)
        while place >= 0:
            data[place + offset] |= 1
            place = data.find(magic, place + 4)
    Path(FILE).write_bytes(data)
    return REFUSE


def _method(rng: Random) -> Told:
    """A compression method that does not exist."""
    zipped(_members())
    data = bytearray(Path(FILE).read_bytes())
    method = struct.pack("<H", rng.choice([1, 6, 12, 14, 93, 99]))
    for magic, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        place = data.find(magic)
        data[place + offset : place + offset + 2] = method
    Path(FILE).write_bytes(data)
    return REFUSE


def _size(rng: Random) -> Told:
    """A directory that announces other sizes than there are."""
    zipped(_members(), zipfile.ZIP_DEFLATED)
    data = bytearray(Path(FILE).read_bytes())
    place = data.find(b"PK\x01\x02")
    which = rng.choice([16, 20, 24, 42])  # checksum, compressed size, size, offset
    data[place + which : place + which + 4] = rng.choice([b"\xff\xff\xff\x7f", b"\x00" * 4, rng.randbytes(4)])
    Path(FILE).write_bytes(data)
    return EITHER


def _bomb(of: str) -> Mutation:
    """Zeros, compressed a thousandfold."""

    def mutate(rng: Random) -> Told:
        rows = 600_000_000
        with zipfile.ZipFile(FILE, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, data in _members().items():
                if name == f"{of}.npy" or (of == "all" and name == "observations.npy"):
                    shape = f"({rows}, 3)" if of != "extra" else f"({rows},)"
                    with archive.open(name, "w", force_zip64=True) as stream:
                        stream.write(header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"))
                        for _ in range(24):
                            stream.write(bytes(1 << 24))
                else:
                    archive.writestr(name, data)
        return REFUSE

    return mutate


def _written_bomb(rng: Random) -> Told:
    """400 MB of zeros where 400 MB are announced: a valid member of the wrong length."""
    rows = 100_000_000
    with zipfile.ZipFile(FILE, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in _members().items():
            if name != "rewards.npy":
                archive.writestr(name, data)
        with archive.open("rewards.npy", "w", force_zip64=True) as stream:
            stream.write(header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows},)}}"))
            for _ in range(rows * 4 >> 20):
                stream.write(bytes(1 << 20))
    return REFUSE


def _many(rng: Random) -> Told:
    zipped({**_members(), **{f"info_{n}.npy": b"" for n in range(30_000)}})
    return EITHER


def _names(value: str, told: Told = REFUSE) -> Mutation:
    def mutate(rng: Random) -> Told:
        zipped(_members())
        command = f"fit --model=BC {QUICK} --data.source=Npz --data.source.path={FILE} '--data.source.names={value}'"
        return Told(told.must, command=command, names=("names", FILE))

    return mutate


def _neorl(rng: Random) -> Told:
    names = dict(zip(arrays.EVERY, ("obs", "action", "reward", "next_obs", "done", "truncated"), strict=True))
    np.savez(FILE, **{names[name]: array for name, array in arrays.good().items()})
    return ACCEPT


GOOD = "'descr': '<f4', 'fortran_order': False"


def _lay(rng: Random) -> str:
    rng.choice([np.savez, np.savez_compressed])(FILE, **arrays.good())
    return FILE


NPZ = Kind(
    _lay,
    (FILE, "case: "),
    commands("Npz", "path", FILE),
    {
        **{f"structure: {name}": _of(change) for name, change in arrays.STRUCTURE.items()},
        **{f"meaning: {name}": _of(change) for name, change in arrays.MEANING.items()},
        **{
            f"discrete: {name}": of_discrete(change, lambda columns: np.savez(FILE, **columns), "Npz", FILE)
            for name, change in arrays.DISCRETE.items()
        },
        "structure: objects": _objects,
        "structure: a pickle": _in_place(lambda old: pickle.dumps(Trap()), REFUSE),
        "structure: a text": _in_place(lambda old: b"0 1 2", REFUSE),
        "structure: an empty member": _in_place(lambda old: b"", REFUSE),
        "structure: a cut member": _in_place(lambda old: old[:-9], REFUSE),
        "structure: a longer member": _in_place(lambda old: old + b"12345", EITHER),
        "structure: bzip2": lambda rng: (zipped(_members(), zipfile.ZIP_BZIP2), ACCEPT)[1],
        "structure: lzma": lambda rng: (zipped(_members(), zipfile.ZIP_LZMA), ACCEPT)[1],
        "structure: an archive in it": _in_place(lambda old: Path("data.npz").read_bytes(), REFUSE),
        "structure: names that climb": lambda rng: (
            zipped({**_members(), "../../outside.npy": b"x", "/tmp/outside.npy": b"x"}),
            EITHER,
        )[1],
        "structure: a folder in it": lambda rng: (zipped({**_members(), "observations.npy/": b""}), EITHER)[1],
        "structure: duplicated": _duplicated,
        "structure: encrypted": _flagged,
        "structure: an unknown compression": _method,
        "structure: other sizes": _size,
        "structure: other sizes again": _size,
        "structure: no member": lambda rng: (zipped({}), REFUSE)[1],
        "structure: 30,000 members": _many,
        "structure: a single array": lambda rng: (Path(FILE).write_bytes(member(np.zeros(3))), REFUSE)[1],
        "structure: rows announced": _headed(f"{{{GOOD}, 'shape': (100000000, 3)}}"),
        "structure: very many rows announced": _headed(f"{{{GOOD}, 'shape': (100000000000000,)}}"),
        "structure: a negative size": _headed(f"{{{GOOD}, 'shape': (-1, 3)}}"),
        "structure: sizes that overflow": _headed(f"{{{GOOD}, 'shape': (4294967296, 4294967296)}}"),
        "structure: a size in words": _headed(f"{{{GOOD}, 'shape': ('a',)}}"),
        "structure: no shape": _headed(f"{{{GOOD}}}"),
        "structure: a header that is a list": _headed("[1, 2]"),
        "structure: a header that calls": _headed("__import__('os').system('touch sprung')"),
        "structure: a deep header": _headed("(" * 5000 + ")" * 5000),
        "structure: a long header": _headed("{" + " " * 60_000 + "}"),
        "structure: a huge header announced": _in_place(lambda old: b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + old, REFUSE),
        "structure: version 9": _headed(f"{{{GOOD}, 'shape': (96,)}}", version=(9, 0)),
        "structure: dtype of objects": _headed("{'descr': '|O', 'fortran_order': False, 'shape': (96,)}"),
        "structure: dtype of no size": _headed("{'descr': '|S0', 'fortran_order': False, 'shape': (96,)}"),
        "structure: dtype of a huge size": _headed("{'descr': '|V2000000000', 'fortran_order': False, 'shape': (9,)}"),
        "structure: dtype of nothing": _headed("{'descr': None, 'fortran_order': False, 'shape': (96,)}"),
        "structure: dtype of deep records": _headed(
            "{'descr': [('a', [('b', '<f4')])], 'fortran_order': False, 'shape': (9,)}"
        ),
        "structure: a bomb of observations": _bomb("observations"),
        "structure: a bomb of rewards": _written_bomb,
        "structure: NeoRL-2's names": _neorl,
        "meaning: names of nothing": _names('{"rewards": "gone"}'),
        "meaning: names for nothing": _names('{"reward": "rewards"}'),
        "meaning: names in a list": _names("[rewards]"),
        "meaning: names of numbers": _names('{"rewards": 3}'),
        "meaning: the same name twice": _names('{"rewards": "actions"}', EITHER),
    },
)
