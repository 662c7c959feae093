"""Networks without a trainer: shapes, a batch made by hand, members of ensembles as plain networks."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import nn

from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.spec import Batch, DataSpec

ROWS = 12


def spec(observation: int = 3, action: int = 2) -> DataSpec:
    return DataSpec(
        observation_shape=(observation,),
        action_shape=(action,),
        action_low=-torch.ones(action),
        action_high=torch.ones(action),
        observation_mean=torch.zeros(observation),
        observation_std=torch.ones(observation) - 1e-3,
        rows=ROWS,
        fingerprint="",
    )


def batch(seed: int = 0) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(ROWS, *shape, generator=generator)

    terminated = torch.arange(ROWS) % 4 == 0
    return TensorDict(
        {
            "observation": draw(3),
            "action": draw(2).tanh(),
            "next": {"observation": draw(3), "reward": draw(), "terminated": terminated},
            "discount": 0.99 * (~terminated).float(),
            "weight": torch.ones(ROWS),
        },
        batch_size=[ROWS],
    )


def as_module(weights: Any, biases: Any, member: int) -> nn.Sequential:
    """One member of an ensemble as a plain network."""
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        linear = nn.Linear(*weight.shape[1:])
        linear.weight.data, linear.bias.data = weight[member].T.clone(), bias[member, 0].clone()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Pair(nn.Module):
    """A network of observations and actions side by side, with two arguments."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.network(torch.cat([observation, action], -1))


def ready(model: OfflineAlgorithm, *targets: str) -> OfflineAlgorithm:
    """Builds the networks, and moves the named ones off those that they were copied from, so that a mix-up shows."""
    torch.manual_seed(0)
    model._build(spec())
    model.configure_optimizers()
    for target in targets:
        for parameter in getattr(model, target).parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def in_other_units(model: OfflineAlgorithm) -> OfflineAlgorithm:
    """Raw observations are then ``3 + 2 o`` for the networks' ``o``, the environment's actions ``1 + 4 a``."""
    model.observation_mean.fill_(3.0)
    model.observation_std.fill_(2.0)
    model.action_scale.fill_(4.0)
    model.action_centre.fill_(1.0)
    return model


def assert_normalises(plain: OfflineAlgorithm, normalising: OfflineAlgorithm) -> None:
    """The second, else the same as the first, acts on raw observations as that does on normalised ones."""
    normalising.observation_mean += 2
    normalising.observation_std *= 3
    observation = torch.randn(5, 3)
    torch.testing.assert_close(normalising.act(3 * observation + 2), plain.act(observation))


def moved_by_role(model: OfflineAlgorithm, parts: list[TensorDict], others: list[TensorDict]) -> list[set[str]]:
    """Names of the losses that change with the data of each role: evaluation, improvement, constraint.

    ``model`` has its branch set; its losses are taken without stepping any optimiser.
    """
    model.minimise = lambda loss, *_: None  # type: ignore[method-assign]

    state = {name: value.clone() for name, value in model.state_dict().items()}

    def losses(batch: Batch) -> dict[str, torch.Tensor]:
        model.load_state_dict(state)  # targets move even so
        torch.manual_seed(0)
        return model.update(batch)

    plain = losses(Batch(*parts))
    moved = []
    for role in range(3):
        changed = list(parts)
        changed[role] = others[role]
        results = losses(Batch(*changed))
        moved.append({name for name, value in results.items() if not torch.isclose(value, plain[name], rtol=1e-4)})
    return moved
