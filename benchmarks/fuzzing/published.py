"""Published weights: a pickle in a .npy file."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzzing.arrays import ROWS
from fuzzing.case import ACCEPT, DEEP, EITHER, NASTY, REFUSE, Kind, Mutation, Told, spoil
from fuzzing.npz import Trap, header

PUBLISHED = "case.npy"
KEPT = ROWS - 4  # of D4RL's qlearning_dataset: no timeout step


def publish(path: str, content: Any, protocol: int = 3) -> None:
    """Saves as numpy does."""
    array = np.empty((), dtype=object)
    array[()] = content
    Path(path).write_bytes(
        header("{'descr': '|O', 'fortran_order': False, 'shape': ()}") + pickle.dumps(array, protocol)
    )


def iterated() -> dict[Any, Any]:
    """The newer layout."""
    generator = np.random.default_rng(0)
    return {"iter": 2, "eval_steps": np.float64(1e6), **{k: generator.uniform(0, 2, (KEPT, 1)) for k in (1, 2)}}


def older() -> dict[Any, Any]:
    """The older layout."""
    column = np.linspace(-1, 1, KEPT, dtype=np.float32)[:, None]
    return {1_000_000: {"adv": column, "q": column, "v": column}}


def _published(change: Callable[[dict[Any, Any], Random], Any], told: Told = EITHER, layout: Any = None) -> Mutation:
    def mutate(rng: Random) -> Told:
        content = (layout or rng.choice([iterated, older]))()
        change(content, rng)
        publish(PUBLISHED, content, rng.choice([2, 3, 4, 5]))
        return told

    return mutate


def _array(change: Callable[[np.ndarray], Any], told: Told) -> Mutation:
    def mutate(content: dict[Any, Any], rng: Random) -> None:
        key = 1 if 1 in content else 1_000_000
        if key == 1:
            content[1] = change(content[1])
        else:
            content[key]["adv"] = change(content[key]["adv"])

    return _published(mutate, told)


def _pickled(data: bytes, head: str = "{'descr': '|O', 'fortran_order': False, 'shape': ()}") -> Mutation:
    def mutate(rng: Random) -> Told:
        Path(PUBLISHED).write_bytes(header(head) + data)
        return REFUSE

    return mutate


def _laughs() -> bytes:
    """A tuple of two of a tuple of two ..., 64 levels: small as a pickle, endless when walked through."""
    stream = io.BytesIO()
    stream.write(b"\x80\x04]q\x00")
    for _ in range(64):
        stream.write(b"h\x00h\x00\x86q\x00")
    return stream.getvalue() + b"."


def _circle(content: dict[Any, Any], rng: Random) -> None:
    content["self"] = content


def _put(values: np.ndarray, value: float) -> np.ndarray:
    values = values.copy()
    values[3] = value
    return values


def _lay_published(rng: Random) -> str:
    publish(PUBLISHED, rng.choice([iterated, older])())
    return PUBLISHED


NPY = Kind(
    _lay_published,
    (PUBLISHED,),
    lambda rng: (
        f"convert {PUBLISHED} --source=D4RL --source.path=data.hdf5 --source.qlearning_rows=true --output=out.st"
    ),
    {
        "structure: as it was": lambda rng: (_lay_published(rng), ACCEPT)[1],
        **{f"meaning: anything {n}": _published(lambda c, rng: spoil(c, rng)) for n in (1, 2, 3)},
        "meaning: iter": _published(lambda c, rng: c.update(iter=rng.choice(NASTY)), EITHER, iterated),
        "meaning: iter of 10**12": _published(lambda c, rng: c.update(iter=10**12), REFUSE, iterated),
        "meaning: iter of 0": _published(lambda c, rng: c.update(iter=0), REFUSE, iterated),
        "meaning: iter of -1": _published(lambda c, rng: c.update(iter=-1), REFUSE, iterated),
        "meaning: iter of an array": _published(lambda c, rng: c.update(iter=np.arange(2)), REFUSE, iterated),
        "meaning: steps of text": _published(lambda c, rng: c.update(a={"adv": np.zeros(KEPT)}), EITHER, older),
        "meaning: no array": _published(lambda c, rng: c.pop(1), REFUSE, iterated),
        "meaning: nan": _array(lambda a: _put(a, np.nan), REFUSE),
        "meaning: inf": _array(lambda a: _put(a, np.inf), REFUSE),
        "meaning: huge": _array(lambda a: _put(a.astype(np.float64), 1e308), EITHER),
        "meaning: zeros": _array(lambda a: a * 0, REFUSE),
        "meaning: negative": _array(lambda a: -abs(a), EITHER),
        "meaning: too short": _array(lambda a: a[:-1], REFUSE),
        "meaning: of another shape": _array(lambda a: a.reshape(4, -1), EITHER),
        "meaning: complex": _array(lambda a: a.astype(np.complex64), REFUSE),
        "meaning: text": _array(lambda a: a.astype("U9"), REFUSE),
        "meaning: records": _array(lambda a: np.zeros(KEPT, [("x", "f4")]), REFUSE),
        "meaning: objects": _array(lambda a: np.array([Trap()] * KEPT, dtype=object), REFUSE),
        "meaning: a list": _array(lambda a: a.reshape(-1).tolist(), EITHER),
        "meaning: masked": _array(lambda a: np.ma.masked_array(a), REFUSE),
        "structure: a trap": _published(lambda c, rng: c.update(x=Trap()), REFUSE),
        "structure: a circle": _published(_circle, REFUSE),
        "structure: laughs": _pickled(_laughs()),
        "structure: deep": _pickled(DEEP),
        "structure: bytes announced": _pickled(b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x."),
        "structure: gigabytes announced": _pickled(b"\x80\x04B" + struct.pack("<I", 2**32 - 1) + b"x."),
        "structure: a frame announced": _pickled(b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N."),
        "structure: a long number": _pickled(b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"x."),
        "structure: a far memo": _pickled(b"\x80\x04Nr\xff\xff\xff\x7f."),
        "structure: an array's memo": _pickled(b"\x80\x04j\xff\xff\xff\x7f."),
        "structure: nothing": _pickled(b""),
        "structure: a stop": _pickled(b"\x80\x04."),
        "structure: protocol 200": _pickled(b"\x80\xc8N."),
        "structure: a list": _pickled(pickle.dumps([1])),
        "structure: an array": _pickled(
            np.zeros(KEPT).tobytes(), f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({KEPT},)}}"
        ),
        "structure: a header that calls": _pickled(b"N.", "__import__('os').system('touch sprung')"),
        "structure: a deep header": _pickled(b"N.", "(" * 5000 + ")" * 5000),
        "structure: many objects announced": _pickled(
            b"N.", "{'descr': '|O', 'fortran_order': False, 'shape': (1000000000000,)}"
        ),
    },
)
