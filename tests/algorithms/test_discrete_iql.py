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
from tensordict import TensorDict
from test_shared import algorithm, data, fit, parameters

from oper_lightning import InputError, OperR
from oper_lightning.algorithms.discrete_iql import DiscreteIQL
from oper_lightning.spec import Batch


def built(pixels: bool = False, **options: Any) -> DiscreteIQL:
    model = DiscreteIQL(**{"hidden_sizes": (16,), "learning_rate": RATE[pixels], **options})
    ready(model, "target_critics", given=discrete_spec(pixels))
    return model


def torchrls(model: DiscreteIQL, rows: TensorDict) -> Any:
    """Losses of torchrl 0.14's DiscreteIQLLoss, one number per transition, with the same networks."""
    from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
    from torchrl.objectives import DiscreteIQLLoss

    first = copy.deepcopy(model.critics.first)
    loss = DiscreteIQLLoss(
        ProbabilisticTensorDictSequential(
            TensorDictModule(model.policy, in_keys=["observation"], out_keys=["logits"]),
            ProbabilisticTensorDictModule(
                in_keys=["logits"], out_keys=["action"], distribution_class=torch.distributions.Categorical
            ),
        ),
        TensorDictModule(first, in_keys=["observation"], out_keys=["state_action_value"]),
        value_network=TensorDictModule(model.value, in_keys=["observation"], out_keys=["state_value"]),
        action_space="categorical",
        num_qvalue_nets=2,
        loss_function="l2",
        temperature=model.temperature,
        expectile=model.expectile,
        reduction="none",
        scalar_output_mode="exclude",
    )
    loss.make_value_estimator(gamma=0.99)
    with torch.no_grad():
        for kind, critics in (("", model.critics), ("target_", model.target_critics)):
            stacked = getattr(loss, f"{kind}qvalue_network_params").flatten_keys(".")
            for name, value in critics.first.named_parameters():
                both = torch.stack([value, dict(critics.second.named_parameters())[name]])
                stacked[f"module.{name}"].data.copy_(both)
    plain = rows.select("observation", "action", ("next", "observation")).clone()
    plain["next", "reward"] = rows["next", "reward"].unsqueeze(-1)
    plain["next", "done"] = plain["next", "terminated"] = rows["next", "terminated"].unsqueeze(-1)
    return loss(plain)


def test_losses_are_torchrls() -> None:
    model, rows = built(temperature=2.0, expectile=0.8), discrete_batch()
    expected = torchrls(model, rows)
    target = model.target_value(rows)
    torch.testing.assert_close(model.value_loss(rows, target), expected["loss_value"])
    policy_loss, _ = model.policy_loss(rows, target)
    torch.testing.assert_close(policy_loss, expected["loss_actor"].view(ROWS))
    torch.testing.assert_close(model.critic_loss(rows), expected["loss_qvalue"])
    model.expectile = 0.2
    assert not torch.isclose(model.value_loss(rows, target), expected["loss_value"]).all()


def test_the_priority_lies_inside_the_clip() -> None:
    """min(exp(temperature * advantage) * w, max_weight), also where the exponential alone would overflow."""
    model, rows = built(temperature=1.0, max_weight=7.0), discrete_batch()
    rows["weight"] = torch.linspace(0, 3, ROWS)
    value = model.value_of(rows["observation"])
    log_chance = model.policy(rows["observation"]).log_softmax(1)
    for advantage in (0.3, 1.9, 1e6):
        loss, _ = model.policy_loss(rows, value + advantage)
        for row in range(ROWS):
            weight = min(rows["weight"][row].item() * math.exp(min(advantage, 300)), 7)
            expected = -weight * log_chance[row, rows["action"][row]].item()
            assert loss[row].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("pixels", "apart"), APART_AND_SHARED)
def test_a_loop_written_by_hand_learns_the_same(pixels: bool, apart: bool) -> None:
    """Values move first, then policy, then critics, each by what the one before has just learnt; then the targets."""
    model = built(pixels, expectile=0.8, temperature=2.0, max_weight=1.2, tau=0.3)
    policy, value, critics, old = (
        copy.deepcopy(network) for network in (model.policy, model.value, model.critics, model.target_critics)
    )
    policy_adam, value_adam, critic_adam = (
        torch.optim.Adam(network.parameters(), lr=RATE[pixels]) for network in (policy, value, critics)
    )
    batches = discrete_batches(pixels, apart)
    train(model, batches)

    def lower(rows: TensorDict) -> torch.Tensor:
        """Of the target critics' values."""
        with torch.no_grad():
            both = [values[range(ROWS), rows["action"]] for values in old(rows["observation"])]
            return torch.stack(both).min(0).values

    def step(optimiser: torch.optim.Optimizer, terms: list[torch.Tensor]) -> None:
        optimiser.zero_grad()
        (sum(terms) / ROWS).backward()
        optimiser.step()

    for rows, cloned, _ in batches:
        errors = lower(rows) - value(rows["observation"])[:, 0]
        step(value_adam, [w * (0.8 if u > 0 else 0.2) * u**2 for w, u in zip(rows["weight"], errors, strict=True)])

        advantages = (lower(cloned) - value(cloned["observation"])[:, 0]).tolist()
        weights = [min(w.item() * math.exp(2 * a), 1.2) for w, a in zip(cloned["weight"], advantages, strict=True)]
        chances = policy(cloned["observation"]).softmax(1)
        step(policy_adam, [-weights[row] * chances[row, cloned["action"][row]].log() for row in range(ROWS)])

        ahead = value(rows["next", "observation"])[:, 0].detach()
        goals = rows["next", "reward"] + rows["discount"] * ahead
        first, second = critics(rows["observation"])
        step(
            critic_adam,
            [
                rows["weight"][row] * (values[row, rows["action"][row]] - goals[row]) ** 2
                for values in (first, second)
                for row in range(ROWS)
            ],
        )
        for target, parameter in zip(old.parameters(), critics.parameters(), strict=True):
            target.data = 0.7 * target.data + 0.3 * parameter.data
    for network, expected in (
        (model.value, value),
        (model.policy, policy),
        (model.critics, critics),
        (model.target_critics, old),
    ):
        assert_same(network, expected)


def test_it_acts_by_the_likeliest_action() -> None:
    model, rows = built(), discrete_batch()
    for observation, action in zip(rows["observation"], model.act(rows["observation"]), strict=True):
        logits = model.policy(observation).tolist()
        assert logits[action] == max(logits)
    assert_acts_alike_on_images_one_by_one(built(pixels=True))


def test_each_loss_is_of_its_own_roles_data() -> None:
    evaluation, cloned = discrete_batch(1), discrete_batch(2)
    moved = moved_by_role(built(), [evaluation, cloned, cloned], [discrete_batch(3), cloned, cloned])
    assert moved[0] == {"value_loss", "critic_loss"}
    with pytest.raises(InputError, match="one policy loss for both"):
        built().update(Batch(evaluation, cloned, evaluation))


@pytest.mark.parametrize("mode", ["reweight", "resample"])
def test_decoupled_the_values_see_uniform_data(mode: str, tmp_path: Path) -> None:
    states = []
    for options in ({}, {"priority": OperR(), "mode": mode, "prioritise": ["improvement", "constraint"]}):
        model = algorithm("DiscreteIQL")
        fit(model, data("discrete", **options), tmp_path / str(len(options)))
        states.append(parameters(model))
    for name, value in states[0].items():
        if not name.startswith(("observation_", "action_")):
            assert value.equal(states[1][name]) != name.startswith("policy."), name


def test_targets_of_several_steps_and_what_is_refused() -> None:
    assert_n_steps(built(n_step=2, discount=0.5))
    for expectile in (0.0, 1.0, math.nan):
        with pytest.raises(InputError, match=r"expectile .* is not in \(0, 1\)"):
            DiscreteIQL(expectile=expectile)
