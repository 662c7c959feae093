"""The pieces of torchrl that the package uses, without what they do to the process.

How a process starts others is for the program to choose, not for a library in it. Importing torchrl chooses "spawn",
and its storages and buffers, which hold locks, settle the choice; so what was chosen before, or not yet, is put back.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tensordict import TensorDictBase


@contextmanager
def spawning() -> Iterator[None]:
    """For what makes objects of torchrl: their locks are then those of "spawn", which any process may be handed."""
    chosen: Any = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(chosen, force=True)


with spawning():
    from torchrl.data import RandomSampler, TensorDictReplayBuffer, TensorStorage
    from torchrl.data.replay_buffers.samplers import Sampler
    from torchrl.envs.transforms import Transform

__all__ = ["RandomSampler", "Sampler", "TensorDictReplayBuffer", "TensorStorage", "Transform", "buffer", "stored"]


def stored(rows: TensorDictBase) -> TensorStorage:
    """A storage that holds these rows, without a copy."""
    with spawning():
        return TensorStorage(rows)


def buffer(**options: Any) -> TensorDictReplayBuffer:
    """A replay buffer with torchrl's options."""
    with spawning():
        return TensorDictReplayBuffer(**options)


def d4rl_addresses() -> dict[str, str]:
    """Address of every dataset that D4RL published, by name."""
    from torchrl.data.datasets.d4rl_infos import D4RL_DATASETS

    return dict(D4RL_DATASETS)
