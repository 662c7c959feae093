"""The pictures in RL Unplugged's Atari data: grey PNGs of one size."""

from __future__ import annotations

import struct

import numpy as np

from oper_lightning.data.sources.tfrecord import Malformed
from oper_lightning.errors import first_line

SIDE = 84  # pixels of a frame in each direction
LARGEST_PNG = 1 << 16  # bytes; 84 × 84 grey pixels take 7,140 before they are packed
HEAD = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBB", 13, b"IHDR", SIDE, SIDE, 8, 0, 0, 0)


def frame(png: bytes) -> np.ndarray:
    """Pixels ``[84, 84]``, uint8, of a grey PNG; of anything else not even the size is believed.

    Pillow unpacks the pixels, into an image whose size was settled before.

    Raises:
        Malformed: if it is no such image, or not whole.
    """
    from PIL import Image

    if not png.startswith(HEAD) or len(png) > LARGEST_PNG:
        raise Malformed(f"{_described(png)} in place of a grey PNG of {SIDE} × {SIDE} pixels")
    parts, at, kind = [], 33, b""
    while kind != b"IEND" and at + 12 <= len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        if kind == b"IDAT":
            parts.append(png[at + 8 : at + 8 + size])
        at += size + 12
    try:
        image = Image.frombytes("L", (SIDE, SIDE), b"".join(parts), "zip", "L", png[28])
    except (ValueError, OSError) as error:
        raise Malformed(f"a PNG that is not whole ({first_line(error)})") from None
    return np.asarray(image)


def _described(png: bytes) -> str:
    if len(png) > LARGEST_PNG:
        return f"{len(png):,} bytes"
    if len(png) < 33 or not png.startswith(HEAD[:16]):
        return "no PNG"
    width, height, depth, colour = struct.unpack_from(">IIBB", png, 16)
    return f"a PNG of {width:,} × {height:,} pixels, {depth} bits, colour type {colour},"
