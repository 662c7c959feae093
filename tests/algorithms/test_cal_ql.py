from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import columns, oper, transitions
from networks import ROWS, batch, ready
from tensordict import TensorDict
from test_shared import algorithm, data, fit, parameters, same

from oper_lightning import InputError
from oper_lightning.algorithms.cal_ql import CalQL
from oper_lightning.algorithms.cql import CQL
from oper_lightning.report.runs import defaults
from oper_lightning.spec import Batch

SMALL: dict[str, Any] = {"policy_hidden_sizes": (16, 16), "critic_hidden_sizes": (16, 16), "sampled_actions": 4}
AS_CALQL: dict[str, Any] = {"max_target_backup": True, "orthogonal_init": True, "policy_learning_rate": 1e-4}


def built(**options: Any) -> CalQL:
    model = CalQL(**{**SMALL, **options})
    ready(model, "target_critics", "critics", "policy")
    return model


def bounded(returns: float | torch.Tensor, seed: int = 0) -> TensorDict:
    rows = batch(seed)
    rows["return_to_go"] = torch.as_tensor(returns).expand(ROWS).clone()
    return rows


def episodes(rewards: list[list[float]], terminated: list[bool]) -> TensorDict:
    """Transitions of episodes with these rewards, each of which terminates or is cut off."""
    arrays = columns([len(part) for part in rewards])
    table = transitions(arrays)
    done = table["next", "done"]
    table["next", "reward"] = torch.tensor([reward for part in rewards for reward in part])
    table["next", "terminated"] = torch.zeros_like(done)
    table["next", "terminated"][done] = torch.tensor(terminated)
    table["next", "truncated"] = done & ~table["next", "terminated"]
    return table


@pytest.mark.parametrize("lagrange", [None, 0.8])
@pytest.mark.parametrize("importance", [True, False])
def test_without_a_bound_it_is_cql_bit_for_bit(lagrange: float | None, importance: bool) -> None:
    """Networks, multipliers and moments of the optimisers, over several updates."""
    options = {"lagrange_gap": lagrange, "importance_sampling": importance}
    models: list[CQL] = [CQL(**SMALL, **AS_CALQL, **options), CalQL(calibrate_uniform=True, **SMALL, **options)]
    for model in models:
        ready(model, "target_critics", "critics", "policy")
        torch.manual_seed(1)
        for number in range(5):
            rows = bounded(-math.inf, number)
            model.branch = model.prepare(number)
            model.update(Batch(rows, rows, rows))
    assert same(*(parameters(model) for model in models))
    states = [model.critic_optimiser.state.values() for model in models]
    for first, second in zip(*states, strict=True):
        assert all(value.equal(second[name]) for name, value in first.items())
    # With a bound that holds it is another algorithm.
    rows = bounded(5.0)
    models[1].branch = False
    models[1].update(Batch(rows, rows, rows))
    models[0].branch = False
    models[0].update(Batch(rows, rows, rows))
    assert not same(*(parameters(model) for model in models))


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("importance", [True, False])
@pytest.mark.parametrize("lagrange", [None, 0.8])
def test_the_penalty_with_a_bound_is_its_definition_in_a_loop(
    uniform: bool, importance: bool, lagrange: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No value of a sampled action that enters the logarithm lies below the row's return, before densities."""
    model = built(calibrate_uniform=uniform, importance_sampling=importance, lagrange_gap=lagrange)
    rows = bounded(torch.linspace(-0.5, 0.5, ROWS))
    free = CQL.candidates(model, rows)[0]
    assert (free < rows["return_to_go"][:, None]).any()  # some have to be lifted
    assert (free > rows["return_to_go"][:, None]).any()
    entered: list[torch.Tensor] = []
    logsumexp = torch.logsumexp
    monkeypatch.setattr(torch, "logsumexp", lambda values, dim: entered.append(values) or logsumexp(values, dim))
    torch.manual_seed(1)
    found = model.difference(rows, model.recorded_value(rows))
    torch.manual_seed(1)
    values, density = CQL.candidates(model, rows)
    [inside] = entered
    before = inside[..., : values.shape[-1]] + (density if importance else 0)
    policies = before[..., 0 if uniform else 4 :]
    assert (policies >= rows["return_to_go"][:, None] - 1e-5).all()
    recorded = model.recorded_value(rows)
    for critic in (0, 1):
        for row in range(ROWS):
            entries = []
            for k in range(12):
                value = values[critic, row, k].item()
                if k >= 4 or uniform:
                    value = max(value, rows["return_to_go"][row].item())
                entries.append(value - (density[row, k].item() if importance else 0))
            if not importance:
                entries.append(recorded[critic, row].item())
            expected = math.log(sum(map(math.exp, entries))) - recorded[critic, row].item()
            assert found[critic, row].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_what_lies_below_the_bound_is_not_pushed_down() -> None:
    """Without gradient through a lifted value, the penalty lowers only values above the bound."""
    model, rows = built(calibrate_uniform=True), bounded(100.0)
    found = model.difference(rows, torch.zeros(2, ROWS))
    gradients = torch.autograd.grad(found.sum(), list(model.critics.parameters()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    free = bounded(-100.0)
    gradients = torch.autograd.grad(
        model.difference(free, torch.zeros(2, ROWS)).sum(), list(model.critics.parameters()), allow_unused=True
    )
    assert any(gradient.any() for gradient in gradients if gradient is not None)


def test_returns_are_sums_to_the_end_of_the_episode() -> None:
    rewards = [[1.0, 2.0, 3.0], [-1.0, 4.0]]
    model = CalQL(discount=0.5)
    expected = [1 + 1 + 0.75, 2 + 1.5, 3, -1 + 2, 4]
    for terminated in ([True, False], [False, True]):
        table = episodes(rewards, terminated)
        asked = model.columns(table)
        assert asked["return_to_go"].tolist() == pytest.approx(expected)
        assert asked["return_to_go"].dtype is torch.float32
        assert asked["discount"].tolist() == CQL(discount=0.5).columns(table)["discount"].tolist()


def test_an_episode_of_failures_only_fails_for_ever() -> None:
    """As in OOO's returns of antmaze: -5 at each step is -500 at a discount of 0.99, cut off or not."""
    rewards = [[-5.0] * 4, [-5.0, -5.0, 5.0], [5.0], [-5.0, -5.0]]
    table = episodes(rewards, [False, True, True, True])
    found = CalQL(failure_reward=-5.0).columns(table)["return_to_go"].tolist()
    g = 0.99
    assert found[:4] == pytest.approx([-500.0] * 4)
    assert found[4:7] == pytest.approx([-5 - 5 * g + 5 * g**2, -5 + 5 * g, 5])
    assert found[7:] == pytest.approx([5, -500, -500])
    # Without saying so it is what was earned.
    assert CalQL().columns(table)["return_to_go"][3].item() == -5


def test_rewards_that_were_scaled_are_failures_up_to_rounding() -> None:
    table = episodes([[0.1] * 3, [0.1, 1.0, 0.1]], [False, False])
    table["next", "reward"] = table["next", "reward"] * 3 - 0.7
    found = CalQL(failure_reward=-0.4).columns(table)["return_to_go"]
    assert found[:3].tolist() == pytest.approx([-40.0] * 3)
    assert (found[3:] > -3).all()


def test_a_task_without_end_goes_on_after_the_cut() -> None:
    """As in OOO's returns of kitchen: the last reward for ever, unless the episode terminated."""
    found = CalQL(endless=True).columns(episodes([[0.0, 2.0], [1.0, 3.0]], [False, True]))["return_to_go"]
    assert found.tolist() == pytest.approx([0.99 * 200, 200, 1 + 0.99 * 3, 3], rel=1e-5)


def test_neither_has_a_meaning_without_discount() -> None:
    for options in ({"endless": True}, {"failure_reward": -1.0}):
        with pytest.raises(InputError, match="discount below 1"):
            CalQL(discount=1.0, **options)


def test_the_columns_of_a_run_are_of_scaled_rewards(tmp_path: Path) -> None:
    module = data(reward_scale=2.0, reward_shift=-1.0)
    fit(algorithm("CalQL", discount=0.9), module, tmp_path, 20)
    rewards, done = module.table["next", "reward"].double(), module.transitions["next", "done"]
    expected, ahead = [], 0.0
    for reward, end in reversed(list(zip(rewards.tolist(), done.tolist(), strict=True))):
        ahead = reward + (0 if end else 0.9 * ahead)
        expected.append(ahead)
    torch.testing.assert_close(module.table["return_to_go"], torch.tensor(expected[::-1]), rtol=1e-5, atol=1e-5)


def test_its_defaults_and_its_parents_arguments_are_kept(tmp_path: Path) -> None:
    model = algorithm("CalQL", normalise_observations=True, tau=0.02)
    fit(model, data(), tmp_path, 20)
    loaded = CalQL.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert (loaded.normalises, loaded.tau, loaded.max_target_backup) == (True, 0.02, True)
    assert same(parameters(model), parameters(loaded))


def test_online_it_needs_whole_episodes(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of running episodes have no return yet. With finished ones, bounds are those of the log as a whole."""
    words = [
        "fit", "--model=CalQL", "--model.policy_hidden_sizes=[8]", "--model.critic_hidden_sizes=[8]",
        "--model.sampled_actions=2", "--data=OnlineDataModule", "--data.source=D4RL",
        f"--data.source.path={small_file}", "--data.rollouts=null", "--data.warmup=60", "--data.batch_size=32",
        "--data.updates_per_epoch=20", "--trainer.max_steps=40",
    ]  # fmt: skip
    assert oper(*words, "--output=refused") == 1
    assert "CalQL needs the returns of whole episodes: set data.visible to episode" in capsys.readouterr().err
    assert not Path("refused/last.ckpt").exists()
    assert oper(*words, "--data.visible=episode", "--output=run") == 0
    assert oper(*words, "--model.discount=null", "--output=other") == 1
    assert "model.discount is null, but needs a value" in capsys.readouterr().err


def test_its_own_defaults_win_over_its_parents() -> None:
    known = defaults(CalQL)
    assert (known["orthogonal_init"], known["policy_learning_rate"], known["cql_weight"]) == (True, 1e-4, 5.0)
