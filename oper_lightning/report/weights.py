"""The priority of a finished run, computed again from its configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.storage import fill, transitions_in
from oper_lightning.data.transitions import episode_of, returns_of
from oper_lightning.errors import InputError
from oper_lightning.report.runs import read_config
from oper_lightning.trust import KINDS, load_all, trusted


class EpisodeWeights(NamedTuple):
    """What a priority makes of each episode of a dataset."""

    returns: Tensor
    """undiscounted return, ``[E]``"""
    weights: Tensor
    """mean weight of the episode's transitions, ``[E]``"""


class Datasets:
    """Reads each dataset once, however many runs trained on it."""

    def __init__(self) -> None:
        self.read: dict[str, TensorDict] = {}

    def weights_of(self, run: str | Path) -> EpisodeWeights | None:
        """Return and mean weight of every episode under the run's priority; None for a uniform run."""
        config = read_config(run)["data"]["init_args"]
        if config["priority"] is None:
            return None
        file = Path(run) / "config.yaml"
        source, priority = make("source", config["source"], file), make("priority", config["priority"], file)
        key = json.dumps(config["source"], sort_keys=True)
        if key not in self.read:
            source.prepare()
            self.read[key] = transitions_in(fill(source, torch.device("cpu")))
        return episode_weights(self.read[key], priority(self.read[key]))


def episode_weights(transitions: TensorDict, weights: Tensor) -> EpisodeWeights:
    """Gathers weights ``[N]`` by episode."""
    ends = transitions["next", "done"]
    episodes = episode_of(ends)
    count = torch.bincount(episodes)
    mean = torch.zeros(len(count), dtype=torch.float64).index_add_(0, episodes, weights.double()) / count
    return EpisodeWeights(returns_of(transitions)[ends], mean)


def make(kind: str, config: Any, origin: object) -> Any:
    """A ``source`` or ``priority`` from its configuration, as the file ``origin`` has it.

    Raises:
        InputError: if the class or its arguments are not known.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--made", type=KINDS[kind])
    load_all()
    known = trusted(config, origin, kind)
    try:
        return parser.instantiate(parser.parse_object({"made": known})).made
    except ArgumentError as error:
        raise InputError(f"{origin}: {known['class_path']}: {str(error).splitlines()[-1].strip()}") from None
