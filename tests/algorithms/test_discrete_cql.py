from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from networks import (
    APART_AND_SHARED,
    RATE,
    ROWS,
    assert_acts_alike_on_images_one_by_one,
    assert_n_steps,
    assert_same,
    discrete_batch,
    discrete_batches,
    discrete_spec,
    moved_by_role,
    ready,
    train,
)

from oper_lightning import InputError
from oper_lightning.algorithms.discrete_cql import DiscreteCQL
from oper_lightning.nn.losses import quantile_error


def built(pixels: bool = False, **options: Any) -> DiscreteCQL:
    model = DiscreteCQL(**{"hidden_sizes": (16,), "learning_rate": RATE[pixels], "quantiles": 4, **options})
    ready(model, "target_critic", given=discrete_spec(pixels))
    return model


def quantile_loss(quantiles: list[float], samples: list[float]) -> float:
    """Of one transition, by two loops."""
    total = 0.0
    for number, quantile in enumerate(quantiles):
        level = (2 * number + 1) / (2 * len(quantiles))
        for sample in samples:
            error = sample - quantile
            huber = error**2 / 2 if abs(error) <= 1 else abs(error) - 0.5
            total += abs(level - (1 if error <= 0 else 0)) * huber / len(samples)
    return total


@pytest.mark.parametrize(("predicted", "sampled"), [(5, 5), (3, 7), (1, 4), (6, 1)])
def test_the_quantile_loss_is_two_loops(predicted: int, sampled: int) -> None:
    quantiles, target = 2 * torch.randn(20, predicted), 2 * torch.randn(20, sampled)
    target[0, 0] = quantiles[0, 0]
    loss = quantile_error(quantiles, target)
    assert loss.shape == (20,)
    for row in range(20):
        expected = quantile_loss(quantiles[row].tolist(), target[row].tolist())
        assert loss[row].item() == pytest.approx(expected, rel=1e-5)


def test_the_quantile_loss_refuses_shapes_that_would_broadcast() -> None:
    for first, second in ([(5,), (5, 3)], [(5, 3), (5,)], [(5, 3), (1, 3)], [(5, 3, 2), (5, 3)]):
        with pytest.raises(ValueError, match="are needed"):
            quantile_error(torch.zeros(first), torch.zeros(second))


def test_its_minimum_are_the_quantiles_of_the_samples() -> None:
    samples = torch.linspace(0, 400, 401).unsqueeze(0)  # far enough apart for the Huber loss to count distances
    quantiles = torch.full((1, 4), 200.0, requires_grad=True)
    optimiser = torch.optim.SGD([quantiles], lr=100)
    for _ in range(60):
        optimiser.zero_grad()
        quantile_error(quantiles, samples).sum().backward()
        optimiser.step()
    assert quantiles.squeeze(0).tolist() == pytest.approx([50, 150, 250, 350], abs=1)


def test_the_penalty_is_torchrls() -> None:
    """Only the penalty can be compared: without a distribution torchrl's Bellman error is a squared one."""
    from tensordict.nn import TensorDictModule
    from torchrl.objectives import DiscreteCQLLoss

    model, rows = built(), discrete_batch()

    class Values(torch.nn.Module):
        def forward(self, observation: torch.Tensor) -> torch.Tensor:
            return model.critic(observation).mean(-1)

    module = TensorDictModule(Values(), in_keys=["observation"], out_keys=["action_value"])
    oracle = DiscreteCQLLoss(module, action_space="categorical", delay_value=False, reduction="none")
    oracle.value_network.register_module("critic", model.critic)
    given = rows.select("action").set("pred_val", model.critic(rows["observation"]).mean(-1))
    oracle.set_keys(pred_val="pred_val")
    expected, _ = oracle.cql_loss(given)
    penalty = model.difference(rows, model.critic(rows["observation"]))
    assert penalty.shape == (ROWS,)
    torch.testing.assert_close(penalty, expected)


def test_the_penalty_of_a_flat_critic_is_the_log_of_the_number_of_actions() -> None:
    flat = torch.full((ROWS, 3, 4), 7.0)
    torch.testing.assert_close(built().difference(discrete_batch(), flat), torch.full((ROWS,), math.log(3)))


@pytest.mark.parametrize(("pixels", "apart"), APART_AND_SHARED)
def test_a_loop_written_by_hand_learns_the_same(pixels: bool, apart: bool) -> None:
    """The target network is renewed at updates 0, 2 and 4, each time after the targets of that update were made."""
    model = built(pixels, cql_weight=0.7, target_update=2)
    online, old = copy.deepcopy(model.critic), copy.deepcopy(model.target_critic)
    optimiser = torch.optim.Adam(online.parameters(), lr=RATE[pixels])
    batches = discrete_batches(pixels, apart)
    results = train(model, batches)
    for number, (evaluation, _, constraint) in enumerate(batches):
        following = evaluation["next", "observation"]
        with torch.no_grad():
            best = (online(following).sum(-1) / 4).max(-1).indices
            goals = [
                evaluation["next", "reward"][row] + evaluation["discount"][row] * old(following)[row, best[row]]
                for row in range(ROWS)
            ]
        if number in (0, 2, 4):
            old.load_state_dict(online.state_dict())
        quantiles, others = online(evaluation["observation"]), online(constraint["observation"])
        bellman, penalty = torch.zeros(()), torch.zeros(())
        for row in range(ROWS):
            for index, quantile in enumerate(quantiles[row, evaluation["action"][row]]):
                for goal in goals[row]:
                    error = goal - quantile
                    huber = error**2 / 2 if error.abs() < 1 else error.abs() - 0.5
                    share = (index + 0.5) / 4 if error > 0 else 1 - (index + 0.5) / 4
                    bellman = bellman + evaluation["weight"][row] * share * huber / 4
            values = others[row].mean(-1)
            gap = values.exp().sum().log() - values[constraint["action"][row]]
            penalty = penalty + constraint["weight"][row] * gap
        assert results[number]["bellman_error"].item() == pytest.approx(bellman.item() / ROWS, rel=1e-4)
        assert results[number]["difference"].item() == pytest.approx(penalty.item() / ROWS, rel=1e-4)
        optimiser.zero_grad()
        ((bellman + 0.7 * penalty) / ROWS).backward()
        optimiser.step()
    assert_same(model.critic, online)
    assert_same(model.target_critic, old)


def test_it_acts_by_the_mean_of_the_quantiles() -> None:
    model, rows = built(), discrete_batch()
    for observation, action in zip(rows["observation"], model.act(rows["observation"]), strict=True):
        means = [sum(quantiles) / 4 for quantiles in model.critic(observation).tolist()]
        assert means[action] == max(means)
    assert_acts_alike_on_images_one_by_one(built(pixels=True))


def test_each_loss_is_of_its_own_roles_data() -> None:
    parts = [discrete_batch(seed) for seed in (1, 2, 3)]
    moved = moved_by_role(built(), parts, [discrete_batch(seed) for seed in (4, 5, 6)])
    assert moved == [{"critic_loss", "bellman_error", "value"}, set(), {"critic_loss", "difference"}]


def test_targets_of_several_steps_and_how_often_they_are_renewed() -> None:
    assert_n_steps(built(n_step=2, discount=0.5))
    assert [number for number in range(10) if built(target_update=4).prepare(number)] == [0, 4, 8]
    for options in ({"target_update": 0}, {"quantiles": 0}):
        with pytest.raises(InputError, match="0 must be at least 1"):
            DiscreteCQL(**options)
    with pytest.raises(InputError, match="cql_weight -1 must not be negative"):
        DiscreteCQL(cql_weight=-1)
