from __future__ import annotations

import copy
import math
from itertools import product
from pathlib import Path
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
from test_shared import algorithm, data, fit, parameters, same

from oper_lightning import InputError, OperR
from oper_lightning.algorithms.discrete_bcq import DiscreteBCQ


def built(pixels: bool = False, **options: Any) -> DiscreteBCQ:
    model = DiscreteBCQ(**{"hidden_sizes": (16,), "learning_rate": RATE[pixels], **options})
    ready(model, "target_network", given=discrete_spec(pixels))
    return model


def test_the_best_of_the_likely_actions_is_taken_whatever_is_left_out() -> None:
    """Each set of actions that can be left, with values of either sign, and the last action best as often as others."""
    generator = torch.Generator().manual_seed(0)
    model = built(threshold=0.3)
    for allowed in product([False, True], repeat=4):
        if not any(allowed):
            continue
        values = torch.randn(50, 4, generator=generator)
        logits = torch.tensor([0.0 if kept else -60.0 for kept in allowed]).expand(50, 4)
        best = model.best(values, logits + torch.randn(50, 1, generator=generator))
        for row, action in enumerate(best.tolist()):
            assert allowed[action]
            assert values[row, action] == max(value for value, kept in zip(values[row], allowed, strict=True) if kept)


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.8])
def test_an_action_counts_from_its_share_of_the_likeliest(threshold: float) -> None:
    values, logits = torch.randn(200, 5), 2 * torch.randn(200, 5)
    best = built(threshold=threshold).best(values, logits)
    for row in range(200):
        chances = [math.exp(logit) for logit in logits[row].tolist()]
        allowed = [action for action in range(5) if chances[action] >= threshold * max(chances)]
        assert best[row].item() == max(allowed, key=lambda action, row=row: values[row, action].item())


def test_its_two_ends_are_double_dqn_and_the_clone() -> None:
    observation = discrete_batch()["observation"]
    with torch.no_grad():
        values, logits = built().network(observation)
    assert not values.argmax(1).equal(logits.argmax(1))
    assert built(threshold=0).act(observation).equal(values.argmax(1))
    assert built(threshold=1 - 1e-9).act(observation).equal(logits.argmax(1))
    for threshold in (-0.1, 1.0, math.nan):
        with pytest.raises(InputError, match=r"threshold .* is not in \[0, 1\)"):
            DiscreteBCQ(threshold=threshold)


@pytest.mark.parametrize(("pixels", "apart"), APART_AND_SHARED)
def test_a_loop_written_by_hand_learns_the_same(pixels: bool, apart: bool) -> None:
    """The target network is renewed at updates 0, 2 and 4, each time after the targets of that update were made."""
    model = built(pixels, threshold=0.95, logits_penalty=0.5, target_update=2)
    online, old = copy.deepcopy(model.network), copy.deepcopy(model.target_network)
    optimiser = torch.optim.Adam(online.parameters(), lr=RATE[pixels])
    batches = discrete_batches(pixels, apart)
    train(model, batches)
    left_out = 0
    for number, (evaluation, _, constraint) in enumerate(batches):
        goals = []
        with torch.no_grad():
            values, logits = online(evaluation["next", "observation"])
            ahead, _ = old(evaluation["next", "observation"])
        for row in range(ROWS):
            chances = logits[row].softmax(0)
            allowed = [action for action in range(3) if chances[action] >= 0.95 * chances.max()]
            left_out += 3 - len(allowed)
            best = max(allowed, key=lambda action, row=row: values[row, action].item())
            goals.append(evaluation["next", "reward"][row] + evaluation["discount"][row] * ahead[row, best])
        if number in (0, 2, 4):
            old.load_state_dict(online.state_dict())
        loss = torch.zeros(())
        values, (_, logits) = online(evaluation["observation"])[0], online(constraint["observation"])
        for row in range(ROWS):
            error = values[row, evaluation["action"][row]] - goals[row]
            bellman = error**2 / 2 if error.abs() < 1 else error.abs() - 0.5
            clone = -logits[row].log_softmax(0)[constraint["action"][row]] + 0.5 * sum(logits[row] ** 2) / 3
            loss = loss + evaluation["weight"][row] * bellman + constraint["weight"][row] * clone
        optimiser.zero_grad()
        (loss / ROWS).backward()
        optimiser.step()
    assert 0 < left_out < 2 * ROWS * len(batches)
    assert_same(model.network, online)
    assert_same(model.target_network, old)


def test_it_acts_alike_on_one_image_and_on_many() -> None:
    assert_acts_alike_on_images_one_by_one(built(pixels=True))


def test_each_loss_is_of_its_own_roles_data() -> None:
    parts = [discrete_batch(seed) for seed in (1, 2, 3)]
    moved = moved_by_role(built(), parts, [discrete_batch(seed) for seed in (4, 5, 6)])
    assert moved == [{"critic_loss", "value"}, set(), {"imitation_loss"}]


@pytest.mark.parametrize("mode", ["reweight", "resample"])
def test_decoupled_the_values_see_uniform_data(mode: str, tmp_path: Path) -> None:
    """Above vectors values and clone share nothing, and with a threshold of 0 targets do not ask the clone."""
    states = []
    for options in ({}, {"priority": OperR(), "mode": mode, "prioritise": ["constraint"]}):
        model = algorithm("DiscreteBCQ", threshold=0)
        fit(model, data("discrete", **options), tmp_path / str(len(options)))
        states.append(model.network)
    assert same(*(parameters(network.first) for network in states))
    assert not same(*(parameters(network.second) for network in states))


def test_targets_of_several_steps_and_how_often_they_are_renewed() -> None:
    assert_n_steps(built(n_step=2, discount=0.5))
    assert [number for number in range(10) if built(target_update=4).prepare(number)] == [0, 4, 8]
    with pytest.raises(InputError, match="target_update 0 must be at least 1"):
        DiscreteBCQ(target_update=0)
