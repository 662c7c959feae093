from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Arrays, columns, transitions
from networks import ROWS, as_module, assert_normalises, batch, ready
from test_shared import DATA, algorithm, data, fit, parameters, same

from oper_lightning import InputError, OfflineDataModule, OperR
from oper_lightning.algorithms.onestep import OnestepRL
from oper_lightning.data.sources.source import Origin
from oper_lightning.nn import networks
from oper_lightning.spec import Batch

OPERATORS = ["exp_weight", "reverse_kl", "il_reg", "greedy", "easy_bcq"]
CRITICS = ["sarsa", "qpi", "double_sarsa", "double_qpi"]


def built(**options: Any) -> OnestepRL:
    model = OnestepRL(**{"hidden_sizes": (16, 16), **options})
    ready(model, "target_critics", "behaviour", "critics")
    return model


def rows(seed: int = 0) -> Any:
    table = batch(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    table["next", "action"] = torch.randn(ROWS, 2, generator=generator).tanh()
    table["cut"] = torch.arange(ROWS) % 4 == 1
    return table


def lowest(ensemble: Any, *inputs: torch.Tensor) -> float:
    """The lowest of the members' outputs for one row."""
    networks = [as_module(ensemble.weights, ensemble.biases, member) for member in range(*ensemble.members)]
    return min(network(torch.cat(inputs)).item() for network in networks)


def log_density(policy: Any, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Of one action, from the formula of the normal distribution."""
    mean, spread = policy.body(observation).tanh().split(2)
    log_std = -5 + 2.5 * (spread + 1)
    return (-((action - mean) ** 2) / (2 * (2 * log_std).exp()) - log_std - math.log(2 * math.pi) / 2).sum()


@pytest.mark.parametrize(
    ("operator", "critic", "baseline"),
    [
        *((operator, critic, "value_sample") for operator in OPERATORS for critic in CRITICS),
        ("exp_weight", "sarsa", "td"),
    ],
)
def test_every_combination_trains(operator: str, critic: str, baseline: str, tmp_path: Path) -> None:
    model = algorithm("OnestepRL", operator=operator, critic=critic, baseline=baseline, steps=2)
    fit(model, data(), tmp_path, 20)
    action = model.act(torch.randn(6, 3))
    assert action.shape == (6, 2)
    assert action.isfinite().all()
    assert model.act(torch.zeros(3)).equal(model.act(torch.zeros(1, 3))[0])
    assert same(parameters(model.policy), parameters(model.behaviour)) == (operator == "easy_bcq")


def test_phases_share_out_the_run(tmp_path: Path) -> None:
    """Each phase moves its own networks and leaves the others alone."""
    model = algorithm("OnestepRL", phases=(2, 3, 1), steps=2)
    trail: list[dict[str, torch.Tensor]] = []
    update = model.update
    model.update = lambda batch: (trail.append(parameters(model)), update(batch))[1]  # type: ignore[method-assign]
    trainer = fit(model, data(updates_per_epoch=50), tmp_path, 100)
    trail.append(parameters(model))
    assert model.lengths() == [20, 30, 10, 30, 10]
    assert trainer.global_step == 100
    moving = {(0, 20): "policy.", (20, 50): "critics.", (50, 60): "policy.", (60, 90): "critics.", (90, 100): "policy."}
    for (start, stop), network in moving.items():
        first, last = trail[start], trail[stop - 1]  # taken before the updates, so without the switch between phases
        for name in first:
            if name.startswith(("observation_", "action_")):
                continue
            moved = not first[name].equal(last[name])
            expected = name.startswith(network) or (network == "critics." and name.startswith("target_critics."))
            assert moved == expected, (start, name)
    behaviour = {name.removeprefix("policy."): v for name, v in trail[20].items() if name.startswith("policy.")}
    assert all(behaviour[name].equal(value) for name, value in model.behaviour.state_dict().items())
    # Critic updates in the first phase of 30: the target moves with every second.
    targets = [point["target_critics.weights.0"] for point in trail[20:50]]
    assert [not a.equal(b) for a, b in pairwise(targets)] == [False, True] * 14 + [False]


def test_targets_move_after_so_many_critic_updates(tmp_path: Path) -> None:
    model = algorithm("OnestepRL", baseline="td", target_freq=3, phases=(1, 2, 1))
    trail: list[dict[str, torch.Tensor]] = []
    update = model.update
    model.update = lambda batch: (trail.append(parameters(model)), update(batch))[1]  # type: ignore[method-assign]
    fit(model, data(), tmp_path, 40)
    trail.append(parameters(model))
    for name in ("target_critics.weights.0", "target_value.weights.0"):
        moves = [number for number, (a, b) in enumerate(pairwise(trail)) if not a[name].equal(b[name])]
        assert moves == [12, 15, 18, 21, 24, 27]


def test_targets_begin_as_what_they_follow() -> None:
    model = OnestepRL(baseline="td", hidden_sizes=(16, 16))
    ready(model)
    for target, online in ((model.target_critics, model.critics), (model.target_value, model.value)):
        assert same(parameters(target), parameters(online))


@pytest.mark.parametrize("turn", [True, False])
def test_targets_move_a_share_of_the_way_when_it_is_their_turn(turn: bool) -> None:
    model, table = built(baseline="td", tau=0.3, learning_rate=1e-2), rows()
    for parameter in model.target_value.parameters():
        parameter.data += 0.1
    before = parameters(model)
    model.branch = ("critic", turn)
    model.update(Batch(table, table, table))
    after = parameters(model)
    targets = [name for name in after if name.startswith("target_")]
    assert {name.split(".")[0] for name in targets} == {"target_critics", "target_value"}
    for name in targets:
        if turn:
            torch.testing.assert_close(after[name], 0.7 * before[name] + 0.3 * after[name.removeprefix("target_")])
        assert after[name].equal(before[name]) != turn


def test_a_policy_phase_begins_with_a_fresh_adam(tmp_path: Path) -> None:
    model = algorithm("OnestepRL", phases=(2, 1, 1))
    steps: list[float] = []
    prepare = model.prepare

    def spied(number: int) -> Any:
        branch = prepare(number)
        state = model.policy_optimiser.state
        steps.append(next(iter(state.values()))["step"].item() if state else 0)
        return branch

    model.prepare = spied  # type: ignore[method-assign]
    fit(model, data(), tmp_path, 40)
    assert steps[:20] == list(range(20))
    assert steps[30:] == list(range(10))


def test_sarsa_takes_the_recorded_action_or_where_there_is_none_the_behaviours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, table = built(), rows()
    drawn: list[torch.Tensor] = []
    sample = networks.sample
    monkeypatch.setattr("oper_lightning.algorithms.onestep.sample", lambda *a: drawn.append(sample(*a)) or drawn[-1])
    found, _ = model.critic_loss(table)
    online = as_module(model.critics.weights, model.critics.biases, 0)
    target = as_module(model.target_critics.weights, model.target_critics.biases, 0)
    for row in range(ROWS):
        following = table["next", "observation"][row]
        action = drawn[0][row, 0] if table["cut"][row] else table["next", "action"][row]
        wanted = table["next", "reward"][row] + table["discount"][row] * target(torch.cat([following, action]))
        value = online(torch.cat([table["observation"][row], table["action"][row]]))
        assert found[row].item() == pytest.approx(((value - wanted) ** 2).item(), rel=1e-4)
    # What stands in follows the behaviour, not the policy.
    mean = model.behaviour(table["next", "observation"]).mean
    assert (drawn[0].squeeze(1) - mean).abs().max() < 5 * model.behaviour(table["next", "observation"]).stddev.max()


def test_columns_know_where_the_next_action_is_missing() -> None:
    table = transitions(columns([3, 4]))  # the first terminates, the second is cut
    found = built(discount=0.5).columns(table)
    assert found["cut"].tolist() == [False] * 6 + [True]
    assert found["next", "action"][:2].equal(table["action"][1:3])
    assert found["discount"].tolist() == [0.5, 0.5, 0, 0.5, 0.5, 0.5, 0.5]
    assert "next" not in built(critic="qpi").columns(table)


def test_twin_critics_take_the_lower_target() -> None:
    model, table = built(critic="double_sarsa"), rows()
    table["cut"] = torch.zeros(ROWS, dtype=torch.bool)
    pair = torch.cat([table["next", "observation"], table["next", "action"]], -1)
    lower = torch.stack(
        [as_module(model.target_critics.weights, model.target_critics.biases, k)(pair).squeeze(1) for k in (0, 1)]
    ).amin(0)
    wanted = table["next", "reward"] + table["discount"] * lower
    values = model.critics(torch.cat([table["observation"], table["action"]], -1))
    torch.testing.assert_close(model.critic_loss(table), (((values - wanted) ** 2).sum(0), values))


def test_exponential_weights_are_clipped_and_pass_no_gradient_to_the_critic() -> None:
    for temperature, largest in ((1.0, None), (1e4, 100.0)):
        model, table = built(temperature=temperature, baseline="td"), rows()
        model.value.biases[-1].data -= 1  # so that some advantages are positive
        loss, advantage = model.exponential_loss(table)
        likelihood = model.policy(table["observation"]).log_prob(table["action"].clamp(-0.9999, 0.9999)).sum(-1)
        weight = (-loss / likelihood).detach()
        value = model.critics.first(torch.cat([table["observation"], table["action"]], -1))
        difference = (value - model.value.first(table["observation"])).detach()
        torch.testing.assert_close(advantage, difference)
        expected = (temperature * difference).exp().clamp(max=100)
        torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-5)
        assert largest is None or weight.max().item() == pytest.approx(largest)
        loss.mean().backward()
        assert all(parameter.grad is None for parameter in model.critics.parameters())


def test_the_baseline_is_the_mean_value_of_the_behaviours_actions() -> None:
    model, table = built(samples=4000), rows()
    torch.manual_seed(0)
    loss, _ = model.exponential_loss(table)
    likelihood = model.policy(table["observation"]).log_prob(table["action"].clamp(-0.9999, 0.9999)).sum(-1)
    found = (-loss / likelihood).log()
    normal = model.behaviour(table["observation"])
    value = model.critics.first(torch.cat([table["observation"], table["action"]], -1))
    drawn = normal.sample((20000,))
    seen = table["observation"].expand(20000, -1, -1)
    baseline = model.critics.first(torch.cat([seen, drawn], -1).flatten(0, 1)).view(20000, ROWS).mean(0)
    torch.testing.assert_close(found, value - baseline, atol=0.02, rtol=0)


def test_the_divergence_is_the_closed_form() -> None:
    model, table = built(samples=20000), rows()
    torch.manual_seed(0)
    found = model.divergence(table)
    expected = torch.distributions.kl_divergence(
        model.policy(table["observation"]), model.behaviour(table["observation"])
    ).sum(-1)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0.05)
    last = model.policy.body[-1].bias
    slopes = [torch.autograd.grad(loss.mean(), last)[0] for loss in (found, expected)]
    torch.testing.assert_close(*slopes, atol=0.01, rtol=0.05)
    assert slopes[1].abs().min() > 0.05


@pytest.mark.parametrize("operator", ["reverse_kl", "il_reg", "greedy"])
def test_operators_that_search(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minus the value of a sampled action, and the operator's own term on the constraint's data, each weighted."""
    model = built(operator=operator, alpha=0.7, samples=3)
    improvement, constraint = rows(), rows()
    constraint["action"][3] = 1.0  # on the border, where it is clipped
    constraint["observation"] = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(9))
    improvement["weight"], constraint["weight"] = torch.linspace(0, 2, ROWS), torch.linspace(3, 0, ROWS)
    drawn: list[torch.Tensor] = []
    sample = networks.sample
    monkeypatch.setattr("oper_lightning.algorithms.onestep.sample", lambda *a: drawn.append(sample(*a)) or drawn[-1])
    found = model.policy_loss(improvement, constraint)
    pair = torch.cat([improvement["observation"], drawn[0].squeeze(1)], -1)
    expected = -(improvement["weight"] * model.critics.first(pair)).mean()
    policy, behaviour = model.policy(constraint["observation"]), model.behaviour(constraint["observation"])
    if operator == "reverse_kl":
        terms = [(policy.log_prob(drawn[1][:, k]) - behaviour.log_prob(drawn[1][:, k])).sum(-1) for k in range(3)]
        expected = expected + 0.7 * (constraint["weight"] * sum(terms) / 3).mean()
    if operator == "il_reg":
        cloned = constraint["action"].clamp(-0.9999, 0.9999)
        expected = expected - 0.7 * (constraint["weight"] * policy.log_prob(cloned).sum(-1)).mean()
    torch.testing.assert_close(found["policy_loss"], expected)
    torch.testing.assert_close(found["value"], model.critics.first(pair).mean())


def test_qpi_evaluates_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, table = built(critic="qpi"), rows()
    asked: list[torch.Tensor] = []
    sample = networks.sample
    monkeypatch.setattr(
        "oper_lightning.algorithms.onestep.sample", lambda normal, n: asked.append(normal.mean) or sample(normal, n)
    )
    model.critic_loss(table)
    assert len(asked) == 1
    assert asked[0].equal(model.policy(table["next", "observation"]).mean)


@pytest.mark.parametrize("critic", ["qpi", "double_qpi"])
def test_the_policy_is_evaluated_at_actions_within_the_box(critic: str) -> None:
    """As the authors do: values of actions that no environment takes are learnt from nothing."""
    model, table = built(critic=critic), rows()
    model.policy.body[-1].bias.data[:2] = 20  # means at the border, so that about half of the samples lie beyond
    model.policy.body[-1].bias.data[2:] = 20  # and deviations of one
    asked: list[torch.Tensor] = []
    values = model.target_critics
    values.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0][..., -2:]))
    model.critic_loss(table)
    assert asked[0].abs().max() <= 1
    assert (asked[0] == 1).double().mean() > 0.2


def test_the_baselines_value_bootstraps_from_its_target() -> None:
    model, table = built(baseline="td"), rows()
    for parameter in model.target_value.parameters():
        parameter.data += 0.1
    following = as_module(model.target_value.weights, model.target_value.biases, 0)(table["next", "observation"])
    target = table["next", "reward"] + table["discount"] * following.squeeze(1)
    value = as_module(model.value.weights, model.value.biases, 0)(table["observation"]).squeeze(1)
    torch.testing.assert_close(model.value_loss(table), (value - target) ** 2)


def test_behaviour_critic_and_baseline_are_weighted_by_the_evaluations_priority() -> None:
    model, table, other = built(baseline="td"), rows(), rows(3)
    for parameter in model.target_value.parameters():
        parameter.data += 0.1
    table["weight"], table["cut"] = torch.linspace(0, 3, ROWS), torch.zeros(ROWS, dtype=torch.bool)
    expected = {"behaviour_loss": 0.0, "critic_loss": 0.0, "value_loss": 0.0, "value": 0.0}
    for row in table:
        seen, action, following, share = row["observation"], row["action"], row["next"], row["weight"] / ROWS
        expected["behaviour_loss"] -= share * log_density(model.policy, seen, action)
        later = row["discount"] * lowest(model.target_critics, following["observation"], following["action"])
        expected["critic_loss"] += share * (lowest(model.critics, seen, action) - following["reward"] - later) ** 2
        later = row["discount"] * lowest(model.target_value, following["observation"])
        expected["value"] += torch.tensor(lowest(model.critics, seen, action) / ROWS)  # unweighted: what is, no loss
        expected["value_loss"] += share * (lowest(model.value, seen) - following["reward"] - later) ** 2
    found = {}
    for phase in ("critic", "behaviour"):
        model.branch = (phase, False)
        found.update(model.update(Batch(table, other, other)))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("critic", ["sarsa", "double_sarsa"])
def test_exp_weight_clones_by_advantage_and_priority(critic: str) -> None:
    model, table = built(critic=critic, baseline="td", temperature=2.0), rows()
    table["weight"], table["action"][3] = torch.linspace(0, 3, ROWS), 1.0  # on the border, where it is clipped
    expected, size = torch.zeros(()), 0.0
    for row in table:
        seen, action = row["observation"], row["action"]
        better = lowest(model.critics, seen, action) - lowest(model.value, seen)
        size += abs(better) / ROWS
        likelihood = log_density(model.policy, seen, action.clamp(-0.9999, 0.9999))
        expected = expected - row["weight"] * min(math.exp(2 * better), 100) * likelihood / ROWS
    gradients = torch.autograd.grad(expected, list(model.policy.parameters()))
    model.branch = ("policy", False)
    found = model.update(Batch(rows(3), table, table))
    torch.testing.assert_close(found, {"policy_loss": expected, "absolute_advantage": torch.tensor(size)})
    for parameter, gradient in zip(model.policy.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operator", ["reverse_kl", "il_reg", "greedy"])
def test_each_term_of_the_policys_loss_has_its_own_data_and_priority(operator: str) -> None:
    model, improvement, constraint = built(operator=operator, alpha=0.7, samples=4000), rows(1), rows(2)
    improvement["weight"], constraint["weight"] = torch.linspace(0, 2, ROWS), torch.linspace(3, 0, ROWS)
    model.policy.body[-1].bias.data[2:] = -20  # the least spread there is: values are those of the mean
    expected = 0.0
    for better, cloned in zip(improvement, constraint, strict=True):
        action = model.policy.body(better["observation"])[:2].tanh()
        expected -= better["weight"].item() * lowest(model.critics, better["observation"], action)
        term = torch.zeros(())
        if operator == "il_reg":
            term = -log_density(model.policy, cloned["observation"], cloned["action"])
        if operator == "reverse_kl":
            policy, behaviour = (network(cloned["observation"]) for network in (model.policy, model.behaviour))
            term = torch.distributions.kl_divergence(policy, behaviour).sum()
        expected += 0.7 * cloned["weight"].item() * term.item()
    model.branch = ("policy", False)
    found = model.update(Batch(rows(3), improvement, constraint))["policy_loss"]
    assert found.item() == pytest.approx(expected / ROWS, rel=0.01, abs=0.005)


def test_next_actions_come_in_the_networks_units(tmp_path: Path) -> None:
    """Whatever the units of actions, the critic is the same."""
    states = []
    for scale, shift in ((1, 0), (4, 2)):
        arrays = {**DATA["continuous"], "actions": DATA["continuous"]["actions"] * scale + shift}
        origin = Origin(action_low=np.full(2, shift - scale), action_high=np.full(2, shift + scale))
        module = OfflineDataModule(Arrays(arrays, origin), batch_size=32, updates_per_epoch=50, rollouts=None)
        model = algorithm("OnestepRL", learning_rate=1e-2, phases=(1, 8, 1))
        fit(model, module, tmp_path / str(scale), 100)
        states.append(parameters(model))
    for name, value in states[0].items():
        if name.startswith("critics."):
            torch.testing.assert_close(states[1][name], value, rtol=1e-2, atol=1e-3)


def test_easy_bcq_acts_by_the_best_of_the_behaviours_actions() -> None:
    model = built(operator="easy_bcq", samples=6)
    observation = torch.randn(5, 3)
    found = model.act(observation)
    normal = model.policy(observation)
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    for row in range(5):
        actions = (normal.mean[row] + normal.stddev[row] * noise).clamp(-1, 1)
        values = [model.critics.first(torch.cat([observation[row], action])[None]).item() for action in actions]
        torch.testing.assert_close(found[row], actions[values.index(max(values))])


@pytest.mark.parametrize("operator", ["exp_weight", "easy_bcq"])
def test_acting_normalises_what_it_sees(operator: str) -> None:
    assert_normalises(built(operator=operator), built(operator=operator, normalise_observations=True))


def test_a_run_that_goes_on_keeps_its_phases(tmp_path: Path) -> None:
    fit(algorithm("OnestepRL"), data(), tmp_path, 40)
    with pytest.raises(
        InputError, match=r"parts of 16, 16, 8 updates, this command has parts of 32, 32, 16: a run that goes on"
    ):
        fit(algorithm("OnestepRL"), data(), tmp_path, 80, ckpt_path=tmp_path / "last.ckpt")


def test_decoupled_the_behaviour_sees_uniform_data(tmp_path: Path) -> None:
    """As published: behaviour and critic are evaluation, the policy is not."""
    states = []
    for name, options in (
        ("plain", {}),
        ("decoupled", {"priority": OperR(), "prioritise": ["improvement", "constraint"]}),
    ):
        model = algorithm("OnestepRL", phases=(1, 1, 2))
        fit(model, data(**options), tmp_path / name, 40)
        states.append(parameters(model))
    for network in ("behaviour.", "critics."):
        part = [{key: value for key, value in state.items() if key.startswith(network)} for state in states]
        assert same(*part)
    assert not states[0]["policy.body.0.weight"].equal(states[1]["policy.body.0.weight"])
    with pytest.raises(InputError, match="splits improvement from constraint"):
        fit(algorithm("OnestepRL"), data(priority=OperR(), prioritise=["improvement"]), tmp_path / "split")
    assert math.isfinite(states[0]["policy.body.0.weight"].sum().item())
