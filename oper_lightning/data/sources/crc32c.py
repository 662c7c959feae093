"""CRC-32C, the checksum of TensorFlow's files, with numpy.

A message is a polynomial over GF(2), and its checksum is what is left after division by another. So a row of words may
be exchanged for what is left of each, times the power of x by which it stands before the same word of the next row, and
added to that row: the message shrinks row by row, thousands of words at a time.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

POLYNOMIAL = 0x82F63B78  # Castagnoli's; the highest power is the lowest bit
BEFORE = 0x641F6454  # a word that stands before every message, in place of a register that begins with ones
WIDE, NARROW = 4096, 64  # words in a row: of long messages, and of short ones and what is left of long ones


def crc32c(data: Any) -> int:
    """The checksum of bytes, or of an array that lies in one piece."""
    octets = np.frombuffer(data, np.uint8)
    width = WIDE if len(octets) > 64 * WIDE else NARROW
    first = len(octets) % (4 * width)
    head = np.concatenate([np.frombuffer(BEFORE.to_bytes(4, "little"), np.uint8), octets[:first]])
    head = np.concatenate([np.zeros(-len(head) % (4 * width), np.uint8), head])  # zeros in front change nothing
    words = _folded(_folded(None, head, width), octets[first:], width)
    if width == WIDE:
        words = _folded(None, words.view(np.uint8), NARROW)
    low, high = _tables(1)
    left = 0
    for word in [*words.tolist(), 0]:
        left = int(low[left & 0xFFFF] ^ high[left >> 16]) ^ word
    return left ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """The checksum as TensorFlow stores it."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _folded(words: np.ndarray | None, octets: np.ndarray, width: int) -> np.ndarray:
    """A row of words, to which whole rows are added that come after it."""
    low, high = _tables(width)
    words = np.zeros(width, np.uint32) if words is None else words
    for row in octets.view("<u4").reshape(-1, width):
        words = low[words & 0xFFFF] ^ high[words >> 16] ^ row
    return words


@cache
def _tables(words: int) -> tuple[np.ndarray, np.ndarray]:
    """What is left of the lower and of the upper half of a word that stands so many words further ahead."""
    bits = [1 << k for k in range(32)]
    step = [(bit >> 1) ^ (POLYNOMIAL if bit & 1 else 0) for bit in bits]  # times x
    power, left = 32 * words, bits
    while power:
        if power & 1:
            left = [_applied(step, bit) for bit in left]
        step = [_applied(step, bit) for bit in step]
        power >>= 1
    halves = []
    for images in (left[:16], left[16:]):
        table = np.zeros(1, np.uint32)
        for image in images:
            table = np.concatenate([table, table ^ np.uint32(image)])
        halves.append(table)
    return halves[0], halves[1]


def _applied(matrix: list[int], word: int) -> int:
    """A linear map, given by what it makes of each bit, of a word."""
    result = 0
    for bit, image in enumerate(matrix):
        if word >> bit & 1:
            result ^= image
    return result
