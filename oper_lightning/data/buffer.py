"""Stored transitions as a torchrl replay buffer, for other projects' loops."""

from __future__ import annotations

import torch
from torch import Tensor

from oper_lightning.data.frames import held, storage_of
from oper_lightning.data.mixture import Mode
from oper_lightning.data.rl import RandomSampler, TensorDictReplayBuffer, TensorStorage, buffer
from oper_lightning.data.sampler import WeightedSampler
from oper_lightning.data.transforms import LossWeight


def replay_buffer(
    storage: TensorStorage, weights: Tensor | None, mode: Mode, seed: int, batch_size: int
) -> TensorDictReplayBuffer:
    """A replay buffer over all rows of a storage, without a copy of them.

    Args:
        storage: the transitions in TED layout.
        weights: one for each row, ``[N]``; None for uniform.
        mode: whether rows are drawn by weight, or uniformly with ``weight`` beside them.
        seed: of draws by weight; uniform ones follow torch's global seed, as torchrl's do.
        batch_size: number of rows of a sample.
    """
    sampler, transform = RandomSampler(), None
    if weights is not None and mode == "resample":
        sampler = WeightedSampler(weights, seed)
    elif weights is not None:
        transform = LossWeight(weights)
        table, frames = held(storage)
        numbered = table.clone(recurse=False).set("index", torch.arange(len(table), device=table.device))
        storage = storage_of(numbered, frames)
    return buffer(storage=storage, sampler=sampler, transform=transform, batch_size=batch_size)
