from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ROWS, Pair, as_module, batch, ready
from tensordict import TensorDict
from test_shared import algorithm, data, fit, parameters
from torch import nn

from oper_lightning import OperR
from oper_lightning.algorithms.iql import IQL
from oper_lightning.nn.optim import schedule
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
    fit(model, data(), tmp_path, 40)
    rates = [optimiser.param_groups[0]["lr"] for optimiser in model.configure_optimizers()]
    assert rates == [1e-3] * 3
    model.prepare(0)
    assert model.policy_optimiser.param_groups[0]["lr"] == pytest.approx(1e-3)
    model.prepare(20)
    assert model.policy_optimiser.param_groups[0]["lr"] == pytest.approx(5e-4)
    model.prepare(39)
    assert model.policy_optimiser.param_groups[0]["lr"] < 2e-6
    assert schedule("cosine", 1.0) == pytest.approx(0)


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
    model = algorithm("IQL", dropout=0.5)
    fit(model, data(priority=OperR()), tmp_path)
    observation = torch.randn(7, 3)
    model.eval()
    assert model.act(observation).equal(model.act(observation))
    model.train()
    assert not model.act(observation).equal(model.act(observation))
    plain = algorithm("IQL")
    fit(plain, data(priority=OperR()), tmp_path / "plain")
    assert not parameters(plain)["policy.body.0.weight"].equal(parameters(model)["policy.body.0.weight"])


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
