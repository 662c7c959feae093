"""``tf.train.Example`` messages, read without TensorFlow and without protobuf.

A message is protobuf's wire format: fields of a key and a value each, in which an Example nests Features, an entry for
each feature, the feature, and its list of bytes, floats or integers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

MOST_VALUES = 1 << 20  # fields and numbers of a record, all together
LONGEST_NAME = 64  # bytes of a feature's name
BYTES, FLOATS, INTEGERS = 1, 2, 3  # the kinds of lists, by the numbers that the format gives them
KINDS = {BYTES: "bytes", FLOATS: "floats", INTEGERS: "integers"}


class Malformed(ValueError):
    """A message is not what it should be."""


class Reader:
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
    found, reader = {}, Reader(data)
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
