from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from networks import ROWS, assert_normalises, batch, in_other_units, moved_by_role, ready
from tensordict import TensorDict
from torch import nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from oper_lightning import InputError
from oper_lightning.algorithms.rlpd import RLPD
from oper_lightning.nn.networks import EnsembleMLP
from oper_lightning.spec import Batch

SAC: dict[str, Any] = {"critics": 2, "subset": None, "policy_freq": 1, "layer_norm": False}
SMALL: dict[str, Any] = {"critics": 5, "subset": 2, "policy_freq": 3}


def built(**options: Any) -> RLPD:
    return ready(RLPD(**{"hidden_sizes": (16, 16), **options}), "target_critics", "critics", "policy")


def pairs(rows: TensorDict) -> torch.Tensor:
    return torch.cat([rows["observation"], rows["action"]], -1)


def alone(ensemble: EnsembleMLP, member: int) -> nn.Sequential:
    """One critic as a plain network, with a normalisation of its own if there is one."""
    layers: list[nn.Module] = []
    for layer, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
        linear = nn.Linear(*weight.shape[1:])
        linear.weight.data, linear.bias.data = weight[member].T.clone(), bias[member, 0].clone()
        layers.append(linear)
        if layer < len(ensemble.scales):
            norm = nn.LayerNorm(weight.shape[2], eps=1e-6)
            norm.weight.data = ensemble.scales[layer][member, 0].clone()
            norm.bias.data = ensemble.shifts[layer][member, 0].clone()
            layers.append(norm)
        layers.append(nn.ReLU())
    return nn.Sequential(*layers[:-1])


class Written:
    """The published loop, written out: critics one by one, targets row by row."""

    def __init__(self, model: RLPD) -> None:
        self.model = model
        members = range(model.ensemble)
        self.critics = [alone(model.critics, member) for member in members]
        self.targets = [alone(model.target_critics, member) for member in members]
        self.policy = nn.Sequential(*[type(layer)(*_sizes(layer)) for layer in model.policy.body])
        self.policy.load_state_dict(model.policy.body.state_dict())
        self.log_temperature = torch.zeros((), requires_grad=True)
        rate = model.learning_rate
        self.critic_steps = [torch.optim.Adam(critic.parameters(), rate) for critic in self.critics]
        self.policy_steps = torch.optim.Adam(self.policy.parameters(), rate)
        self.temperature_steps = torch.optim.Adam([self.log_temperature], rate)

    def sample(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = self.policy(observation).chunk(2, -1)
        normal = Independent(Normal(mean, log_std.clamp(-20, 2).exp()), 1)
        squashed = TransformedDistribution(normal, [TanhTransform(cache_size=1)])
        before = mean + normal.stddev * torch.randn(len(observation), 1, 2).squeeze(1)
        action = squashed.transforms[0](before)
        return action, squashed.log_prob(action)

    def update(self, rows: Batch, number: int) -> dict[str, float]:
        model, data, acted = self.model, rows.evaluation, rows.improvement
        temperature = self.log_temperature.exp()
        with torch.no_grad():
            action, density = self.sample(data["next", "observation"])
            following = torch.cat([data["next", "observation"], action], -1)
            every = range(len(self.critics))
            drawn = every if model.subset is None else torch.rand(len(every)).topk(model.subset).indices.tolist()
            target = []
            for row in range(ROWS):
                value = min(self.targets[member](following[row]).item() for member in drawn)
                if model.backup_entropy:
                    value -= temperature.item() * density[row].item()
                target.append(data["next", "reward"][row].item() + data["discount"][row].item() * value)
        total = 0.0
        for critic, target_critic, steps in zip(self.critics, self.targets, self.critic_steps, strict=True):
            errors = (critic(pairs(data)).squeeze(-1) - torch.tensor(target)) ** 2
            loss = (data["weight"] * errors).sum() / ROWS / len(self.critics)
            steps.zero_grad()
            loss.backward()
            steps.step()
            total += loss.item()
            for old, new in zip(target_critic.parameters(), critic.parameters(), strict=True):
                old.data = (1 - model.tau) * old.data + model.tau * new.data
        results = {"critic_loss": total}
        if number % model.policy_freq == model.policy_freq - 1:
            action, density = self.sample(acted["observation"])
            pair = torch.cat([acted["observation"], action], -1)
            value = torch.stack([critic(pair).squeeze(-1) for critic in self.critics]).sum(0) / len(self.critics)
            loss = (acted["weight"] * (temperature.detach() * density - value)).sum() / ROWS
            self.policy_steps.zero_grad()
            loss.backward()
            self.policy_steps.step()
            entropy = -density.mean().item()
            self.temperature_steps.zero_grad()
            (temperature * (entropy - -1.0)).backward()
            self.temperature_steps.step()
            results |= {"policy_loss": loss.item(), "entropy": entropy, "value": value.mean().item()}
            results["entropy_temperature"] = temperature.item()
        return results


def _sizes(layer: nn.Module) -> tuple[int, ...]:
    return (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else ()


def batches(count: int, apart: bool) -> list[Batch]:
    """Of each role's own rows with weights, or of the same rows for all without."""
    made = []
    for number in range(count):
        first, second = batch(number), batch(100 + number)
        if apart:
            for part in (first, second):
                part["weight"] = 2 * torch.rand(ROWS, generator=torch.Generator().manual_seed(number))
        second = second if apart else first
        made.append(Batch(first, second, second))
    return made


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize(("options", "apart"), [(SAC, False), (SAC, True), (SMALL, False), (SMALL, True)])
def test_it_is_the_published_loop_written_out(options: dict[str, Any], apart: bool, entropy: bool) -> None:
    """With two plain critics, no subset and one update per step that is a soft actor-critic."""
    model = built(**options, backup_entropy=entropy)
    written = Written(model)
    for number, rows in enumerate(batches(7, apart)):
        torch.manual_seed(number)
        model.branch = model.prepare(number)
        found = model.update(rows)
        torch.manual_seed(number)
        expected = written.update(rows, number)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value, rel=1e-5, abs=1e-6), (name, number)
    for member in range(model.ensemble):
        for ours, theirs in ((model.critics, written.critics), (model.target_critics, written.targets)):
            for value, other in zip(alone(ours, member).parameters(), theirs[member].parameters(), strict=True):
                torch.testing.assert_close(value, other, rtol=0, atol=1e-6)
    for value, other in zip(model.policy.parameters(), written.policy.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.log_temperature, written.log_temperature, rtol=0, atol=1e-6)
    assert model.log_temperature != 0


def test_the_subset_is_drawn_anew_for_each_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two different critics, and each pair of them equally often."""
    model, rows = built(**SMALL), batch()
    drawn: list[tuple[int, ...]] = []
    some = model.target_critics.some

    def spied(inputs: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
        drawn.append(tuple(sorted(members.tolist())))
        return some(inputs, members)

    monkeypatch.setattr(model.target_critics, "some", spied)
    torch.manual_seed(0)
    for _ in range(600):
        model.critic_loss(rows)
    counted = Counter(drawn)
    assert counted.keys() == set(itertools.combinations(range(5), 2))
    assert all(abs(count - 60) < 30 for count in counted.values())  # four standard deviations


def test_the_target_is_the_lowest_of_the_drawn_critics_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Critics that are constant, and lower each than the one before."""
    model, rows = built(**SMALL, backup_entropy=False), batch()
    for critics in (model.critics, model.target_critics):
        for parameter in critics.parameters():
            parameter.data.zero_()
    model.target_critics.biases[-1].data = -torch.arange(5.0).reshape(5, 1, 1)
    rows["next", "reward"] *= 0
    rows["discount"] = torch.full((ROWS,), 0.5)
    for drawn, lowest in (([0, 1], -1.0), ([3, 1], -3.0), ([0, 2], -2.0)):
        order = torch.zeros(5).index_fill(0, torch.tensor(drawn), 1.0)
        monkeypatch.setattr(torch, "rand", lambda *_, order=order, **__: order)
        torch.testing.assert_close(model.critic_loss(rows), torch.full((ROWS,), (0.5 * lowest) ** 2))


def test_bounds_hold_for_the_value_and_not_for_reward_and_entropy() -> None:
    """The lowest of critics that are constant, brought into the bounds."""
    for bounds, value, bounded in (((-2.0, 1.0), -3.0, -2.0), ((-2.0, 1.0), 4.0, 1.0), (None, 4.0, 4.0)):
        model, rows = built(**SMALL, value_bounds=bounds), batch()
        for critics in (model.critics, model.target_critics):
            for parameter in critics.parameters():
                parameter.data.zero_()
        model.target_critics.biases[-1].data += value
        rows["next", "reward"] += 10
        torch.manual_seed(1)
        found = model.critic_loss(rows)
        torch.manual_seed(1)
        density = model.sampled(rows["next", "observation"])[1].detach()
        target = rows["next", "reward"] + rows["discount"] * (bounded - density)
        torch.testing.assert_close(found, target.square())


def test_the_policy_moves_with_every_so_manieth_update_of_the_critics() -> None:
    model, moves = built(**SMALL), []
    for number, rows in enumerate(batches(7, apart=False)):
        before = [value.clone() for value in (*model.policy.parameters(), model.log_temperature)]
        critics = model.critics.weights[0].clone()
        model.branch = model.prepare(number)
        model.update(rows)
        after = [*model.policy.parameters(), model.log_temperature]
        moved = [not old.equal(new) for old, new in zip(before, after, strict=True)]
        assert len({*moved}) == 1
        moves.append(moved[0])
        assert not critics.equal(model.critics.weights[0])
    assert moves == [False, False, True, False, False, True, False]


def test_the_temperature_follows_the_distance_to_the_wanted_entropy() -> None:
    """By the slope of temperature * (entropy - wanted) in the logarithm of the temperature."""
    model, rows = built(**SAC), batches(1, apart=False)[0]
    model.log_temperature.data.fill_(-1.5)
    model.branch = model.prepare(0)
    results = model.update(rows)
    assert model.log_temperature.grad is not None
    torch.testing.assert_close(model.log_temperature.grad, math.exp(-1.5) * (results["entropy"] + 1))
    assert results["entropy_temperature"].item() == pytest.approx(math.exp(-1.5))


def test_each_critic_has_a_normalisation_of_its_own() -> None:
    model, rows = built(**SMALL), batch()
    before = model.critics(pairs(rows))
    for parts in (model.critics.scales, model.critics.shifts):
        assert [tuple(part.shape) for part in parts] == [(5, 1, 16)] * 2
        parts[0].data[2] += 1
    moved = (model.critics(pairs(rows)) != before).any(-1)
    assert moved.tolist() == [False, False, True, False, False]


def test_some_members_give_what_they_give_among_all() -> None:
    """Normalised or not, in any order."""
    rows, members = batch(), torch.tensor([3, 0, 3])
    for layer_norm in (True, False):
        critics = built(**SMALL, layer_norm=layer_norm).critics
        found = critics.some(pairs(rows), members)
        assert found.shape == (3, ROWS)
        torch.testing.assert_close(found, critics(pairs(rows))[members])


def test_small_activations_are_normalised_with_flaxs_epsilon() -> None:
    critics = EnsembleMLP((1,), (4, 8), layer_norm=True, epsilon=1e-6)
    critics.biases[0].data.zero_()
    inputs = 3e-3 * torch.randn(ROWS, 4)
    network = alone(critics, 0)
    torch.testing.assert_close(critics(inputs)[0], network(inputs).squeeze(-1), rtol=1e-4, atol=1e-5)
    network[1].eps = 1e-5
    assert not torch.allclose(critics(inputs)[0], network(inputs).squeeze(-1), rtol=1e-2)
    assert built().critics.epsilon == 1e-6


def test_networks_begin_as_published() -> None:
    """Uniform after Glorot; normalisations at one and zero, the temperature at one, targets like the critics."""
    model = ready(RLPD(hidden_sizes=(64, 32)))
    layers = [layer for layer in model.policy.body if isinstance(layer, nn.Linear)]
    matrices = [layer.weight for layer in layers] + [member for weight in model.critics.weights for member in weight]
    for matrix in matrices:
        bound = math.sqrt(6 / sum(matrix.shape))
        assert matrix.abs().max() <= bound
        if matrix.numel() > 300:
            assert matrix.abs().max() > 0.95 * bound
            assert abs(matrix.mean()) < 0.15 * bound
    assert not any(bias.any() for bias in [*model.critics.biases, *(layer.bias for layer in layers)])
    assert all((scale == 1).all() for scale in model.critics.scales)
    assert not any(shift.any() for shift in model.critics.shifts)
    for target, online in zip(model.target_critics.parameters(), model.critics.parameters(), strict=True):
        assert target.equal(online)
        assert not target.requires_grad
    assert model.log_temperature.item() == 0
    assert (model.ensemble, model.wanted_entropy) == (10, -1.0)
    assert ready(RLPD(target_entropy=-3.0)).wanted_entropy == -3.0


def test_it_acts_by_the_squashed_mean_and_explores_by_samples() -> None:
    """Of raw observations, and in the environment's units."""
    model, rows = in_other_units(built(normalise_observations=True)), batch()
    raw, mean = 3 + 2 * rows["observation"], model.policy.body(rows["observation"])[:, :2].detach()
    torch.testing.assert_close(model.act(raw), 1 + 4 * mean.tanh())
    with torch.no_grad():
        samples = torch.stack([model.explore(raw) for _ in range(3000)])
    assert samples.shape == (3000, ROWS, 2)
    before = ((samples - 1) / 4).atanh()
    torch.testing.assert_close(before.mean(0), mean, rtol=0, atol=0.15)
    torch.testing.assert_close(before.std(0), model.policy(rows["observation"]).stddev.detach(), rtol=0.1, atol=0)
    assert_normalises(built(), built(normalise_observations=True))


def test_critics_learn_from_evaluation_and_the_policy_from_improvement() -> None:
    model = built(**{**SMALL, "policy_freq": 1})
    model.branch = model.prepare(0)
    moved = moved_by_role(model, [batch(0)] * 3, [batch(1)] * 3)
    assert moved == [{"critic_loss"}, {"policy_loss", "entropy", "value"}, set()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critics": 0}, "critics 0 must be at least 1"),
        ({"subset": 11}, "subset 11 must be from 1 to the number of critics, 10; null for all"),
        ({"subset": 0}, "subset 0 must be from 1"),
        ({"policy_freq": 0}, "policy_freq 0 must be at least 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RLPD(**options)
