from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ROWS, Pair, as_module, batch, moved_by_role, ready
from tensordict import TensorDict
from test_shared import algorithm, data, fit, parameters
from torch import nn

from oper_lightning import InputError, OperR
from oper_lightning.algorithms.iql import IQL
from oper_lightning.spec import Batch


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


def test_the_policys_learning_rate_falls_to_nothing(tmp_path: Path) -> None:
    model = algorithm("IQL", learning_rate=1e-3)
    rates: list[list[float]] = []
    update = model.update

    def spied(batch: Batch) -> Any:
        rates.append([optimiser.param_groups[0]["lr"] for optimiser in model.trainer.optimizers])
        return update(batch)

    model.update = spied  # type: ignore[method-assign]
    fit(model, data(), tmp_path, 40)
    policy, value, critics = zip(*rates, strict=True)
    assert {*value, *critics} == {1e-3}
    assert policy == pytest.approx([1e-3 * 0.5 * (1 + math.cos(math.pi * k / 40)) for k in range(40)])
    with pytest.raises(InputError, match="parts of 40 updates, this one of 80"):
        fit(algorithm("IQL"), data(), tmp_path, 80, ckpt_path=tmp_path / "last.ckpt")


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
    heavy["weight"] *= 3
    weighed = model.update(Batch(heavy, cloned, cloned))
    for name in ("value_loss", "critic_loss"):
        torch.testing.assert_close(weighed[name], 3 * results[name])
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
