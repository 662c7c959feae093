from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from networks import ROWS, as_module, batch, in_other_units, moved_by_role, ready
from test_shared import DATA, elsewhere, parameters
from torch.distributions import Normal, kl_divergence

from oper_lightning import InputError
from oper_lightning.algorithms.bcq import BCQ
from oper_lightning.spec import Batch

Tensor = torch.Tensor


def built(**options: Any) -> BCQ:
    model = BCQ(**{"hidden_sizes": (16, 16), "vae_hidden_sizes": (16, 16), "acting_actions": 7, **options})
    ready(model, "target_critics", "target_perturbation")
    return model


def lively(model: BCQ) -> BCQ:
    """Perturbations near their limit, so that one that is missing shows."""
    for network in (model.perturbation, model.target_perturbation):
        network.body[-1].weight.data *= 100
    return model


def generated(model: BCQ, observation: Tensor, latent: Tensor) -> Tensor:
    """The decoder's action ``[A]`` for one observation ``[O]``, layer by layer."""
    return model.decoder.body(torch.cat([observation, latent.clamp(-0.5, 0.5)])).tanh()


def perturbed(network: Any, observation: Tensor, action: Tensor, phi: float = 0.05) -> Tensor:
    """One action ``[A]`` as the paper perturbs it."""
    return (action + phi * network.body(torch.cat([observation, action])).tanh()).clamp(-1, 1)


def critics(model: BCQ, name: str = "critics") -> list[Any]:
    ensemble = getattr(model, name)
    return [as_module(ensemble.weights, ensemble.biases, member) for member in (0, 1)]


# The generative model --------------------------------------------------------------------------------------------


def test_the_vaes_loss_is_the_paper_s_with_pytorch_s_divergence() -> None:
    model, rows = built(kl_weight=0.7), batch()
    torch.manual_seed(3)
    found = model.vae_loss(rows)
    torch.manual_seed(3)
    noise = torch.randn(ROWS, 4)
    for row in range(ROWS):
        observation, action = rows["observation"][row], rows["action"][row]
        mean, log_std = model.encoder(torch.cat([observation, action])).split(4)
        normal = Normal(mean, log_std.exp())
        # Latents of the reconstruction are not clipped.
        back = model.decoder.body(torch.cat([observation, mean + log_std.exp() * noise[row]])).tanh()
        divergence = kl_divergence(normal, Normal(torch.zeros(4), torch.ones(4)))
        expected = ((back - action) ** 2).mean() + 0.7 * divergence.mean()
        torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize(("given", "held"), [(-9.0, -4.0), (40.0, 15.0)])
def test_the_encoders_deviation_is_held_within_bounds(given: float, held: float) -> None:
    model, rows = built(kl_weight=1.0), batch()
    last = model.encoder[-1]
    last.weight.data.zero_()
    last.bias.data = torch.tensor([0.0] * 4 + [given] * 4)
    model.decoder.body[-1].weight.data.zero_()  # reconstructs the same from any latent
    back = model.decoder.body[-1].bias.tanh()
    expected = (back - rows["action"]).square().mean(-1) + (math.exp(2 * held) - 1) / 2 - held
    torch.testing.assert_close(model.vae_loss(rows), expected)


def test_latents_of_generated_actions_are_clipped_and_their_own_in_each_row() -> None:
    model, seen = built(), []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., 3:]))
    observation = torch.zeros(400, 5, 3)
    actions = model.generated(observation)
    assert actions.shape == (400, 5, 2)
    assert (seen[0].min(), seen[0].max()) == (-0.5, 0.5)
    assert (seen[0].abs() < 0.5).double().mean().item() == pytest.approx(math.erf(0.5 / math.sqrt(2)), abs=0.02)
    assert len(actions.reshape(-1, 2).unique(dim=0)) > 1000


# The perturbation ------------------------------------------------------------------------------------------------


def test_every_row_has_a_perturbation_of_its_own() -> None:
    model, rows = lively(built()), batch()
    observation, action = rows["observation"], rows["action"] / 2
    found = model.perturbed(model.perturbation, observation, action)
    for row in range(ROWS):
        torch.testing.assert_close(found[row], perturbed(model.perturbation, observation[row], action[row]))
    changes = (found - action).round(decimals=5)
    assert len(changes.unique(dim=0)) > ROWS / 2
    # A change of one row's observation moves that row, and no other.
    observation = observation.clone()
    observation[5] += 1
    moved = (model.perturbed(model.perturbation, observation, action) != found).any(-1)
    assert moved.nonzero().flatten().tolist() == [5]


def test_perturbations_are_no_larger_than_phi_and_stay_in_the_box() -> None:
    for phi in (0.05, 0.3):
        model, rows = lively(built(perturbation=phi)), torch.cat([batch(seed) for seed in range(50)])
        action = rows["action"]
        found = model.perturbed(model.perturbation, rows["observation"], action)
        change = (found - action).abs()
        assert 0.9 * phi < change.max() <= phi + 1e-6
        assert found.abs().max() <= 1
    edge = torch.ones_like(action)
    assert (model.perturbed(model.perturbation, rows["observation"], edge).max(0).values == 1).all()


def test_the_target_takes_the_target_perturbation_of_every_candidate() -> None:
    """Slow loop over rows and candidates; with the online networks, or unperturbed, it comes out otherwise."""
    model, rows = lively(built(target_actions=3, minimum_share=0.6)), batch()
    torch.manual_seed(3)
    found = model.critic_loss(rows)
    torch.manual_seed(3)
    latents = torch.randn(ROWS, 3, 4)

    def by_hand(network: Any, judges: list[Any]) -> Tensor:
        losses = []
        for row in range(ROWS):
            following, best = rows["next", "observation"][row], -math.inf
            for latent in latents[row]:
                action = generated(model, following, latent)
                if network is not None:
                    action = perturbed(network, following, action)
                first, second = (judge(torch.cat([following, action])).item() for judge in judges)
                best = max(best, 0.6 * min(first, second) + 0.4 * max(first, second))
            target = rows["next", "reward"][row] + rows["discount"][row] * best
            pair = torch.cat([rows["observation"][row], rows["action"][row]])
            losses.append(sum((critic(pair).squeeze() - target) ** 2 for critic in critics(model)))
        return torch.stack(losses)

    expected = by_hand(model.target_perturbation, critics(model, "target_critics"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wrong = {
        "unperturbed": (None, "target_critics"),
        "perturbed by the online network": (model.perturbation, "target_critics"),
        "judged by the online critics": (model.target_perturbation, "critics"),
    }
    for fault, (network, judges) in wrong.items():
        assert not torch.allclose(by_hand(network, critics(model, judges)), expected, atol=1e-4), fault


def test_values_are_mixed_for_each_candidate_before_the_best_is_taken() -> None:
    """Three candidates; a maximum taken for each critic first, or after the minimum, would give 4.25 or 2."""
    model = built(minimum_share=0.75)
    values = torch.tensor([[[1.0, 3.0, -2.0]], [[5.0, 1.5, 10.0]]])
    # 0.75 * 1 + 0.25 * 5 = 2, 0.75 * 1.5 + 0.25 * 3 = 1.875, 0.75 * -2 + 0.25 * 10 = 1
    assert model.best_value(values).tolist() == [2.0]
    assert model.best_value(values.flip(0)).tolist() == [2.0]
    assert built(minimum_share=1.0).best_value(values).tolist() == [1.5]
    assert built(minimum_share=0.0).best_value(values).tolist() == [10.0]


def test_only_termination_ends_the_bootstrap() -> None:
    model, rows = built(), batch()
    gradient = torch.autograd.grad(model.critic_loss(rows).sum(), list(model.critics.parameters()))
    with torch.no_grad():
        for parameter in model.target_critics.parameters():
            parameter += 1
    ends = rows["next", "terminated"]
    torch.manual_seed(0)
    found = model.critic_loss(rows)
    values = torch.stack([c(torch.cat([rows["observation"], rows["action"]], -1)).squeeze(-1) for c in critics(model)])
    plain = (values - rows["next", "reward"]).square().sum(0)
    torch.testing.assert_close(found[ends], plain[ends])
    assert not torch.isclose(found[~ends], plain[~ends]).any()
    assert all(part.abs().max() > 0 for part in gradient)


def test_the_decoder_learns_from_the_recorded_actions_alone() -> None:
    """Its sample is a constant for the perturbation's loss, and nothing but the perturbation moves by that loss."""
    model, rows = built(), batch()
    loss = model.improvement_loss(rows).mean()
    of_decoder = torch.autograd.grad(loss, list(model.decoder.parameters()), allow_unused=True, retain_graph=True)
    assert all(gradient is None for gradient in of_decoder)
    of_perturbation = torch.autograd.grad(loss, list(model.perturbation.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in of_perturbation)


# The update ------------------------------------------------------------------------------------------------------


def adam_step(parameters: list[Tensor], gradients: Any, state: dict[str, Any], rate: float) -> None:
    """Adam as its paper writes it (Kingma and Ba 2015, algorithm 1)."""
    state["t"] = state.get("t", 0) + 1
    for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        first, second = state.get(number, (torch.zeros_like(parameter), torch.zeros_like(parameter)))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        state[number] = first, second
        corrected = first / (1 - 0.9 ** state["t"]), second / (1 - 0.999 ** state["t"])
        parameter.data -= rate * corrected[0] / (corrected[1].sqrt() + 1e-8)


def test_updates_are_those_of_a_loop_written_by_hand() -> None:
    """Five updates in the paper's order: autoencoder, critics, perturbation, targets; in float64."""
    model = built(target_actions=4, tau=0.1, learning_rate=3e-3).double()
    model.configure_optimizers()
    plain = copy.deepcopy(model)
    networks = ("encoder", "decoder", "critics", "perturbation", "target_critics", "target_perturbation")
    encoder, decoder, critic, change, target_critic, target_change = (getattr(plain, name) for name in networks)
    states: tuple[dict[str, Any], ...] = ({}, {}, {})
    for number in range(5):
        parts = [batch(3 * number + role).double() for role in range(3)]
        for part in parts:
            part["weight"] = torch.linspace(0, 2, ROWS).double()
        torch.manual_seed(number)
        model.update(Batch(*parts))
        torch.manual_seed(number)
        evaluation, improvement, constraint = parts

        observation, action = constraint["observation"], constraint["action"]
        mean, log_std = encoder(torch.cat([observation, action], 1)).split(4, 1)
        latent = mean + log_std.exp() * torch.randn(ROWS, 4, dtype=torch.float64)
        error = (torch.tanh(decoder.body(torch.cat([observation, latent], 1))) - action).pow(2).mean(1)
        divergence = (-log_std + (log_std.exp() ** 2 + mean**2 - 1) / 2).mean(1)
        loss = (constraint["weight"] * (error + 0.5 * divergence)).mean()
        own = [*encoder.parameters(), *decoder.parameters()]
        adam_step(own, torch.autograd.grad(loss, own), states[0], 3e-3)

        following = evaluation["next", "observation"].repeat_interleave(4, 0)
        latent = torch.randn(ROWS, 4, 4, dtype=torch.float64).reshape(-1, 4).clamp(-0.5, 0.5)
        action = torch.tanh(decoder.body(torch.cat([following, latent], 1)))
        moved = torch.tanh(target_change.body(torch.cat([following, action], 1)))
        action = (action + 0.05 * moved).clamp(-1, 1)
        first, second = target_critic(torch.cat([following, action], 1))
        mixed = 0.75 * torch.minimum(first, second) + 0.25 * torch.maximum(first, second)
        best = mixed.reshape(ROWS, 4).max(1).values
        target = (evaluation["next", "reward"] + evaluation["discount"] * best).detach()
        first, second = critic(torch.cat([evaluation["observation"], evaluation["action"]], 1))
        loss = (evaluation["weight"] * ((first - target) ** 2 + (second - target) ** 2)).mean()
        own = list(critic.parameters())
        adam_step(own, torch.autograd.grad(loss, own), states[1], 3e-3)

        observation = improvement["observation"]
        latent = torch.randn(ROWS, 4, dtype=torch.float64).clamp(-0.5, 0.5)
        action = torch.tanh(decoder.body(torch.cat([observation, latent], 1))).detach()
        moved = torch.tanh(change.body(torch.cat([observation, action], 1)))
        action = (action + 0.05 * moved).clamp(-1, 1)
        loss = -(improvement["weight"] * critic(torch.cat([observation, action], 1))[0]).mean()
        own = list(change.parameters())
        adam_step(own, torch.autograd.grad(loss, own), states[2], 3e-3)

        for slow, fast in ((target_critic, critic), (target_change, change)):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.data = 0.9 * old.data + 0.1 * new.data
    expected = parameters(plain)
    for name, value in parameters(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6, msg=name)


def test_each_loss_is_of_its_own_roles_data() -> None:
    moved = moved_by_role(built(), [batch(1), batch(2), batch(3)], [batch(4), batch(5), batch(6)])
    assert moved == [{"critic_loss"}, {"improvement_loss", "value"}, {"vae_loss"}]


def test_weights_multiply_the_loss_of_their_role() -> None:
    for role, name in enumerate(("critic_loss", "improvement_loss", "vae_loss")):
        results = []
        for factor in (1, 3):
            model, parts = built(), [batch(1), batch(2), batch(3)]
            model.minimise = lambda loss, *_: None  # type: ignore[method-assign]
            parts[role]["weight"] *= factor
            torch.manual_seed(0)
            results.append(model.update(Batch(*parts)))
        for other, value in results[1].items():
            torch.testing.assert_close(value, (3 if other == name else 1) * results[0][other])


# Acting ----------------------------------------------------------------------------------------------------------


def test_it_acts_by_the_first_critics_best_of_its_perturbed_candidates() -> None:
    model, rows = lively(built()), batch()
    found = model.act(rows["observation"])
    judge, _ = critics(model)
    for row, observation in enumerate(rows["observation"]):
        candidates = [
            perturbed(model.perturbation, observation, generated(model, observation, latent))
            for latent in model.acting_latents
        ]
        values = [judge(torch.cat([observation, action])).item() for action in candidates]
        torch.testing.assert_close(found[row], candidates[values.index(max(values))].detach())
    assert model.acting_latents.shape == (7, 4)
    assert model.acting_latents.abs().max() <= 0.5


def test_acting_is_a_function_of_the_observation() -> None:
    """The same twice, at any state of the generator, alone and in a batch, and in any shape of batch."""
    model, rows = built(acting_actions=100), batch()
    found = model.act(rows["observation"])
    torch.manual_seed(99)
    assert model.act(rows["observation"]).equal(found)
    for row in range(ROWS):
        torch.testing.assert_close(model.act(rows["observation"][row]), found[row])
    assert model.act(rows["observation"].reshape(3, 4, 3)).shape == (3, 4, 2)
    torch.testing.assert_close(model.act(rows["observation"].reshape(3, 4, 3)).reshape(ROWS, 2), found)
    assert "acting_latents" in model.state_dict()


def test_it_acts_on_raw_observations_in_the_environments_units() -> None:
    plain, model, rows = built(), in_other_units(built(normalise_observations=True)), batch()
    torch.testing.assert_close(model.act(3 + 2 * rows["observation"]), 1 + 4 * plain.act(rows["observation"]))


def test_in_boxes_of_other_sizes_the_perturbation_is_a_share_of_the_box() -> None:
    """The decoder learns the box's middle, and the policy leaves it by no more than phi of half the box."""
    low, high = torch.tensor([-3.0, 0.0]), torch.tensor([1.0, 6.0])
    model = lively(built(perturbation=0.1))
    module = elsewhere("continuous", 1, 0)
    module.setup()
    model._take(module.spec)
    model.decoder.body[-1].weight.data.zero_()
    model.decoder.body[-1].bias.data.zero_()
    actions = model.act(torch.from_numpy(DATA["continuous"]["observations"]))
    distance = (actions - (low + high) / 2).abs() / ((high - low) / 2)
    assert 0.09 < distance.max() <= 0.1 + 1e-6
    assert (distance.max(0).values > 0.05).all()


@pytest.mark.parametrize("name", ["target_actions", "acting_actions", "latent_size"])
def test_impossible_numbers_are_refused(name: str) -> None:
    for count in (0, -1, 10_001):
        with pytest.raises(InputError, match=rf"BCQ: {name} {count} must be from 1 to 10,000"):
            BCQ(**{name: count})


def test_latents_are_of_the_given_length() -> None:
    model = built(latent_size=3)
    assert model.acting_latents.shape == (7, 3)
    model.update(Batch(batch(), batch(), batch()))
