from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import columns, transitions
from networks import ROWS, as_module, batch, in_other_units, moved_by_role, ready
from tensordict import TensorDict
from test_shared import algorithm, data, fit
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from oper_lightning.algorithms.cql import CQL
from oper_lightning.nn import ranks
from oper_lightning.nn.networks import EnsembleMLP, SquashedPolicy
from oper_lightning.spec import Batch


def built(**options: Any) -> CQL:
    model = CQL(**{"policy_hidden_sizes": (16, 16), "critic_hidden_sizes": (16, 16), **options})
    ready(model, "target_critics", "critics", "policy")
    return model


def crossed(critics: EnsembleMLP, rows: TensorDict) -> None:
    """Makes now one critic the lower, now the other: their mean values become equal."""
    values = critics(torch.cat([rows["observation"], rows["action"]], -1))
    critics.biases[-1].data -= values.mean(-1).detach()[:, None, None]


def members(critics: EnsembleMLP) -> list[torch.nn.Sequential]:
    return [as_module(critics.weights, critics.biases, member) for member in (0, 1)]


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
    several = model.critics.several
    monkeypatch.setattr(model.critics, "several", lambda o, actions: seen.append(actions) or several(o, actions))
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
    # Many samples for one observation are spread as it says.
    before = model.policy.sample(rows["observation"], 4000)[0].atanh()
    torch.testing.assert_close(before.mean(1), normal.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(before.std(1), normal.stddev, rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("raw", "factor", "log_std"),
    [(0, 1, -1), (2, 1, 1), (2, 0.5, 0), (2.9, 1, 1.9), (100, 1, 2), (-18.9, 1, -19.9), (-100, 1, -20)],
)
def test_the_log_deviation_is_scaled_shifted_and_bounded(raw: float, factor: float, log_std: float) -> None:
    """Its factor begins at 1, its offset at -1."""
    policy = SquashedPolicy(3, 2, (16,))
    policy.body[-1].weight.data.zero_()
    policy.body[-1].bias.data[2:] = raw
    policy.factor.data *= factor
    found = policy(batch()["observation"]).stddev.log()
    torch.testing.assert_close(found, torch.full((ROWS, 2), float(log_std)))


def test_it_acts_by_the_squashed_mean() -> None:
    """Of raw observations, and in the environment's units."""
    model, rows = in_other_units(built(normalise_observations=True)), batch()
    expected = 1 + 4 * model.policy.body(rows["observation"])[:, :2].tanh()
    torch.testing.assert_close(model.act(3 + 2 * rows["observation"]), expected.detach())


def test_recorded_actions_are_kept_off_the_edge_of_the_box() -> None:
    model, rows, inside = built(), batch(), batch()
    rows["action"] = rows["action"].sign()
    inside["action"] = 0.999 * rows["action"]
    assert model.recorded_value(rows).equal(model.recorded_value(inside))
    model.branch, found = True, []
    for part in (rows, inside):
        torch.manual_seed(1)
        found.append(model.policy_loss(part)[0])
    assert found[0].equal(found[1])
    inside["action"] *= 0.999
    assert not model.recorded_value(rows).equal(model.recorded_value(inside))


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


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("count", [4, 1])
def test_the_target_bootstraps_from_a_sampled_action(
    entropy: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the best of several, or from the only one."""
    model, rows = built(backup_entropy=entropy, max_target_backup=count > 1, sampled_actions=4), batch()
    crossed(model.target_critics, rows)
    model.log_temperature.data.fill_(math.log(0.3))
    recorded = Recorded(model, monkeypatch)
    found = model.bellman_error(rows, torch.tensor([[1.0], [-2.0]]).expand(2, ROWS))
    actions, densities = recorded.samples[0]
    assert recorded.seen[0].equal(rows["next", "observation"])
    assert actions.shape == (ROWS, count, 2)
    networks, lowest = members(model.target_critics), set()
    for row in range(ROWS):
        best, density = -math.inf, 0.0
        for k in range(count):
            pair = torch.cat([rows["next", "observation"][row], actions[row, k]])
            values = [network(pair).item() for network in networks]
            lowest.add(values[0] < values[1])
            if min(values) > best:
                best, density = min(values), densities[row, k].item()
        value = best - 0.3 * density if entropy else best
        target = rows["next", "reward"][row].item() + rows["discount"][row].item() * value
        assert found[row].item() == pytest.approx((1 - target) ** 2 + (2 + target) ** 2, rel=1e-4, abs=1e-5)
    assert lowest == {True, False}


def test_the_actor_climbs_the_lower_of_two_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the entropy, with its temperature."""
    model, rows = built(), batch()
    crossed(model.critics, rows)
    model.log_temperature.data.fill_(math.log(0.3))
    model.branch = False
    recorded = Recorded(model, monkeypatch)
    found, _ = model.policy_loss(rows)
    assert recorded.seen[0].equal(rows["observation"])
    [(actions, densities)] = recorded.samples
    lowest = set()
    for row in range(ROWS):
        pair = torch.cat([rows["observation"][row], actions[row, 0]])
        values = [network(pair).item() for network in members(model.critics)]
        lowest.add(values[0] < values[1])
        expected = 0.3 * densities[row].item() - min(values)
        assert found[row].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert lowest == {True, False}


@pytest.mark.parametrize(("network", "loss"), [("policy", "policy_loss"), ("critics", "critic_loss")])
def test_gradients_are_the_slopes_of_the_losses(network: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences with noise and targets held: no path to the parameters is cut."""
    model, rows = built(tau=0.0), batch()
    model.log_temperature.data.fill_(math.log(0.3))
    model.critics.weights[-1].data *= 10
    model.branch = False
    monkeypatch.setattr(model, "minimise", lambda *_: None)

    def value() -> torch.Tensor:
        torch.manual_seed(1)
        return model.update(Batch(rows, rows, rows))[loss]

    parameters = list(getattr(model, network).parameters())
    gradients = torch.autograd.grad(value(), parameters)
    slope = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
    ends = []
    for step in (0.001, -0.002):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.data += step / slope * gradient
        ends.append(value().item())
    assert (ends[0] - ends[1]) / 0.002 == pytest.approx(slope, rel=0.02)


def test_targets_follow_the_critics_with_every_update() -> None:
    model, rows = built(tau=0.3, critic_learning_rate=0.1), batch()
    model.branch = False
    for _ in range(2):
        before = [parameter.clone() for parameter in model.target_critics.parameters()]
        model.update(Batch(rows, rows, rows))
        online, targets = model.critics.parameters(), model.target_critics.parameters()
        for old, new, target in zip(before, online, targets, strict=True):
            torch.testing.assert_close(target, 0.7 * old + 0.3 * new)
            assert (target - old).abs().max() > 0.01


def test_each_optimiser_has_its_learning_rate() -> None:
    """Adam's first step is as long as the learning rate wherever there is a gradient."""
    model, rows = built(policy_learning_rate=1e-2, critic_learning_rate=1e-3, lagrange_gap=1.0), batch()
    rates = {"policy": 1e-2, "log_temperature": 1e-2, "critics": 1e-3, "log_lagrange": 1e-3}
    model.branch = False
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.update(Batch(rows, rows, rows))
    for name, old in before.items():
        step = (model.get_parameter(name) - old).abs().max().item()
        assert step == pytest.approx(rates[name.split(".")[0]], rel=1e-3), name


def test_only_termination_ends_the_bootstrap() -> None:
    """The first of two episodes terminates, the second is cut by time."""
    found = CQL(discount=0.9).columns(transitions(columns([2, 3])))["discount"]
    torch.testing.assert_close(found, torch.tensor([0.9, 0.0, 0.9, 0.9, 0.9]))


def test_the_lagrange_multiplier_follows_the_gap() -> None:
    rows = batch()
    for gap, rises, options, begins in (
        (-50.0, True, {}, math.e),
        (50.0, False, {}, math.e),
        (50.0, False, {"initial_lagrange": 0.5}, 0.5),
    ):
        model = built(lagrange_gap=gap, **options)
        model.branch = model.prepare(0)
        first = model.update(Batch(rows, rows, rows))
        assert first["lagrange"].item() == pytest.approx(begins)
        assert (model.log_lagrange.exp() > begins).item() == rises
        # alpha' times weight times (difference - gap), for both critics.
        penalty = begins * 5.0 * (2 * first["difference"].item() - 2 * gap)
        expected = first["bellman_error"].item() + penalty
        assert first["critic_loss"].item() == pytest.approx(expected, rel=1e-4)
        # It climbs what it multiplies, averaged over the critics.
        assert model.log_lagrange.grad.item() == pytest.approx(-penalty / 2, rel=1e-4)


def test_the_lagrange_multiplier_is_bounded() -> None:
    model, rows = built(lagrange_gap=1.0), batch()
    model.log_lagrange.data.fill_(20.0)
    model.branch = False
    results = model.update(Batch(rows, rows, rows))
    assert results["lagrange"].item() == 1e6
    assert results["critic_loss"].item() == pytest.approx(1e6 * 5 * 2 * (results["difference"].item() - 1), rel=1e-4)


def test_a_checkpoint_keeps_the_multipliers(tmp_path: Path) -> None:
    """Temperature and Lagrange multiplier move, and a run that goes on has them and their optimisers' moments."""
    whole, half = (algorithm("CQL", lagrange_gap=1.0) for _ in range(2))
    fit(whole, data(), tmp_path / "whole", 40)
    fit(half, data(), tmp_path / "half", 20)
    rest = algorithm("CQL", lagrange_gap=1.0)
    fit(rest, data(), tmp_path / "half", 40, seed=0, ckpt_path=tmp_path / "half" / "last.ckpt")
    for name, first in (("log_lagrange", 1.0), ("log_temperature", 0.0)):
        ends = [getattr(model, name).item() for model in (whole, half, rest)]
        assert ends[0] == ends[2]
        assert len({first, *ends}) == 3
        kept = torch.load(tmp_path / "half" / "last.ckpt", weights_only=True)["state_dict"]
        assert kept[name].item() == ends[2]


def test_differences_are_clipped_transition_by_transition() -> None:
    """From below, from above, or both."""
    rows = batch()

    def found(**bounds: float) -> list[float]:
        model = built(**bounds)
        torch.manual_seed(1)
        return model.difference(rows, model.recorded_value(rows)).flatten().tolist()

    free = found()
    low, high = sorted(free)[ROWS // 2], sorted(free)[ROWS]
    assert low < high
    assert found(difference_min=low) == [max(value, low) for value in free]
    assert found(difference_max=high) == [min(value, high) for value in free]
    assert found(difference_min=low, difference_max=high) == [min(max(value, low), high) for value in free]


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


def test_the_policy_clones_while_it_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entropy counts even then."""
    model, rows = built(bc_updates=1, entropy_temperature=0.3), batch()
    rows["action"] = torch.full((ROWS, 2), 0.7)
    recorded = Recorded(model, monkeypatch)
    for number in range(2):
        model.branch = model.prepare(number)
        loss, _ = model.policy_loss(rows)
        likelihood = model.policy.log_density(rows["observation"], rows["action"])
        expected = 0.3 * recorded.samples[-1][1].squeeze(1) - likelihood
        assert torch.allclose(loss, expected, atol=1e-4) == (number == 0)


def test_each_loss_is_of_its_own_roles_data() -> None:
    """Bellman error: evaluation; penalty: constraint; actor and temperature: improvement."""
    model = built()
    model.branch = model.prepare(0)
    parts, others = [batch(1), batch(2), batch(3)], [batch(4), batch(5), batch(6)]
    # Critics begin nearly flat, and hardly tell one role's data from another's.
    model.critics.weights[-1].data *= 100
    assert model.recorded_value(parts[0]).std() > 1
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
    torch.testing.assert_close(results[2]["entropy"], results[0]["entropy"])


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
    assert all(map(torch.equal, model.critics.parameters(), model.target_critics.parameters()))
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


def test_networks_may_begin_orthogonal_as_corls_do() -> None:
    """Rows or columns of a weight, whichever are fewer, are orthogonal and as long as the gain."""
    model = CQL(policy_hidden_sizes=(16, 8), critic_hidden_sizes=(16, 8), orthogonal_init=True)
    ready(model)
    assert all(map(torch.equal, model.critics.parameters(), model.target_critics.parameters()))
    for layers in (model.policy.body[::2], *(network[::2] for network in members(model.critics))):
        for layer, gain in zip(layers, (2**0.5, 2**0.5, 0.01), strict=True):
            assert not layer.bias.any()
            weight = layer.weight if layer.out_features < layer.in_features else layer.weight.T
            torch.testing.assert_close(weight @ weight.T / gain**2, torch.eye(len(weight)), rtol=0, atol=1e-5)
    assert not torch.equal(*model.critics.weights[0])


def test_features_of_length_one_reach_the_critics_and_their_targets() -> None:
    """Each critic by itself: hidden layers, division by the length, last layer."""
    model, rows = built(normalise_features=True), batch()
    plain = built()
    plain.critics.load_state_dict(model.critics.state_dict())
    pairs = torch.cat([rows["observation"], model.recorded_action(rows)], -1)
    for critics in (model.critics, model.target_critics):
        for member, network in enumerate(members(critics)):
            features = network[:-1](pairs)
            features = features / features.square().sum(-1, keepdim=True).sqrt()
            expected = network[-1](features).squeeze(-1)
            for found in (critics(pairs)[member], critics(pairs, frozen=True)[member]):
                torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model.critics.first(pairs), model.critics(pairs)[0])
    assert not torch.allclose(plain.recorded_value(rows), model.recorded_value(rows))
    # Where all units are off there is no length to divide by.
    model.critics.biases[-2].data.fill_(-1e6)
    assert model.critics(pairs).equal(model.critics.biases[-1].squeeze(-1).expand(2, ROWS))


@pytest.mark.parametrize("entropy", [True, False])
def test_targets_bootstrap_within_bounds(entropy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bootstrapped is bounded, before the entropy and the reward are added."""
    model, rows = built(value_bounds=(-0.01, 0.02), backup_entropy=entropy, critic_hidden_sizes=(16, 16)), batch()
    model.target_critics.weights[-1].data *= 100
    recorded = Recorded(model, monkeypatch)
    found = model.bellman_error(rows, torch.zeros(2, ROWS))
    [(actions, densities)] = recorded.samples
    value = model.target_critics.several(rows["next", "observation"], actions).amin(0).squeeze(1)
    assert (value < -0.01).any()
    assert (value > 0.02).any()
    value = torch.minimum(torch.maximum(value, torch.tensor(-0.01)), torch.tensor(0.02))
    value = value - densities.squeeze(1) if entropy else value
    target = rows["next", "reward"] + rows["discount"] * value
    torch.testing.assert_close(found, 2 * target**2)
