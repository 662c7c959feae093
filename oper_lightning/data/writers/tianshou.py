"""A replay buffer that Tianshou loads with ``ReplayBuffer.load_hdf5``, from version 0.4 on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oper_lightning.data.writers.recording import Recording, attributes

# What versions below and from 1.2 call the place of the next row, and what they know of the episode that is going on.
COUNTERS = ("_index", "_insertion_idx", "_ep_idx", "_ep_start_idx", "_ep_len")
RETURNS = ("_ep_rew", "_ep_return")


def write(recording: Recording, path: Path) -> list[str]:
    """Writes one buffer, as full as it can be; gives sentences on what it has no place for.

    Stacks that single frames make are stored as these frames, as Tianshou does with ``save_only_last_obs``; then the
    frame after the last step of an episode is lost. All else is stored with its next observations.
    """
    import h5py

    kept, losses = attributes(recording)
    stack, rows, start = recording.stack, len(recording), 0
    single = stack > 1
    options = {"stack_num": stack, "ignore_obs_next": single, "save_only_last_obs": single, "sample_avail": False}
    cut = 0
    with h5py.File(path, "w") as file:
        file.attrs.update(kept)
        file.attrs.update({"maxsize": rows, "_size": rows, "stack_num": stack, "_sample_avail": False})
        file.attrs.update({"_save_obs_next": not single, "_save_only_last_obs": single})
        file.attrs.update({**dict.fromkeys(COUNTERS, 0), **dict.fromkeys(RETURNS, 0.0)})
        file.create_group("options").attrs.update(options)
        data = file.create_group("_meta")
        data.attrs["__data_type__"] = "Batch"
        for group in ("info", "policy"):
            data.create_group(group)
        _array(file, "_indices", np.arange(rows))
        _array(file, "last_index", np.array([rows - 1]))
        for episode in recording:
            stop = start + len(episode.rewards)
            last = np.arange(start, stop) == stop - 1
            columns = {
                "obs": episode.observations[:, -1] if single else episode.observations,
                "act": episode.actions,
                "rew": episode.rewards.astype(np.float64),
                "done": last,
                "terminated": last & episode.terminated,
                "truncated": last & (not episode.terminated),
                "info/TimeLimit.truncated": last & (not episode.terminated),  # read by versions below 0.4.10
            }
            if not single:
                columns["obs_next"] = episode.next_observations
            for name, values in columns.items():
                if name not in data:
                    _array(data, name, np.empty((rows, *values.shape[1:]), values.dtype), reserve=True)
                data[name][start:stop] = values
            cut += not episode.terminated
            start = stop
    if single:
        losses.append("the frame after the last step of every episode, which nothing needs where it terminated")
    if single and cut:
        losses.append(f"the last steps of {cut:,} truncated episodes: without that frame they are no transitions")
    return losses


def _array(group: Any, name: str, values: np.ndarray, reserve: bool = False) -> None:
    """An array, or room for one, as Tianshou marks it."""
    if reserve:
        group.create_dataset(name, values.shape, values.dtype)
    else:
        group[name] = values
    group[name].attrs["__data_type__"] = "ndarray"
