from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import batch, spec
from test_shared import algorithm, data, fit

from oper_lightning import InputError, OperR
from oper_lightning.algorithms.bc import BC


def built(policy: str) -> BC:
    torch.manual_seed(0)
    model = BC(policy=policy, hidden_sizes=(8, 8))  # type: ignore[arg-type]
    model._build(spec())
    return model


def test_the_deterministic_loss_is_the_mean_squared_error() -> None:
    model, rows = built("deterministic"), batch()
    action = torch.tanh(model.policy.body(rows["observation"]))
    torch.testing.assert_close(model.loss(rows), (action - rows["action"]).pow(2).sum(-1) / 2)


def test_the_gaussian_loss_is_the_negative_log_density() -> None:
    model, rows = built("gaussian"), batch()
    raw = torch.tanh(model.policy.body(rows["observation"])).double()
    mean, log_std = raw[:, :2], -5 + 2.5 * (raw[:, 2:] + 1)
    density = torch.exp(-0.5 * ((rows["action"] - mean) / log_std.exp()) ** 2) / (log_std.exp() * (2 * torch.pi) ** 0.5)
    torch.testing.assert_close(model.loss(rows).double(), -density.log().sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.act(rows["observation"]).double(), mean, rtol=1e-3, atol=1e-3)


def test_the_sampled_loss_is_the_error_of_an_action_from_the_distribution() -> None:
    """On average over the noise: the mean's squared error and the variance."""
    model, rows = built("sampled"), batch()
    normal = model.policy(rows["observation"])
    torch.manual_seed(0)
    drawn = normal.mean + normal.stddev * torch.randn(normal.mean.shape)
    torch.manual_seed(0)
    torch.testing.assert_close(model.loss(rows), (drawn - rows["action"]).square().mean(-1))
    average = torch.stack([model.loss(rows) for _ in range(20_000)]).mean(0)
    expected = ((normal.mean - rows["action"]).square() + normal.variance).mean(-1)
    torch.testing.assert_close(average, expected, rtol=2e-2, atol=1e-3)
    torch.testing.assert_close(model.act(rows["observation"]), normal.mean)


def test_improvement_and_constraint_cannot_be_split(tmp_path: Path) -> None:
    for mode in ("resample", "reweight"):
        with pytest.raises(InputError, match="splits improvement from constraint"):
            fit(algorithm("BC"), data(priority=OperR(), prioritise=["improvement"], mode=mode), tmp_path / mode)
