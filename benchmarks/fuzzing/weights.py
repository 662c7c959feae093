"""Weights files, as stage 1 writes them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from fuzzing.arrays import ROWS
from fuzzing.case import ACCEPT, EITHER, NASTY, REFUSE, Kind, Mutation, Told, nested
from fuzzing.hdf5 import DATA, QUICK

WEIGHTS_FILE = "case.safetensors"


def _weights_command(rng: Random) -> str:
    read = f"{DATA} --data.priority=WeightsFile --data.priority.path={WEIGHTS_FILE}"
    return rng.choice(
        [
            f"fit --model=BC {QUICK} {read}",
            f"fit --model=TD3BC {QUICK} {read} --data.mode=reweight",
            f"fit --model=BC {QUICK} {read} --data.priority.rescale=exp --data.priority.average=median",
            f"inspect data.hdf5 {WEIGHTS_FILE} --output=out",
        ]
    )


def _safetensors(change: Callable[[dict[str, Any], Random], bytes | None], told: Told = EITHER) -> Mutation:
    """Changes the header; what it returns are other data."""

    def mutate(rng: Random) -> Told:
        raw = Path("weights.safetensors").read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        head, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
        other = change(head, rng)
        text = json.dumps(head).encode()
        Path(WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(text)) + text + (data if other is None else other))
        return told

    return mutate


def _entry(key: str, values: list[Any]) -> Mutation:
    def change(head: dict[str, Any], rng: Random) -> None:
        head[rng.choice([name for name in head if name != "__metadata__"])][key] = rng.choice(values)

    return _safetensors(change, REFUSE)


def _told(key: str, values: list[Any], told: Told = EITHER) -> Mutation:
    def change(head: dict[str, Any], rng: Random) -> None:
        value = rng.choice(values)
        head["__metadata__"][key] = value if isinstance(value, str) else json.dumps(value)

    return _safetensors(change, told)


def _weights(change: Callable[[torch.Tensor], torch.Tensor], told: Told, name: str = "weights") -> Mutation:
    def mutate(rng: Random) -> Told:
        from oper_lightning.priorities.file import load_tensors, save_tensors

        tensors, metadata = load_tensors("weights.safetensors")
        tensors[name] = change(tensors[name].clone())
        save_tensors(Path(WEIGHTS_FILE), tensors, metadata)
        return told

    return mutate


def _at(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(weights: torch.Tensor) -> torch.Tensor:
        weights[..., 3] = value
        return weights

    return change


def _raw_head(data: bytes) -> Mutation:
    def mutate(rng: Random) -> Told:
        Path(WEIGHTS_FILE).write_bytes(data)
        return REFUSE

    return mutate


def _length(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _lay_weights(rng: Random) -> str:
    Path(WEIGHTS_FILE).write_bytes(Path("weights.safetensors").read_bytes())
    return WEIGHTS_FILE


WEIGHTS = Kind(
    _lay_weights,
    (WEIGHTS_FILE,),
    _weights_command,
    {
        "structure: as it was": lambda rng: (_lay_weights(rng), ACCEPT)[1],
        "structure: header announced": _raw_head(struct.pack("<Q", 2**62) + b"{}"),
        "structure: header of 90 MB announced": _raw_head(struct.pack("<Q", 90_000_000) + b"{}"),
        "structure: an empty header": _raw_head(_length("{}")),
        "structure: a header that is a list": _raw_head(_length("[]")),
        "structure: a deep header": _raw_head(_length(nested(90_000, "[", "]"))),
        "structure: a number of strange types": _entry("dtype", ["F4", "", 3, None, "C64", "F8_E8M0", "BOOL", "I64"]),
        "structure: shapes": _entry("shape", [[], [-1], [10**18], [2**32, 2**32], "a", None, [1, 1, 10**9], [0, 0, 0]]),
        "structure: shapes again": _entry("shape", [[0, 1, 96], [1, 1, 95], [1.5], [[1]]]),
        "structure: offsets": _entry("data_offsets", [[0, 1], [5, 1], [0, 10**18], [-4, 0], "a", None, [0]]),
        "structure: overlapping": _entry("data_offsets", [[0, 4 * ROWS]]),
        "structure: no data": _safetensors(lambda head, rng: b"", REFUSE),
        "structure: no metadata": _safetensors(lambda head, rng: head.pop("__metadata__") and None, REFUSE),
        "structure: metadata that is a list": _safetensors(lambda head, rng: head.update(__metadata__=["a"]), REFUSE),
        "structure: metadata that is no JSON": _told("fingerprint", ["{", "", "nul"], REFUSE),
        "structure: deep metadata": _told("dataset", [nested(100_000, "[", "]")]),
        "structure: a long number": _told("rows", ["9" * 50_000]),
        **{
            f"meaning: {key}": _told(key, NASTY)
            for key in ("format", "fingerprint", "rows", "dataset", "hyper_parameters")
        },
        "meaning: statistics": _told("statistics", NASTY),
        "meaning: nan": _weights(_at(float("nan")), REFUSE),
        "meaning: inf": _weights(_at(float("inf")), REFUSE),
        "meaning: negative": _weights(_at(-1.0), REFUSE),
        "meaning: huge": _weights(_at(3e38), EITHER),
        "meaning: all zero": _weights(torch.zeros_like, REFUSE),
        "meaning: all huge": _weights(lambda w: torch.full_like(w, 3e38), EITHER),
        "meaning: one that is not zero": _weights(
            lambda w: torch.zeros_like(w).index_fill_(2, torch.tensor(3), 1.0), EITHER
        ),
        "meaning: double": _weights(lambda w: w.double(), EITHER),
        "meaning: half": _weights(lambda w: w.half(), EITHER),
        "meaning: integers": _weights(lambda w: w.long() + 1, EITHER),
        "meaning: flags": _weights(lambda w: w > 0, EITHER),
        "meaning: complex": _weights(lambda w: w.to(torch.complex64), REFUSE),
        "meaning: no iterations": _weights(lambda w: w[:0], REFUSE),
        "meaning: no seeds": _weights(lambda w: w[:, :0], REFUSE),
        "meaning: no rows": _weights(lambda w: w[..., :0], REFUSE),
        "meaning: too short": _weights(lambda w: w[..., :-1], REFUSE),
        "meaning: two dimensions": _weights(lambda w: w[0], REFUSE),
        "meaning: four dimensions": _weights(lambda w: w[None], REFUSE),
        "meaning: advantages of nan": _weights(_at(float("nan")), EITHER, "advantage"),
        "meaning: advantages of another shape": _weights(lambda w: w[0, 0, :5], EITHER, "advantage"),
    },
)
