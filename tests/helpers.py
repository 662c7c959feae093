"""Small data for the tests: sources in memory, files in D4RL's layout, and the command in this process."""

from __future__ import annotations

import functools
import http.server
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from tensordict import TensorDict

from oper_lightning.cli import main
from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.transitions import squeezed, transitions_from

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


REACH = """
from oper_lightning import Task


class Reach(Task):
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def reward(self, observation, action, next_observation):
        return -self.scale * next_observation[:, :2].norm(dim=-1)
"""
"""a module of a person's own with a task"""


def columns(
    lengths: list[int],
    observation: int = 3,
    action: int = 2,
    seed: int = 0,
    terminal: bool = True,
    discrete: bool = False,
) -> dict[str, np.ndarray]:
    """D4RL's columns for episodes of the given lengths; every second one ends by termination, the others by time.

    Rewards grow with the number of the episode, so that returns differ; actions can be told from observations. If
    discrete, they are one of ``action`` numbers.
    """
    generator = np.random.default_rng(seed)
    rows = sum(lengths)
    ends = np.cumsum(lengths) - 1
    terminals = np.zeros(rows, dtype=bool)
    timeouts = np.zeros(rows, dtype=bool)
    for number, end in enumerate(ends):
        (terminals if number % 2 == 0 and terminal else timeouts)[end] = True
    episode = np.repeat(np.arange(len(lengths)), lengths)
    observations = generator.normal(size=(rows, observation)).astype(np.float32)
    mixing = generator.normal(size=(observation, action)) / np.sqrt(observation)
    following = np.roll(observations, -1, 0)
    following[ends] = generator.normal(size=(len(lengths), observation))
    actions = np.tanh(observations @ mixing + 0.1 * generator.normal(size=(rows, action))).astype(np.float32)
    return {
        "observations": observations,
        "actions": actions.argmax(1) if discrete else actions,
        "rewards": (generator.normal(size=rows) + episode).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": following.astype(np.float32),
    }


def image_columns(lengths: list[int], actions: int = 3, side: int = 36, stack: int = 4) -> dict[str, np.ndarray]:
    """D4RL's columns with stacks of frames ``[N, stack, side, side]``, in which the action can be seen; discrete."""
    rows = columns(lengths, action=actions, discrete=True)
    generator = np.random.default_rng(1)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    now, after = [], []
    for start, stop in itertools.pairwise(starts):
        frames = generator.integers(0, 64, (stop - start + 1, side, side), dtype=np.uint8)
        width = side // actions
        for frame, action in zip(frames, rows["actions"][start:stop], strict=False):
            frame[:, action * width : (action + 1) * width] += 192  # a bright bar over the action's columns
        stacks = np.lib.stride_tricks.sliding_window_view(
            np.pad(frames, ((stack - 1, 0), (0, 0), (0, 0)), "edge"), stack, 0
        )
        stacks = np.moveaxis(stacks, -1, 1)
        now.append(stacks[:-1])
        after.append(stacks[1:])
    return {**rows, "observations": np.concatenate(now), "next_observations": np.concatenate(after)}


def write_hdf5(path: Path, arrays: dict[str, np.ndarray], **attributes: Any) -> Path:
    """Writes columns as a flat HDF5 file."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file.attrs.update(attributes)
    return path


class Arrays(Source):
    """Columns in memory, one episode at a time."""

    def __init__(self, arrays: dict[str, np.ndarray], origin: Origin | None = None) -> None:
        self.arrays = arrays
        self.known = origin or Origin(dataset="arrays")

    def origin(self) -> Origin:
        return self.known

    def __len__(self) -> int:
        return len(self.arrays["rewards"])

    def episodes(self) -> Iterator[TensorDict]:
        ends = np.nonzero(self.arrays["terminals"] | self.arrays["timeouts"])[0] + 1
        start = 0
        for stop in ends:
            part = {key: value[start:stop] for key, value in self.arrays.items()}
            yield transitions_from(
                part["observations"],
                part["actions"],
                part["rewards"],
                part["next_observations"],
                part["terminals"],
                part["timeouts"],
            )
            start = stop


def transitions(arrays: dict[str, np.ndarray]) -> TensorDict:
    """All of the columns' transitions, one number per row for rewards and flags."""
    return squeezed(torch.cat(list(Arrays(arrays).episodes())))


def oper(*words: str) -> int:
    """The command `oper` in this process."""
    return main([str(word) for word in words])


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder over HTTP; gives its address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
