"""TFRecord files, packed by gzip, read without TensorFlow.

A record is its length (8 bytes), a checksum of those, the message, and a checksum of the message. The checksum is
CRC-32C, rotated and shifted by a constant.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from oper_lightning.data.sources.crc32c import crc32c as with_numpy
from oper_lightning.data.sources.crc32c import masked
from oper_lightning.errors import InputError, first_line

LARGEST_RECORD = 256 << 20  # bytes; the longest episode of an Atari game, 27,000 frames, takes a fifth of that
PIECE = 1 << 18  # bytes that are unpacked together


class Broken(InputError):
    """A file cannot be read from some record on."""


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


@cache
def crc32c() -> Callable[[bytes], int]:
    """A function that computes CRC-32C: google-crc32c's where it is compiled, which is quicker for short records."""
    try:
        import google_crc32c

        if google_crc32c.implementation == "c":
            value: Callable[[bytes], int] = google_crc32c.value
            return value
    except ImportError:
        pass
    return with_numpy


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

    def read(size: int, what: str) -> bytes:
        data = unpacked.read(size)
        if len(data) < size and (data or what != "length"):
            raise broken(origin, number, offset, f"the file ends within its {what}")
        return data

    try:
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
    except (EOFError, zlib.error) as error:
        raise broken(origin, number, offset, f"the file is cut off or damaged ({first_line(error)})") from None
