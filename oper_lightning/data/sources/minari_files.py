"""The episodes of a Minari dataset in its files, HDF5 or Arrow; of each only the columns that are needed."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from oper_lightning.data.sources.hdf5 import Hdf5, check_written, opened, values
from oper_lightning.errors import InputError, reading
from oper_lightning.files import fits_memory

FORMATS = ("hdf5", "arrow", "parquet")


class Episodes(Protocol):
    """Open data files."""

    def numbers(self) -> list[int]:
        """Numbers of the episodes that are there, ascending."""

    def where(self, number: int) -> str:
        """What to call an episode in messages: its file, and itself."""

    def steps(self, number: int) -> int:
        """How many steps an episode has, without reading them."""

    def column(self, number: int, name: str, path: tuple[str, ...], space: Any) -> np.ndarray:
        """A column of an episode: ``rewards``, or the entry of ``observations`` at ``path``, which has this space."""


@contextmanager
def open_episodes(folder: Path, form: str) -> Iterator[Episodes]:
    """Opens the data files of a dataset in one of :data:`FORMATS`; closes them afterwards."""
    if form == "hdf5":
        with opened(folder / "main_data.hdf5") as file:
            yield _Hdf5(file)
    else:
        yield _Arrow(folder, form)


class _Hdf5:
    """All episodes in one file, a group for each."""

    def __init__(self, file: Hdf5) -> None:
        self.file = file
        self.current: tuple[int, Hdf5 | None] = (-1, None)

    def numbers(self) -> list[int]:
        found = (re.fullmatch(r"episode_(\d{1,9})", name) for name in self.file.names())
        return sorted(int(match[1]) for match in found if match)

    def where(self, number: int) -> str:
        return f"{self.file.origin}: episode {number}"

    def steps(self, number: int) -> int:
        return int(self._array(number, "rewards", ()).shape[0])

    def column(self, number: int, name: str, path: tuple[str, ...], space: Any) -> np.ndarray:
        array, where = self._array(number, name, path), self.where(number)
        if _is_image(space) and (array.dtype.kind == "O" or len(array.shape) == 2):
            return _images(array[()], space, where)
        if (kind := array.dtype).kind not in "fiub":
            raise InputError(f"{where}: {name!r} holds {kind}; real numbers are needed")
        if name not in ("terminations", "truncations"):
            check_written(array, "/".join((name, *path)), where)
        fits_memory(array.size * kind.itemsize, where, repr(name))
        return values(array)

    def _array(self, number: int, name: str, path: tuple[str, ...]) -> Any:
        if self.current[0] != number:
            self.current = number, self.file.group(f"episode_{number}")
        inside, array = self.current[1], None
        for place, step in enumerate(steps := (name, *path), 1):
            if inside is None:
                break
            step = step if inside.has(step) else f"_index_{step}"  # so Minari calls the entries of a Tuple
            inside, array = (inside.group(step), None) if place < len(steps) else (None, inside.array(step))
        if array is None or not array.shape:
            raise InputError(f"{self.where(number)}: no {'/'.join(steps)!r}")
        return array


class _Arrow:
    """A folder for each episode, with a last row that holds the last observation only."""

    def __init__(self, folder: Path, form: str) -> None:
        self.folder, self.form = folder, form

    def numbers(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.iterdir() if re.fullmatch(r"\d{1,9}", path.name))

    def where(self, number: int) -> str:
        return f"{self.folder / str(number)}: episode {number}"

    def steps(self, number: int) -> int:
        return self._dataset(number).count_rows() - 1

    def column(self, number: int, name: str, path: tuple[str, ...], space: Any) -> np.ndarray:
        import pyarrow as pa

        where = self.where(number)
        with reading(where, f"{self.form} data"):
            dataset = self._dataset(number)
            if name not in dataset.schema.names:
                raise InputError(f"{where}: no column {name!r}")
            fits_memory(dataset.count_rows() * _row_bytes(dataset.schema.field(name).type), where, repr(name))
            table = dataset.to_table(columns=[name])
            table.validate(full=True)
            values = pa.concat_arrays(table.column(name).chunks)
            for step in path:
                if not pa.types.is_struct(values.type) or values.type.get_field_index(step) < 0:
                    raise InputError(f"{where}: no {'/'.join((name, *path))!r}")
                values = values.field(step)
            if name != "observations":
                values = values[:-1]
            if values.null_count:
                raise InputError(f"{where}: {name!r} has {values.null_count:,} empty rows")
            if pa.types.is_binary(values.type):
                return _images(values.to_pylist(), space, where)
            array = np.array(values.to_numpy(zero_copy_only=False))
            if array.dtype.kind == "O":
                array = np.stack(list(array))
            shape = getattr(space, "shape", ())
            # Arrays of more dimensions are stored flat.
            return array.reshape(-1, *shape) if array[:1].size == np.prod(shape) else array

    def _dataset(self, number: int) -> Any:
        import pyarrow.dataset

        folder = self.folder / str(number)
        with reading(self.where(number), f"{self.form} data"):
            files = [path for path in sorted(folder.iterdir()) if path.name[0] not in "_." and path.suffix != ".json"]
            if not files or not all(path.is_file() for path in files):
                raise InputError(f"{self.where(number)}: no {self.form} files")
            return pyarrow.dataset.dataset([str(path) for path in files], format=self.form)


def _row_bytes(kind: Any) -> int:
    """How many bytes a row of an Arrow type takes, as far as the type says."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return sum(_row_bytes(kind.field(place).type) for place in range(kind.num_fields))
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _row_bytes(kind.value_type)
    return 8


def _is_image(space: Any) -> bool:
    shape: tuple[int, ...] = getattr(space, "shape", None) or ()
    return len(shape) in (2, 3) and shape[0] >= 32 and shape[1] >= 32 and str(space.dtype) == "uint8"


def _images(frames: Any, space: Any, where: str) -> np.ndarray:
    """Frames that Minari stored as JPEG, uint8 ``[T, height, width, ...]``."""
    from PIL import Image

    fits_memory(len(frames) * int(np.prod(space.shape)), where, f"{len(frames):,} images")
    with reading(where, "images"):
        images = []
        for frame in frames:
            image = Image.open(io.BytesIO(bytes(frame)), formats=["JPEG"])
            if image.size[::-1] != tuple(space.shape[:2]):
                raise InputError(f"{where}: an image of {image.size[::-1]}, but the declared space is {space}")
            images.append(np.asarray(image, dtype=np.uint8))
        return np.stack(images)
