"""The OPER authors' published weights, read without running anything that such a file may hold.

Their .npy files hold one pickled dict: since iterations, ``iter``, ``first_eval_steps``, ``eval_steps`` and for each
iteration k from 1 an array ``[N, 1]`` of weights; before, for each evaluation step a dict with ``adv``, ``q``, ``v``.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from oper_lightning.errors import InputError, first_line, nearest, reading
from oper_lightning.files import existing
from oper_lightning.priorities.priority import mean_one


class Held:
    """What a call in a pickle becomes: its arguments and its state, kept and not acted upon."""

    __slots__ = ("args", "state")

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Array(Held):
    """``_reconstruct(ndarray, (0,), b"b")``, then the state (version, shape, dtype, in Fortran's order, data)."""

    __slots__ = ()


class Buffer(Held):
    """``_frombuffer(data, dtype, shape, order)``: an array since pickle protocol 5."""

    __slots__ = ()


class Scalar(Held):
    """``scalar(dtype, data)``."""

    __slots__ = ()


class DType(Held):
    """``dtype("f8", ...)``, then a state whose second entry is the byte order."""

    __slots__ = ()


class Encoded(Held):
    """``encode(text, "latin1")``: how old protocols write bytes."""

    __slots__ = ()


ADMITTED = {
    ("numpy", "ndarray"): "ndarray",  # only ever an argument
    ("numpy", "dtype"): DType,
    ("numpy._core.multiarray", "_reconstruct"): Array,
    ("numpy._core.multiarray", "scalar"): Scalar,
    ("numpy._core.numeric", "_frombuffer"): Buffer,
    ("_codecs", "encode"): Encoded,
}


class NumbersOnly(pickle.Unpickler):
    """An unpickler that calls nothing: arrays and numbers come out as :class:`Held`, anything else is an error."""

    def find_class(self, module: str, name: str) -> Any:
        """Admits the names that numpy arrays and numbers are pickled with."""
        found = ADMITTED.get((module.replace("numpy.core", "numpy._core"), name))
        if found is not None:
            return found
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither array, number nor string")


def _made(value: Any, made: dict[int, Any]) -> Any:
    """Plain containers, numbers, strings and arrays of numbers out of what was held.

    ``made`` keeps what each container became: a pickle of some bytes can name one of them again and again.
    """
    if id(value) not in made:
        made[id(value)] = _made_anew(value, made)
    return made[id(value)]


def _made_anew(value: Any, made: dict[int, Any]) -> Any:
    match value:
        case dict():
            return {_made(key, made): _made(part, made) for key, part in value.items()}
        case list() | tuple():
            return [_made(part, made) for part in value]
        case Array(state=(_, (), DType(args=("O8" | "O", *_)), _, [content])):
            return _made(content, made)  # np.save puts the dict into an array of one object
        case Array(state=(_, tuple(shape), DType() as kind, fortran, data)):
            return _numbers(data, kind, shape, "F" if fortran else "C")
        case Buffer(args=(data, DType() as kind, tuple(shape), str(order))):
            return _numbers(data, kind, shape, "F" if order == "F" else "C")
        case Scalar(args=(DType() as kind, data)):
            return _numbers(data, kind, (), "C").item()
        case None | bool() | int() | float() | str():
            return value
    raise pickle.UnpicklingError(f"it holds a {type(value).__name__} that is no array of numbers")


def _numbers(data: Any, kind: DType, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    name = kind.args[0]
    if not re.fullmatch(r"[<>=|]?(b1|[iu][1248]|f[248])", str(name)):
        raise pickle.UnpicklingError(f"it holds an array of {name!r}, which are no numbers")
    dtype = np.dtype(name)
    if kind.state is not None and kind.state[1] in ("<", ">"):
        dtype = dtype.newbyteorder(kind.state[1])
    if isinstance(data, Encoded):
        data = data.args[0].encode("latin-1")
    return np.frombuffer(bytes(data), dtype).reshape(shape, order=order)


def read_published(path: str | Path) -> dict[Any, Any]:
    """The dict in a published .npy file.

    Raises:
        InputError: if the file is missing, is something else, or holds more than arrays, numbers and strings.
    """
    place = existing(path)
    try:
        with open(place, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(stream)
            content = (
                _made(NumbersOnly(stream, encoding="latin1").load(), {}) if dtype.hasobject and shape == () else None
            )
    except Exception as error:  # whatever a broken header or pickle leads to
        raise InputError(f"{path}: not published weights that can be read safely: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not published weights: a dict of arrays is needed")
    return content


def published_weights(paths: Sequence[str | Path], rows: int) -> dict[str, Tensor]:
    """What published files, one per seed, hold for ``rows`` transitions; float32.

    ``weights`` ``[I, S, N]``, mean 1. Files of the older layout hold advantages; the authors average these over seeds
    as they are, before anything else, so that they come out as one: ``weights``, ``advantage`` and, where all files
    have it, ``value`` ``[1, 1, N]``.

    Raises:
        InputError: if a layout is neither of the two, the files differ in it or in the number of iterations, or the
            arrays are not for ``rows`` transitions.
    """
    contents = [(str(path), read_published(path)) for path in paths]
    older = {"iter" not in content for _, content in contents}
    if len(older) > 1:
        raise InputError(f"{contents[0][0]} and others: files of the older and of the newer layout; convert them apart")
    if older == {False}:
        seeds = [_iterations(content, rows, path) for path, content in contents]
        if len(counts := {len(weights) for weights in seeds}) > 1:
            raise InputError(f"files with different numbers of iterations: {sorted(counts)}; convert them one by one")
        return {"weights": torch.stack(seeds, 1).float()}
    parts: dict[str, list[Tensor]] = {"adv": [], "v": []}
    for path, content in contents:
        last = _last_step(content, path)
        for key, columns in parts.items():
            if key == "adv" or key in last:
                columns.append(_column(last, key, rows, path))
    advantage = torch.stack(parts["adv"]).mean(0)
    tensors = {"weights": mean_one(advantage - advantage.min(), contents[0][0]), "advantage": advantage}
    if len(parts["v"]) == len(contents):
        tensors["value"] = torch.stack(parts["v"]).mean(0)
    return {key: tensor.float()[None, None] for key, tensor in tensors.items()}


def _iterations(content: dict[Any, Any], rows: int, path: str) -> Tensor:
    """Weights ``[I, N]`` of the newer layout, float64."""
    with reading(path, "published weights"):
        count = int(content["iter"])
        if count < 1:
            raise InputError(f"{path}: 'iter' is {count}; at least 1 is needed")
        return mean_one(torch.stack([_column(content, k, rows, path) for k in range(1, count + 1)]), path)


def _last_step(content: dict[Any, Any], path: str) -> dict[Any, Any]:
    """What the older layout holds of the last evaluation."""
    with reading(path, "published weights"):
        steps = [key for key, value in content.items() if isinstance(value, dict) and "adv" in value]
        if not steps:
            raise InputError(
                f"{path}: neither 'iter' with an array per iteration nor steps with 'adv': no known layout"
            )
        last: dict[Any, Any] = content[max(steps)]
        return last


def _column(content: dict[Any, Any], key: Any, rows: int, path: str | Path) -> Tensor:
    if key not in content:
        raise InputError(f"{path}: no entry {key!r}; {nearest(repr(key), map(repr, content))}")
    array = content[key]
    if not isinstance(array, np.ndarray):  # numpy would walk through whatever else it is
        raise InputError(f"{path}: entry {key!r} is a {type(array).__name__}, no array")
    if array.dtype.kind not in "fiu" or array.size != rows:
        raise InputError(
            f"{path}: entry {key!r} has {array.size:,} {array.dtype}, but the dataset has {rows:,} transitions; "
            f"published weights belong to the rows of D4RL's qlearning_dataset (--source.qlearning_rows=true)"
        )
    return torch.from_numpy(array.astype(np.float64).reshape(-1))
