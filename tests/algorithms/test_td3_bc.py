from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import columns, transitions
from networks import ROWS, Pair, as_module, batch, in_other_units, moved_by_role, ready
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from test_shared import DATA, algorithm, data, fit, parameters

from oper_lightning import OperR
from oper_lightning.algorithms.td3_bc import TD3BC
from oper_lightning.spec import Batch


def built(**options: Any) -> TD3BC:
    model = TD3BC(**{"hidden_sizes": (16, 16), **options})
    ready(model, "target_actor", "target_critics")
    return model


def test_critic_loss_is_torchrls() -> None:
    """torchrl 0.14's TD3BCLoss, whose critic part is right, with the same networks and without target noise."""
    from torchrl.objectives import TD3BCLoss

    model, rows = built(policy_noise=0.0), batch()

    actor = TensorDictModule(model.actor, in_keys=["observation"], out_keys=["action"])
    first = as_module(model.critics.weights, model.critics.biases, 0)
    value = TensorDictModule(Pair(first), in_keys=["observation", "action"], out_keys=["state_action_value"])
    loss = TD3BCLoss(
        actor, value, bounds=(-1, 1), policy_noise=0.0, noise_clip=0.5, loss_function="l2", num_qvalue_nets=2,
        delay_actor=True, delay_qvalue=True,
    )  # fmt: skip
    loss.make_value_estimator(gamma=0.99)
    with torch.no_grad():
        for kind, ensemble in (("", model.critics), ("target_", model.target_critics)):
            stacked = getattr(loss, f"{kind}qvalue_network_params").flatten_keys(".")
            for layer, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
                stacked[f"module.network.{2 * layer}.weight"].data.copy_(weight.transpose(1, 2))
                stacked[f"module.network.{2 * layer}.bias"].data.copy_(bias.squeeze(1))
        targets = loss.target_actor_network_params.flatten_keys(".")
        for name, parameter in model.target_actor.named_parameters():
            targets[f"module.{name}"].data.copy_(parameter)
    ted = rows.select("observation", "action", ("next", "observation")).clone()
    ted["next", "reward"] = rows["next", "reward"].unsqueeze(-1)
    ted["next", "done"] = ted["next", "terminated"] = rows["next", "terminated"].unsqueeze(-1)
    expected, _ = loss.qvalue_loss(ted)
    found = model.critic_loss(rows).mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    # The targets matter: with those of another model the losses part.
    model.target_critics.weights[0].data += 0.5
    assert not torch.isclose(model.critic_loss(rows).mean(), expected, rtol=1e-3)


def smoothed(rows: TensorDict, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The actions that the target critics judge, and what noise made of the target actor's."""
    model, seen = built(**options), []
    critics = model.target_critics.forward
    model.target_critics.forward = lambda pair: seen.append(pair[..., -2:]) or critics(pair)  # type: ignore[method-assign]
    model.critic_loss(rows)
    return seen[0], seen[0] - model.target_actor(rows["next", "observation"])


def test_target_actions_are_smoothed_within_the_box() -> None:
    actions, noise = smoothed(batch(), policy_noise=50.0, noise_clip=0.3)
    assert actions.abs().max() <= 1
    assert 0.25 < noise.abs().max() <= 0.3 + 1e-6
    actions, _ = smoothed(batch(), policy_noise=50.0, noise_clip=5.0)
    assert (actions.min(), actions.max()) == (-1, 1)


def test_the_smoothing_noise_has_its_deviation_in_each_dimension() -> None:
    _, noise = smoothed(torch.cat([batch()] * 200), policy_noise=0.1, noise_clip=5.0)
    torch.testing.assert_close(noise.mean(0), torch.zeros(2), rtol=0, atol=0.01)
    torch.testing.assert_close(noise.T.cov(), 0.1**2 * torch.eye(2), rtol=0, atol=1e-3)


def test_lambda_makes_the_value_term_scale_free() -> None:
    model, rows = built(), batch()
    action = model.actor(rows["observation"])
    loss, _, scale = model.improvement_loss(rows, action)
    assert scale.item() == pytest.approx(2.5 / model.improvement_loss(rows, action)[1].abs().mean().item())
    assert loss.shape == (ROWS,)
    value = model.critics.first(torch.cat([rows["observation"], action], -1))
    torch.testing.assert_close(loss, -2.5 * value / value.abs().mean())
    with torch.no_grad():  # ten times the value, the same loss
        model.critics.weights[-1] *= 10
        model.critics.biases[-1] *= 10
    torch.testing.assert_close(model.improvement_loss(rows, action)[0], loss)


def test_the_actor_climbs_the_first_critic_with_lambda_a_constant() -> None:
    """At the critics as they are after their step; lambda is not weighted."""
    model, rows = built(bc_coefficient=0.0, learning_rate=0.01), batch()
    rows["weight"] = torch.linspace(0, 2, ROWS)
    # With values of one sign a lambda that is no constant would leave nothing to climb.
    model.critics.biases[-1].data += 5
    before = copy.deepcopy(model.actor)
    model.branch = True
    model.update(Batch(rows, rows, rows))
    critic = as_module(model.critics.weights, model.critics.biases, 0)
    value = critic(torch.cat([rows["observation"], before(rows["observation"])], -1)).squeeze(-1)
    assert (value > 0).all()
    slopes = torch.autograd.grad((rows["weight"] * value).mean(), list(before.parameters()))
    for parameter, slope in zip(model.actor.parameters(), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, -2.5 / value.mean().item() * slope, rtol=1e-3, atol=1e-6)
    assert max(slope.abs().max() for slope in slopes) > 1e-3


def test_without_alpha_the_actor_clones() -> None:
    model, rows = built(alpha=0.0), batch()
    action = model.actor(rows["observation"])
    loss = (model.improvement_loss(rows, action)[0] + model.constraint_loss(rows, action)).mean()
    plain = ((action - rows["action"]) ** 2).mean()
    torch.testing.assert_close(loss, plain)


def test_the_actor_moves_with_every_second_update() -> None:
    model, rows = built(learning_rate=0.1), batch()
    before = parameters(model)
    model.branch = model.prepare(0)
    model.update(Batch(rows, rows, rows))
    first = parameters(model)
    still = [name for name in before if not name.startswith("critics")]
    assert all(before[name].equal(first[name]) for name in still)
    assert not any(before[name].equal(first[name]) for name in before if name.startswith("critics"))
    model.branch = model.prepare(1)
    model.update(Batch(rows, rows, rows))
    second = parameters(model)
    for name in before:
        moved = name.startswith(("actor.", "target_", "critics"))
        assert first[name].equal(second[name]) != moved, name
    for name in (name for name in before if name.startswith("target_")):
        # Polyak: 0.995 of the old target and 0.005 of the new online network.
        expected = 0.995 * before[name] + 0.005 * second[name.removeprefix("target_")]
        torch.testing.assert_close(second[name], expected, rtol=0, atol=1e-6)
    # Adam's first step is as long as the learning rate.
    for prefix, old, new in (("critics.", before, first), ("actor.", first, second)):
        for name in (name for name in before if name.startswith(prefix)):
            assert (new[name] - old[name]).abs().max().item() == pytest.approx(0.1, rel=1e-3), name


def test_targets_move_by_tau_and_begin_as_copies() -> None:
    model, rows = TD3BC(hidden_sizes=(16, 16), learning_rate=0.1, tau=0.3), batch()
    ready(model)
    before = parameters(model)
    model.branch = True
    model.update(Batch(rows, rows, rows))
    after = parameters(model)
    for name in (name for name in before if name.startswith("target_")):
        online = name.removeprefix("target_")
        assert before[name].equal(before[online])
        torch.testing.assert_close(after[name], 0.7 * before[name] + 0.3 * after[online])


def test_each_role_reads_its_own_batch() -> None:
    """A loss term moves with its role's data and with no other's."""
    model = built()
    parts = [batch(1), batch(2), batch(3)]
    model.branch = model.prepare(1)
    state = parameters(model)
    torch.manual_seed(0)
    plain = model.update(Batch(*parts))
    for role, name in enumerate(("critic_loss", "improvement_loss", "constraint_loss")):
        model.load_state_dict(state)
        model.configure_optimizers()
        changed = [part.clone() for part in parts]
        changed[role]["weight"] *= 3
        torch.manual_seed(0)
        results = model.update(Batch(*changed))
        torch.testing.assert_close(results[name], 3 * plain[name])
        others = [other for other in plain if other != name and (role or other == "critic_loss")]
        for other in others:
            torch.testing.assert_close(results[other], plain[other])


def test_each_loss_is_of_its_own_roles_data() -> None:
    model = built()
    model.branch = True
    moved = moved_by_role(model, [batch(1), batch(2), batch(3)], [batch(4), batch(5), batch(6)])
    assert moved == [{"critic_loss"}, {"improvement_loss", "value", "lambda"}, {"constraint_loss"}]


def test_decoupled_reweighting_leaves_the_critics_bit_identical(tmp_path: Path) -> None:
    """The first update: critics see the vanilla batch with weight one; the actor's loss is weighted."""
    results = []
    for options in ({}, {"priority": OperR(), "mode": "reweight", "prioritise": ["improvement", "constraint"]}):
        model = algorithm("TD3BC", policy_freq=1)
        fit(model, data(updates_per_epoch=1, updates_per_block=1, **options), tmp_path / str(len(results)), 1)
        results.append(parameters(model))
    critics = [name for name in results[0] if name.startswith("critics")]
    assert all(results[0][name].equal(results[1][name]) for name in critics)
    assert not results[0]["actor.body.0.weight"].equal(results[1]["actor.body.0.weight"])


def test_n_step_targets_reach_the_critic(tmp_path: Path) -> None:
    model, module = algorithm("TD3BC", n_step=3), data()
    fit(model, module, tmp_path, 20)
    row = 5
    expected = sum(0.99**k * DATA["continuous"]["rewards"][row + k] for k in range(3))
    assert module.table["next", "reward"][row].item() == pytest.approx(expected, rel=1e-5)
    assert module.table["discount"][row].item() == pytest.approx(0.99**3)
    drawn = module.rows(torch.tensor([row, 23, 24]))
    for place, last in enumerate((row + 2, 24, 24)):
        assert (
            drawn["next", "observation"][place].numpy().tolist()
            == DATA["continuous"]["next_observations"][last].tolist()
        )
    assert module.transitions["next", "reward"][row] == columns([25] * 8)["rewards"][row]


def test_only_termination_ends_the_bootstrap() -> None:
    """The first of two episodes terminates, the second is cut by time; windows of two steps end where they do."""
    rows = transitions(columns([2, 3]))
    rewards = rows["next", "reward"].tolist()
    found = TD3BC(discount=0.9).columns(rows)
    torch.testing.assert_close(found["discount"], torch.tensor([0.9, 0.0, 0.9, 0.9, 0.9]))
    found = TD3BC(discount=0.9, n_step=2).columns(rows)
    torch.testing.assert_close(found["discount"], torch.tensor([0.0, 0.0, 0.81, 0.81, 0.9]))
    assert found["next", "row"].tolist() == [1, 1, 3, 4, 4]
    for row, following in enumerate([1, None, 3, 4, None]):
        expected = rewards[row] + (0.0 if following is None else 0.9 * rewards[following])
        assert found["next", "reward"][row].item() == pytest.approx(expected, rel=1e-5)


def test_small_priorities_may_be_clipped_in_the_constraint() -> None:
    rows = batch()
    rows["weight"] = torch.linspace(0, 3, ROWS)
    low = rows["weight"] < 1
    assert built().constraint_weight(rows).equal(rows["weight"])
    clipped = built(clip_constraint="one").constraint_weight(rows)
    assert clipped[~low].equal(rows["weight"][~low])
    assert (clipped[low] == 1).all()
    root = built(clip_constraint="root").constraint_weight(rows)
    torch.testing.assert_close(root.square()[low], rows["weight"][low])
    assert root[~low].equal(rows["weight"][~low])
    rows["weight"] = torch.full((ROWS,), 0.25)
    for clip, factor in (("none", 0.25), ("one", 1.0), ("root", 0.5)):
        model = built(clip_constraint=clip)
        plain = (model.actor(rows["observation"]) - rows["action"]).square().mean()
        model.branch = True
        torch.testing.assert_close(model.update(Batch(rows, rows, rows))["constraint_loss"], factor * plain)


def test_the_behaviour_cloning_term_has_a_coefficient() -> None:
    """Its gradient grows with it, the value term's does not."""
    gradients = {}
    for coefficient in (0.0, 1.0, 3.0):
        model, rows = built(bc_coefficient=coefficient), batch()
        model.branch = True
        model.update(Batch(rows, rows, rows))
        gradients[coefficient] = model.actor.body[0].weight.grad.clone()
    step = gradients[1.0] - gradients[0.0]
    assert step.abs().max() > 1e-4
    torch.testing.assert_close(gradients[3.0] - gradients[0.0], 3 * step, rtol=1e-3, atol=1e-6)


def test_critics_hidden_layers_can_be_normalised() -> None:
    """Each member is a plain network with LayerNorm before its ReLUs."""
    model, rows = built(layer_norm=True), batch()
    pair = torch.cat([rows["observation"], rows["action"]], -1)
    for parameter in model.critics.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    found = model.critics(pair)
    for member in (0, 1):
        hidden = pair
        for layer, (weight, bias) in enumerate(zip(model.critics.weights, model.critics.biases, strict=True)):
            if layer:
                scale, shift = (part[layer - 1][member, 0] for part in (model.critics.scales, model.critics.shifts))
                hidden = torch.nn.functional.layer_norm(hidden, (16,), scale, shift).relu()
            hidden = hidden @ weight[member] + bias[member]
        torch.testing.assert_close(found[member], hidden.squeeze(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.critics.first(pair), found[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(built().critics(pair), found)


def test_it_acts_on_raw_observations_in_the_environments_units() -> None:
    model, rows = in_other_units(built()), batch()
    expected = 1 + 4 * model.actor.body(rows["observation"]).tanh()
    torch.testing.assert_close(model.act(3 + 2 * rows["observation"]), expected.detach())


def test_a_gaussian_policy_trains_on_samples_and_acts_by_its_mean() -> None:
    model, rows = built(policy="gaussian"), batch()
    model.branch = True
    before = model.actor.log_std.clone()
    model.update(Batch(rows, rows, rows))
    assert not model.actor.log_std.equal(before)
    actions = [model.action_of(model.actor, rows["observation"]) for _ in range(2)]
    assert not actions[0].equal(actions[1])
    torch.testing.assert_close(model.act(rows["observation"]), model.actor(rows["observation"]).mean.detach())
