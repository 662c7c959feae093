"""The pictures in RL Unplugged's Atari data: grey PNGs of one size."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import numpy as np

from oper_lightning.data.sources.tfexample import Malformed
from oper_lightning.errors import first_line

SIDE = 84  # pixels of a frame in each direction
UNPACKED = SIDE * (SIDE + 1)  # bytes of the pixels in a PNG: each row has one more that names its filter
LARGEST_PNG = 1 << 16  # bytes
HEAD = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", SIDE, SIDE, 8, 0, 0, 0, 0)
END = bytes(4) + b"IEND\xae\x42\x60\x82"
REST = 57  # bytes of a PNG beside its packed pixels, if these are in one piece and nothing else is there


def frame(png: bytes) -> np.ndarray:
    """Pixels ``[84, 84]``, uint8, of a grey PNG; of anything else not even the size is believed.

    The pixels are unpacked into an image whose size was settled before.

    Raises:
        Malformed: if it is no such image, or not whole.
    """
    if not png.startswith(HEAD) or len(png) > LARGEST_PNG:
        raise Malformed(f"{_described(png)} in place of a grey PNG of {SIDE} × {SIDE} pixels")
    plain = png.endswith(END) and png[33:41] == struct.pack(">I4s", len(png) - REST, b"IDAT")
    if plain and (decode := quick()) is not None:
        with suppress(Exception):  # what is wrong is said below
            return decode(png, (SIDE, SIDE), "mono")[..., 0]
    return _by_pillow(png)


@cache
def quick() -> Callable[[bytes, tuple[int, int], str], np.ndarray] | None:
    """Kornia's decoder, where it is installed: it takes a third of Pillow's time."""
    try:
        from kornia_rs.io import decode_image_png_u8
    except ImportError:
        return None
    found: Callable[[bytes, tuple[int, int], str], np.ndarray] = decode_image_png_u8
    return found


def _by_pillow(png: bytes) -> np.ndarray:
    from PIL import Image

    parts, at, kind = [], 33, b""
    while kind != b"IEND" and at + 12 <= len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        if kind == b"IDAT":
            parts.append(png[at + 8 : at + 8 + size])
        at += size + 12
    packed = b"".join(parts)
    try:
        # Of rows that are missing Pillow would make black ones.
        if len(zlib.decompressobj().decompress(packed, UNPACKED)) < UNPACKED:
            raise ValueError("not enough image data")
        image = Image.frombytes("L", (SIDE, SIDE), packed, "zip", "L", 0)
    except (ValueError, OSError, zlib.error) as error:
        raise Malformed(f"a PNG that is not whole ({first_line(error)})") from None
    return np.asarray(image)


def _described(png: bytes) -> str:
    if len(png) > LARGEST_PNG:
        return f"{len(png):,} bytes"
    if len(png) < 33 or not png.startswith(HEAD[:16]):
        return "no PNG"
    width, height, depth, colour = struct.unpack_from(">IIBB", png, 16)
    interlaced = ", interlaced" if png[28] else ""
    return f"a PNG of {width:,} × {height:,} pixels, {depth} bits, colour type {colour}{interlaced},"
