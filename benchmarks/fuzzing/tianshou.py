"""Replay buffers of Tianshou."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from random import Random
from typing import Any

import h5py
import numpy as np

from fuzzing import arrays, hdf5
from fuzzing.arrays import ROWS
from fuzzing.case import ACCEPT, DEEP, EITHER, REFUSE, Kind, Mutation, Told

FILE = "case.hdf5"
RINGS = 4
COLUMNS = {
    "obs": "observations",
    "act": "actions",
    "rew": "rewards",
    "terminated": "terminals",
    "truncated": "timeouts",
    "obs_next": "next_observations",
}
COUNTS = ("maxsize", "_size", "stack_num", "_insertion_idx", "_index", "buffer_num")
PLACES = ("_lengths", "_offset", "_extend_offset", "last_index", "_indices")
NUMBERS = [
    *(-1, 0, 1, 3, ROWS - 1, ROWS + 1, 10**7, 10**12, 2**63 - 1, 0.5),
    float("nan"),
    float("inf"),
    "text",
    b"\xff",
]
NUMBERS += [np.zeros(3), np.zeros(0), h5py.Empty("i8"), True, np.complex64(1)]


class Trap:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("open('sprung', 'w').close()",)


PICKLES = [pickle.dumps(Trap()), DEEP, b"ctrap_module\ncall\n(tR.", b"\x80\x05\x95" + b"\xff" * 8]


def lay(columns: arrays.Arrays, several: bool) -> None:
    """Writes columns as a buffer, or as several side by side, all of them full."""
    with h5py.File(FILE, "w") as file:
        rows = next((len(values) for values in columns.values() if np.ndim(values)), 0)
        file.attrs.update({"maxsize": rows, "stack_num": 1, "_save_obs_next": True, "_save_only_last_obs": False})
        data = file.create_group("_meta")
        data.attrs["__data_type__"] = "Batch"
        for group in ("info", "policy"):
            data.create_group(group)
        for ours, theirs in COLUMNS.items():
            if theirs in columns:
                data[ours] = columns[theirs]
                data[ours].attrs["__data_type__"] = "ndarray"
        good = arrays.good()
        data["done"] = (good["terminals"] | good["timeouts"])[:rows]
        if several:
            edges = np.linspace(0, rows, RINGS + 1).astype(np.int64)
            places = {"_lengths": np.diff(edges), "_offset": edges[:-1], "_extend_offset": edges}
            places |= {"last_index": edges[1:] - 1, "_indices": np.arange(rows)}
            for name, values in places.items():
                file[name] = values
            file.attrs["buffer_num"] = RINGS
            file["buffers"] = np.frombuffer(PICKLES[0], dtype=np.int8)
        else:
            file["last_index"] = np.array([rows - 1])
            file.attrs.update({"_size": rows, "_index": 0, "_insertion_idx": 0})


def _good(rng: Random) -> None:
    lay(arrays.good(), rng.random() < 0.5)


def _of(change: Callable[[arrays.Arrays, Random], Told]) -> Mutation:
    def mutate(rng: Random) -> Told:
        columns = arrays.good()
        told = change(columns, rng)
        lay(columns, rng.random() < 0.5)
        return Told("either" if told.must == "accept" else told.must)

    return mutate


def _file(change: Callable[[h5py.File, Random], Told], several: bool | None = None) -> Mutation:
    def mutate(rng: Random) -> Told:
        lay(arrays.good(), rng.random() < 0.5 if several is None else several)
        with h5py.File(FILE, "r+") as file:
            return change(file, rng)

    return mutate


def _column(change: Callable[[h5py.File, str, np.ndarray], None], told: Told) -> Mutation:
    """Another thing in place of one column; written by what mutates D4RL's files."""

    def mutate(file: h5py.File, rng: Random) -> Told:
        name = f"_meta/{rng.choice([*COLUMNS, 'done'])}"
        array = file[name][...]
        del file[name]
        change(file, name, array)
        return told

    return _file(mutate)


def _without(*names: str, told: Told = REFUSE, several: bool | None = None) -> Mutation:
    def mutate(file: h5py.File, rng: Random) -> Told:
        name = rng.choice([name for name in names if name in file or name in file.attrs])
        del (file if name in file else file.attrs)[name]
        return told

    return _file(mutate, several)


def _count(file: h5py.File, rng: Random) -> Told:
    file.attrs[rng.choice(COUNTS)] = rng.choice(NUMBERS)
    return EITHER


def _place(file: h5py.File, rng: Random) -> Told:
    array = file[rng.choice(PLACES)]
    array[rng.randrange(len(array))] = rng.choice([-(2**62), -1, 0, 7, ROWS - 1, ROWS, 10**12, 2**63 - 1])
    return EITHER


def _places(change: Callable[[np.ndarray], np.ndarray], told: Told, *names: str) -> Mutation:
    def mutate(file: h5py.File, rng: Random) -> Told:
        name = rng.choice(names or PLACES[:1] + PLACES[2:4])
        values = change(file[name][...])
        del file[name]
        file[name] = values
        return told

    return _file(mutate, several=True)


def _announced(rows: int) -> Mutation:
    """A buffer for many more rows than were ever written."""

    def mutate(file: h5py.File, rng: Random) -> Told:
        for name in (*COLUMNS, "done"):
            array = file[f"_meta/{name}"][...]
            del file[f"_meta/{name}"]
            shape = (rows, *array.shape[1:])
            made = file.create_dataset(
                f"_meta/{name}", shape, array.dtype, chunks=(4096, *shape[1:]), compression="gzip"
            )
            made[: len(array)] = array
        file.attrs["maxsize"] = rows
        return REFUSE

    return _file(mutate, several=False)


def _pickled(*places: str) -> Mutation:
    def mutate(file: h5py.File, rng: Random) -> Told:
        place = rng.choice(places)
        if place in file:
            del file[place]
        file[place] = np.frombuffer(rng.choice(PICKLES), dtype=np.int8)
        file[place].attrs["__data_type__"] = rng.choice(["pickled_ndarray", "Trap", "RandomState"])
        return ACCEPT if place.startswith(("buffers", "_random", "_meta/policy", "whatever")) else REFUSE

    return _file(mutate)


def _stacks(file: h5py.File, rng: Random) -> Told:
    for name in ("obs", "obs_next"):
        del file[f"_meta/{name}"]
        file[f"_meta/{name}"] = np.zeros((ROWS, 36, 36), dtype=np.uint8)
    file.attrs["stack_num"] = rng.choice([1, 4, 4, 200, 10**6, -4, True, 2.5, "4"])
    file.attrs["_save_only_last_obs"] = rng.choice([True, False, 3, "yes"])
    return EITHER


def _entries(file: h5py.File, rng: Random) -> Told:
    for name in ("obs", "obs_next"):
        values = file[f"_meta/{name}"][...]
        del file[f"_meta/{name}"]
        file[f"_meta/{name}/a"], file[f"_meta/{name}/b/c"] = values, values[:, 0]
    return Told(
        "either", words="--data.source.observation_keys=" + rng.choice(["[a,b/c]", "[b]", "[../x]", "[]", "['']"])
    )


def _attribute(name: str) -> Mutation:
    def mutate(file: h5py.File, rng: Random) -> Told:
        file.attrs["ref_max_score"] = file.attrs["ref_min_score"] = 1.0
        file.attrs[name] = rng.choice(hdf5.ODD)
        return EITHER

    return _file(mutate)


def _commands(rng: Random) -> str:
    if rng.random() < 0.2:
        to, output = rng.choice([("minari", "out-v0"), ("d4rl", "out.hdf5"), ("tianshou", "out.hdf5")])
        return f"convert --source=Tianshou --source.path={FILE} --to={to} --output={output}"
    return hdf5.commands("Tianshou", "path", FILE)(rng)


def _laid(rng: Random) -> str:
    _good(rng)
    return FILE


TIANSHOU = Kind(
    _laid,
    ("case.hdf5", "case: "),
    _commands,
    {
        **{f"structure: {name}": _of(change) for name, change in arrays.STRUCTURE.items()},
        **{
            f"meaning: {name}": _of(change)
            for name, change in arrays.MEANING.items()
            if "max_episode_steps" not in name and name != "both ends"
        },
        "structure: no group": _without("_meta"),
        "structure: no column": _without("_meta/obs", "_meta/act", "_meta/rew", "_meta/done"),
        "structure: no flags but done": _without("_meta/terminated", "_meta/truncated", told=ACCEPT),
        "structure: no counts": _without("maxsize", "_size", "stack_num", several=False),
        "structure: no places": _without("_extend_offset", "last_index", several=True),
        "structure: no lengths": _without("_lengths", told=EITHER, several=True),
        "structure: external link": _column(hdf5._external, REFUSE),
        "structure: external raw storage": _column(hdf5._raw, REFUSE),
        "structure: virtual": _column(hdf5._virtual(False), REFUSE),
        "structure: soft link to itself": _column(hdf5._soft("/{name}"), REFUSE),
        "structure: a group": _column(hdf5._group, REFUSE),
        "structure: a group that is no batch": _file(
            lambda file, rng: (file.__delitem__("_meta"), file.__setitem__("_meta", np.arange(3)), REFUSE)[2]
        ),
        "structure: rows announced": _announced(10**8),
        "structure: very many rows announced": _announced(10**13),
        "structure: pickles that nobody reads": _pickled("buffers", "_random_state", "_meta/policy/x", "whatever"),
        "structure: pickles in place of columns": _pickled("_meta/obs", "_meta/act", "_meta/rew", "_meta/done"),
        "structure: entries": _file(_entries),
        "structure: frames": _file(_stacks),
        **{f"meaning: a count {n}": _file(_count) for n in range(8)},
        **{f"meaning: a place {n}": _file(_place, several=True) for n in range(8)},
        "meaning: offsets out of order": _places(lambda a: a[::-1].copy(), REFUSE, "_extend_offset"),
        "meaning: offsets that do not begin": _places(lambda a: a + 1, REFUSE, "_extend_offset"),
        "meaning: lengths that lie": _places(lambda a: a * 2, REFUSE, "_lengths"),
        "meaning: negative lengths": _places(lambda a: -a, REFUSE, "_lengths"),
        "meaning: newest rows beyond": _places(lambda a: a + 10**6, REFUSE, "last_index"),
        "meaning: newest rows elsewhere": _places(lambda a: np.roll(a, 1), REFUSE, "last_index"),
        "meaning: newest rows in the middle": _places(lambda a: a - 5, ACCEPT, "last_index"),
        "meaning: more places": _places(lambda a: np.concatenate([a, a]), REFUSE),
        "meaning: fewer places": _places(lambda a: a[:-1], REFUSE),
        "meaning: places of other types": _places(lambda a: a.astype(np.float32), REFUSE),
        "meaning: nothing in use": _places(lambda a: a * 0, REFUSE, "_lengths"),
        "meaning: env_id": _attribute("env_id"),
        "meaning: ref_min_score": _attribute("ref_min_score"),
    },
)
