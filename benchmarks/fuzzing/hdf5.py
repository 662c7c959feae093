"""HDF5 files in D4RL's layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

from fuzzing import arrays
from fuzzing.arrays import ROWS
from fuzzing.case import ACCEPT, EITHER, REFUSE, Kind, Mutation, Told

FILE = "case.hdf5"
DATA = "--data.source=D4RL --data.source.path=data.hdf5"
QUICK = "--model.hidden_sizes=[8] --data.batch_size=16 --data.updates_per_epoch=4 --trainer.max_steps=4 --output=out"


def commands(source: str, argument: str, file: str) -> Callable[[Random], str]:
    """Commands that read a dataset."""
    data = f"--data.source={source} --data.source.{argument}={file}"
    known = [
        f"fit --model=BC {QUICK} {data}",
        f"fit --model=TD3BC {QUICK} {data} --data.priority=OperR",
        f"fit --model=IQL {QUICK} {data} --data.location=memmap --data.reward_scale=return_range",
        f"fit --model=OperA --model.iterations=1 {QUICK} {data} --data.rollouts=null",
        f"fit --model=BC {QUICK} {data} --data.priority=TopFraction --data.clip_actions=true",
        f"predict --ckpt_path=runs/BC/last.ckpt {data} --output=out",
        f"inspect {file} --output=out",
    ]

    def command(rng: Random) -> str:
        return rng.choice(known)

    return command


def discrete_commands(source: str, argument: str, file: str) -> list[str]:
    """Commands that read a dataset of discrete actions; the first refuses others."""
    data = f"--data.source={source} --data.source.{argument}={file}"
    stage_1 = f"fit --model=OperA --model.critic=vq --model.iterations=1 {QUICK} {data} --data.rollouts=null"
    return [
        f"fit --model=DiscreteBC {QUICK} {data} --data.priority=OperR --data.location=memmap",
        f"fit --model=DiscreteBC {QUICK} {data} --data.priority=AdvantageWeighting --data.mode=reweight",
        stage_1,
        f"inspect {file} --output=out",
    ]


def of_discrete(
    change: Callable[[arrays.Arrays, Random], Told], save: Callable[[arrays.Arrays], None], source: str, file: str
) -> Mutation:
    """A mutation of a flat file of discrete actions, with a command for them."""

    def mutate(rng: Random) -> Told:
        columns = arrays.discrete()
        told = change(columns, rng)
        save(columns)
        known = discrete_commands(source, "path", file)
        return replace(told, command=known[0] if told.must == "refuse" else rng.choice(known))

    return mutate


def write(path: str, columns: arrays.Arrays) -> None:
    """Writes columns as a flat file."""
    with h5py.File(path, "w") as file:
        for name, array in columns.items():
            file[name] = array


def _of(change: Callable[[arrays.Arrays, Random], Told]) -> Mutation:
    def mutate(rng: Random) -> Told:
        columns = arrays.good()
        told = change(columns, rng)
        write(FILE, {name: array for name, array in columns.items() if np.asarray(array).dtype != np.longdouble or 1})
        return told

    return mutate


def _column(
    change: Callable[[h5py.File, str, np.ndarray], None], told: Told, names: tuple[str, ...] = arrays.EVERY
) -> Mutation:
    """Takes one column out of a good file and puts something else in its place."""

    def mutate(rng: Random) -> Told:
        write(FILE, arrays.good())
        name = rng.choice(names)
        with h5py.File(FILE, "r+") as file:
            array = file[name][...]
            del file[name]
            change(file, name, array)
        return told

    return mutate


def _elsewhere(array: np.ndarray, name: str = "other.hdf5") -> str:
    write(name, {"x": array})
    return name


def _external(file: h5py.File, name: str, array: np.ndarray) -> None:
    file[name] = h5py.ExternalLink(_elsewhere(array), "/x")


def _fifo(file: h5py.File, name: str, array: np.ndarray) -> None:
    os.mkfifo("pipe")
    file[name] = h5py.ExternalLink("pipe", "/x")


def _raw(file: h5py.File, name: str, array: np.ndarray) -> None:
    Path("other.bin").write_bytes(array.tobytes())
    file.create_dataset(name, array.shape, array.dtype, external=[("other.bin", 0, array.nbytes)])


def _raw_device(file: h5py.File, name: str, array: np.ndarray) -> None:
    file.create_dataset(name, array.shape, array.dtype, external=[("/dev/zero", 0, array.nbytes)])


def _raw_fifo(file: h5py.File, name: str, array: np.ndarray) -> None:
    os.mkfifo("pipe")
    file.create_dataset(name, array.shape, array.dtype, external=[("pipe", 0, array.nbytes)])


def _virtual(gone: bool) -> Callable[[h5py.File, str, np.ndarray], None]:
    def change(file: h5py.File, name: str, array: np.ndarray) -> None:
        layout = h5py.VirtualLayout(array.shape, array.dtype)
        layout[...] = h5py.VirtualSource(_elsewhere(array), "x", array.shape)
        file.create_virtual_dataset(name, layout)
        if gone:
            os.remove("other.hdf5")

    return change


def _group(file: h5py.File, name: str, array: np.ndarray) -> None:
    file[f"{name}/value"] = array


def _deep(file: h5py.File, name: str, array: np.ndarray) -> None:
    file["/".join([name, *"a" * 900])] = array


def _cycle(file: h5py.File, name: str, array: np.ndarray) -> None:
    group = file.create_group("loop")
    group["loop"] = group
    file[name] = h5py.SoftLink("/loop/loop/loop/" + name)


def _soft(to: str) -> Callable[[h5py.File, str, np.ndarray], None]:
    def change(file: h5py.File, name: str, array: np.ndarray) -> None:
        file["kept"] = array
        file[name] = h5py.SoftLink(to.format(name=name))

    return change


def _made(**options: Any) -> Callable[[h5py.File, str, np.ndarray], None]:
    def change(file: h5py.File, name: str, array: np.ndarray) -> None:
        file.create_dataset(name, data=array, **options)

    return change


def _announced(rows: int, **options: Any) -> Callable[[h5py.File, str, np.ndarray], None]:
    """Many more rows than were ever written."""

    def change(file: h5py.File, name: str, array: np.ndarray) -> None:
        file.create_dataset(
            name, (rows, *array.shape[1:]), array.dtype, chunks=(min(4096, rows), *array.shape[1:]), **options
        )

    return change


def _announced_everywhere(rows: int) -> Mutation:
    def mutate(rng: Random) -> Told:
        with h5py.File(FILE, "w") as file:
            for name, array in arrays.good().items():
                shape = (rows, *array.shape[1:])
                made = file.create_dataset(name, shape, array.dtype, chunks=(4096, *shape[1:]), compression="gzip")
                made[: len(array)] = array
        return REFUSE

    return mutate


def _wide(rng: Random) -> Told:
    write(FILE, arrays.good())
    with h5py.File(FILE, "r+") as file:
        for name in ("observations", "next_observations"):
            del file[name]
            file.create_dataset(name, (ROWS, 50_000_000), "f4", chunks=(1, 100_000))
    return REFUSE


def _bomb(rng: Random) -> Told:
    """Zeros that were written, compressed a thousandfold: 7 GB of observations in 7 MB."""
    rows = 300_000
    with h5py.File(FILE, "w") as file:
        for name, array in arrays.good().items():
            width = (3000,) if name in ("observations", "next_observations") else array.shape[1:]
            chunk = (min(10_000, rows), *width)
            made = file.create_dataset(name, (rows, *width), array.dtype, chunks=chunk, compression="gzip")
            if not width or width == (1,):
                made[...] = 0
            else:  # the same compressed chunk again and again, so that this takes no time
                made[:10_000] = 0
                _, data = made.id.read_direct_chunk((0, 0))
                for start in range(10_000, rows, 10_000):
                    made.id.write_direct_chunk((start, 0), data)
    return EITHER


def _typed(dtype: Any) -> Callable[[h5py.File, str, np.ndarray], None]:
    def change(file: h5py.File, name: str, array: np.ndarray) -> None:
        file.create_dataset(name, (ROWS,), dtype)

    return change


def _filter(file: h5py.File, name: str, array: np.ndarray) -> None:
    """A filter that nobody has."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((ROWS, *array.shape[1:]))
    plan.set_filter(32_123, h5py.h5z.FLAG_OPTIONAL, (1, 2))
    space = h5py.h5s.create_simple(array.shape)
    made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(array.dtype), space, plan)
    chunk = (0,) * array.ndim
    h5py.Dataset(made).id.write_direct_chunk(chunk, array.tobytes())


def _attribute(name: str, values: list[Any], told: Told = EITHER) -> Mutation:
    def mutate(rng: Random) -> Told:
        write(FILE, arrays.good())
        with h5py.File(FILE, "r+") as file:
            file.attrs["ref_max_score"] = file.attrs["ref_min_score"] = 1.0
            file.attrs[name] = rng.choice(values)
        return told

    return mutate


def _whole_external(rng: Random) -> Told:
    write("other.hdf5", arrays.good())
    with h5py.File(FILE, "w") as file:
        for name in arrays.EVERY:
            file[name] = h5py.ExternalLink("other.hdf5", name)
    return REFUSE


def _link_to_good(rng: Random) -> Told:
    """A symbolic link in the file system: people keep data elsewhere so."""
    Path(FILE).symlink_to("data.hdf5")
    return ACCEPT


def _open_elsewhere(rng: Random) -> Told:
    with h5py.File(FILE, "w", userblock_size=512) as file:
        for name, array in arrays.good().items():
            file[name] = array
    return ACCEPT


ODD = [
    *(
        "",
        "x" * 9000,
        "trap_module:Env-v0",
        "trap_module",
        np.bytes_(b"\x00x"),
        "Pendulum-v1",
        "../../x",
        "NoSuchEnv-v3",
        "é",
    ),
    *(
        b"\xff\xfe",
        3,
        -1.0,
        float("nan"),
        float("inf"),
        np.zeros(3),
        np.zeros((0,)),
        h5py.Empty("f4"),
        h5py.Empty("S1"),
    ),
    *("<script>trap()</script>", "$\\frac{$", "nan", "1e400", "-", True, np.complex64(1), np.array([b"a", b"b"])),
]


def _lay(rng: Random) -> str:
    write(FILE, arrays.good())
    return FILE


HDF5 = Kind(
    _lay,
    ("case.hdf5", "case: "),
    commands("D4RL", "path", FILE),
    {
        **{f"structure: {name}": _of(change) for name, change in arrays.STRUCTURE.items()},
        **{f"meaning: {name}": _of(change) for name, change in arrays.MEANING.items()},
        **{
            f"discrete: {name}": of_discrete(change, lambda columns: write(FILE, columns), "D4RL", FILE)
            for name, change in arrays.DISCRETE.items()
        },
        "structure: external link": _column(_external, REFUSE),
        "structure: external links only": _whole_external,
        "structure: external link to nothing": _column(
            lambda f, n, a: f.__setitem__(n, h5py.ExternalLink("gone.hdf5", "/x")), REFUSE
        ),
        "structure: external link to a fifo": _column(_fifo, REFUSE),
        "structure: external link to a device": _column(
            lambda f, n, a: f.__setitem__(n, h5py.ExternalLink("/dev/zero", "/x")), REFUSE
        ),
        "structure: external raw storage": _column(_raw, REFUSE),
        "structure: external raw storage on a device": _column(_raw_device, REFUSE),
        "structure: external raw storage in a fifo": _column(_raw_fifo, REFUSE),
        "structure: virtual": _column(_virtual(False), REFUSE),
        "structure: virtual, source gone": _column(_virtual(True), REFUSE),
        "structure: soft link": _column(_soft("/kept"), EITHER),
        "structure: soft link to nothing": _column(_soft("/gone"), REFUSE),
        "structure: soft link to itself": _column(_soft("/{name}"), REFUSE),
        "structure: soft link to the root": _column(_soft("/"), REFUSE),
        "structure: groups in a circle": _column(_cycle, REFUSE),
        "structure: a group": _column(_group, REFUSE),
        "structure: a deep group": _column(_deep, REFUSE),
        "structure: a type": _column(lambda f, n, a: f.__setitem__(n, np.dtype("f4")), REFUSE),
        "structure: an empty dataspace": _column(lambda f, n, a: f.__setitem__(n, h5py.Empty("f4")), REFUSE),
        "structure: objects": _column(_typed(h5py.special_dtype(vlen=np.dtype("f4"))), REFUSE),
        "structure: text": _column(_typed(h5py.string_dtype()), REFUSE),
        "structure: references": _column(_typed(h5py.ref_dtype), REFUSE),
        "structure: region references": _column(_typed(h5py.regionref_dtype), REFUSE),
        "structure: an enumeration": _column(_typed(h5py.enum_dtype({"a": 0, "b": 1}, "i1")), EITHER, arrays.FLAGS),
        "structure: arrays in a type": _column(_typed(np.dtype(("f4", (3,)))), EITHER),
        "structure: opaque": _column(_typed(h5py.opaque_dtype(np.dtype("M8[ns]"))), REFUSE),
        "structure: chunks": _column(_made(chunks=True, compression="gzip", shuffle=True, fletcher32=True), ACCEPT),
        "structure: lzf, can grow": _column(_made(chunks=True, compression="lzf", maxshape=None), ACCEPT),
        "structure: an unknown filter": _column(_filter, REFUSE),
        "structure: rows announced in one": _column(_announced(10**8), REFUSE),
        "structure: rows announced in all": _announced_everywhere(10**8),
        "structure: very many rows announced in all": _announced_everywhere(10**13),
        "structure: nothing written": _column(_announced(ROWS), EITHER),
        "structure: wide rows announced": _wide,
        "structure: a bomb": _bomb,
        "structure: a user block": _open_elsewhere,
        "structure: a link in the file system": _link_to_good,
        "meaning: env_id": _attribute("env_id", ODD),
        "meaning: env_id again": _attribute("env_id", ODD),
        "meaning: ref_min_score": _attribute("ref_min_score", ODD),
        "meaning: ref_max_score": _attribute("ref_max_score", ODD),
    },
)
