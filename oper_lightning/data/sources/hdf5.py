"""HDF5 files, opened so that nothing in one can make us read another file, hang, or take memory without bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from oper_lightning.errors import InputError, reading
from oper_lightning.files import existing, fits_memory, free_memory, plausibly_packed

LISTED = 10_000  # entries of a file that are looked at to find its arrays
CACHE = 64 << 20  # bytes of unpacked chunks kept for each array: one that is not is unpacked again for every few rows
SHARE = 8  # a chunk larger than CACHE is kept all the same if it takes no more than this part of the free memory
LINKS = 16  # soft links that are followed one after the other


class Hdf5:
    """An open HDF5 file. Links are looked at before they are followed.

    Args:
        file: what h5py opened.
        origin: the file, for messages.
        allow_external: follow links to other files, and read arrays that are stored in others.
    """

    def __init__(self, file: Any, origin: str, allow_external: bool = False) -> None:
        self.file = file
        self.origin = origin
        self.allow_external = allow_external

    def array(self, name: str) -> Any | None:
        """The h5py dataset at a path such as ``data/obs``; None if nothing is there.

        Raises:
            InputError: if it is no array of numbers, or lies in another file.
        """
        import h5py

        node = self._node(name)
        if node is None:
            return None
        if isinstance(node, h5py.Group):
            raise InputError(f"{self.origin}: {name!r} is a group; an array is needed")
        if not isinstance(node, h5py.Dataset):
            raise InputError(f"{self.origin}: {name!r} is no array")
        if not self.allow_external:
            if node.is_virtual:
                self._refuse(name, "a virtual dataset, put together from other files")
            if node.external:
                self._refuse(name, f"stored in another file ({node.external[0][0]!r})")
        if node.shape is None:
            raise InputError(f"{self.origin}: {name!r} is an array without a shape (empty dataspace)")
        if (chunks := node.chunks) is not None:  # a chunk is unpacked as a whole, however little of it is asked for
            size = node.dtype.itemsize
            for extent in chunks:
                size *= extent
            fits_memory(size, self.origin, f"one chunk of {name!r}")
            if CACHE < size <= free_memory() // SHARE:
                return _keeping(node, size)
        return node

    def group(self, name: str) -> Hdf5 | None:
        """The group at a path, with the same rules; None if none is there."""
        import h5py

        node = self._node(name)
        return Hdf5(node, self.origin, self.allow_external) if isinstance(node, h5py.Group) else None

    def attribute(self, name: str) -> Any:
        """A scalar attribute of this group; None if it is missing, or more than a scalar."""
        if name not in self.file.attrs:
            return None
        kind = self.file.attrs.get_id(name)
        if kind.shape not in ((), (1,)) or kind.get_storage_size() > 1 << 16:
            return None
        return self.file.attrs[name] if kind.shape == () else self.file.attrs[name][0]

    def has(self, name: str) -> bool:
        """Whether this group has an entry or a link of that name."""
        return bool(self.file.id.links.exists(_bytes(name)))

    def names(self) -> list[str]:
        """Names of this group's own entries."""
        return list(self.file)

    def arrays(self) -> list[str]:
        """Paths of the arrays in the file and its groups, outer ones first; links to elsewhere among them."""
        from h5py import h5g, h5l

        found, seen = [], 0
        waiting: deque[tuple[str, Any]] = deque([("", self.file)])
        while waiting and seen < LISTED:
            prefix, group = waiting.popleft()
            for name in group:
                seen += 1
                if seen > LISTED:
                    break
                path = prefix + name
                hard = group.id.links.get_info(_bytes(name)).type == h5l.TYPE_HARD
                kind = h5g.get_objinfo(group.id, _bytes(name)).type if hard else None
                if kind == h5g.GROUP and path.count("/") < LINKS:
                    waiting.append((path + "/", group[name]))
                elif kind in (h5g.DATASET, None):
                    found.append(path)
        return found

    def described(self, name: str) -> str:
        """An array with its shape, for a list of what there is."""
        try:
            array = self.array(name)
        except InputError:
            array = None
        shown = name if name.isprintable() else repr(name)
        return shown if array is None else f"{shown} {list(array.shape)}"

    def _node(self, name: str, followed: int = 0) -> Any | None:
        """What lies at a path; None if nothing does. Looks at each link on the way before it is followed."""
        from h5py import Group, h5l

        at, steps = self.file, [step for step in name.split("/") if step]
        for number, step in enumerate(steps):
            if not isinstance(at, Group) or not at.id.links.exists(_bytes(step)):
                return None
            kind = at.id.links.get_info(_bytes(step)).type
            if kind == h5l.TYPE_SOFT:
                target = at.id.links.get_val(_bytes(step)).decode(errors="replace")
                if followed >= LINKS:
                    raise InputError(f"{self.origin}: {name!r} is a link to itself")
                whole = target if target.startswith("/") else f"{at.name}/{target}"
                rest = "/".join([whole, *steps[number + 1 :]])
                node = Hdf5(at.file, self.origin, self.allow_external)._node(rest, followed + 1)
                if node is None:
                    raise InputError(f"{self.origin}: {name!r} is a link to {target!r}, where nothing is")
                return node
            if kind != h5l.TYPE_HARD and not self.allow_external:
                target = "?"
                if kind == h5l.TYPE_EXTERNAL:
                    target = at.id.links.get_val(_bytes(step))[0].decode(errors="replace")
                self._refuse("/".join(steps[: number + 1]), f"a link to another file ({target!r})")
            try:
                at = at[step]
            except (KeyError, OSError):
                raise InputError(f"{self.origin}: {name!r} is a link to what cannot be opened") from None
        return at

    def _refuse(self, name: str, what: str) -> None:
        raise InputError(
            f"{self.origin}: {name!r} is {what}; copy its values into this file, or, if you trust it, "
            f"read it with D4RL and allow_external=true"
        )


def _keeping(node: Any, size: int) -> Any:
    """The same array, of which that many bytes of unpacked chunks are kept."""
    from h5py import Dataset, h5d, h5p

    access = h5p.create(h5p.DATASET_ACCESS)
    access.set_chunk_cache(1, size, 0.75)
    name, file = node.name, node.file
    node.id.close()  # an array that is open already would keep what it had
    return Dataset(h5d.open(file.id, _bytes(name), access))


def values(array: Any) -> np.ndarray:
    """All numbers of an h5py dataset. Of many small ones they come several times as fast as by ``array[()]``."""
    from h5py import h5s

    found: np.ndarray = np.empty(array.shape, array.dtype)
    array.id.read(h5s.ALL, h5s.ALL, found)
    return found


def _bytes(name: str) -> bytes:
    """A name as HDF5 has it; h5py gives names that are not UTF-8 with surrogates in them."""
    return name.encode("utf-8", "surrogateescape")


@contextmanager
def opened(path: str | Path, allow_external: bool = False) -> Iterator[Hdf5]:
    """Opens an HDF5 file for reading and closes it afterwards.

    Raises:
        InputError: if it is missing, no regular file, no HDF5 file, broken, or open for writing elsewhere.
    """
    import h5py

    found = existing(path)
    try:
        file = h5py.File(found, "r", rdcc_nbytes=CACHE)
    except OSError as error:
        said = str(error)
        if isinstance(error, BlockingIOError) or "unable to lock" in said or "already open" in said:
            raise InputError(f"{path}: another program has it open for writing; close it there, or copy it") from None
        reason = "truncated" if "truncated" in said else "not an HDF5 file, or broken"
        with open(found, "rb") as opened:
            if opened.read(4) == b"PK\3\4":
                raise InputError(f"{path}: a zip archive, as numpy's are; read it with the source Npz") from None
        raise InputError(f"{path}: {reason}; an HDF5 file is needed") from None
    with file, reading(path, "an HDF5 file"):
        yield Hdf5(file, str(path), allow_external)


def check_written(array: Any, name: str, origin: object) -> None:
    """Refuses an h5py dataset that only announces its rows, or unpacks them from next to nothing.

    Raises:
        InputError: if so.
    """
    if array.is_virtual or array.external or array.size == 0:
        return
    if array.chunks is None:
        whole = array.id.get_storage_size() > 0
    else:
        needed = 1
        for length, extent in zip(array.shape, array.chunks, strict=True):
            needed *= -(-length // extent)
        whole = array.id.get_num_chunks() >= needed
    if not whole:
        raise InputError(
            f"{origin}: {name!r} announces {array.shape[0]:,} rows, but not all of them were ever written; "
            f"save the file without the empty rows"
        )
    plausibly_packed(array.id.get_storage_size(), array.size * array.dtype.itemsize, origin, repr(name))
