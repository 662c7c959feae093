from __future__ import annotations

import copy
import math
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
from oper_lightning.algorithms.crr import CRR
from oper_lightning.spec import Batch

MODES = ["exp", "binary", "all"]


def built(pixels: bool = False, **options: Any) -> CRR:
    model = CRR(**{"hidden_sizes": (16,), "learning_rate": RATE[pixels], **options})
    ready(model, "target_network", given=discrete_spec(pixels))
    return model


def factor(mode: str, values: list[float], logits: list[float], action: int, beta: float, largest: float) -> float:
    """What one recorded action weighs."""
    chances = [math.exp(logit) for logit in logits]
    own = sum(chance * value for chance, value in zip(chances, values, strict=True)) / sum(chances)
    advantage = values[action] - own
    return {
        "exp": min(math.exp(advantage / beta), largest),
        "binary": 1.0 if advantage > 0 else 0.0,
        "all": 1.0,
    }[mode]


@pytest.mark.parametrize("mode", MODES)
def test_the_policys_loss_is_a_loop_over_transitions(mode: str) -> None:
    model, rows = built(mode=mode, beta=0.5, max_weight=3.0), discrete_batch()
    values, logits = 2 * torch.randn(ROWS, 3), torch.randn(ROWS, 3)
    loss, factors = model.policy_loss(rows, values, logits)
    assert loss.shape == factors.shape == (ROWS,)
    for row in range(ROWS):
        action = int(rows["action"][row])
        expected = factor(mode, values[row].tolist(), logits[row].tolist(), action, 0.5, 3)
        cross_entropy = math.log(sum(map(math.exp, logits[row].tolist()))) - logits[row, action].item()
        assert factors[row].item() == pytest.approx(expected, rel=1e-5)
        assert loss[row].item() == pytest.approx(expected * cross_entropy, rel=1e-5, abs=1e-6)
    if mode != "all":  # weights of other rows would show
        assert factors.min() < 0.9 < factors.max()
    if mode == "exp":
        assert factors.max() == 3


@pytest.mark.parametrize("mode", MODES)
def test_the_policys_loss_moves_the_policy_alone(mode: str) -> None:
    """The factor is a constant: nothing for the values, and nothing for the policy through its own value."""
    model, rows = built(mode=mode), discrete_batch()
    values = torch.randn(ROWS, 3, requires_grad=True)
    logits = torch.randn(ROWS, 3, requires_grad=True)
    loss, factors = model.policy_loss(rows, values, logits)
    by_values, by_logits = torch.autograd.grad(loss.sum(), (values, logits), allow_unused=True)
    assert by_values is None
    recorded = torch.eye(3)[rows["action"]]
    torch.testing.assert_close(by_logits, factors.unsqueeze(1) * (logits.softmax(1) - recorded))


def test_an_advantage_beyond_all_numbers_is_clipped() -> None:
    model, rows = built(beta=1e-3), discrete_batch()
    rows["action"].zero_()
    values = torch.tensor([[1e3, 0, 0]]).expand(ROWS, 3)
    loss, factors = model.policy_loss(rows, values, torch.zeros(ROWS, 3))
    assert set(factors.tolist()) == {20}
    assert (0 * loss).isfinite().all()
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match=r"beta .* must be positive"):
            CRR(beta=beta)
        with pytest.raises(InputError, match=r"max_weight .* must be positive"):
            CRR(max_weight=beta)
    for weight in (-1.0, math.nan):
        with pytest.raises(InputError, match=r"cql_weight .* must not be negative"):
            CRR(cql_weight=weight)


@pytest.mark.parametrize("cql_weight", [0.0, 0.7])
def test_the_critics_loss_is_a_loop_over_transitions(cql_weight: float) -> None:
    model, rows = built(cql_weight=cql_weight), discrete_batch()
    values, target = torch.randn(ROWS, 3), torch.randn(ROWS)
    loss = model.critic_loss(rows, values, target)
    for row in range(ROWS):
        recorded = values[row, rows["action"][row]].item()
        penalty = math.log(sum(map(math.exp, values[row].tolist()))) - recorded
        expected = (recorded - target[row].item()) ** 2 / 2 + cql_weight * penalty
        assert loss[row].item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="shapes differ"):
        model.critic_loss(rows, values, target.unsqueeze(1))


@pytest.mark.parametrize("cql_weight", [0.0, 0.7])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("pixels", "apart"), APART_AND_SHARED)
def test_a_loop_written_by_hand_learns_the_same(pixels: bool, apart: bool, mode: str, cql_weight: float) -> None:
    """The target network is renewed at updates 0, 2 and 4, each time after the targets of that update were made."""
    model = built(pixels, mode=mode, beta=0.3, max_weight=1.1, cql_weight=cql_weight, target_update=2)
    online, old = copy.deepcopy(model.network), copy.deepcopy(model.target_network)
    optimiser = torch.optim.Adam(online.parameters(), lr=RATE[pixels])
    batches = discrete_batches(pixels, apart)
    train(model, batches)
    for number, (evaluation, policy, _) in enumerate(batches):
        with torch.no_grad():
            ahead, logits = old(evaluation["next", "observation"])
            goals = [
                evaluation["next", "reward"][row]
                + evaluation["discount"][row] * sum(ahead[row] * logits[row].softmax(0))
                for row in range(ROWS)
            ]
        if number in (0, 2, 4):
            old.load_state_dict(online.state_dict())
        loss = torch.zeros(())
        values, (judged, logits) = online(evaluation["observation"])[0], online(policy["observation"])
        for row in range(ROWS):
            recorded = values[row, evaluation["action"][row]]
            critic = (recorded - goals[row]) ** 2 / 2 + cql_weight * (values[row].exp().sum().log() - recorded)
            action = int(policy["action"][row])
            share = factor(mode, judged[row].tolist(), logits[row].tolist(), action, 0.3, 1.1)
            clone = -share * logits[row].log_softmax(0)[action]
            loss = loss + evaluation["weight"][row] * critic + policy["weight"][row] * clone
        optimiser.zero_grad()
        (loss / ROWS).backward()
        optimiser.step()
    assert_same(model.network, online)
    assert_same(model.target_network, old)


def test_it_acts_by_the_likeliest_action_every_time() -> None:
    model, observation = built(), discrete_batch()["observation"]
    _, logits = model.network(observation)
    for seed in range(5):
        torch.manual_seed(seed)
        assert model.act(observation).tolist() == [row.index(max(row)) for row in logits.tolist()]
    assert_acts_alike_on_images_one_by_one(built(pixels=True))


def test_each_loss_is_of_its_own_roles_data() -> None:
    evaluation, policy = discrete_batch(1), discrete_batch(2)
    moved = moved_by_role(built(), [evaluation, policy, policy], [discrete_batch(3), policy, policy])
    assert moved[0] == {"critic_loss"}
    with pytest.raises(InputError, match="one policy loss for both"):
        built().update(Batch(evaluation, policy, evaluation))


@pytest.mark.parametrize("mode", ["reweight", "resample"])
def test_decoupled_a_plain_clone_and_uniform_values(mode: str, tmp_path: Path) -> None:
    """With `all` and discount 0 the two heads have nothing to do with each other: values see uniform data."""
    states = []
    for options in ({}, {"priority": OperR(), "mode": mode, "prioritise": ["improvement", "constraint"]}):
        model = algorithm("CRR", mode="all", discount=0.0)
        fit(model, data("discrete", **options), tmp_path / str(len(options)))
        states.append(model.network)
    assert same(*(parameters(network.first) for network in states))
    assert not same(*(parameters(network.second) for network in states))


def test_targets_of_several_steps_and_how_often_they_are_renewed() -> None:
    assert_n_steps(built(n_step=2, discount=0.5))
    assert [number for number in range(10) if built(target_update=4).prepare(number)] == [0, 4, 8]
    with pytest.raises(InputError, match="target_update 0 must be at least 1"):
        CRR(target_update=0)
