"""A flat HDF5 file in D4RL's layout: one row for each transition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oper_lightning.data.writers.recording import Recording, attributes

CHUNK = 1 << 20  # bytes of images that are packed together


def write(recording: Recording, path: Path) -> list[str]:
    """Writes a flat file with next observations; gives sentences on what it has no place for.

    Images are packed (gzip): every frame of a stack is written out.
    """
    import h5py

    kept, losses = attributes(recording)
    rows, start = len(recording), 0
    with h5py.File(path, "w") as file:
        file.attrs.update(kept)
        for episode in recording:
            stop = start + len(episode.rewards)
            last = np.arange(start, stop) == stop - 1
            columns = {
                "observations": episode.observations,
                "next_observations": episode.next_observations,
                "actions": episode.actions,
                "rewards": episode.rewards,
                "terminals": last & episode.terminated,
                "timeouts": last & (not episode.terminated),
            }
            for name, values in columns.items():
                if name not in file:
                    _column(file, name, rows, values)
                file[name][start:stop] = values
            start = stop
    return losses


def _column(file: Any, name: str, rows: int, values: np.ndarray) -> None:
    options: dict[str, Any] = {}
    if values.dtype == np.uint8:
        together = max(1, min(rows, CHUNK // values[0].nbytes))
        options = {"chunks": (together, *values.shape[1:]), "compression": "gzip", "compression_opts": 1}
    file.create_dataset(name, (rows, *values.shape[1:]), values.dtype, **options)
