from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from networks import ROWS, as_module, batch, moved_by_role, ready
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from oper_lightning.algorithms.cql import CQL
from oper_lightning.nn import ranks
from oper_lightning.spec import Batch


def built(**options: Any) -> CQL:
    model = CQL(**{"policy_hidden_sizes": (16, 16), "critic_hidden_sizes": (16, 16), **options})
    ready(model, "target_critics", "critics", "policy")
    return model


class Recorded:
    """Keeps what a policy samples, and the uniform actions."""

    def __init__(self, model: CQL, monkeypatch: pytest.MonkeyPatch) -> None:
        self.samples: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.uniform: list[torch.Tensor] = []
        sample, rand_like = model.policy.sample, ranks.rand_like
        self.seen: list[torch.Tensor] = []

        def spied(observation: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
            self.seen.append(observation)
            self.samples.append(sample(observation, count))
            return self.samples[-1]

        monkeypatch.setattr(model.policy, "sample", spied)
        monkeypatch.setattr(ranks, "rand_like", lambda v: self.uniform.append(rand_like(v)) or self.uniform[-1])


@pytest.mark.parametrize("importance", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_penalty_is_its_definition_in_a_loop(
    importance: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each critic, transition and sampled action by itself, in Python numbers."""
    count, rows = 3, batch()
    model = built(sampled_actions=count, importance_sampling=importance, cql_temperature=temperature)
    recorded = Recorded(model, monkeypatch)
    found = model.difference(rows, model.recorded_value(rows))
    assert found.shape == (2, ROWS)
    (now, now_density), (ahead, ahead_density) = recorded.samples
    assert recorded.seen[0].equal(rows["observation"])
    assert recorded.seen[1].equal(rows["next", "observation"])
    box = recorded.uniform[0] * 2 - 1
    for critic in (0, 1):
        network = as_module(model.critics.weights, model.critics.biases, critic)

        def value(observation: torch.Tensor, action: torch.Tensor, network: Any = network) -> float:
            return network(torch.cat([observation, action])).item()

        for row in range(ROWS):
            observation = rows["observation"][row]
            entries = []
            for k in range(count):
                for action, density in (
                    (box[row, k], 0.5 ** box.shape[-1]),
                    (ahead[row, k], ahead_density[row, k].exp().item()),
                    (now[row, k], now_density[row, k].exp().item()),
                ):
                    entries.append(value(observation, action) - (math.log(density) if importance else 0.0))
            data = value(observation, rows["action"][row].clamp(-0.999, 0.999))
            if not importance:
                entries.append(data)
            expected = temperature * math.log(sum(math.exp(entry / temperature) for entry in entries)) - data
            assert found[critic, row].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_flat_critic_is_penalised_by_the_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Q constant and all densities d the penalty is ln(3 n) - ln d."""
    model, rows = built(sampled_actions=7), batch()
    for parameter in model.critics.parameters():
        parameter.data.zero_()
    uniform = -2 * math.log(2)
    sample = model.policy.sample
    monkeypatch.setattr(model.policy, "sample", lambda *a: (sample(*a)[0], torch.full((ROWS, 7), uniform)))
    found = model.difference(rows, model.recorded_value(rows))
    torch.testing.assert_close(found, torch.full((2, ROWS), math.log(21) - uniform))


def test_uniform_actions_fill_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = built(sampled_actions=500), batch()
    seen: list[torch.Tensor] = []
    values = model.values
    monkeypatch.setattr(model, "values", lambda c, o, actions: seen.append(actions) or values(c, o, actions))
    model.difference(rows, model.recorded_value(rows))
    box = seen[0][:, :500]
    assert box.mean().abs() < 0.02
    assert box.min() < -0.99
    assert box.max() > 0.99


def test_densities_are_those_of_a_squashed_normal() -> None:
    model, rows = built(), batch()
    normal = model.policy(rows["observation"])
    squashed = TransformedDistribution(Independent(normal, 1), [TanhTransform(cache_size=1)])
    action, density = model.policy.sample(rows["observation"], 1)
    assert action.shape == (ROWS, 1, 2)
    torch.testing.assert_close(density.squeeze(1), squashed.log_prob(action.squeeze(1)), rtol=1e-4, atol=1e-4)
    given = rows["action"].clamp(-0.99, 0.99)
    torch.testing.assert_close(model.policy.log_density(rows["observation"], given), squashed.log_prob(given))
    assert isinstance(normal, Normal)


@pytest.mark.parametrize("options", [{}, {"lagrange_gap": 1.0, "backup_entropy": True}, {"max_target_backup": True}])
def test_each_network_follows_its_own_loss_at_one_snapshot(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = built(**options), batch()
    model.branch = model.prepare(0)
    sums: list[torch.Tensor] = []
    monkeypatch.setattr(model, "minimise", lambda loss, *_: sums.append(loss))
    results = model.update(Batch(rows, rows, rows))
    for network, own, other in (
        (model.policy, "policy_loss", "critic_loss"),
        (model.critics, "critic_loss", "policy_loss"),
    ):
        parameters = list(network.parameters())
        together = torch.autograd.grad(sums[0], parameters, retain_graph=True)
        alone = torch.autograd.grad(results[own], parameters, retain_graph=True)
        for first, second in zip(together, alone, strict=True):
            torch.testing.assert_close(first, second)
        assert any(gradient.abs().max() > 0 for gradient in alone)
        others = torch.autograd.grad(results[other], parameters, retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in others)
    # d(log alpha (entropy - target)) / d log alpha
    slope = torch.autograd.grad(sums[0], model.log_temperature)[0]
    torch.testing.assert_close(slope, results["entropy"] + 2)


def test_the_target_bootstraps_from_a_sampled_action(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = built(backup_entropy=True, max_target_backup=True, sampled_actions=4), batch()
    recorded = Recorded(model, monkeypatch)
    value = torch.zeros(2, ROWS)
    found = model.bellman_error(rows, value)
    actions, densities = recorded.samples[0]
    networks = [as_module(model.target_critics.weights, model.target_critics.biases, k) for k in (0, 1)]
    for row in range(ROWS):
        best, density = -math.inf, 0.0
        for k in range(4):
            pair = torch.cat([rows["next", "observation"][row], actions[row, k]])
            lower = min(network(pair).item() for network in networks)
            if lower > best:
                best, density = lower, densities[row, k].item()
        target = rows["next", "reward"][row].item() + rows["discount"][row].item() * (best - density)
        assert found[row].item() == pytest.approx(2 * target**2, rel=1e-4, abs=1e-5)


def test_the_lagrange_multiplier_follows_the_gap() -> None:
    rows = batch()
    for gap, rises in ((-50.0, True), (50.0, False)):
        model = built(lagrange_gap=gap)
        model.branch = model.prepare(0)
        first = model.update(Batch(rows, rows, rows))
        assert (model.log_lagrange > 1).item() == rises
        # alpha' times weight times (difference - gap), for both critics.
        penalty = math.e * 5.0 * (2 * first["difference"].item() - 2 * gap)
        expected = first["bellman_error"].item() + penalty
        assert first["critic_loss"].item() == pytest.approx(expected, rel=1e-4)


def test_differences_are_clipped_transition_by_transition() -> None:
    model, rows = built(difference_min=0.5, difference_max=0.6), batch()
    wide = built().difference(rows, built().recorded_value(rows))
    assert wide.min() < 0.5 or wide.max() > 0.6
    found = model.difference(rows, model.recorded_value(rows))
    assert found.min() >= 0.5
    assert found.max() <= 0.6


def test_the_temperature_keeps_the_entropy_near_its_target() -> None:
    rows = batch()
    for wanted, rises in ((100.0, True), (-100.0, False)):
        model = built(target_entropy=wanted)
        model.branch = model.prepare(0)
        model.update(Batch(rows, rows, rows))
        assert (model.log_temperature > 0).item() == rises
    fixed = built(entropy_temperature=0.2)
    fixed.branch = fixed.prepare(0)
    fixed.update(Batch(rows, rows, rows))
    assert fixed.log_temperature.exp().item() == pytest.approx(0.2)


def test_the_policy_clones_while_it_warms_up() -> None:
    model, rows = built(bc_updates=1, entropy_temperature=1e-9), batch()
    rows["action"] = torch.full((ROWS, 2), 0.7)
    for number in range(2):
        model.branch = model.prepare(number)
        loss, _ = model.policy_loss(rows)
        likelihood = model.policy.log_density(rows["observation"], rows["action"])
        assert torch.allclose(loss, -likelihood, atol=1e-4) == (number == 0)


def test_each_loss_is_of_its_own_roles_data() -> None:
    """Bellman error: evaluation; penalty: constraint; actor and temperature: improvement."""
    model = built()
    model.branch = model.prepare(0)
    parts, others = [batch(1), batch(2), batch(3)], [batch(4), batch(5), batch(6)]
    assert moved_by_role(model, parts, others) == [
        {"critic_loss", "bellman_error", "value"},
        {"policy_loss", "entropy"},
        {"critic_loss", "difference"},
    ]
    # Each has its role's weight.
    model.tau, results = 0.0, []
    for role in (None, 0, 1, 2):
        changed = [part.clone() for part in parts]
        if role is not None:
            changed[role]["weight"] *= 3
        torch.manual_seed(0)
        results.append(model.update(Batch(*changed)))
    for role, name in ((1, "bellman_error"), (2, "policy_loss"), (3, "difference")):
        for other in (1, 2, 3):
            factor = 3 if other == role else 1
            torch.testing.assert_close(results[other][name], factor * results[0][name])


def test_the_penalty_has_its_weight() -> None:
    rows = batch()
    for weight in (1.0, 7.0):
        model = built(cql_weight=weight)
        model.branch = model.prepare(0)
        results = model.update(Batch(rows, rows, rows))
        expected = results["bellman_error"] + weight * 2 * results["difference"]
        torch.testing.assert_close(results["critic_loss"], expected)


def test_networks_begin_as_flaxs_do() -> None:
    model = CQL(policy_hidden_sizes=(400, 400), critic_hidden_sizes=(400, 400))
    ready(model)
    for weights, biases in (
        ([layer.weight for layer in model.policy.body[::2]], [layer.bias for layer in model.policy.body[::2]]),
        ([w[0].T for w in model.critics.weights], list(model.critics.biases)),
    ):
        assert not any(bias.any() for bias in biases)
        for weight in weights[:-1]:
            std = weight.shape[1] ** -0.5
            assert weight.std().item() == pytest.approx(std, rel=0.1)
            assert weight.abs().max() <= 2.28 * std
        assert weights[-1].abs().max() <= (0.03 / 400) ** 0.5
        assert weights[-1].std().item() == pytest.approx((0.01 / 400) ** 0.5, rel=0.1)
