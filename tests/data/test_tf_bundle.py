"""Checkpoints of TensorFlow from a writer of the tests' own; data sets of BRAC; what is wrong with such files."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Arrays, columns, oper
from hypothesis import given
from hypothesis import strategies as st
from tf_bundles import block, brac, checksum, entry, table, varint, write_bundle

from oper_lightning.data.sources.brac import BRAC
from oper_lightning.data.sources.crc32c import crc32c, masked
from oper_lightning.data.sources.tf_bundle import Bundle
from oper_lightning.data.storage import fill, transitions_in
from oper_lightning.errors import InputError


def tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    found = {f"policy/layer_{n}/{kind}": generator.normal(size=(3, n + 1)).astype(np.float32)
             for n in range(9) for kind in "wb"}  # fmt: skip
    return found | {
        "long": generator.normal(size=70_000).astype(np.float32),
        "double": generator.normal(size=(2, 3)),
        "count": np.array(7, np.int32),
        "counts": np.arange(5),
        "nothing": np.zeros((0, 4), np.float32),
    }


@given(st.integers(0, 5000), st.integers(0, 2**32))
def test_checksums(size: int, seed: int) -> None:
    data = random.Random(seed).randbytes(size)
    assert masked(crc32c(data)) == checksum(data)


def test_checksums_of_long_messages() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # of RFC 3720's example
    for size in (262_143, 262_144, 262_145, 300_003):
        data = random.Random(size).randbytes(size)
        assert masked(crc32c(data)) == checksum(data)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("ending", ["", ".index"])
def test_what_was_written_is_read(shards: int, ending: str) -> None:
    written = tensors()
    write_bundle(Path("deep/policy.ckpt"), written, shards)
    bundle = Bundle(f"deep/policy.ckpt{ending}")
    assert sorted(bundle.names) == sorted(written)
    for name, array in written.items():
        read = bundle.read(name)
        assert np.array_equal(read, array)
        assert read.shape == array.shape
        assert read.dtype == array.dtype


def flip(path: str, place: int) -> None:
    data = bytearray(Path(path).read_bytes())
    data[place] ^= 4
    Path(path).write_bytes(data)


def relink(name: str, **changes: int) -> Callable[[dict[bytes, bytes]], None]:
    """Changes a record of the index to say something else."""
    known = {"kind": 1, "shape": (2, 3), "offset": 0, "size": 24, "crc": 0, "shard": 0, **changes}

    def change(records: dict[bytes, bytes]) -> None:
        records[name.encode()] = entry(**known)  # type: ignore[arg-type]

    return change


SHARD = "policy.data-00000-of-00001"


def gone(_: Any) -> None:
    Path(SHARD).unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda _: flip("policy.index", 3), r"policy.index: .*the checksum of its block at byte 0 differs"),
        (lambda _: flip("policy.index", -1), r"policy.index: .*it does not end as such an index does"),
        (lambda _: flip(SHARD, 3), rf"{SHARD}: the checksum of 'a' differs: the file is damaged"),
        (gone, rf"{SHARD}: no such shard of a checkpoint of TensorFlow"),
        (lambda _: Path(SHARD).write_bytes(b"short"), rf"{SHARD}: 5 bytes, but 'a' lies at 0 to 24"),
        (lambda _: Path("policy.index").write_bytes(b""), "policy.index: .*it does not end as such an index does"),
        (lambda _: Path("policy.index").unlink(), "policy.index: no such index of a checkpoint of TensorFlow"),
    ],
)
def test_damaged_files(damage: Callable[[Any], Any], said: str) -> None:
    write_bundle(Path("policy"), {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2)})
    damage(None)
    with pytest.raises(InputError, match=said) as raised:
        Bundle("policy").read("a")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (relink("a", kind=7), "policy: 'a' is of type 7; float, double, int32 or int64 are needed"),
        (relink("a", shape=(2, 4)), r"'a' of shape \(2, 4\) cannot have 24 bytes"),  # type: ignore[arg-type]
        (relink("a", shape=(2**62, 2**62), size=2**63), "'a' of shape .* cannot have"),  # type: ignore[arg-type]
        (relink("a", shape=(2**58,), size=2**60), "bytes, but 'a' lies at 0 to 1,152,921,504,606,846,976"),  # type: ignore[arg-type]
        (relink("a", offset=2**63 - 1), "but 'a' lies at 9,223"),
        (relink("a", shard=1), "'a' lies in shard 1 of 1"),
        (lambda records: records.update({b"": b"\x08\x00"}), "policy.index: .*it has 0 shards"),
        (lambda records: records.pop(b""), "policy.index: .*it has 0 shards"),
        (lambda records: records.update({b"": b"\x08" + varint(2**40)}), "it has 1,099,511,627,776 shards"),
        (lambda records: records.update({b"": b"\x08\x01\x10\x01"}), "its numbers begin with the highest byte"),
        (lambda records: records.update({b"a": b"\x08\xff\xff"}), "cannot read it as what it says of 'a'"),
        (lambda records: records.update({b"a": b"\x08" + b"\xff" * 11}), "a number of more than ten bytes"),
        (lambda records: records.update({b"a": b"\x12" + varint(66) + b"\x12\x00" * 33}), "a shape of 33 axes"),
        (lambda records: records.update({b"a": records[b"a"] + b"\x3a\x00"}), "a tensor in slices"),
        (lambda records: records.pop(b"a"), "policy: no tensor 'a'; known: b"),
    ],
)  # fmt: skip
def test_indices_that_say_what_cannot_be(change: Callable[[dict[bytes, bytes]], Any], said: str) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_bundle(Path("policy"), {"a": array, "b": np.ones(2)}, change=change)
    with pytest.raises(InputError, match=said) as raised:
        Bundle("policy").read("a")
    assert "\n" not in str(raised.value)


def footer(index: bytes, data: bytes) -> bytes:
    """A table whose blocks lie in ``data``, found by a block ``index`` that follows."""
    handles = varint(0) + varint(0) + varint(len(data)) + varint(len(index) - 5)
    return data + index + handles.ljust(40, b"\x00") + struct.pack("<Q", 0xDB4775248B80FB57)


def packed(body: bytes, kind: int = 0) -> bytes:
    """A block of a body of one's own."""
    return body + bytes([kind]) + struct.pack("<I", checksum(body + bytes([kind])))


ONE = struct.pack("<2I", 0, 1)  # restarts of a block
HOSTILE = {
    "a block far away": (lambda: footer(block([(b"z", varint(2**50) + varint(9))]), b""), "reaches beyond its end"),
    "an endless block": (lambda: footer(block([(b"z", varint(0) + varint(2**63))]), b""), "reaches beyond its end"),
    "a compressed block": (lambda: footer(packed(b"abcd" + ONE, 1), b""), "is compressed"),
    "an empty block": (lambda: footer(packed(b""), b""), "is too short"),
    "many restarts": (lambda: footer(packed(struct.pack("<2I", 0, 2**31)), b""), "is too short"),
    "a key out of nothing": (lambda: footer(packed(b"\x05\x01\x00a" + ONE), b""), "a record that cannot be"),
    "a value beyond the block": (lambda: footer(packed(b"\x00\x01\x7fa" + ONE), b""), "a record that cannot be"),
    "a long name": (lambda: table([(b"a" * 2000, b"x")]), "a record that cannot be"),
    "a number without end": (lambda: footer(packed(b"\xff" * 12 + ONE), b""), "more than ten bytes"),
    "the same block again": (
        lambda: footer(block([(bytes([n]), varint(0) + varint(len(block([(b"a", b"")])) - 5)) for n in range(9)], 1),
                       block([(b"a", b"")])),
        "its blocks overlap",
    ),
    "blocks of nothing": (
        lambda: footer(block([(b"z", varint(0) + varint(len(block([])) - 5))]), block([])),
        "block at byte 0 is empty",
    ),
    "very many names": (
        lambda: table([(b"%05d" % n, b"") for n in range(10_001)], 500),
        "more than 10,000 tensors",
    ),
    "names out of order": (lambda: table([(b"b", b"x"), (b"a", b"x")]), "its names are not in order"),
    "a name twice": (lambda: table([(b"a", b"x"), (b"a", b"x")]), "its names are not in order"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tables(name: str) -> None:
    make, said = HOSTILE[name]
    Path("policy.index").write_bytes(make())
    with pytest.raises(InputError, match=f"policy.index: .*{said}"):
        Bundle("policy")


def test_an_enormous_index() -> None:
    with open("policy.index", "wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(InputError, match="17,179,869,184 bytes; an index has at most 16,777,216"):
        Bundle("policy")


def read(source: Any) -> Any:
    return transitions_in(fill(source, torch.device("cpu")))


LENGTHS = [30, 1, 25, 40, 2, 17]


def recorded() -> dict[str, np.ndarray]:
    """Columns in which an episode's rows follow from each other, as in a recording."""
    found = columns(LENGTHS, 4, 2)
    ends = np.cumsum(LENGTHS)[:-1] - 1
    following = np.roll(found["observations"], -1, 0)
    following[ends] = found["next_observations"][ends]
    following[-1] = found["next_observations"][-1]
    return {**found, "next_observations": following}


@pytest.mark.parametrize("capacity", [115, 200])
def test_a_data_set_of_brac(capacity: int) -> None:
    arrays = recorded()
    write_bundle(Path("HalfCheetah/gaussian1/data"), brac(arrays, capacity))
    source = BRAC("HalfCheetah/gaussian1/data")
    assert len(source) == 115
    assert source.origin().dataset == "HalfCheetah/gaussian1"
    table, expected = read(source), read(Arrays(arrays))
    for key in ("observation", "action", ("next", "observation"), ("next", "reward"), ("next", "terminated"),
                ("next", "truncated")):  # fmt: skip
        assert torch.equal(table[key], expected[key]), key


def test_a_buffer_that_went_round() -> None:
    arrays = recorded()
    stored = brac(arrays)
    for name, array in stored.items():
        if array.ndim:
            stored[name] = np.roll(array, 40, 0)
    stored["data/_current_idx/.ATTRIBUTES/VARIABLE_VALUE"] = np.array(40, np.int32)
    write_bundle(Path("set/data"), stored)
    assert torch.equal(read(BRAC("set/data"))["observation"], torch.from_numpy(arrays["observations"]))


def without(name: str) -> Callable[[dict[str, np.ndarray]], Any]:
    return lambda stored: stored.pop(f"data/_{name}/.ATTRIBUTES/VARIABLE_VALUE")


def other(name: str, array: np.ndarray) -> Callable[[dict[str, np.ndarray]], Any]:
    return lambda stored: stored.update({f"data/_{name}/.ATTRIBUTES/VARIABLE_VALUE": array})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("s1"), "set/data: no data set of BRAC: no tensor 'data/_s1/"),
        (without("reward"), "set/data: no tensor 'data/_reward/.*did you mean"),
        (without("current_size"), "set/data: no tensor 'data/_current_size/"),
        (other("reward", np.zeros(114, np.float32)), "_reward of shape .114., but 115 rows are said to be filled"),
        (other("s2", np.zeros((115, 5), np.float32)), r"'next_observations' has shape \(115, 5\)"),
        (other("a1", np.full((115, 2), np.nan, np.float32)), "'actions' is nan at row 0"),
        (other("current_size", np.array(-1, np.int32)), "but -1 rows are said to be filled"),
        (other("current_size", np.array(0, np.int32)), "empty dataset"),
        (other("current_size", np.array([1, 2], np.int32)), "_current_size is of shape .2.; one whole number"),
        (other("discount", np.zeros((115, 3), np.float32)), "'terminals' has shape"),
        (other("discount", np.array([1, np.nan] + [1] * 113)), "set/data: _discount is not finite at row 1"),
        (
            lambda stored: stored.update(
                {name: array[:0] if array.ndim else 0 * array for name, array in stored.items()}
            ),
            "empty dataset",
        ),
    ],
)
def test_what_is_no_data_set_of_brac(change: Callable[[dict[str, np.ndarray]], Any], said: str) -> None:
    stored = brac(recorded())
    change(stored)
    write_bundle(Path("set/data"), stored)
    with pytest.raises(InputError, match=f"set/data.*{said}|{said}"):
        read(BRAC("set/data"))


def test_tools_take_it_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    write_bundle(Path("Hopper/pure/data"), brac(recorded()))
    for number, name in enumerate(("Hopper/pure/data", "Hopper/pure/data.index")):
        assert oper("inspect", name, f"--output=looked{number}") == 0
        assert oper("convert", name, "--to=d4rl", f"--output=flat{number}.hdf5") == 0
    assert "Hopper/pure" in Path("looked0/inspect.md").read_text()
    assert oper("fit", "--model=BC", "--data.source=BRAC", "--data.source.path=Hopper/pure/data",
                "--trainer.max_steps=2", "--data.batch_size=8", "--data.updates_per_epoch=2",
                "--output=run") == 0  # fmt: skip
    assert Path("run/last.ckpt").is_file()
