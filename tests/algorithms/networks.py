"""Networks without a trainer: shapes, a batch made by hand, members of ensembles as plain networks."""

from __future__ import annotations

from typing import Any

import torch
from helpers import columns, transitions
from tensordict import TensorDict
from torch import nn

from oper_lightning.algorithms.stage import Stage
from oper_lightning.spec import Batch, DataSpec

ROWS = 12
IMAGE = (2, 36, 36)


def spec(observation: int = 3, action: int = 2) -> DataSpec:
    """Of vectors and continuous actions."""
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


def discrete_spec(pixels: bool = False, actions: int = 3) -> DataSpec:
    """Of vectors, or images, and discrete actions."""
    return DataSpec(
        observation_shape=IMAGE if pixels else (3,),
        action_shape=(),
        action_low=torch.tensor(0),
        action_high=torch.tensor(actions - 1),
        observation_mean=torch.zeros(() if pixels else 3),
        observation_std=torch.ones(() if pixels else 3) - (0 if pixels else 1e-3),
        rows=ROWS,
        fingerprint="",
        discrete=True,
        pixels=pixels,
    )


def discrete_batch(seed: int = 0, pixels: bool = False, actions: int = 3) -> TensorDict:
    """Rows of :func:`batch` with discrete actions; with images, if asked."""
    rows, generator = batch(seed), torch.Generator().manual_seed(seed + 100)
    rows["action"] = torch.randint(actions, (ROWS,), generator=generator)
    if pixels:
        for part in (rows, rows["next"]):
            part["observation"] = torch.randint(256, (ROWS, *IMAGE), generator=generator, dtype=torch.uint8)
    return rows


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


def ready(model: Stage, *targets: str, given: DataSpec | None = None) -> Stage:
    """Builds the networks, and moves the named ones off those that they were copied from, so that a mix-up shows."""
    torch.manual_seed(0)
    model._build(spec() if given is None else given)
    model.configure_optimizers()
    for target in targets:
        for parameter in getattr(model, target).parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def in_other_units(model: Stage) -> Stage:
    """Raw observations are then ``3 + 2 o`` for the networks' ``o``, the environment's actions ``1 + 4 a``."""
    model.observation_mean.fill_(3.0)
    model.observation_std.fill_(2.0)
    model.action_scale.fill_(4.0)
    model.action_centre.fill_(1.0)
    return model


def assert_normalises(plain: Stage, normalising: Stage) -> None:
    """The second, else the same as the first, acts on raw observations as that does on normalised ones."""
    normalising.observation_mean += 2
    normalising.observation_std *= 3
    observation = torch.randn(5, 3)
    torch.testing.assert_close(normalising.act(3 * observation + 2), plain.act(observation))


def moved_by_role(model: Stage, parts: list[TensorDict], others: list[TensorDict]) -> list[set[str]]:
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


# Discrete actions ------------------------------------------------------------------------------------------------

APART_AND_SHARED = [(False, True), (True, False)]
"""whether observations are images, and whether evaluation has rows of its own"""
RATE = {False: 1e-2, True: 1e-4}
"""learning rates above vectors and images: Adam makes a step of this size even of a gradient that is rounding alone,
which a few of a convolution's many weights have"""


def discrete_batches(pixels: bool, apart: bool, count: int = 5) -> list[Batch]:
    """Weighted batches of a few updates; evaluation has rows of its own, if ``apart``, the other roles share theirs."""
    batches, generator = [], torch.Generator().manual_seed(0)
    for number in range(count):
        parts = [discrete_batch(seed, pixels) for seed in (number, 50 + number)]
        for part in parts:
            part["weight"] = 2 * torch.rand(ROWS, generator=generator)
        evaluation, policy = parts if apart else (parts[0], parts[0])
        batches.append(Batch(evaluation, policy, policy))
    return batches


def train(model: Stage, batches: list[Batch]) -> list[dict[str, torch.Tensor]]:
    """The results of the first updates of a run on these batches."""
    results = []
    for number, rows in enumerate(batches):
        model.branch = model.prepare(number)
        results.append(model.update(rows))
    return results


def assert_same(network: nn.Module, expected: nn.Module) -> None:
    """Parameters agree to 1e-6."""
    for (name, value), other in zip(network.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def assert_n_steps(model: Stage) -> None:
    """The algorithm, with ``n_step`` 2 and a discount of one half, asks for targets of two steps within an episode."""
    table = transitions(columns([3, 2], discrete=True))  # the first terminates, the second is cut
    table["next", "reward"] = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    asked = model.columns(table)
    assert asked["next", "reward"].tolist() == [2, 4, 4, 16, 16]
    assert asked["next", "row"].tolist() == [1, 2, 2, 4, 4]
    assert asked["discount"].tolist() == [0.25, 0, 0, 0.25, 0.5]


def assert_acts_alike_on_images_one_by_one(model: Stage) -> None:
    """Acting on many observations is acting on each; actions are numbers in the environment's count."""
    observation = discrete_batch(7, pixels=True)["observation"]
    actions = model.act(observation)
    assert actions.dtype is torch.int64
    assert actions.tolist() == [model.act(row.unsqueeze(0)).item() for row in observation]
    model.action_centre.fill_(-2)
    assert model.act(observation).tolist() == [action - 2 for action in actions.tolist()]
