"""Recorded steps, and what may be wrong with them whatever file they lie in."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from fuzzing.case import ACCEPT, EITHER, REFUSE, Told

EPISODES, STEPS = 8, 12
ROWS = EPISODES * STEPS
Arrays = dict[str, Any]


def good() -> Arrays:
    """Columns in D4RL's layout: 3 observations, 1 action in [-1, 1]; every second episode ends by time."""
    generator = np.random.default_rng(0)
    observations = generator.normal(size=(EPISODES, STEPS + 1, 3)).astype(np.float32)
    ends = np.zeros((2, EPISODES, STEPS), dtype=bool)
    ends[0, ::2, -1] = ends[1, 1::2, -1] = True
    return {
        "observations": observations[:, :-1].reshape(ROWS, 3),
        "actions": generator.uniform(-1, 1, (ROWS, 1)).astype(np.float32),
        "rewards": generator.normal(size=ROWS).astype(np.float32),
        "terminals": ends[0].reshape(-1),
        "timeouts": ends[1].reshape(-1),
        "next_observations": observations[:, 1:].reshape(ROWS, 3),
    }


def discrete() -> Arrays:
    """The same with one of three actions, numbered from 0."""
    actions = np.random.default_rng(1).integers(0, 3, ROWS)
    actions[:3] = 0, 1, 2
    return {**good(), "actions": actions}


FLOATS = ("observations", "actions", "rewards", "next_observations")
FLAGS = ("terminals", "timeouts")


def _put(names: tuple[str, ...], value: float, told: Told, dtype: Any = np.float32) -> Callable[[Arrays, Random], Told]:
    def mutate(arrays: Arrays, rng: Random) -> Told:
        name = rng.choice(names)
        array = arrays[name].astype(dtype)
        array.reshape(-1)[rng.randrange(array.size)] = value
        arrays[name] = array
        return told

    return mutate


def _cast(names: tuple[str, ...], dtype: Any, told: Told) -> Callable[[Arrays, Random], Told]:
    def mutate(arrays: Arrays, rng: Random) -> Told:
        name = rng.choice(names)
        arrays[name] = arrays[name].astype(dtype)
        return told

    return mutate


def _shape(change: Callable[[np.ndarray], np.ndarray], names: tuple[str, ...], told: Told) -> Callable[..., Told]:
    def mutate(arrays: Arrays, rng: Random) -> Told:
        name = rng.choice(names)
        arrays[name] = change(arrays[name])
        return told

    return mutate


def _all(change: Callable[[np.ndarray], np.ndarray], told: Told) -> Callable[..., Told]:
    def mutate(arrays: Arrays, rng: Random) -> Told:
        arrays.update({name: change(array) for name, array in arrays.items()})
        return told

    return mutate


def _set(told: Told, **values: float) -> Callable[[Arrays, Random], Told]:
    def mutate(arrays: Arrays, rng: Random) -> Told:
        for name, value in values.items():
            arrays[name][:] = value
        return told

    return mutate


def _drop(names: tuple[str, ...], told: Told) -> Callable[[Arrays, Random], Told]:
    def mutate(arrays: Arrays, rng: Random) -> Told:
        del arrays[rng.choice(names)]
        return told

    return mutate


def _rename(arrays: Arrays, rng: Random) -> Told:
    name = rng.choice(["observations", "actions", "rewards"])
    arrays[rng.choice([name.upper(), name + " ", name[:-1], "x/" + name, ""]) or "_"] = arrays.pop(name)
    return REFUSE


def _extra(arrays: Arrays, rng: Random) -> Told:
    arrays[rng.choice(["infos", "metadata", "qpos", "é", "a b"])] = np.arange(rng.choice([1, 7, ROWS]))
    return ACCEPT


NEEDED = ("observations", "actions", "rewards", "terminals")
EVERY = (*FLOATS, *FLAGS)

# Structure: which arrays there are, and of what shape and type.
STRUCTURE: dict[str, Callable[[Arrays, Random], Told]] = {
    "as it was": lambda arrays, rng: ACCEPT,
    "no such array": _drop(NEEDED[:3], REFUSE),
    "no terminals": _drop(("terminals",), EITHER),
    "no timeouts": _drop(("timeouts",), EITHER),
    "no next observations": _drop(("next_observations",), ACCEPT),
    "renamed": _rename,
    "one more": _extra,
    "nothing": lambda arrays, rng: (arrays.clear(), REFUSE)[1],
    "zero columns": _shape(
        lambda a: a.reshape(ROWS, -1)[:, :0], ("observations", "actions", "next_observations"), REFUSE
    ),
    "zero columns everywhere": lambda arrays, rng: _all(lambda a: a[:, :0] if a.ndim > 1 else a, REFUSE)(arrays, rng),
    "a scalar": _shape(lambda a: np.float32(a.reshape(-1)[0]), EVERY, REFUSE),
    "no rows": _all(lambda a: a[:0], REFUSE),
    "no rows in one": _shape(lambda a: a[:0], EVERY, REFUSE),
    "unequal lengths": _shape(lambda a: a[:-3], EVERY, REFUSE),
    "longer": _shape(lambda a: np.concatenate([a, a]), EVERY, REFUSE),
    "transposed": _shape(lambda a: a.T, ("observations", "next_observations"), REFUSE),
    "another width": _shape(lambda a: np.concatenate([a, a], 1), ("next_observations",), REFUSE),
    "flat": _shape(lambda a: a.reshape(ROWS, -1)[:, 0], ("observations", "actions"), EITHER),
    "one dimension more": _shape(lambda a: a[..., None], EVERY, EITHER),
    "five dimensions": _shape(lambda a: a.reshape(ROWS, *[1] * 20, -1), ("observations", "actions"), REFUSE),
    "complex": _cast(EVERY, np.complex64, REFUSE),
    "bytes": _cast(EVERY, "S7", REFUSE),
    "void": _shape(lambda a: np.zeros(ROWS, "V8"), EVERY, REFUSE),
    "records": _shape(lambda a: np.zeros(ROWS, [("x", "f4"), ("y", "i4")]), EVERY, REFUSE),
    "half": _cast(FLOATS, np.float16, EITHER),
    "double": _cast(FLOATS, np.float64, ACCEPT),
    "big-endian": _cast(FLOATS, ">f8", ACCEPT),
    "integers": _cast(("rewards", "observations"), np.int64, EITHER),
    "small integers": _cast(("observations", "actions"), np.uint8, EITHER),
    "long double": _cast(FLOATS, np.longdouble, EITHER),
}

# Meaning: arrays of the right shapes and types.
MEANING: dict[str, Callable[[Arrays, Random], Told]] = {
    "nan": _put(FLOATS, np.nan, REFUSE),
    "inf": _put(FLOATS, np.inf, REFUSE),
    "minus inf": _put(FLOATS, -np.inf, REFUSE),
    "nan flag": _put(FLAGS, np.nan, REFUSE),
    "flag of 2": _put(FLAGS, 2, REFUSE, np.int64),
    "flag of -1": _put(FLAGS, -1, REFUSE, np.int8),
    "flag of 0.5": _put(FLAGS, 0.5, REFUSE),
    "flags as numbers": _cast(FLAGS, np.float64, ACCEPT),
    "huge": _put(FLOATS, 3e38, EITHER),
    "huge everywhere": lambda arrays, rng: _set(EITHER, **{rng.choice(["observations", "rewards"]): 1e38})(arrays, rng),
    "beyond float32": _put(FLOATS, 1e300, REFUSE, np.float64),
    "tiny": _put(FLOATS, 1e-45, EITHER),
    "actions outside": _put(("actions",), 1e6, EITHER),
    "no ends": _set(EITHER, terminals=0, timeouts=0),
    "all ends": _set(EITHER, terminals=1, timeouts=0),
    "both ends": _set(EITHER, terminals=1, timeouts=1),
    "all timeouts": _set(EITHER, terminals=0, timeouts=1),
    "constant observations": _set(EITHER, observations=1, next_observations=1),
    "constant actions": _set(EITHER, actions=0),
    "constant rewards": _set(EITHER, rewards=0),
    "one row": _all(lambda a: a[:1], EITHER),
    "two rows": _all(lambda a: a[:2], EITHER),
    "the last is unfinished": _all(lambda a: a[:-5], EITHER),
    "no rows, by max_episode_steps=0": lambda arrays, rng: Told(
        "refuse", words="--data.source.max_episode_steps=0", names=("max_episode_steps",)
    ),
    "max_episode_steps=-3": lambda arrays, rng: Told(
        "refuse", words="--data.source.max_episode_steps=-3", names=("max_episode_steps",)
    ),
}


def _one(value: int, told: Told, dtype: Any = np.int64) -> Callable[[Arrays, Random], Told]:
    """A number in place of one action."""

    def mutate(arrays: Arrays, rng: Random) -> Told:
        actions = arrays["actions"].astype(dtype)
        actions[rng.randrange(ROWS)] = value
        arrays["actions"] = actions
        return told

    return mutate


def _made(change: Callable[[np.ndarray], np.ndarray], told: Told) -> Callable[[Arrays, Random], Told]:
    def mutate(arrays: Arrays, rng: Random) -> Told:
        arrays["actions"] = change(arrays["actions"])
        return told

    return mutate


# Discrete actions, read by an algorithm for them.
DISCRETE: dict[str, Callable[[Arrays, Random], Told]] = {
    "as they were": lambda arrays, rng: ACCEPT,
    "a column": _made(lambda a: a[:, None], ACCEPT),
    "small": _made(lambda a: a.astype(np.uint8), ACCEPT),
    "big-endian": _made(lambda a: a.astype(">i4"), ACCEPT),
    "bool": _made(lambda a: a > 0, ACCEPT),
    "all alike": _made(lambda a: a * 0, ACCEPT),
    "negative": _one(-7, ACCEPT),
    "many": _one(5000, ACCEPT),
    "too many": _one(10_000, REFUSE),
    "a trillion": _one(10**12, REFUSE),
    "minus a trillion": _one(-(10**12), REFUSE),
    "the largest": _one(2**63 - 1, REFUSE),
    "the lowest": _one(-(2**63), REFUSE),
    "beyond the largest": _one(2**64 - 1, EITHER, np.uint64),
    "whole floats": _made(lambda a: a.astype(np.float32), REFUSE),
    "a column of whole floats": _made(lambda a: a[:, None].astype(np.float64), REFUSE),
    "two columns": _made(lambda a: np.stack([a, a], 1), REFUSE),
    "one-hot": _made(lambda a: np.eye(3, dtype=np.int64)[a], REFUSE),
    "three dimensions": _made(lambda a: a[:, None, None], REFUSE),
    "text": _made(lambda a: a.astype("S3"), REFUSE),
    "complex": _made(lambda a: a.astype(np.complex64), REFUSE),
}
