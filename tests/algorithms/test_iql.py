from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import columns, transitions
from networks import ROWS, Pair, as_module, assert_normalises, batch, moved_by_role, ready, spec
from tensordict import TensorDict
from test_shared import algorithm, data, fit, parameters, same
from torch import nn

from oper_lightning import InputError, OperR
from oper_lightning.algorithms.iql import IQL
from oper_lightning.data.bonuses.bonus import Bonus
from oper_lightning.spec import Batch, bounds_of_values


def built(**options: Any) -> IQL:
    model = IQL(**{"hidden_sizes": (16, 16), **options})
    ready(model, "target_critics")
    return model


def torchrls(model: IQL) -> Any:
    """torchrl 0.14's IQLLoss, one number per transition, with the same networks."""
    from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
    from torchrl.objectives import IQLLoss

    class Spread(nn.Module):
        def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            normal = model.policy(observation)
            return normal.mean, normal.stddev

    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(Spread(), in_keys=["observation"], out_keys=["loc", "scale"]),
        ProbabilisticTensorDictModule(
            in_keys=["loc", "scale"], out_keys=["action"], distribution_class=IndependentNormal
        ),
    )
    value = as_module(model.value.weights, model.value.biases, 0)
    first = as_module(model.critics.weights, model.critics.biases, 0)
    loss = IQLLoss(
        actor,
        TensorDictModule(Pair(first), in_keys=["observation", "action"], out_keys=["state_action_value"]),
        value_network=TensorDictModule(value, in_keys=["observation"], out_keys=["state_value"]),
        num_qvalue_nets=2,
        loss_function="l2",
        temperature=model.temperature,
        expectile=model.expectile,
        reduction="none",
    )
    loss.make_value_estimator(gamma=0.99)
    with torch.no_grad():
        for kind, ensemble in (("", model.critics), ("target_", model.target_critics)):
            stacked = getattr(loss, f"{kind}qvalue_network_params").flatten_keys(".")
            for layer, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
                stacked[f"module.network.{2 * layer}.weight"].data.copy_(weight.transpose(1, 2))
                stacked[f"module.network.{2 * layer}.bias"].data.copy_(bias.squeeze(1))
    return loss


class IndependentNormal(torch.distributions.Independent):
    def __init__(self, loc: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__(torch.distributions.Normal(loc, scale), 1)


def ted(rows: TensorDict) -> TensorDict:
    plain = rows.select("observation", "action", ("next", "observation")).clone()
    plain["next", "reward"] = rows["next", "reward"].unsqueeze(-1)
    plain["next", "done"] = plain["next", "terminated"] = rows["next", "terminated"].unsqueeze(-1)
    return plain


def test_losses_are_torchrls() -> None:
    model, rows = built(temperature=2.0, expectile=0.8), batch()
    expected = torchrls(model)(ted(rows))
    target = model.target_value(rows)
    torch.testing.assert_close(model.value_loss(rows, target), expected["loss_value"])
    policy_loss, _ = model.policy_loss(rows, target)
    torch.testing.assert_close(policy_loss, expected["loss_actor"].view(ROWS))
    torch.testing.assert_close(model.critic_loss(rows), expected["loss_qvalue"])
    # The expectile matters, and in this direction.
    model.expectile = 0.2
    assert not torch.isclose(model.value_loss(rows, target), expected["loss_value"]).all()


def test_the_priority_lies_inside_the_clip() -> None:
    """e = min(exp(beta A) w, 100), also where the exponential alone would overflow."""
    model, rows = built(temperature=1.0), batch()
    rows["weight"] = torch.linspace(0, 3, ROWS)
    value = model.value.first(rows["observation"])
    for advantage in (0.3, 4.5, 1e6):
        loss, _ = model.policy_loss(rows, value + advantage)
        likelihood = model.policy(rows["observation"]).log_prob(rows["action"]).sum(-1)
        exponential = torch.tensor(advantage).double().clamp(max=300).exp()
        expected = -(rows["weight"].double() * exponential).clamp(max=100) * likelihood
        torch.testing.assert_close(loss, expected.float(), rtol=1e-4, atol=1e-5)


def test_a_deterministic_policy_clones_by_advantage_and_priority() -> None:
    model, rows = built(policy="deterministic", temperature=2.0), batch()
    rows["weight"] = torch.linspace(0, 3, ROWS)
    target = torch.linspace(-3, 3, ROWS)
    loss, advantage = model.policy_loss(rows, target)
    value = as_module(model.value.weights, model.value.biases, 0)
    for row in range(ROWS):
        seen = rows["observation"][row]
        better = target[row].item() - value(seen).item()
        weight = min(math.exp(2 * better) * rows["weight"][row].item(), 100)
        prediction, action = torch.tanh(model.policy.body(seen)).tolist(), rows["action"][row].tolist()
        error = sum((first - second) ** 2 for first, second in zip(prediction, action, strict=True))
        assert advantage[row].item() == pytest.approx(better, abs=1e-5)
        assert loss[row].item() == pytest.approx(weight * error, rel=1e-4)
        assert model.act(seen).tolist() == pytest.approx(prediction)
    assert loss.max() > 0.1


def test_the_policys_spread_is_one_number_for_each_action_within_bounds() -> None:
    model, rows = built(), batch()
    assert model.policy.log_std.tolist() == [0, 0]
    for given, first, second in (([-9.0, 9.0], -5, 2), ([0.5, -1.0], 0.5, -1)):
        model.policy.log_std.data = torch.tensor(given)
        loss, _ = model.policy_loss(rows, model.value.first(rows["observation"]))  # an advantage of 0
        distance = rows["action"] - torch.tanh(model.policy.body(rows["observation"]))
        log_std = torch.tensor([first, second])
        expected = (distance / log_std.exp()).square() / 2 + log_std + math.log(2 * math.pi) / 2
        torch.testing.assert_close(loss, expected.sum(1))


@pytest.mark.parametrize("policy", ["gaussian", "deterministic"])
def test_acting_normalises_what_it_sees(policy: str) -> None:
    assert_normalises(built(policy=policy), built(policy=policy, normalise_observations=True))


def test_each_update_moves_the_target_critics_a_share_of_the_way() -> None:
    model, rows = built(tau=0.3, learning_rate=1e-2), batch()
    before = parameters(model.target_critics)
    model.update(Batch(rows, rows, rows))
    after = parameters(model.target_critics)
    for name, online in parameters(model.critics).items():
        torch.testing.assert_close(after[name], 0.7 * before[name] + 0.3 * online)
        assert not after[name].isclose(before[name]).all()


@pytest.mark.parametrize(
    ("n", "rewards", "discounts", "last"),
    [
        (1, [1, 2, 4, 8, 16], [0.5, 0.5, 0, 0.5, 0.5], [0, 1, 2, 3, 4]),
        (2, [2, 4, 4, 16, 16], [0.25, 0, 0, 0.25, 0.5], [1, 2, 2, 4, 4]),
        (3, [3, 4, 4, 16, 16], [0, 0, 0, 0.25, 0.5], [2, 2, 2, 4, 4]),
    ],
)
def test_targets_bootstrap_past_a_cut_and_not_past_an_end(
    n: int, rewards: list[float], discounts: list[float], last: list[int]
) -> None:
    table = transitions(columns([3, 2]))  # the first terminates, the second is cut
    table["next", "reward"] = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    table["next", "row"] = torch.arange(5)
    table.update(built(n_step=n, discount=0.5).columns(table))
    assert table["discount"].tolist() == discounts
    assert table["next", "reward"].tolist() == rewards
    assert table["next", "row"].tolist() == last


def test_values_move_first_then_policy_then_critics(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = built(), batch()
    order: list[str] = []
    names = {id(model.value_optimiser): "value", id(model.policy_optimiser): "policy"}
    minimise = model.minimise
    monkeypatch.setattr(
        model, "minimise", lambda loss, of: (order.append(names.get(id(of), "critics")), minimise(loss, of))
    )
    seen: dict[str, torch.Tensor] = {}
    for name in ("policy_loss", "critic_loss"):
        method = getattr(model, name)

        def spied(*arguments: Any, name: str = name, method: Any = method) -> Any:
            seen[name] = model.value.weights[0].clone()
            return method(*arguments)

        monkeypatch.setattr(model, name, spied)
    before = model.value.weights[0].clone()
    model.update(Batch(rows, rows, rows))
    assert order == ["value", "policy", "critics"]
    assert not seen["policy_loss"].equal(before)  # both look at the values after their step
    assert seen["critic_loss"].equal(model.value.weights[0])


@pytest.mark.parametrize(
    ("schedule", "factor"),
    [("cosine", lambda k: math.cos(math.pi * k / 80) ** 2), ("linear", lambda k: (40 - k) / 40), ("none", lambda k: 1)],
    ids=["cosine", "linear", "none"],
)
def test_the_policys_learning_rate_falls_to_nothing(schedule: str, factor: Any, tmp_path: Path) -> None:
    model = algorithm("IQL", learning_rate=1e-3, schedule=schedule)
    rates: list[list[float]] = []
    update = model.update

    def spied(batch: Batch) -> Any:
        rates.append([optimiser.param_groups[0]["lr"] for optimiser in model.trainer.optimizers])
        return update(batch)

    model.update = spied  # type: ignore[method-assign]
    fit(model, data(), tmp_path, 40)
    policy, value, critics = zip(*rates, strict=True)
    assert {*value, *critics} == {1e-3}
    assert policy == pytest.approx([1e-3 * factor(k) for k in range(40)])
    longer = algorithm("IQL", learning_rate=1e-3, schedule=schedule)
    if schedule == "none":  # nothing goes by the length of the run
        assert fit(longer, data(), tmp_path, 80, ckpt_path=tmp_path / "last.ckpt").global_step == 80
        return
    with pytest.raises(InputError, match="parts of 40 updates, this command has parts of 80"):
        fit(longer, data(), tmp_path, 80, ckpt_path=tmp_path / "last.ckpt")


def test_each_loss_is_of_its_own_roles_data() -> None:
    evaluation, cloned = batch(1), batch(2)
    model = built()
    moved = moved_by_role(model, [evaluation, cloned, cloned], [batch(3), cloned, cloned])
    assert moved[0] == {"value_loss", "critic_loss"}
    loss, _ = model.policy_loss(cloned, model.target_value(cloned))
    model.tau = 0.0  # from here on nothing moves
    results = model.update(Batch(evaluation, cloned, cloned))
    torch.testing.assert_close(results["policy_loss"], loss.mean(), rtol=1e-3, atol=1e-4)
    heavy = evaluation.clone()
    heavy["weight"] = torch.linspace(0, 3, ROWS)
    weighed = model.update(Batch(heavy, cloned, cloned))
    rows = {
        "value_loss": model.value_loss(evaluation, model.target_value(evaluation)).tolist(),
        "critic_loss": model.critic_loss(evaluation).tolist(),
    }
    for name, losses in rows.items():
        expected = sum(3 * row / (ROWS - 1) * losses[row] for row in range(ROWS)) / ROWS
        assert weighed[name].item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(weighed["policy_loss"], results["policy_loss"])


def test_networks_begin_orthogonal() -> None:
    model = built()
    for network in (model.policy.body, model.value, model.critics):
        weights = [p for p in network.parameters() if p.shape[-1] > 1 and p.dim() > 1 and p.shape[-2] > 1]
        assert weights
        for weight in weights:
            for matrix in weight if weight.dim() == 3 else [weight]:
                small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
                torch.testing.assert_close(small @ small.T, 2 * torch.eye(len(small)), rtol=1e-4, atol=1e-5)
        assert not any(p.any() for name, p in network.named_parameters() if "bias" in name)
    for network in (model.value, model.critics):
        last = network.weights[-1].square().sum((1, 2))
        torch.testing.assert_close(last, torch.full_like(last, 2))
    fresh = IQL(hidden_sizes=(16, 16))
    ready(fresh)
    assert same(parameters(fresh.critics), parameters(fresh.target_critics))


def test_dropout_is_for_training_only(tmp_path: Path) -> None:
    """Units are left out of the loss at the given rate, and of acting never, whatever mode the module is in."""
    model, observation = built(dropout=0.25, hidden_sizes=(4000,)), torch.randn(ROWS, 3)
    hidden = model.policy.body[:2](observation)
    last = model.policy.body[2]
    last.weight.data[:], last.bias.data[:] = 1e-4, 0.0
    kept = torch.atanh(model.policy(observation, 0.25).mean)[:, 0] / 1e-4
    assert (kept / hidden.sum(1)).mean().item() == pytest.approx(1, abs=0.02)
    assert not kept.equal(torch.atanh(model.policy(observation, 0.25).mean)[:, 0] / 1e-4)
    losses = [model.policy_loss(batch(), torch.zeros(ROWS))[0].sum().item() for _ in range(2)]
    assert losses[0] != losses[1]
    fit(algorithm("IQL", dropout=0.5), data(), tmp_path)
    loaded = IQL.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    for training in (True, False):
        loaded.train(training)
        assert loaded.act(observation).equal(loaded.act(observation))


def test_dropout_is_in_the_policys_loss_alone() -> None:
    plain, dropping, rows = built(), built(dropout=0.5), batch()
    assert same(parameters(plain), parameters(dropping))
    observation, target = rows["observation"], plain.target_value(rows)
    assert dropping.target_value(rows).equal(target)
    assert dropping.value_loss(rows, target).equal(plain.value_loss(rows, target))
    assert dropping.critic_loss(rows).equal(plain.critic_loss(rows))
    (loss, advantage), (dropped, same_advantage) = (model.policy_loss(rows, target) for model in (plain, dropping))
    assert same_advantage.equal(advantage)
    assert not dropped.isclose(loss).any()
    assert dropping.act(observation).equal(torch.tanh(plain.policy.body(observation)))


@pytest.mark.parametrize("mode", ["reweight", "resample"])
def test_decoupled_the_values_see_uniform_data(mode: str, tmp_path: Path) -> None:
    states = []
    for options in ({}, {"priority": OperR(), "mode": mode, "prioritise": ["improvement", "constraint"]}):
        model = algorithm("IQL")
        fit(model, data(**options), tmp_path / str(len(options)))
        states.append(parameters(model))
    for name, value in states[0].items():
        if not name.startswith(("observation_", "action_")):
            assert value.equal(states[1][name]) != name.startswith("policy."), name


def test_targets_bootstrap_within_bounds() -> None:
    """Values learn from bounded critics, critics bootstrap from bounded values; the advantage has no bounds."""
    bounds = (-3.0, -0.6)
    free, model, rows = built(), built(value_bounds=bounds), batch()
    for part in (free, model):
        part.value.weights[-1].data *= 10
        part.target_critics.weights[-1].data *= 10
    target = model.target_value(rows)
    assert target.equal(free.target_value(rows))
    following = model.value.first(rows["next", "observation"])
    for values in (target, following):
        assert values.min() < bounds[0]
        assert values.max() > bounds[1]
    bootstrapped = following.clamp(*bounds)
    values = model.critics(torch.cat([rows["observation"], rows["action"]], -1))
    expected = (values - rows["next", "reward"] - rows["discount"] * bootstrapped).square().sum(0)
    torch.testing.assert_close(model.critic_loss(rows), expected)
    assert model.policy_loss(rows, target)[1].equal(target - model.value.first(rows["observation"]))
    results = model.update(Batch(rows, rows, rows))
    error = target.clamp(*bounds) - free.value.first(rows["observation"])
    weight = torch.where(error > 0, 0.7, 0.3)
    torch.testing.assert_close(results["value_loss"], (weight * error**2).mean())
    torch.testing.assert_close(results["value"], target.mean())


def test_bounds_may_come_from_the_recorded_rewards(tmp_path: Path) -> None:
    """As critics see them, scaled and shifted; a checkpoint has them without the data."""
    module, model = data(reward_scale=2.0, reward_shift=-1.0), algorithm("IQL", value_bounds="data", discount=0.9)
    fit(model, module, tmp_path, 20)
    rewards = 2 * module.transitions["next", "reward"] - 1
    low, high = rewards.min().item(), rewards.max().item()
    assert (model.lowest, model.highest) == pytest.approx((10 * low, 10 * high))
    loaded = IQL.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert (loaded.lowest, loaded.highest) == (model.lowest, model.highest)


def test_an_episode_may_end_at_once_or_never() -> None:
    for rewards, expected in (((-1.0, 0.0), (-100, 0)), ((0.5, 2.0), (0.5, 200)), ((-3.0, -1.0), (-300, -1))):
        known = dataclasses.replace(spec(), reward_range=rewards)
        assert bounds_of_values("data", known, 0.99) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("bounds", "discount", "words"),
    [
        ("data", 0.99, "goes by recorded rewards, and there are none"),
        ((1.0, 1.0), 0.99, "the lowest value must be below the highest"),
        ((math.nan, 1.0), 0.99, "the lowest value must be below the highest"),
    ],
)
def test_bounds_that_cannot_be(bounds: Any, discount: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        built(value_bounds=bounds, discount=discount)
    known = dataclasses.replace(spec(), reward_range=(0.0, 1.0))
    with pytest.raises(InputError, match="no meaning at a discount of 1"):
        bounds_of_values("data", known, 1.0)


def test_bounds_are_refused_beside_a_bonus(tmp_path: Path) -> None:
    class Novel(Bonus):
        def build(self, *_: Any) -> None:
            return

        def __call__(self, block: TensorDict) -> torch.Tensor:
            return torch.ones(block.shape)

    fit(algorithm("IQL"), data(bonus=Novel()), tmp_path / "free", 20)
    with pytest.raises(InputError, match="would cut off what"):
        fit(algorithm("IQL", value_bounds=(0, 1)), data(bonus=Novel()), tmp_path / "bounded", 20)
