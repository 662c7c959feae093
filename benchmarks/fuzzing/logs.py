"""The log of an online run, read as a dataset and by the run that goes on."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from fuzzing.case import ACCEPT, EITHER, NASTY, REFUSE, Kind, Mutation, Told, nested

RUN = "runs/Online"
QUICK = "--model.hidden_sizes=[8] --data.batch_size=16 --data.updates_per_epoch=4 --data.rollouts=null "
QUICK += "--trainer.max_steps=8 --trainer.max_epochs=1"
GO_ON = f"fit --ckpt_path={RUN}/last.ckpt --trainer.max_steps=8 --trainer.max_epochs=-1"
READ = f"--data.source=OnlineLog --data.source.path={RUN} --trainer.max_steps=4 --output=out"


def _file(rng: Random) -> str:
    return str(rng.choice(sorted(Path(RUN, "replay").glob("*.safetensors"))))


def _command(rng: Random) -> str:
    read = f"fit --model=TD3BC {QUICK} {READ}"
    return rng.choice(
        [
            GO_ON,
            GO_ON,
            read,
            f"{read} --data.source.steps=20 --data.priority=OperR",
            f"inspect {RUN} --output=out",
            f"convert {RUN}/replay --to=d4rl --output=out.hdf5",
        ]
    )


def _head(change: Callable[[dict[str, Any], Random], None], told: Told = EITHER) -> Mutation:
    """Changes the header of a file."""

    def mutate(rng: Random) -> Told:
        file = Path(_file(rng))
        raw = file.read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        head = json.loads(raw[8 : 8 + size])
        change(head, rng)
        text = json.dumps(head).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])
        return told

    return mutate


def _entry(key: str, values: list[Any]) -> Mutation:
    def change(head: dict[str, Any], rng: Random) -> None:
        head[rng.choice([name for name in head if name != "__metadata__"])][key] = rng.choice(values)

    return _head(change, REFUSE)


def _told(key: str, values: list[Any]) -> Mutation:
    def change(head: dict[str, Any], rng: Random) -> None:
        value = rng.choice(values)
        head["__metadata__"][key] = value if isinstance(value, str) else json.dumps(value)

    return _head(change)


def _column(change: Callable[[torch.Tensor], torch.Tensor], told: Told, *names: str) -> Mutation:
    def mutate(rng: Random) -> Told:
        from oper_lightning.priorities.file import load_tensors, save_tensors

        file = Path(_file(rng))
        tensors, metadata = load_tensors(file)
        name = rng.choice(names)
        tensors[name] = change(tensors[name].clone())
        save_tensors(file, tensors, metadata)
        return told

    return mutate


def _at(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(column: torch.Tensor) -> torch.Tensor:
        column[:, 1] = value
        return column

    return change


def _named(*names: str) -> Mutation:
    def mutate(rng: Random) -> Told:
        file = Path(_file(rng))
        file.rename(file.with_name(f"{rng.choice(names)}.safetensors"))
        return REFUSE

    return mutate


def _more(name: str) -> Mutation:
    def mutate(rng: Random) -> Told:
        shutil.copy(_file(rng), Path(RUN, "replay", name))
        return EITHER

    return mutate


SEEN, NUMBERS, FLAGS = ("observation", "next_observation"), ("action", "reward"), ("terminated", "truncated")
LOGS = Kind(
    _file,
    (RUN, ".safetensors"),
    _command,
    {
        "structure: as it was": lambda rng: ACCEPT,
        "structure: strange types": _entry("dtype", ["F4", "", 3, None, "C64", "BOOL", "I64", "BF16", "U8"]),
        "structure: shapes": _entry(
            "shape", [[], [-1], [10**18], [2**32, 2**32], "a", None, [0, 0], [2, 17], [0, 17, 3]]
        ),
        "structure: offsets": _entry("data_offsets", [[0, 1], [5, 1], [0, 10**18], [-4, 0], "a", None, [0]]),
        "structure: no metadata": _head(lambda head, rng: head.pop("__metadata__") and None, REFUSE),
        "structure: metadata that is a list": _head(lambda head, rng: head.update(__metadata__=["a"]), REFUSE),
        "structure: deep metadata": _told("environment", [nested(100_000, "[", "]")]),
        "structure: a column less": _head(lambda head, rng: head.pop("reward") and None, REFUSE),
        "names: other steps": _named("000000000-000000001", "000000001-000000017", "0-9", "a", "999999999-9999999999"),
        "names: steps without end": _named("000000000-999999999999999999", f"000000000-{'9' * 100}"),
        "names: one more": _more("000000900-000000915.safetensors"),
        "names: another's": _more("weights.safetensors"),
        "names: a part": _more("000000900-000000915.safetensors.part"),
        **{f"meaning: {key}": _told(key, NASTY) for key in ("format", "environment", "environment_options", "seed")},
        **{f"meaning: {key}": _told(key, NASTY) for key in ("action_low", "action_high", "observation_keys")},
        "meaning: a module": _told("environment", ["trap_module:Env-v0", "os:system"]),
        "meaning: wrappers": _told(
            "environment_options",
            [{"wrappers": value} for value in (*NASTY, [{"name": "RecordVideo", "kwargs": {"video_folder": "../x"}}])],
        ),
        "meaning: nan": _column(_at(float("nan")), EITHER, *SEEN, *NUMBERS),
        "meaning: inf": _column(_at(float("inf")), EITHER, *SEEN, *NUMBERS),
        "meaning: huge": _column(_at(3e38), EITHER, *SEEN, *NUMBERS),
        "meaning: other observations": _column(_at(5.0), EITHER, *SEEN),
        "meaning: other actions": _column(_at(0.5), EITHER, "action"),
        "meaning: all ends": _column(torch.ones_like, EITHER, *FLAGS),
        "meaning: flags of bytes": _column(lambda c: c.to(torch.uint8) * 2, REFUSE, *FLAGS),
        "meaning: double": _column(lambda c: c.double(), EITHER, *NUMBERS),
        "meaning: bytes": _column(lambda c: c.to(torch.uint8), EITHER, *NUMBERS, *SEEN),
        "meaning: complex": _column(lambda c: c.to(torch.complex64), REFUSE, *NUMBERS, *SEEN),
        "meaning: no copies": _column(lambda c: c[:0], REFUSE, *NUMBERS),
        "meaning: too short": _column(lambda c: c[:, :-1], REFUSE, *NUMBERS, *SEEN, *FLAGS),
        "meaning: a dimension more": _column(lambda c: c[..., None], REFUSE, "reward", *FLAGS),
    },
)
