"""A writer of TensorFlow's checkpoints, for tests: tables of LevelDB with a restart every few records, and shards."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

TYPES = {"<f4": 1, "<f8": 2, "<i4": 3, "<i8": 9}
TABLE = [0] * 256
for _value in range(256):
    TABLE[_value] = _value
    for _ in range(8):
        TABLE[_value] = (TABLE[_value] >> 1) ^ (0x82F63B78 * (TABLE[_value] & 1))


def checksum(data: bytes) -> int:
    """CRC-32C byte by byte, masked as TensorFlow does it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ TABLE[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number: int) -> bytes:
    """Seven bits to a byte, the lowest first."""
    octets = bytearray()
    while number > 127:
        octets.append(number & 127 | 128)
        number >>= 7
    return bytes([*octets, number])


def entry(kind: int, shape: tuple[int, ...], offset: int, size: int, crc: int, shard: int = 0) -> bytes:
    """A tensor's record; zeros are left out, as protobuf does."""
    axes = b"".join(b"\x12" + varint(len(axis)) + axis for axis in (b"\x08" + varint(length) for length in shape))
    numbers = [(1, kind), (3, shard), (4, offset), (5, size)]
    found = b"".join(bytes([number << 3]) + varint(value) for number, value in numbers if value)
    return found + b"\x12" + varint(len(axes)) + axes + b"\x35" + struct.pack("<I", crc)


def block(records: list[tuple[bytes, bytes]], restart: int = 16) -> bytes:
    """A block with its trailer; keys share their beginnings within each run of ``restart`` records."""
    body, restarts, before = b"", [], b""
    for number, (key, value) in enumerate(records):
        if number % restart == 0:
            restarts.append(len(body))
            before = b""
        shared = 0
        while shared < min(len(before), len(key)) and before[shared] == key[shared]:
            shared += 1
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    body += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts)) + b"\x00"
    return body + struct.pack("<I", checksum(body))


def table(records: list[tuple[bytes, bytes]], in_a_block: int = 5) -> bytes:
    """A table of sorted records, in blocks."""
    data, index = b"", []
    for start in range(0, len(records), in_a_block):
        part = block(records[start : start + in_a_block])
        index.append((records[min(start + in_a_block, len(records)) - 1][0], varint(len(data)) + varint(len(part) - 5)))
        data += part
    handles = b""
    for part in (block([]), block(index, restart=1)):
        handles += varint(len(data)) + varint(len(part) - 5)
        data += part
    return data + handles.ljust(40, b"\x00") + struct.pack("<Q", 0xDB4775248B80FB57)


def records_of(tensors: dict[str, np.ndarray], shards: int = 1) -> Iterator[tuple[bytes, bytes]]:
    """Records of an index whose tensors lie one behind another, in turn in each shard."""
    ends = [0] * shards
    yield b"", b"\x08" + varint(shards) + b"\x1a\x02\x08\x01"
    for number, (name, array) in enumerate(sorted(tensors.items())):
        shard, data = number % shards, array.tobytes()
        kind = TYPES[array.dtype.newbyteorder("<").str]
        yield name.encode(), entry(kind, array.shape, ends[shard], len(data), checksum(data), shard)
        ends[shard] += len(data)


def write_bundle(
    path: Path,
    tensors: dict[str, np.ndarray],
    shards: int = 1,
    change: Callable[[dict[bytes, bytes]], object] | None = None,
) -> Path:
    """Writes a checkpoint; ``change`` may first change the records of its index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = dict(records_of(tensors, shards))
    if change is not None:
        change(records)
    path.with_name(f"{path.name}.index").write_bytes(table(sorted(records.items())))
    arrays = [array for _, array in sorted(tensors.items())]
    for shard in range(shards):
        data = b"".join(array.tobytes() for array in arrays[shard::shards])
        path.with_name(f"{path.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(data)
    return path


def brac(columns: dict[str, np.ndarray], capacity: int | None = None) -> dict[str, np.ndarray]:
    """D4RL's columns as the tensors of a data set of BRAC, whose buffer may be larger than what is in it."""
    rows = len(columns["rewards"])
    capacity = capacity or rows
    kept = {"s1": columns["observations"], "s2": columns["next_observations"], "a1": columns["actions"],
            "reward": columns["rewards"], "discount": 1 - columns["terminals"].astype(np.float32)}  # fmt: skip
    tensors = {}
    for name, column in kept.items():
        tensors[name] = np.zeros((capacity, *column.shape[1:]), np.float32)
        tensors[name][:rows] = column
    for name, value in (("current_size", rows), ("current_idx", rows % capacity), ("capacity", capacity)):
        tensors[name] = np.array(value, np.int32)
    return {f"data/_{name}/.ATTRIBUTES/VARIABLE_VALUE": array for name, array in tensors.items()}
