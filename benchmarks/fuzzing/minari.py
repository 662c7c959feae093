"""Minari's folders, in both of its formats."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

from fuzzing.case import ACCEPT, EITHER, NASTY, REFUSE, Kind, Mutation, Told, nested, spoil
from fuzzing.hdf5 import ODD, QUICK, commands, discrete_commands

STORE = Path("store/mine")
TRAPS = [
    {"id": "Trap-v0", "entry_point": "trap_module:Trap", "kwargs": {}},
    {"id": "trap_module:Trap-v0", "entry_point": None, "kwargs": {}},
    {"id": "Pendulum-v1", "kwargs": {"render_mode": "human"}, "max_episode_steps": 10},
    {"id": "Pendulum-v1", "kwargs": {"nonsense": 1}, "max_episode_steps": -1},
    {"id": "Pendulum-v1", "kwargs": ["list"], "max_episode_steps": "many"},
    *(None, [], 3, "text", {}, {"id": None}, {"id": ["a"]}, {"id": ""}, {"id": "Pendulum-v1", "kwargs": None}),
]
SPACES = [
    *(None, [], 3, {}, {"type": "Box"}, {"type": "Discrete", "n": 3, "dtype": "int64", "start": 0}),
    {"type": "Discrete", "n": -1, "dtype": "int64", "start": 0},
    {"type": "Box", "dtype": "float32", "shape": [3], "low": [-1, -1, -1], "high": [1, 1]},
    {"type": "Box", "dtype": "float32", "shape": [10**10], "low": [-1.0], "high": [1.0]},
    {"type": "Box", "dtype": "float32", "shape": [-3], "low": [-1.0], "high": [1.0]},
    {"type": "Box", "dtype": "O", "shape": [1], "low": [-1.0], "high": [1.0]},
    {"type": "Box", "dtype": "float32", "shape": [1], "low": [float("nan")], "high": [1.0]},
    {"type": "Box", "dtype": "float32", "shape": [1], "low": [2.0], "high": [1.0]},
    {"type": "Box", "dtype": "float32", "shape": [], "low": -1.0, "high": 1.0},
    {"type": "Box", "dtype": "float32", "shape": [0], "low": [], "high": []},
    {"type": "Tuple", "subspaces": []},
    {"type": "Dict", "subspaces": {}},
    {"type": "Text", "max_length": 10**12, "min_length": 1, "charset": "ab"},
    {"type": "trap_module.Trap"},
]


def _metadata(change: Callable[[dict[str, Any], Random], Told], form: str | None = None) -> Mutation:
    def mutate(rng: Random) -> Told:
        file = _case(rng, form) / "data" / "metadata.json"
        content = json.loads(file.read_text())
        told = change(content, rng)
        file.write_text(json.dumps(content))
        return told

    return mutate


def _case(rng: Random, form: str | None = None) -> Path:
    """Chooses one of the stock's two datasets and puts it in the case's place."""
    form = form or rng.choice(["hdf5", "arrow"])
    (STORE / f"{form}-v0").rename(STORE / "case-v0")
    return STORE / "case-v0"


def _field(content: dict[str, Any], rng: Random) -> Told:
    spoil(content, rng)
    return EITHER


def _set(key: str, values: list[Any], as_text: bool = False) -> Mutation:
    def change(content: dict[str, Any], rng: Random) -> Told:
        value = rng.choice(values)
        content[key] = json.dumps(value) if as_text else value
        return EITHER

    return _metadata(change)


def _root(text: str) -> Mutation:
    def mutate(rng: Random) -> Told:
        (_case(rng) / "data" / "metadata.json").write_text(text)
        return REFUSE

    return mutate


def _raw(data: bytes) -> Mutation:
    def mutate(rng: Random) -> Told:
        (_case(rng) / "data" / "metadata.json").write_bytes(data)
        return REFUSE

    return mutate


def _hdf5(change: Callable[[h5py.File, str, Random], Told]) -> Mutation:
    def mutate(rng: Random) -> Told:
        with h5py.File(_case(rng, "hdf5") / "data" / "main_data.hdf5", "r+") as file:
            return change(file, rng.choice(sorted(file)), rng)

    return mutate


def _instead(make: Callable[[np.ndarray], Any], told: Told, names: tuple[str, ...] = ()) -> Mutation:
    """Another column in one episode."""

    def change(file: h5py.File, episode: str, rng: Random) -> Told:
        name = rng.choice(names or ("observations", "actions", "rewards", "terminations", "truncations"))
        array = file[episode][name][...]
        del file[episode][name]
        made = make(array)
        if made is not None:
            file[episode][name] = made
        return told

    return _hdf5(change)


def _external(array: np.ndarray) -> Any:
    with h5py.File("other.hdf5", "w") as file:
        file["x"] = array
    return h5py.ExternalLink(os.path.abspath("other.hdf5"), "/x")


def _poisoned(value: float) -> Callable[[np.ndarray], Any]:
    def make(array: np.ndarray) -> Any:
        array = array.astype(np.float32)
        array.reshape(-1)[0] = value
        return array

    return make


def _episode(change: Callable[[h5py.File, str], Any], told: Told) -> Mutation:
    return _hdf5(lambda file, episode, rng: (change(file, episode), told)[1])


def _linked_episode(file: h5py.File, episode: str) -> None:
    with h5py.File("other.hdf5", "w") as other:
        file.copy(episode, other)
    del file[episode]
    file[episode] = h5py.ExternalLink(os.path.abspath("other.hdf5"), episode)


def _virtual(file: h5py.File, episode: str) -> None:
    array = file[episode]["rewards"][...]
    _external(array)
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[...] = h5py.VirtualSource(os.path.abspath("other.hdf5"), "x", array.shape)
    del file[episode]["rewards"]
    file[episode].create_virtual_dataset("rewards", layout)


def _announced(file: h5py.File, episode: str) -> None:
    for name in list(file[episode]):
        array = file[episode][name]
        if not isinstance(array, h5py.Dataset):
            continue
        shape, dtype = (10**9 + (name == "observations"), *array.shape[1:]), array.dtype
        del file[episode][name]
        file[episode].create_dataset(name, shape, dtype, chunks=(10_000, *shape[1:]))


def _attributes(file: h5py.File, episode: str, rng: Random) -> Told:
    key = rng.choice([*file[episode].attrs, "id", "total_steps", "seed", "options"])
    value = rng.choice(ODD)
    if isinstance(value, str) and "\x00" in value:
        value = "text"
    file[episode].attrs[key] = value
    return EITHER


def _file(change: Callable[[Path], Any], told: Told, form: str | None = None) -> Mutation:
    def mutate(rng: Random) -> Told:
        data = _case(rng, form) / "data"
        files = sorted(file for file in data.rglob("*") if file.is_file() and file.name != "metadata.json")
        change(rng.choice(files))
        return told

    return mutate


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _links(path: Path) -> None:
    elsewhere = Path("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere.absolute())


def _chosen(rng: Random) -> str:
    """A file of the dataset that is read, to be mutated by bytes; an episode's own metadata.json is not."""
    data = _case(rng) / "data"
    files = (file for file in data.rglob("*") if file.is_file())
    return str(rng.choice(sorted(file for file in files if file.suffix != ".json" or file.parent == data)))


def _id(value: str) -> Mutation:
    def mutate(rng: Random) -> Told:
        command = f"fit --model=BC {QUICK} --data.source=Minari --data.source.id={value}"
        return Told("refuse", command=command, names=(value.strip("'\""), "id"))

    return mutate


def _keys(value: str) -> Mutation:
    return lambda rng: (_case(rng), Told("either", words=f"--data.source.observation_keys={value}"))[1]


def _discrete(change: Callable[[Path], Any], told: Told) -> Mutation:
    """A change to the folder of a dataset of three actions, numbered from 0."""

    def mutate(rng: Random) -> Told:
        change(_case(rng, rng.choice(["discrete-hdf5", "discrete-arrow"])) / "data")
        known = discrete_commands("Minari", "id", "mine/case-v0")
        return Told(told.must, command=known[0] if told.must == "refuse" else rng.choice(known))

    return mutate


def _space(told: Told, **fields: Any) -> Mutation:
    """Another space of actions around the same numbers."""

    def change(data: Path) -> None:
        file = data / "metadata.json"
        content = json.loads(file.read_text())
        space = {"type": "Discrete", "dtype": "int64", "n": 3, "start": 0} | fields
        file.write_text(json.dumps({**content, "action_space": json.dumps(space)}))

    return _discrete(change, told)


def _actions(make: Callable[[np.ndarray], np.ndarray], told: Told) -> Mutation:
    """Other actions in the same space, in all episodes."""

    def change(data: Path) -> None:
        with h5py.File(data / "main_data.hdf5", "r+") as file:
            for episode in file.values():
                array = episode["actions"][...]
                del episode["actions"]
                episode["actions"] = make(array)

    def mutate(rng: Random) -> Told:
        change(_case(rng, "discrete-hdf5") / "data")
        return Told(told.must, command=discrete_commands("Minari", "id", "mine/case-v0")[0])

    return mutate


BOUNDS = [float("nan"), float("inf"), 1e308, "1", "many", [], {}, -5, 10**40]
MINARI = Kind(
    _chosen,
    ("mine/case-v0",),
    commands("Minari", "id", "mine/case-v0"),
    {
        "structure: as it was": lambda rng: (_case(rng), Told("accept"))[1],
        **{f"meaning: metadata {n}": _metadata(_field) for n in range(12)},
        **{f"structure: metadata {text[:9]}": _root(text) for text in ("null", "[]", "3", '"text"', "{}", "{", "")},
        "structure: deep metadata": _root(nested(200_000, "[", "]")),
        "structure: deep fields": _root(nested(100_000, '{"a":', "}")),
        "structure: metadata not UTF-8": _raw(b'{"dataset_id": "\xff\xfe"}'),
        "structure: long metadata": _root('{"a": "' + "x" * (20 << 20) + '"}'),
        "structure: a long number": _root('{"total_steps": ' + "9" * 100_000 + "}"),
        "meaning: total_steps": _set("total_steps", [0, -1, 10**13, 10**9, 3.5, "many", None, float("nan"), 95]),
        "meaning: total_episodes": _set("total_episodes", [0, -1, 10**13, 10**6, 3.5, "many", None, 3]),
        "meaning: data_format": _set("data_format", ["arrow", "hdf5", "zarr", "", None, 3, ["hdf5"], "../x"]),
        "meaning: env_spec": _set("env_spec", TRAPS, as_text=True),
        "meaning: env_spec again": _set("env_spec", TRAPS, as_text=True),
        "meaning: eval_env_spec": _set("eval_env_spec", TRAPS, as_text=True),
        "meaning: env_spec no text": _set("env_spec", [*NASTY]),
        "meaning: action_space": _set("action_space", SPACES, as_text=True),
        "meaning: action_space again": _set("action_space", SPACES, as_text=True),
        "meaning: observation_space": _set("observation_space", SPACES, as_text=True),
        "meaning: observation_space again": _set("observation_space", SPACES, as_text=True),
        "meaning: spaces no text": _set("action_space", [*NASTY]),
        "meaning: ref_min_score": _set("ref_min_score", BOUNDS),
        "meaning: minari_version": _set("minari_version", [None, "99.0", "x", [], "~=0.4"]),
        "discrete: as they were": _space(ACCEPT),
        "discrete: more than are taken": _space(ACCEPT, n=9, start=-2),
        "discrete: fewer than are taken": _space(REFUSE, n=2),
        "discrete: others than are taken": _space(REFUSE, start=5),
        "discrete: none": _space(REFUSE, n=0),
        "discrete: fewer than none": _space(REFUSE, n=-3),
        "discrete: a trillion": _space(REFUSE, n=10**12),
        "discrete: beyond any number": _space(REFUSE, n=2**63 - 1, start=2**63 - 1),
        "discrete: more than a number holds": _space(REFUSE, n=10**40),
        "discrete: far away": _space(REFUSE, start=10**15),
        "discrete: a part": _space(EITHER, n=3.5),
        "discrete: of text": _space(REFUSE, n="three"),
        "discrete: of no type": _space(EITHER, dtype="float32"),
        "discrete: several": _space(REFUSE, type="MultiDiscrete", nvec=[3, 3], start=[0, 0]),
        "discrete: bits": _space(REFUSE, type="MultiBinary", n=3),
        "discrete: a box": _space(REFUSE, type="Box", shape=[1], low=[0], high=[2]),
        "discrete: floats in it": _actions(lambda a: a.astype(np.float64), REFUSE),
        "discrete: bool in it": _actions(lambda a: a > 0, EITHER),
        "discrete: columns in it": _actions(lambda a: np.stack([a, a], 1), REFUSE),
        "discrete: a column in it": _actions(lambda a: a[:, None], REFUSE),
        "discrete: negative": _actions(lambda a: a - 1, REFUSE),
        "discrete: huge": _actions(lambda a: a * 10**12, REFUSE),
        "structure: a column gone": _instead(lambda a: None, REFUSE),
        "structure: external link": _instead(_external, REFUSE),
        "structure: external link to nothing": _instead(lambda a: h5py.ExternalLink("gone.hdf5", "x"), REFUSE),
        "structure: soft link to nothing": _instead(lambda a: h5py.SoftLink("/gone"), REFUSE),
        "structure: an episode elsewhere": _episode(_linked_episode, REFUSE),
        "structure: virtual": _episode(_virtual, REFUSE),
        "structure: an empty dataspace": _instead(lambda a: h5py.Empty("f4"), REFUSE),
        "structure: text": _instead(lambda a: np.full(len(a), b"text"), REFUSE),
        "structure: complex": _instead(lambda a: a.astype(np.complex64), REFUSE),
        "structure: zero columns": _instead(lambda a: a[:, :0], REFUSE, ("observations", "actions")),
        "structure: a scalar": _instead(lambda a: a.reshape(-1)[0], REFUSE),
        "structure: shorter": _instead(lambda a: a[:-2], REFUSE),
        "structure: longer": _instead(lambda a: np.concatenate([a, a]), REFUSE),
        "structure: wider": _instead(lambda a: np.concatenate([a, a], 1), REFUSE, ("observations", "actions")),
        "structure: an episode gone": _episode(lambda file, name: file.__delitem__(name), EITHER),
        "structure: a dataset for an episode": _episode(
            lambda file, name: (file.__delitem__(name), file.__setitem__(name, np.zeros(3))), REFUSE
        ),
        "structure: an episode of another name": _episode(lambda file, name: file.move(name, "episode_x"), EITHER),
        "structure: one episode more": _episode(lambda file, name: file.copy(name, "episode_77"), EITHER),
        "structure: rows announced": _episode(_announced, REFUSE),
        **{f"meaning: attributes {n}": _hdf5(_attributes) for n in range(4)},
        "meaning: nan": _instead(_poisoned(np.nan), REFUSE),
        "meaning: inf": _instead(_poisoned(np.inf), REFUSE),
        "meaning: huge": _instead(_poisoned(3e38), EITHER, ("observations", "rewards")),
        "meaning: flag of 2": _instead(lambda a: np.full(len(a), 2), REFUSE, ("terminations", "truncations")),
        "structure: a fifo": _file(_fifo, REFUSE),
        "structure: a link in the file system": _file(_links, EITHER),
        "structure: a file gone": _file(lambda path: path.unlink(), EITHER),
        **{
            f"bytes: arrow cut {n}": _file(lambda p: os.truncate(p, p.stat().st_size // 2), EITHER, "arrow")
            for n in (1, 2)
        },
        "meaning: id climbs": _id("../../mine/gone"),
        "meaning: id is empty": _id("''"),
        "meaning: id is a device": _id("/dev/zero"),
        "meaning: id of nothing": _id("mine/gone-v0"),
        "meaning: observation_keys": _keys("[a,b]"),
    },
)
