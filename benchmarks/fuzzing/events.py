"""What finished runs logged: TensorBoard's events, as `oper report` reads them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.case import ACCEPT, EITHER, Kind, Mutation, Told
from fuzzing.checkpoints import lay_run

FOLDER = Path("runs/case")


def _lay(rng: Random) -> str:
    lay_run(rng)
    return str(next(FOLDER.glob("events.out.tfevents.*")))


def _record(data: bytes, length: int | None = None, right: bool = True) -> bytes:
    """A record as TensorBoard frames it, with checksums that are right whatever length it announces."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    size = struct.pack("<Q", len(data) if length is None else length)
    return size + struct.pack("<I", masked_crc32c(size)) + data + struct.pack("<I", masked_crc32c(data) ^ (not right))


def _more(make: Callable[[Random], list[bytes]], told: Told = EITHER) -> Mutation:
    """Further records behind those that are there."""

    def mutate(rng: Random) -> Told:
        with open(_lay(rng), "ab") as file:
            file.writelines(make(rng))
        return told

    return mutate


def _event(**fields: Any) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    return _record(Event(**fields).SerializeToString())


def _scalars(tags: list[str], steps: list[int], value: float) -> list[bytes]:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return [
        _event(wall_time=1.0, step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))
        for tag in tags
        for step in steps
    ]


RETURN = "eval/return"
EVENTS = Kind(
    _lay,
    ("runs/case",),
    lambda rng: rng.choice(["report runs/case --output=out", "report runs/BC2 runs/case --output=out"]),
    {
        "structure: as it was": lambda rng: (_lay(rng), ACCEPT)[1],
        "structure: a length announced": _more(lambda rng: [_record(b"x", 2**60)]),
        "structure: gigabytes announced": _more(lambda rng: [_record(b"x", 3 * 2**30)]),
        "structure: a wrong checksum": _more(lambda rng: [_record(b"x", right=False)]),
        "structure: noise in a record": _more(lambda rng: [_record(rng.randbytes(50))]),
        "structure: empty records": _more(lambda rng: [_record(b"")] * 100),
        "meaning: returns": _more(lambda rng: _scalars([RETURN], [2, 4], 3.0), ACCEPT),
        "meaning: nan": _more(lambda rng: _scalars([RETURN], [2, 4], float("nan"))),
        "meaning: inf": _more(lambda rng: _scalars([RETURN, "train/loss"], [2, 4], float("inf"))),
        "meaning: huge": _more(lambda rng: _scalars([RETURN], [2, 4], 3e38)),
        "meaning: negative steps": _more(lambda rng: _scalars([RETURN], [-4, -(2**62)], 1.0)),
        "meaning: huge steps": _more(lambda rng: _scalars([RETURN], [1, 2**62], 1.0)),
        "meaning: many tags": _more(lambda rng: _scalars([f"train/a{n}" for n in range(60)], [1, 2], 1.0)),
        "meaning: a long tag": _more(lambda rng: _scalars(["train/" + "x" * 50_000], [1, 2], 1.0)),
        "meaning: a tag of a script": _more(lambda rng: _scalars(["train/<script>trap()</script>"], [1, 2], 1.0)),
        "meaning: a tag of mathematics": _more(lambda rng: _scalars(["train/$\\frac{$"], [1, 2], 1.0)),
        "meaning: a tag of nothing": _more(lambda rng: _scalars([""], [1, 2], 1.0)),
        "meaning: a tag of control characters": _more(lambda rng: _scalars(["train/\x00\x07|\n"], [1, 2], 1.0)),
        "meaning: an asset that climbs": _more(
            lambda rng: [_event(file_version="brain.Event:2"), _event(file_version="x")]
        ),
        "structure: two files": lambda rng: (
            Path(_lay(rng) + ".1").write_bytes(rng.randbytes(100)),
            EITHER,
        )[1],
    },
)
