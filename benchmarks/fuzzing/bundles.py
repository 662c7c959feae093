"""Checkpoints of TensorFlow: data sets of BRAC and published policies; the latter also as archives of numpy."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from tf_bundles import block, brac, checksum, entry, table, varint, write_bundle

from fuzzing import arrays
from fuzzing.case import ACCEPT, Kind, Mutation, Told
from fuzzing.hdf5 import QUICK
from fuzzing.npz import Trap

SET, POLICY = "set/data", "policy.ckpt"
SHARD = "data-00000-of-00001"
READ = [
    f"inspect {SET}",
    f"convert {SET}.index --to=d4rl --output=out.hdf5",
    f"fit --model=BC --data.source=BRAC --data.source.path={SET} {QUICK}",
]
CONVERT = "convert {} --to=checkpoint --statistics=norm.npz --environment=Pendulum-v1 --output=published"
Tensors = dict[str, np.ndarray]


def recorded() -> Tensors:
    """The tensors of a data set."""
    return brac(arrays.good())


def layers() -> Tensors:
    """Weights and biases for 3 observations and 1 action."""
    sizes, generator = [3, 8, 6, 2], np.random.default_rng(0)
    return {
        f"policy/layer_{n}/{kind}": generator.normal(size=sizes[n if kind == "w" else n + 1 : n + 2]).astype("f4")
        for n in range(3)
        for kind in "wb"
    }


def _archive(tensors: Tensors) -> None:
    np.savez("policy.npz", **{name.removeprefix("policy/").replace("/", "_"): a for name, a in tensors.items()})


def _lay(rng: Random) -> str:
    """Everything as it should be; gives the file to be damaged."""
    write_bundle(Path(SET), recorded())
    write_bundle(Path(POLICY), layers())
    _archive(layers())
    np.savez("norm.npz", mean=np.zeros(3), std=np.ones(3))
    files = [f"{SET}.index", f"{SET}.index", f"{SET}.{SHARD}", f"{POLICY}.index", f"{POLICY}.{SHARD}"]
    file = rng.choice([*files, "policy.npz", "norm.npz"])
    Path("laid").write_text(file)
    return file


def _command(rng: Random) -> str:
    """One that reads the file that was damaged."""
    file = Path("laid").read_text()
    if file.startswith(SET):
        return rng.choice(READ)
    return CONVERT.format(POLICY if file.startswith(POLICY) else "policy.npz")


def _told(must: str, command: str) -> Told:
    return Told(must, command=command)


def _set(change: Callable[[Tensors, Random], Any], must: str = "either") -> Mutation:
    """A data set whose tensors are others; all checksums are right."""

    def mutate(rng: Random) -> Told:
        tensors = recorded()
        change(tensors, rng)
        write_bundle(Path(SET), tensors)
        return _told(must, rng.choice(READ))

    return mutate


def _policy(change: Callable[[Tensors, Random], Any], must: str = "refuse") -> Mutation:
    """A policy whose tensors are others, in either kind of file."""

    def mutate(rng: Random) -> Told:
        _lay(rng)
        tensors = layers()
        change(tensors, rng)
        if rng.random() < 0.5:
            _archive(tensors)
            return _told(must, CONVERT.format("policy.npz"))
        write_bundle(Path(POLICY), tensors)
        return _told(must, CONVERT.format(POLICY))

    return mutate


def _index(change: Callable[[dict[bytes, bytes], Random], Any], must: str = "refuse") -> Mutation:
    """An index that says something else of the tensors; all checksums are right."""

    def mutate(rng: Random) -> Told:
        write_bundle(Path(SET), recorded(), change=lambda records: change(records, rng))
        return _told(must, rng.choice(READ))

    return mutate


def _bytes(make: Callable[[Random], bytes]) -> Mutation:
    """An index of bytes of one's own."""

    def mutate(rng: Random) -> Told:
        write_bundle(Path(SET), recorded())
        Path(f"{SET}.index").write_bytes(make(rng))
        return _told("refuse", rng.choice(READ))

    return mutate


def _name(rng: Random) -> str:
    return rng.choice(["s1", "s2", "a1", "reward", "discount", "current_size", "current_idx"])


def _key(rng: Random) -> str:
    return f"data/_{_name(rng)}/.ATTRIBUTES/VARIABLE_VALUE"


NUMBERS = [1, 7, 2**31 - 1, 2**40, 2**62, 2**63, 2**64 - 1]


def _relink(records: dict[bytes, bytes], rng: Random) -> None:
    """A record in which one number is enormous or wrong."""
    known: dict[str, Any] = {"kind": 1, "shape": (96, 3), "offset": 0, "size": 1152, "crc": 5, "shard": 0}
    what = rng.choice(list(known))
    number = rng.choice(NUMBERS)
    known[what] = rng.choice([(number,), (number, number), (0, number), (1,) * 40]) if what == "shape" else number
    known["crc"] &= 0xFFFFFFFF
    records[b"data/_s1/.ATTRIBUTES/VARIABLE_VALUE"] = entry(**known)


def _record_of_noise(records: dict[bytes, bytes], rng: Random) -> None:
    key = rng.choice(list(records))
    data = bytearray(records[key])
    for _ in range(rng.choice([1, 4])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    records[key] = bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])


def _block_of(body: bytes, kind: int = 0, rest: bytes = b"") -> bytes:
    """A table whose index block has this body."""
    part = body + bytes([kind]) + struct.pack("<I", checksum(body + bytes([kind])))
    handles = varint(0) + varint(0) + varint(len(rest)) + varint(len(body))
    return rest + part + handles.ljust(40, b"\x00") + struct.pack("<Q", 0xDB4775248B80FB57)


def _noisy_block(rng: Random) -> bytes:
    """A block of any bytes with the right checksum."""
    return _block_of(rng.randbytes(rng.choice([3, 40, 400])) + struct.pack("<2I", 0, 1))


def _again_and_again(rng: Random) -> bytes:
    """The same block behind many names."""
    inner = block([(b"a" * 900, b"")])
    handle = varint(0) + varint(len(inner) - 5)
    body = b"".join(varint(0) + b"\x03" + varint(len(handle)) + struct.pack(">I", n)[1:] + handle for n in range(9000))
    return _block_of(body + struct.pack("<2I", 0, 1), rest=inner)


def _put(value: float) -> Callable[[Tensors, Random], None]:
    def change(tensors: Tensors, rng: Random) -> None:
        array = tensors[rng.choice([name for name, array in tensors.items() if array.ndim])]
        array.reshape(-1)[rng.randrange(array.size)] = value

    return change


def _statistics(change: Callable[[Tensors], Any]) -> Mutation:
    def mutate(rng: Random) -> Told:
        _lay(rng)
        found = {"mean": np.zeros(3), "std": np.ones(3)}
        change(found)
        np.savez("norm.npz", **found)
        return _told("refuse", CONVERT.format("policy.npz"))

    return mutate


BUNDLES = Kind(
    _lay,
    (SET, "policy", "norm.npz"),
    _command,
    {
        "structure: as it was": lambda rng: (_lay(rng), ACCEPT)[1],
        "structure: no shard": lambda rng: (_lay(rng), Path(f"{SET}.{SHARD}").unlink(), _told("refuse", READ[0]))[2],
        "structure: a shard of another name": lambda rng: (
            _lay(rng),
            Path(f"{SET}.{SHARD}").rename("set/other.data-00000-of-00001"),
            _told("refuse", READ[0]),
        )[2],
        "structure: an empty table": _bytes(lambda rng: table([])),
        "structure: a long name": _bytes(lambda rng: table([(b"a" * 5000, b"")])),
        "structure: many names": _bytes(lambda rng: table([(b"%05d" % n, b"") for n in range(5000)], 2500)),
        "structure: a compressed block": _bytes(lambda rng: _block_of(bytes(12), rng.choice([1, 2, 4]))),
        "structure: an empty block": _bytes(lambda rng: _block_of(b"")),
        "structure: very many restarts": _bytes(lambda rng: _block_of(b"\xff" * 8)),
        "structure: the same block again and again": _bytes(_again_and_again),
        "structure: names in no order": _bytes(lambda rng: table([(b"b", b""), (b"a", b"")])),
        **{f"structure: a block of noise {n}": _bytes(_noisy_block) for n in range(4)},
        **{f"index: a wrong number {n}": _index(_relink) for n in range(10)},
        **{f"index: a record of noise {n}": _index(_record_of_noise, "either") for n in range(6)},
        "index: no header": _index(lambda records, rng: records.pop(b"")),
        "index: many shards": _index(
            lambda records, rng: records.update({b"": b"\x08" + varint(rng.choice(NUMBERS[1:]))})
        ),
        "index: the highest byte first": _index(lambda records, rng: records.update({b"": b"\x08\x01\x10\x01"})),
        "set: a tensor is missing": _set(lambda t, rng: t.pop(_key(rng)), "refuse"),
        **{
            f"set: a tensor is shorter {n}": _set(lambda t, rng: t.update({(k := _key(rng)): t[k].reshape(-1)[:-1]}))
            for n in range(3)
        },
        "set: doubles": _set(lambda t, rng: t.update({(k := _key(rng)): t[k].astype("f8")})),
        "set: nan": _set(_put(np.nan), "either"),
        "set: inf": _set(_put(np.inf), "either"),
        "set: sizes": _set(
            lambda t, rng: t.update(
                {
                    f"data/_current_{rng.choice(['size', 'idx'])}/.ATTRIBUTES/VARIABLE_VALUE": np.array(
                        rng.choice([-1, 0, 5, 97, 2**31 - 1]), "i4"
                    )
                }
            )
        ),
        "policy: nan": _policy(_put(np.nan)),
        "policy: inf": _policy(_put(-np.inf)),
        "policy: huge": _policy(_put(3e38), "either"),
        "policy: no biases": _policy(lambda t, rng: t.pop(f"policy/layer_{rng.randrange(3)}/b")),
        "policy: of another width": _policy(lambda t, rng: t.update({"policy/layer_1/w": np.ones((7, 6), "f4")})),
        "policy: whole numbers": _policy(lambda t, rng: t.update({"policy/layer_1/w": np.ones((8, 6), "i4")})),
        "policy: for another robot": _policy(lambda t, rng: t.update({"policy/layer_0/w": np.ones((4, 8), "f4")})),
        "policy: of no layers": _policy(lambda t, rng: (t.clear(), t.update({"a": np.ones(2)}))),
        "policy: of no units": _policy(
            lambda t, rng: t.update(
                {
                    "policy/layer_1/w": np.ones((8, 0), "f4"),
                    "policy/layer_1/b": np.ones(0, "f4"),
                    "policy/layer_2/w": np.ones((0, 2), "f4"),
                }
            )
        ),
        "statistics: zeros": _statistics(lambda found: found.update(std=np.zeros(3))),
        "statistics: nan": _statistics(lambda found: found.update(mean=np.full(3, np.nan))),
        "statistics: too many": _statistics(lambda found: found.update(mean=np.ones(4), std=np.ones(4))),
        "statistics: huge": _statistics(lambda found: found.update(mean=np.full(3, 1e300))),
        "statistics: text": _statistics(lambda found: found.update(mean=np.array(["a", "b", "c"]))),
        "statistics: objects": _statistics(lambda found: found.update(mean=np.array([Trap()] * 3, dtype=object))),
        "statistics: missing": _statistics(lambda found: found.pop("std")),
    },
)
