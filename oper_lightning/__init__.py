"""Prioritised offline reinforcement learning on Lightning and torchrl."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from oper_lightning.data.datamodule import OfflineDataModule
    from oper_lightning.data.sampler import WeightedSampler
    from oper_lightning.data.sources.d4rl import D4RL
    from oper_lightning.data.sources.minari import Minari
    from oper_lightning.data.sources.npz import Npz
    from oper_lightning.data.sources.reacher import Reacher
    from oper_lightning.data.sources.source import Origin, Source
    from oper_lightning.data.transforms import LossWeight
    from oper_lightning.data.transitions import transitions_from
    from oper_lightning.envs.rollouts import Rollouts
    from oper_lightning.errors import InputError
    from oper_lightning.priorities.file import WeightsFile
    from oper_lightning.priorities.priority import Priority
    from oper_lightning.priorities.returns import AdvantageWeighting, OperR, ReturnWeighting, TopFraction

# Where each public name lives; imported when first used, so that a name costs only what stands behind it.
_PUBLIC = {
    "OfflineDataModule": "data.datamodule",
    "WeightedSampler": "data.sampler",
    "LossWeight": "data.transforms",
    "transitions_from": "data.transitions",
    "Source": "data.sources.source",
    "Origin": "data.sources.source",
    "D4RL": "data.sources.d4rl",
    "Minari": "data.sources.minari",
    "Npz": "data.sources.npz",
    "Reacher": "data.sources.reacher",
    "Rollouts": "envs.rollouts",
    "InputError": "errors",
    "Priority": "priorities.priority",
    "OperR": "priorities.returns",
    "TopFraction": "priorities.returns",
    "ReturnWeighting": "priorities.returns",
    "AdvantageWeighting": "priorities.returns",
    "WeightsFile": "priorities.file",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
