from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from networks import (
    APART_AND_SHARED,
    RATE,
    ROWS,
    assert_acts_alike_on_images_one_by_one,
    assert_same,
    discrete_batch,
    discrete_batches,
    discrete_spec,
    moved_by_role,
    ready,
    train,
)

from oper_lightning import InputError
from oper_lightning.algorithms.discrete_bc import DiscreteBC
from oper_lightning.spec import Batch


def built(pixels: bool = False) -> DiscreteBC:
    model = DiscreteBC(hidden_sizes=(16,), learning_rate=RATE[pixels])
    ready(model, given=discrete_spec(pixels))
    return model


def test_the_loss_is_minus_the_log_probability_of_what_was_recorded() -> None:
    model, rows = built(), discrete_batch()
    loss = model.loss(rows)
    assert loss.shape == (ROWS,)
    for row in range(ROWS):
        logits = model.policy(rows["observation"])[row].tolist()
        chance = math.exp(logits[rows["action"][row]]) / sum(map(math.exp, logits))
        assert loss[row].item() == pytest.approx(-math.log(chance), rel=1e-5)


@pytest.mark.parametrize(("pixels", "apart"), APART_AND_SHARED)
def test_a_loop_written_by_hand_learns_the_same(pixels: bool, apart: bool) -> None:
    model, batches = built(pixels), discrete_batches(pixels, apart)
    policy = copy.deepcopy(model.policy)
    optimiser = torch.optim.Adam(policy.parameters(), lr=RATE[pixels])
    train(model, batches)
    for batch in batches:
        rows = batch.improvement
        logits = policy(rows["observation"])
        chances = logits.exp() / logits.exp().sum(1, keepdim=True)
        terms = [-rows["weight"][row] * chances[row, rows["action"][row]].log() for row in range(ROWS)]
        optimiser.zero_grad()
        (sum(terms) / ROWS).backward()
        optimiser.step()
    assert_same(model.policy, policy)


def test_it_acts_by_the_likeliest_action() -> None:
    model, rows = built(), discrete_batch()
    for observation, action in zip(rows["observation"], model.act(rows["observation"]), strict=True):
        logits = model.policy(observation).tolist()
        assert logits[action] == max(logits)
    assert_acts_alike_on_images_one_by_one(built(pixels=True))


def test_the_policys_batch_is_what_it_reads() -> None:
    rows = [discrete_batch(1), discrete_batch(2)]
    moved = moved_by_role(built(), [rows[0], rows[1], rows[1]], [discrete_batch(3), rows[1], rows[1]])
    assert moved[0] == set()
    with pytest.raises(InputError, match="one policy loss for both"):
        built().update(Batch(rows[0], rows[1], rows[0]))


@pytest.mark.parametrize(
    ("shape", "pixels", "remedy"),
    [
        ((48, 48, 3), True, "moveaxis"),
        ((48, 48), True, "one channel"),
        ((3, 20, 20), True, "save larger ones"),
        ((3, 48, 48), False, "uint8"),
    ],
)
def test_images_of_another_layout_get_a_remedy(shape: tuple[int, ...], pixels: bool, remedy: str) -> None:
    spec = dataclasses.replace(discrete_spec(pixels), observation_shape=shape, dataset="mine")
    with pytest.raises(InputError, match=rf"^mine: observations.*{remedy}"):
        ready(DiscreteBC(), given=spec)
