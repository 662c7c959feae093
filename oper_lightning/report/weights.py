"""The priority of a finished run, computed again from its configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.sources.source import Source
from oper_lightning.data.storage import fill
from oper_lightning.data.transitions import episode_of, episode_returns, squeezed
from oper_lightning.errors import InputError
from oper_lightning.priorities.priority import Priority


class EpisodeWeights(NamedTuple):
    """What a priority makes of each episode of a dataset."""

    returns: Tensor
    """undiscounted return, ``[E]``"""
    weights: Tensor
    """mean weight of the episode's transitions, ``[E]``"""


def read_config(run: str | Path) -> dict[str, Any]:
    """The arguments of the run's datamodule, from its config.yaml.

    Raises:
        InputError: if there is no such file.
    """
    file = Path(run) / "config.yaml"
    if not file.is_file():
        raise InputError(f"{file}: no such file; the folder of a run of `oper fit` is needed")
    return dict(yaml.safe_load(file.read_text())["data"]["init_args"])


class Datasets:
    """Reads each dataset once, however many runs trained on it."""

    def __init__(self) -> None:
        self.read: dict[str, TensorDict] = {}

    def weights_of(self, run: str | Path) -> EpisodeWeights | None:
        """Return and mean weight of every episode under the run's priority; None for a uniform run."""
        config = read_config(run)
        if config["priority"] is None:
            return None
        source, priority = _instantiate(config)
        key = json.dumps(config["source"], sort_keys=True)
        if key not in self.read:
            source.prepare()
            self.read[key] = squeezed(fill(source, torch.device("cpu"))[:])
        return episode_weights(self.read[key], priority(self.read[key]))


def episode_weights(transitions: TensorDict, weights: Tensor) -> EpisodeWeights:
    """Gathers weights ``[N]`` by episode."""
    ends = transitions["next", "done"]
    episodes = episode_of(ends)
    count = torch.bincount(episodes)
    mean = torch.zeros(len(count), dtype=torch.float64).index_add_(0, episodes, weights.double()) / count
    return EpisodeWeights(episode_returns(transitions["next", "reward"], ends)[ends], mean)


def _instantiate(config: dict[str, Any]) -> tuple[Source, Priority]:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=Source)
    parser.add_argument("--priority", type=Priority)
    made = parser.instantiate(parser.parse_object({key: config[key] for key in ("source", "priority")}))
    return made.source, made.priority
