"""Prioritised offline reinforcement learning on Lightning and torchrl.

The names in ``__all__`` are stable: they keep their meaning and their arguments from one minor version to the next.
Whatever else the modules hold may change. They are:

- data: ``OfflineDataModule``, ``OnlineDataModule``; the sources ``BRAC``, ``D3rlpy``, ``D4RL``, ``Minari``, ``Npz``,
  ``OGBench``, ``Tianshou``, ``RLUnplugged``, ``Reacher``; ``Source``, ``Origin`` and ``transitions_from`` to write
  another; ``WeightedSampler`` and ``LossWeight`` for torchrl buffers; ``Rollouts``;
- ``Task``, to say what steps earn and where episodes end;
- bonuses: ``RND``, ``CountBonus``; ``Bonus`` to write another;
- priorities: ``OperR``, ``WeightsFile``, ``TopFraction``, ``ReturnWeighting``, ``AdvantageWeighting``, ``Capped``,
  ``FirstObservations``; ``Priority`` to write another;
- algorithms: ``BC``, ``TD3BC``, ``BCQ``, ``IQL``, ``CQL``, ``CalQL``, ``OnestepRL``, ``RLPD``, ``BREMEN`` with its
  ``DynamicsEnsemble``; for discrete actions ``DiscreteBC``, ``DiscreteBCQ``, ``DiscreteCQL``, ``CRR``,
  ``DiscreteIQL``, ``QRDQN``; OPER-A's stage 1 ``OperA``; to write another: ``OfflineAlgorithm``, ``Batch``,
  ``DataSpec``, ``adam``, ``polyak``, ``copy_to``, ``frozen_copy``, ``squared_error``, ``expectile_error``,
  ``quantile_error``;
- ``InputError``, which says in one line what was wrong with something that a person gave.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from oper_lightning.algorithms.base import OfflineAlgorithm
    from oper_lightning.algorithms.bc import BC
    from oper_lightning.algorithms.bcq import BCQ
    from oper_lightning.algorithms.bremen import BREMEN
    from oper_lightning.algorithms.cal_ql import CalQL
    from oper_lightning.algorithms.cql import CQL
    from oper_lightning.algorithms.crr import CRR
    from oper_lightning.algorithms.discrete_bc import DiscreteBC
    from oper_lightning.algorithms.discrete_bcq import DiscreteBCQ
    from oper_lightning.algorithms.discrete_cql import DiscreteCQL
    from oper_lightning.algorithms.discrete_iql import DiscreteIQL
    from oper_lightning.algorithms.dynamics import DynamicsEnsemble
    from oper_lightning.algorithms.iql import IQL
    from oper_lightning.algorithms.onestep import OnestepRL
    from oper_lightning.algorithms.oper_a import OperA
    from oper_lightning.algorithms.qrdqn import QRDQN
    from oper_lightning.algorithms.rlpd import RLPD
    from oper_lightning.algorithms.td3_bc import TD3BC
    from oper_lightning.data.bonuses.bonus import Bonus
    from oper_lightning.data.bonuses.counts import CountBonus
    from oper_lightning.data.bonuses.rnd import RND
    from oper_lightning.data.datamodule import OfflineDataModule
    from oper_lightning.data.online import OnlineDataModule
    from oper_lightning.data.sampler import WeightedSampler
    from oper_lightning.data.sources.brac import BRAC
    from oper_lightning.data.sources.d3rlpy import D3rlpy
    from oper_lightning.data.sources.d4rl import D4RL
    from oper_lightning.data.sources.minari import Minari
    from oper_lightning.data.sources.npz import Npz
    from oper_lightning.data.sources.ogbench import OGBench
    from oper_lightning.data.sources.reacher import Reacher
    from oper_lightning.data.sources.rl_unplugged import RLUnplugged
    from oper_lightning.data.sources.source import Origin, Source
    from oper_lightning.data.sources.tianshou import Tianshou
    from oper_lightning.data.transforms import LossWeight
    from oper_lightning.data.transitions import transitions_from
    from oper_lightning.envs.rollouts import Rollouts
    from oper_lightning.errors import InputError
    from oper_lightning.nn.losses import expectile_error, quantile_error, squared_error
    from oper_lightning.nn.optim import adam, copy_to, frozen_copy, polyak
    from oper_lightning.priorities.capped import Capped
    from oper_lightning.priorities.file import WeightsFile
    from oper_lightning.priorities.priority import Priority
    from oper_lightning.priorities.returns import AdvantageWeighting, OperR, ReturnWeighting, TopFraction
    from oper_lightning.priorities.starts import FirstObservations
    from oper_lightning.spec import Batch, DataSpec, Task

# Where each public name lives; imported when first used, so that a name costs only what stands behind it.
_PUBLIC = {
    "OfflineDataModule": "data.datamodule",
    "OnlineDataModule": "data.online",
    "WeightedSampler": "data.sampler",
    "LossWeight": "data.transforms",
    "transitions_from": "data.transitions",
    "Source": "data.sources.source",
    "Origin": "data.sources.source",
    "BRAC": "data.sources.brac",
    "D3rlpy": "data.sources.d3rlpy",
    "D4RL": "data.sources.d4rl",
    "Minari": "data.sources.minari",
    "Npz": "data.sources.npz",
    "OGBench": "data.sources.ogbench",
    "Reacher": "data.sources.reacher",
    "Tianshou": "data.sources.tianshou",
    "RLUnplugged": "data.sources.rl_unplugged",
    "Bonus": "data.bonuses.bonus",
    "CountBonus": "data.bonuses.counts",
    "RND": "data.bonuses.rnd",
    "Rollouts": "envs.rollouts",
    "InputError": "errors",
    "Priority": "priorities.priority",
    "OperR": "priorities.returns",
    "TopFraction": "priorities.returns",
    "ReturnWeighting": "priorities.returns",
    "AdvantageWeighting": "priorities.returns",
    "WeightsFile": "priorities.file",
    "Capped": "priorities.capped",
    "FirstObservations": "priorities.starts",
    "OfflineAlgorithm": "algorithms.base",
    "BC": "algorithms.bc",
    "TD3BC": "algorithms.td3_bc",
    "BCQ": "algorithms.bcq",
    "IQL": "algorithms.iql",
    "CQL": "algorithms.cql",
    "CalQL": "algorithms.cal_ql",
    "OnestepRL": "algorithms.onestep",
    "RLPD": "algorithms.rlpd",
    "BREMEN": "algorithms.bremen",
    "DynamicsEnsemble": "algorithms.dynamics",
    "DiscreteBC": "algorithms.discrete_bc",
    "DiscreteBCQ": "algorithms.discrete_bcq",
    "DiscreteCQL": "algorithms.discrete_cql",
    "CRR": "algorithms.crr",
    "DiscreteIQL": "algorithms.discrete_iql",
    "QRDQN": "algorithms.qrdqn",
    "OperA": "algorithms.oper_a",
    "Task": "spec",
    "Batch": "spec",
    "DataSpec": "spec",
    "adam": "nn.optim",
    "polyak": "nn.optim",
    "copy_to": "nn.optim",
    "frozen_copy": "nn.optim",
    "squared_error": "nn.losses",
    "expectile_error": "nn.losses",
    "quantile_error": "nn.losses",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
