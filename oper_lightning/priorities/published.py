"""The OPER authors' published weights, read without running anything that such a file may hold.

Their .npy files hold one pickled dict: since iterations, ``iter``, ``first_eval_steps``, ``eval_steps`` and for each
iteration k from 1 an array ``[N, 1]`` of weights; before, for each evaluation step a dict with ``adv``, ``q``, ``v``.
"""

from __future__ import annotations

import importlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oper_lightning.errors import InputError
from oper_lightning.priorities.priority import mean_one


def _latin_1(text: str, encoding: str) -> bytes:
    """What old pickles of arrays call to get at bytes."""
    if encoding not in ("latin1", "latin-1", "iso-8859-1"):
        raise pickle.UnpicklingError(f"text encoding {encoding!r}")
    return text.encode("latin-1")


def _numpy(module: str, name: str) -> Any:
    """A function of numpy's inner module, which was called ``numpy.core`` before numpy 2."""
    inner = "numpy._core" if hasattr(np, "_core") else "numpy.core"
    return getattr(importlib.import_module(f"{inner}.{module}"), name)


ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "_reconstruct"): _numpy("multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"): _numpy("multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"): _numpy("numeric", "_frombuffer"),
    ("_codecs", "encode"): _latin_1,
}


class NumbersOnly(pickle.Unpickler):
    """An unpickler that can make numpy arrays, numbers, strings and plain containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Admits what numpy arrays and numbers are pickled with; anything else is an error."""
        found = ADMITTED.get((module.replace("numpy.core", "numpy._core"), name))
        if found is not None:
            return found
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither array, number nor string")


def read_published(path: str | Path) -> dict[Any, Any]:
    """The dict in a published .npy file.

    Raises:
        InputError: if the file is missing, is something else, or holds more than arrays, numbers and strings.
    """
    try:
        stream = io.BytesIO(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        content = NumbersOnly(stream, encoding="latin1").load() if dtype.hasobject else None
    except (ValueError, EOFError, pickle.UnpicklingError, AttributeError, ImportError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not published weights that can be read safely: {error}") from None
    if isinstance(content, np.ndarray) and content.shape == shape == ():
        content = content.item()
    if not isinstance(content, dict):
        raise InputError(f"{path}: not published weights: a dict of arrays is needed")
    return content


def published_weights(path: str | Path, rows: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Weights ``[I, N]`` of a published file and, from the older layout, advantages and values ``[1, N]``; float32.

    Raises:
        InputError: if the layout is neither of the two, or the arrays are not for ``rows`` transitions.
    """
    content = read_published(path)
    if "iter" in content:
        iterations = [_column(content, k, rows, path) for k in range(1, int(content["iter"]) + 1)]
        return mean_one(torch.stack(iterations), str(path)).float(), None, None
    steps = [key for key, value in content.items() if isinstance(value, dict) and "adv" in value]
    if not steps:
        raise InputError(f"{path}: neither 'iter' with an array per iteration nor steps with 'adv': no known layout")
    last = content[max(steps)]
    advantage = _column(last, "adv", rows, path)
    value = _column(last, "v", rows, path) if "v" in last else None
    weights = mean_one(advantage - advantage.min(), str(path))
    return weights.float()[None], advantage.float()[None], value if value is None else value.float()[None]


def _column(content: dict[Any, Any], key: Any, rows: int, path: str | Path) -> Tensor:
    if key not in content:
        raise InputError(f"{path}: no entry {key!r}; it has {', '.join(map(repr, content))}")
    array = np.asarray(content[key])
    if array.dtype.kind not in "fiu" or array.size != rows:
        raise InputError(
            f"{path}: entry {key!r} has {array.size:,} {array.dtype}, but the dataset has {rows:,} transitions; "
            f"published weights belong to the rows of D4RL's qlearning_dataset (--source.qlearning_rows=true)"
        )
    return torch.from_numpy(array.astype(np.float64).reshape(-1))
