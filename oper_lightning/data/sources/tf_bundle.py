"""Tensors in a checkpoint of TensorFlow, read without TensorFlow.

A checkpoint ``data`` lies in ``data.index``, a table of LevelDB that says of each tensor what and where it is, and in
shards such as ``data.data-00000-of-00001``, which hold the numbers one after another. All of it has checksums.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from oper_lightning.data.sources.crc32c import crc32c, masked
from oper_lightning.data.sources.tfexample import Malformed, Reader
from oper_lightning.errors import InputError, nearest, reading
from oper_lightning.files import existing, fits_memory, place

MAGIC = 0xDB4775248B80FB57  # with which a table ends
FOOTER = 48  # bytes at its end: where the indices of blocks lie, zeros, and MAGIC
TRAILER = 5  # bytes after a block: how it is packed, and its checksum
TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}  # by the numbers of TensorFlow's DataType
LARGEST_INDEX = 16 << 20  # bytes; a network of a thousand tensors takes a thousandth of it
MOST_TENSORS, LONGEST_NAME, MOST_AXES, MOST_SHARDS = 10_000, 1024, 32, 99_999


class Entry(NamedTuple):
    """What the index says of a tensor."""

    type: int
    """number of TensorFlow's DataType"""
    shape: tuple[int, ...]
    shard: int
    offset: int
    """in bytes from the beginning of its shard"""
    size: int
    """in bytes"""
    checksum: int


class Bundle:
    """A checkpoint of TensorFlow.

    Args:
        path: its name without ``.index``, or with it.

    Raises:
        InputError: if its index is missing, damaged, or no table of tensors.
    """

    def __init__(self, path: str) -> None:
        self.path = path.removesuffix(".index")
        name = f"{self.path}.index"
        file = existing(name, "index of a checkpoint of TensorFlow")
        if (size := file.stat().st_size) > LARGEST_INDEX:
            raise InputError(f"{name}: {size:,} bytes; an index has at most {LARGEST_INDEX:,}")
        with reading(name, "the index of a checkpoint of TensorFlow"):
            self._entries = dict(_records(file.read_bytes()))
            self.shards = _shards(self._entries.pop(b"", b""))
        self.names = [key.decode(errors="replace") for key in self._entries]

    def entry(self, name: str) -> Entry:
        """What the index says of a tensor.

        Raises:
            InputError: if it has none of that name, or says what cannot be.
        """
        if name not in self.names:
            raise InputError(f"{self.path}: no tensor {name!r}; {nearest(name, self.names)}")
        with reading(f"{self.path}.index", f"what it says of {name!r}"):
            return _entry(self._entries[name.encode()])

    def possible(self, names: Iterable[str]) -> None:
        """Makes sure that tensors can be read, all of them together.

        Raises:
            InputError: if the index lacks one, they overlap, so that a small file would become many large ones, or they
                need more memory than is free.
        """
        entries = [(entry.shard, entry.offset, entry.size) for entry in map(self.entry, names)]
        for (shard, offset, size), (following, begin, _) in pairwise(sorted(entries)):
            if shard == following and offset + size > begin:
                raise InputError(f"{self.path}.index: two tensors lie at byte {begin:,} of shard {shard}")
        fits_memory(sum(size for *_, size in entries), self.path, "its tensors")

    def read(self, name: str) -> np.ndarray:
        """A tensor; its checksum is compared.

        Raises:
            InputError: if there is none of that name, its shard is missing or too short, or the checksum differs.
        """
        entry = self.entry(name)
        if entry.type not in TYPES:
            raise InputError(f"{self.path}: {name!r} is of type {entry.type}; float, double, int32 or int64 are needed")
        kind = np.dtype(TYPES[entry.type])
        if math.prod(entry.shape) * kind.itemsize != entry.size:
            raise InputError(f"{self.path}.index: {name!r} of shape {entry.shape} cannot have {entry.size:,} bytes")
        if entry.shard >= self.shards:
            raise InputError(f"{self.path}.index: {name!r} lies in shard {entry.shard} of {self.shards}")
        shard = f"{self.path}.data-{entry.shard:05d}-of-{self.shards:05d}"
        file = existing(shard, "shard of a checkpoint of TensorFlow")
        if entry.offset + entry.size > (there := file.stat().st_size):
            raise InputError(
                f"{shard}: {there:,} bytes, but {name!r} lies at {entry.offset:,} to {entry.offset + entry.size:,}"
            )
        fits_memory(entry.size, self.path, repr(name))
        with reading(shard, "a shard of a checkpoint of TensorFlow"):
            array = np.fromfile(file, kind, entry.size // kind.itemsize, offset=entry.offset)
            if masked(crc32c(array)) != entry.checksum:
                raise InputError(f"{shard}: the checksum of {name!r} differs: the file is damaged; fetch it again")
            return array.reshape(entry.shape)


def is_bundle(path: str) -> bool:
    """Whether a word is the name of a checkpoint of TensorFlow, with or without ``.index``."""
    return place(f"{path.removesuffix('.index')}.index").is_file()


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table, whose keys must be in order, and its blocks one behind another."""
    if len(data) < FOOTER or struct.unpack("<Q", data[-8:])[0] != MAGIC:
        raise Malformed("it does not end as such an index does: no index, or cut off")
    footer = Reader(data)
    _, at = footer.varint(len(data) - FOOTER)
    _, at = footer.varint(at)  # the index of other indices is of no use here
    offset, at = footer.varint(at)
    size, _ = footer.varint(at)
    last, end, count = None, 0, 0
    for _, handle in _block(data, offset, size):
        where = Reader(handle)
        offset, at = where.varint(0)
        size, _ = where.varint(at)
        if offset < end:
            raise Malformed("its blocks overlap")
        end, before = offset + size + TRAILER, count
        for key, value in _block(data, offset, size):
            if last is not None and key <= last:
                raise Malformed("its names are not in order")
            if (count := count + 1) > MOST_TENSORS:
                raise Malformed(f"more than {MOST_TENSORS:,} tensors")
            last = key
            yield key, value
        if count == before:
            raise Malformed(f"its block at byte {offset:,} is empty")


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block, in which a key shares its beginning with the one before it."""
    if offset + size + TRAILER > len(data) - FOOTER:
        raise Malformed(f"a block at byte {offset:,} reaches beyond its end")
    block = data[offset : offset + size + 1]  # with the byte that says how it is packed
    if masked(crc32c(block)) != struct.unpack_from("<I", data, offset + size + 1)[0]:
        raise Malformed(f"the checksum of its block at byte {offset:,} differs: it is damaged; fetch it again")
    if block[size]:
        raise Malformed(f"its block at byte {offset:,} is compressed, which TensorFlow never does")
    end = size - 4 - 4 * struct.unpack_from("<I", block, size - 4)[0] if size >= 4 else -1
    if end < 0:
        raise Malformed(f"its block at byte {offset:,} is too short")
    reader, at, key = Reader(block), 0, b""
    while at < end:
        shared, at = reader.varint(at)
        own, at = reader.varint(at)
        length, at = reader.varint(at)
        if shared > len(key) or shared + own > LONGEST_NAME or at + own + length > end:
            raise Malformed(f"its block at byte {offset:,} has a record that cannot be")
        key = key[:shared] + block[at : at + own]
        at += own + length
        yield key, block[at - length : at]


def _shards(header: bytes) -> int:
    """Number of shards, as the header says."""
    fields = {number: value for number, kind, value, _ in Reader(header).fields(0, len(header)) if kind == 0}
    if fields.get(2, 0):
        raise Malformed("its numbers begin with the highest byte; read and save it again on a usual machine")
    if not 1 <= (count := fields.get(1, 0)) <= MOST_SHARDS:
        raise Malformed(f"it has {count:,} shards")
    return count


def _entry(value: bytes) -> Entry:
    """A tensor's record; what it leaves out is 0."""
    reader, numbers, shape, checksum = Reader(value), {}, [], 0
    for number, kind, start, stop in reader.fields(0, len(value)):
        if kind == 0:
            numbers[number] = start
        elif number == 2 and kind == 2:
            for axis in reader.parts(start, stop, 2):
                sizes = [size for field, how, size, _ in reader.fields(*axis) if (field, how) == (1, 0)]
                shape.append(sizes[-1] if sizes else 0)
        elif number == 6 and kind == 5:
            (checksum,) = struct.unpack_from("<I", value, start)
        elif number == 7:
            raise Malformed("a tensor in slices; save it whole")
    if len(shape) > MOST_AXES:
        raise Malformed(f"a shape of {len(shape):,} axes")
    return Entry(numbers.get(1, 0), tuple(shape), numbers.get(3, 0), numbers.get(4, 0), numbers.get(5, 0), checksum)
