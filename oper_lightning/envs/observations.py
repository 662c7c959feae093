"""Observations of several entries as one vector, the same way in a dataset and in an environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from oper_lightning.errors import InputError, nearest
from oper_lightning.files import fits_memory

Entry = tuple[tuple[str, ...], Any]
"""path of an entry in nested observations, and its space"""
KINDS = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")


def entries(space: Any, keys: Sequence[str], origin: object) -> list[Entry]:
    """The entries of a space that ``keys`` name, in their order; the space itself if it has none.

    Args:
        space: a Gymnasium space.
        keys: names of entries; ``a/b`` is entry b of entry a, and those of a Tuple are called 0, 1, ….
        origin: what to call the observations in messages.

    Raises:
        InputError: if an entry is missing or of no kind that can be columns, or if no keys are given where there are
            entries.
    """
    if not _parts(space):
        return [((), _usable(space, origin))]
    if not keys:
        raise InputError(
            f"{origin}: {type(space).__name__} observations; name the entries and their order in the source's "
            f"observation_keys, of: {', '.join(_leaves(space))}"
        )
    found = []
    for key in keys:
        at, path = space, key.split("/")
        for step in path:
            if step not in (parts := _parts(at)):
                raise InputError(f"{origin}: no observation entry {key!r}; {nearest(step, parts or _leaves(space))}")
            at = parts[step]
        if _parts(at):
            kind = type(at).__name__
            raise InputError(f"{origin}: observation entry {key!r} is a {kind} itself; name its entries as {key}/…")
        found.append((tuple(path), _usable(at, f"{origin}: observation entry {key!r}")))
    return found


def _usable(space: Any, origin: object) -> Any:
    if type(space).__name__ not in KINDS:
        raise InputError(f"{origin}: {space}; only {', '.join(KINDS)} can be columns")
    return space


def columns(values: Any, space: Any, origin: object) -> np.ndarray:
    """Values ``[..., *shape]`` of one entry as columns ``[..., D]``; Discrete and MultiDiscrete become one-hot.

    Raises:
        InputError: if the values do not fit the space.
    """
    kind, array = type(space).__name__, np.asarray(values)
    lead = array.shape[: array.ndim - len(space.shape)]
    if array.shape[len(lead) :] != space.shape or array.dtype.kind not in "fiub":
        raise InputError(f"{origin}: {array.dtype} of shape {array.shape}, but the declared space is {space}")
    if kind in ("Box", "MultiBinary"):
        return array.reshape(*lead, -1)
    sizes = np.atleast_1d(getattr(space, "nvec", getattr(space, "n", 0))).reshape(-1)
    number = array.reshape(*lead, -1) - np.reshape(space.start, -1)
    if ((number < 0) | (number >= sizes) | (number != np.floor(number))).any():
        raise InputError(f"{origin}: a value outside the declared space {space}")
    fits_memory(4 * int(sizes.sum()) * max(1, int(np.prod(lead))), origin, f"{space} as columns")
    hot = [number[..., place, None] == np.arange(size) for place, size in enumerate(sizes)]
    return np.concatenate(hot, axis=-1).astype(np.float32)


def join(observation: Any, space: Any, keys: Sequence[str], origin: object) -> np.ndarray:
    """Observations of a space, one or a batch, as one array; entries are joined along the last dimension.

    Raises:
        InputError: as :func:`entries` and :func:`columns` do.
    """
    parts = []
    for path, part in entries(space, keys, origin):
        value = observation
        for step in path:
            value = value[int(step)] if isinstance(value, tuple) else value[step]
        parts.append((value, part, "/".join(path)))
    return joined(parts, origin)


def joined(parts: Sequence[tuple[Any, Any, str]], origin: object) -> np.ndarray:
    """Values, spaces and names of entries as one array; an only entry without a name keeps its shape."""
    if len(parts) == 1 and not parts[0][2] and type(parts[0][1]).__name__ in ("Box", "MultiBinary"):
        return np.asarray(parts[0][0])
    made = [columns(value, space, f"{origin}: observation {name}".rstrip()) for value, space, name in parts]
    return np.concatenate(made, axis=-1)


def _parts(space: Any) -> dict[str, Any]:
    """The entries of a Dict or Tuple space by name; empty for others."""
    spaces = getattr(space, "spaces", None)
    if isinstance(spaces, dict):
        return spaces
    return {str(number): part for number, part in enumerate(spaces)} if isinstance(spaces, tuple) else {}


def _leaves(space: Any, prefix: str = "") -> list[str]:
    names = []
    for key, part in _parts(space).items():
        names += _leaves(part, f"{prefix}{key}/") if _parts(part) else [prefix + key]
    return names
