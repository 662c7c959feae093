"""The pieces of torchrl that the package uses, imported without what that does to the process.

Importing torchrl sets the process's way of starting others to "spawn". That is for the program to choose, not for a
library in it; so whatever was chosen, or not yet chosen, before is put back.
"""

from __future__ import annotations

import multiprocessing
import sys

if "torchrl" not in sys.modules:
    _chosen = multiprocessing.get_start_method(allow_none=True)
    import torchrl as _torchrl  # noqa: F401

    if multiprocessing.get_start_method(allow_none=True) != _chosen:
        multiprocessing.set_start_method(_chosen, force=True)

from torchrl.data import RandomSampler, TensorDictReplayBuffer, TensorStorage
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.envs.transforms import Transform

__all__ = ["RandomSampler", "Sampler", "TensorDictReplayBuffer", "TensorStorage", "Transform", "d4rl_addresses"]


def d4rl_addresses() -> dict[str, str]:
    """Address of every dataset that D4RL published, by name."""
    from torchrl.data.datasets.d4rl_infos import D4RL_DATASETS

    return dict(D4RL_DATASETS)
