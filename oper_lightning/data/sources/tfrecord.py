"""TFRecord files of ``tf.train.Example`` messages, read without TensorFlow and without protobuf.

A record is its length (8 bytes), a checksum of those, the message, and a checksum of the message. The checksum is
CRC-32C, rotated and shifted by a constant. The message is protobuf's wire format: fields of a key and a value each, in
which an Example nests Features, an entry for each feature, the feature, and its list of bytes, floats or integers.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from oper_lightning.errors import InputError, first_line, note

LARGEST_RECORD = 256 << 20  # bytes; the longest episode of an Atari game, 27,000 frames, takes a fifth of that
MOST_VALUES = 1 << 20  # fields and numbers of a record, all together
PIECE = 1 << 18  # bytes that are unpacked together
LONGEST_NAME = 64  # bytes of a feature's name
BYTES, FLOATS, INTEGERS = 1, 2, 3  # the kinds of lists, by the numbers that the format gives them
KINDS = {BYTES: "bytes", FLOATS: "floats", INTEGERS: "integers"}


class Broken(InputError):
    """A file cannot be read from some record on."""


class Malformed(ValueError):
    """A message is not what it should be."""


class Record(NamedTuple):
    """A message and where it stands."""

    number: int
    """counted from 0"""
    offset: int
    """bytes before it in the unpacked file"""
    data: bytes


def broken(origin: object, number: int, offset: int, why: str) -> Broken:
    """The error of a record that cannot be read."""
    return Broken(f"{origin}: record {number:,}, at byte {offset:,} of the unpacked file: {why}")


# Framing ---------------------------------------------------------------------------------------------------------


@cache
def _table() -> list[int]:
    """What a byte adds to a CRC-32C (Castagnoli, reflected)."""
    entries = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        entries.append(value)
    return entries


def crc_by_table(data: bytes) -> int:
    """CRC-32C, in Python: some 10 MB/s."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


@cache
def crc32c() -> Callable[[bytes], int]:
    """A function that computes CRC-32C: google-crc32c's where it is compiled, else one in Python, with a note."""
    try:
        import google_crc32c

        if google_crc32c.implementation == "c":
            value: Callable[[bytes], int] = google_crc32c.value
            return value
    except ImportError:
        pass
    note(
        "checksums are computed in Python, which takes minutes for a shard: pip install 'oper-lightning[rl-unplugged]'"
    )
    return crc_by_table


def masked(crc: int) -> int:
    """The checksum as TFRecord stores it."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class Unpacked:
    """The unpacked bytes of a gzip file, of one member or several; its checksums are compared.

    Python's own GzipFile reads what may follow the last member byte by byte, however long that is.
    """

    def __init__(self, packed: BinaryIO) -> None:
        self.packed = packed
        self.member = zlib.decompressobj(31)  # with gzip's header and checksum
        self.piece, self.at = b"", 0

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer where the file ends."""
        parts = []
        while size and (self.at < len(self.piece) or self._more()):
            parts.append(self.piece[self.at : self.at + size])
            self.at += len(parts[-1])
            size -= len(parts[-1])
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Leaves out the next ``size`` bytes."""
        while size and (part := self.read(min(size, PIECE))):
            size -= len(part)

    def _more(self) -> bool:
        """Unpacks the next piece; False at the end of the file."""
        self.piece, self.at = b"", 0
        while not self.piece:
            ended = self.member.eof
            left = self.member.unused_data if ended else self.member.unconsumed_tail
            data = left or self.packed.read(PIECE)
            if not data and ended:
                return False
            if not data:
                raise EOFError("the packed file ends early")
            if ended:
                self.member = zlib.decompressobj(31)
            self.piece = self.member.decompress(data, PIECE)
        return True


@contextmanager
def opened(path: Path, origin: object) -> Iterator[tuple[BinaryIO, Unpacked]]:
    """Opens a gzip file; gives its bytes as they are stored, and unpacked.

    Raises:
        InputError: if it is no gzip file.
    """
    with open(path, "rb") as packed:
        if packed.read(2) != b"\x1f\x8b":
            raise InputError(f"{origin}: no gzip file; a shard of RL Unplugged is a TFRecord file packed by gzip")
        packed.seek(0)
        yield packed, Unpacked(packed)


def records(unpacked: Unpacked, origin: object, number: int = 0, offset: int = 0) -> Iterator[Record]:
    """Records from ``offset`` on, where the one of that number begins; every checksum is compared.

    Raises:
        Broken: if the file ends within a record, is not whole, or a checksum differs.
    """
    crc = crc32c()

    @contextmanager
    def whole() -> Iterator[None]:
        try:
            yield
        except (EOFError, zlib.error) as error:
            why = f"the file is cut off or damaged ({first_line(error)})"
            raise broken(origin, number, offset, why) from None

    def read(size: int, what: str) -> bytes:
        with whole():
            data = unpacked.read(size)
        if len(data) < size and (data or what != "length"):
            raise broken(origin, number, offset, f"the file ends within its {what}")
        return data

    with whole():
        unpacked.skip(offset)
    while head := read(12, "length"):
        size, check = struct.unpack("<QI", head)
        if masked(crc(head[:8])) != check:
            raise broken(origin, number, offset, "the checksum of its length differs")
        if size > LARGEST_RECORD:
            raise broken(origin, number, offset, f"{size:,} bytes announced; at most {LARGEST_RECORD:,} are taken")
        data = read(size, "message") if size else b""
        if struct.unpack("<I", read(4, "checksum"))[0] != masked(crc(data)):
            raise broken(origin, number, offset, "its checksum differs")
        yield Record(number, offset, data)
        number, offset = number + 1, offset + size + 16


# Messages --------------------------------------------------------------------------------------------------------


class _Reader:
    """The wire format of one message, with a limit on how many values it may hold in all."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.left = MOST_VALUES

    def varint(self, at: int) -> tuple[int, int]:
        """An unsigned number of up to 64 bits, seven to a byte from the lowest on, and where it ends."""
        data = self.data
        byte = data[at]
        if byte < 128:
            return byte, at + 1
        value, shift = byte & 127, 7
        while byte > 127:
            if shift > 63:
                raise Malformed("a number of more than ten bytes")
            at += 1
            byte = data[at]
            value |= (byte & 127) << shift
            shift += 7
        return value & 0xFFFFFFFFFFFFFFFF, at + 1

    def fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, wire type, beginning and end of each field; those of a varint are its value and 0."""
        data = self.data
        while at < end:
            self.left -= 1
            if self.left < 0:
                raise Malformed(f"more than {MOST_VALUES:,} values")
            # Nearly all keys and lengths take one byte; a call for each would be half of the time.
            key, at = (data[at], at + 1) if data[at] < 128 else self.varint(at)
            kind = key & 7
            if kind == 0:
                value, at = self.varint(at)
                yield key >> 3, 0, value, 0
                continue
            if kind == 2:
                size, at = (data[at], at + 1) if data[at] < 128 else self.varint(at)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise Malformed(f"a field of wire type {kind}")
            if at + size > end:
                raise Malformed("a field is longer than what it stands in")
            yield key >> 3, kind, at, at + size
            at += size
        if at > end:
            raise Malformed("a number is longer than what it stands in")

    def parts(self, at: int, end: int, number: int) -> Iterator[tuple[int, int]]:
        """Beginning and end of each field of that number that has a length; others are skipped."""
        for found, kind, start, stop in self.fields(at, end):
            if found == number and kind == 2:
                yield start, stop

    def bytes(self, at: int, end: int) -> list[bytes]:
        return [self.data[start:stop] for start, stop in self.parts(at, end, 1)]

    def floats(self, at: int, end: int) -> list[float]:
        """Numbers that stand together (packed) or one by one."""
        values: list[float] = []
        for number, kind, start, stop in self.fields(at, end):
            if number == 1 and kind in (2, 5):
                if (stop - start) % 4:
                    raise Malformed("a list of floats whose bytes are no multiple of four")
                self.left -= (stop - start) // 4
                if self.left < 0:
                    raise Malformed(f"more than {MOST_VALUES:,} values")
                values += struct.unpack_from(f"<{(stop - start) // 4}f", self.data, start)
        return values

    def integers(self, at: int, end: int) -> list[int]:
        """Numbers that stand together (packed) or one by one; negative ones come as their complement to 2^64."""
        values: list[int] = []
        for number, kind, start, stop in self.fields(at, end):
            if number != 1 or kind not in (0, 2):
                continue
            if kind == 0:
                values.append(start)
                continue
            while start < stop:
                self.left -= 1
                if self.left < 0:
                    raise Malformed(f"more than {MOST_VALUES:,} values")
                value, start = self.varint(start)
                values.append(value)
            if start > stop:
                raise Malformed("a number is longer than what it stands in")
        return [value - (1 << 64) if value >> 63 else value for value in values]

    def feature(self, at: int, end: int) -> tuple[int, list[Any]]:
        """Kind and values of a feature; the last kind wins, lists of one kind are joined."""
        last: int = 0
        values: list[Any] = []
        for number, kind, start, stop in self.fields(at, end):
            if kind == 2 and number in KINDS:
                found = (self.bytes, self.floats, self.integers)[number - 1](start, stop)
                values = values + found if number == last else found
                last = number
        return last, values


def example(data: bytes, wanted: Mapping[bytes, int]) -> dict[bytes, list[Any]]:
    """The wanted features of an Example, by name; those that it lacks are missing.

    Args:
        data: the message.
        wanted: kinds of features by name: BYTES, FLOATS or INTEGERS.

    Raises:
        Malformed: if the message is none, or a feature is of another kind.
    """
    found, reader = {}, _Reader(data)
    try:
        for features in reader.parts(0, len(data), 1):
            for entry in reader.parts(*features, 1):
                name, place = b"", None
                for number, kind, start, stop in reader.fields(*entry):
                    if number == 1 and kind == 2 and stop - start <= LONGEST_NAME:
                        name = data[start:stop]
                    elif number == 2 and kind == 2:
                        place = start, stop
                if name in wanted and place is not None:
                    kind, values = reader.feature(*place)
                    if kind not in (0, wanted[name]):
                        raise Malformed(f"{name.decode()!r} holds {KINDS[kind]}, not {KINDS[wanted[name]]}")
                    found[name] = values
    except IndexError:
        raise Malformed("the message ends within a number") from None
    return found
