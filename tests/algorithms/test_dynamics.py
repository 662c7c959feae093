"""The dynamics ensemble: its losses, which member takes which step, what is kept, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Arrays, columns, oper, write_hdf5
from lightning.pytorch import Trainer
from networks import spec as spec_of
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

from oper_lightning import D4RL, InputError, OfflineDataModule
from oper_lightning.algorithms.dynamics import DynamicsEnsemble
from oper_lightning.nn.dynamics import Dynamics
from oper_lightning.report.model import in_a_line
from oper_lightning.training.model_errors import Errors, energy_distance

OBSERVATIONS, ACTIONS, MEMBERS = 3, 2, 4


def rows(count: int, seed: int = 0) -> TensorDict:
    torch.manual_seed(seed)
    following = {"observation": torch.randn(count, OBSERVATIONS) * 3 + 1, "reward": torch.randn(count) * 5}
    return TensorDict(
        {
            "observation": torch.randn(count, OBSERVATIONS) * 2,
            "action": torch.rand(count, ACTIONS) * 2 - 1,
            "next": following,
        },
        batch_size=[count],
    )


def ensemble(gaussian: bool = False, reward: bool = True, members: int = MEMBERS) -> Dynamics:
    torch.manual_seed(1)
    model = Dynamics(members, OBSERVATIONS, ACTIONS, [8, 7], reward, gaussian, 0.5)
    model.measure(rows(500))
    return model


def by_hand(model: Dynamics, member: int, inputs: Tensor) -> Tensor:
    """One member's network, layer by layer."""
    hidden = inputs
    for layer, (weight, bias) in enumerate(zip(model.networks.weights, model.networks.biases, strict=True)):
        hidden = (functional.relu(hidden) if layer else hidden) @ weight[member] + bias[member, 0]
    return hidden


def test_statistics_are_those_of_the_rows_in_double_precision() -> None:
    data = rows(500)
    data["observation"][:, 1] = 1e4 + torch.randn(500) * 1e-2  # float32 sums would lose it
    data["action"][:, 0] = 0.25
    model = Dynamics(1, OBSERVATIONS, ACTIONS, [4], True, False, 0.5)
    model.measure(data)
    observation = data["observation"].double().numpy()
    following = data["next", "observation"].double().numpy()
    change = (data["next", "observation"] - data["observation"]).double().numpy()
    assert np.allclose(model.observation_mean, observation.mean(0), rtol=1e-7)
    assert np.allclose(model.observation_std, observation.std(0), rtol=1e-6)
    assert np.allclose(model.target_std[:OBSERVATIONS], change.std(0), rtol=1e-6)
    assert float(model.action_std[0]) == 1.0  # a constant column is not blown up
    low, high = np.minimum(observation, following).min(0), np.maximum(observation, following).max(0)
    assert np.allclose(model.low, low - 0.5 * (high - low), rtol=1e-6)
    assert np.allclose(model.high, high + 0.5 * (high - low), rtol=1e-6)


@pytest.mark.parametrize("gaussian", [False, True])
def test_every_member_predicts_as_its_network_does(gaussian: bool) -> None:
    model, data = ensemble(gaussian), rows(11, 2)
    found = model.every(data["observation"], data["action"])
    for member in range(MEMBERS):
        for row in range(11):
            seen = (data["observation"][row] - model.observation_mean) / model.observation_std
            acted = (data["action"][row] - model.action_mean) / model.action_std
            out = by_hand(model, member, torch.cat([seen, acted]))[: OBSERVATIONS + 1]
            change = out * model.target_std + model.target_mean
            expected = (data["observation"][row] + change[:OBSERVATIONS]).clamp(model.low, model.high)
            assert torch.allclose(found.observation[member, row], expected, atol=1e-5)
            assert found.reward is not None
            assert torch.allclose(found.reward[member, row], change[OBSERVATIONS], atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 4, 10, 20])
def test_neighbours_are_dealt_different_members_which_change_from_step_to_step(count: int) -> None:
    model, data = ensemble(), rows(count, 3)
    every = model.every(data["observation"], data["action"]).observation
    seen = []
    for _ in range(40):
        step = model.step(data["observation"], data["action"]).observation
        same = torch.isclose(every, step, atol=1e-5).all(-1)
        assert bool((same.sum(0) == 1).all())  # each row is one member's
        who = same.float().argmax(0)
        for group in who.split(MEMBERS):
            assert len(group.unique()) == len(group)
        seen.append(who)
    counts = torch.bincount(torch.stack(seen).flatten(), minlength=MEMBERS)
    assert counts.min() > 0.1 * counts.sum() / MEMBERS
    assert len({tuple(who.tolist()) for who in seen}) > 1


def test_one_member_may_take_all_rows() -> None:
    model, data = ensemble(), rows(10, 3)
    every = model.every(data["observation"], data["action"]).observation
    taken = set()
    for _ in range(60):
        step = model.step(data["observation"], data["action"], shared=True).observation
        whose = [m for m in range(MEMBERS) if torch.allclose(every[m], step, atol=1e-5)]
        assert len(whose) == 1
        taken.add(whose[0])
    assert taken == set(range(MEMBERS))


@pytest.mark.parametrize("shared", [False, True])
def test_gaussian_steps_have_the_members_spread(shared: bool) -> None:
    model = ensemble(gaussian=True, members=1)
    with torch.no_grad():
        model.most.fill_(-1.0)
        model.least.fill_(-1.0 - 1e-3)
    one = rows(1, 4).expand(40_000)
    step = model.step(one["observation"], one["action"], shared=shared)
    free = (step.observation > model.low) & (step.observation < model.high)
    assert bool(free.all())
    spread = step.observation.std(0) / model.target_std[:OBSERVATIONS]
    _, log_variance = model.heads(model.inputs(one["observation"][:1], one["action"][:1]))
    assert log_variance is not None
    assert torch.allclose(spread, (log_variance[0, 0, :OBSERVATIONS] / 2).exp(), rtol=0.03)


def test_what_leaves_the_data_is_told_and_never_a_number_that_is_none() -> None:
    model, data = ensemble(), rows(8, 5)
    with torch.no_grad():
        model.networks.biases[-1][0] = 1e6
        model.networks.biases[-1][1] = float("nan")
        model.networks.biases[-1][2] = float("inf")
    found = model.every(data["observation"], data["action"])
    assert found.left[:3].all()
    assert not found.left[3].any()
    assert bool(found.observation.isfinite().all())
    assert found.reward is not None
    assert bool(found.reward.isfinite().all())
    assert bool((found.observation >= model.low).all() and (found.observation <= model.high).all())


@pytest.mark.parametrize("kind", ["deterministic", "gaussian"])
@pytest.mark.parametrize("reward", [True, False])
def test_losses_by_hand(kind: Any, reward: bool) -> None:
    model = DynamicsEnsemble(2, (8, 7), kind=kind, reward=reward, weight_decay=3.0)
    torch.manual_seed(0)
    model._build(spec_of(OBSERVATIONS, ACTIONS))
    model.model.measure(rows(500))
    model.rows = 100
    batch = torch.stack([rows(6, 7), rows(6, 8)])
    found = model.loss(batch)
    networks = model.model
    for member in range(2):
        for row in range(6):
            one = batch[member, row]
            change = one["next", "observation"] - one["observation"]
            full = torch.cat([change, one["next", "reward"].reshape(1)]) if reward else change
            target = (full - networks.target_mean) / networks.target_std
            out = by_hand(networks, member, networks.inputs(one["observation"], one["action"]))
            if kind == "deterministic":
                expected = (out - target).square().mean()
            else:
                mean, log_variance = out.chunk(2)
                log_variance = networks.most[member, 0] - functional.softplus(networks.most[member, 0] - log_variance)
                log_variance = networks.least[member, 0] + functional.softplus(log_variance - networks.least[member, 0])
                normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
                expected = (-2 * normal.log_prob(target) - np.log(2 * np.pi)).mean()
            assert torch.allclose(found[member, row], expected, atol=1e-4)
    decay = (
        sum(float(weight.detach().square().sum()) / 2 for weight in list(networks.networks.weights)[:-1]) * 3.0 / 100
    )
    bounds = 0.01 * float((networks.most - networks.least).sum()) if kind == "gaussian" else 0.0
    assert float(model.penalty()) == pytest.approx(decay + bounds, rel=1e-5)


def test_each_members_best_weights_are_kept_until_all_have_stopped() -> None:
    model = DynamicsEnsemble(3, (4,), patience=2)
    model._build(spec_of(OBSERVATIONS, ACTIONS))
    model._trainer = trainer = type("Stops", (), {"should_stop": False})()
    course = torch.tensor([[3.0, 3, 3], [2, 4, 3], [5, 5, 2], [1, 1, 4], [6, 6, 1], [7, 7, 7]])
    best_of = [0, 0, 0]
    for epoch, error in enumerate(course):
        with torch.no_grad():
            for parameter in model.model.parameters():
                parameter.fill_(epoch)
        assert not trainer.should_stop
        model._keep(error)
    # The first falls in epochs 0, 1 and 3; the second stops after epoch 2, before it would have fallen; the third goes
    # on to epoch 4.
    best_of = [3, 0, 4]
    for kept in model.best.parameters():
        assert [float(kept[member].max()) for member in range(3)] == best_of
    assert model.best_error.tolist() == [1, 3, 1]
    assert not trainer.should_stop
    model._keep(torch.full((3,), 9.0))
    assert trainer.should_stop


def test_members_are_judged_by_the_geometric_mean_over_episodes(tmp_path: Path) -> None:
    """One of the episodes errs hundreds of times more than the others, and would decide an arithmetic mean alone."""
    made = linear(episodes=20)
    made["next_observations"][:400] += 3 * np.random.default_rng(1).normal(size=(400, OBSERVATIONS))
    write_hdf5(tmp_path / "rows.hdf5", made)
    data = OfflineDataModule(D4RL(str(tmp_path / "rows.hdf5")), batch_size=64, updates_per_epoch=20, holdout=0.5)
    model = DynamicsEnsemble(2, (16,))
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    Trainer(max_steps=20, accelerator="cpu", **quiet).fit(model, data)
    assert data.held_out is not None
    product = torch.ones(2, dtype=torch.float64)
    held = torch.nonzero(data.held_out).squeeze(1).split(40)
    for episode in held:
        rows = data.rows(episode)
        wanted = model.best.targets(rows["observation"], rows["next", "observation"], rows["next", "reward"])
        said, _ = model.best.heads(model.best.inputs(rows["observation"], rows["action"]))
        product *= (said - wanted).square().mean((1, 2)).double()
    assert model.best_error.tolist() == pytest.approx((product ** (1 / len(held))).tolist(), rel=1e-4)


def linear(episodes: int = 30, length: int = 40, noise: float = 0.0) -> dict[str, np.ndarray]:
    """Episodes of a system that a network learns well: a damped, pushed point."""
    generator = np.random.default_rng(0)
    made = columns([length] * episodes, OBSERVATIONS, ACTIONS)
    observation = np.zeros((episodes, length + 1, OBSERVATIONS), np.float32)
    observation[:, 0] = generator.normal(size=(episodes, OBSERVATIONS))
    action = generator.uniform(-1, 1, (episodes, length, ACTIONS)).astype(np.float32)
    push = generator.normal(size=(ACTIONS, OBSERVATIONS))
    for t in range(length):
        observation[:, t + 1] = 0.95 * observation[:, t] + 0.2 * action[:, t] @ push
        observation[:, t + 1] += noise * generator.normal(size=(episodes, OBSERVATIONS))
    made["observations"] = observation[:, :-1].reshape(-1, OBSERVATIONS)
    made["next_observations"] = observation[:, 1:].reshape(-1, OBSERVATIONS)
    made["actions"] = action.reshape(-1, ACTIONS)
    made["rewards"] = observation[:, :-1, 0].reshape(-1)
    return made


LEARNT = ["--model=DynamicsEnsemble", "--model.members=2", "--model.hidden_sizes=[32,32]", "--model.patience=5"]
ROWS = ["--data.source=D4RL", "--data.source.path=rows.hdf5", "--data.rollouts=null", "--data.batch_size=64"]


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_hdf5(tmp_path / "rows.hdf5", linear())
    length = ["--data.updates_per_epoch=100", "--trainer.max_steps=1500"]
    assert oper("fit", *LEARNT, *ROWS, *length, "--output=run") == 1
    assert "--data.holdout=0.1" in capsys.readouterr().err
    assert oper("fit", *LEARNT, *ROWS, *length, "--data.holdout=0.1", "--output=held") == 0
    assert "held-out error" in capsys.readouterr().err
    assert oper("validate", "--ckpt_path=held/last.ckpt") == 0
    line = capsys.readouterr().out
    assert line.startswith("one-step error 0.0")
    assert "(120 held-out rows)" in line
    assert (tmp_path / "held" / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert oper("validate", "--ckpt_path=held/last.ckpt", "--data.holdout=1") == 0
    assert "(1,200 held-out rows)" in capsys.readouterr().out
    assert oper("validate", "--ckpt_path=held/last.ckpt", "--data.holdout=0") == 1
    assert "this is no policy, and is judged by recorded rows: hold out" in capsys.readouterr().err
    assert oper("predict", "--ckpt_path=held/last.ckpt") == 0
    soon = ["--model.learning_rate=0.3", "--model.patience=2", "--data.holdout=0.1", "--output=soon"]
    assert oper("fit", *LEARNT, *ROWS, *length, *soon) == 0
    printed = capsys.readouterr()
    assert "no member has erred less on held-out episodes for 2 epochs" in printed.out
    assert "120 transitions of which are held out" in printed.err
    warm = ["--model.start=held/last.ckpt", "--data.holdout=0.1", "--output=warm"]
    assert oper("fit", *LEARNT, *ROWS, "--data.updates_per_epoch=10", "--trainer.max_steps=10", *warm) == 0
    first, second = (torch.load(f"{run}/last.ckpt", weights_only=True)["state_dict"] for run in ("held", "warm"))
    assert float(second["best_error"].mean()) < 3 * float(first["best_error"].mean())
    never = ["--trainer.limit_val_batches=0", "--data.holdout=0.1", "--output=never"]
    assert oper("fit", *LEARNT, *ROWS, "--data.updates_per_epoch=10", "--trainer.max_steps=10", *never) == 0
    again = ["--model.start=never/last.ckpt", "--data.holdout=0.1", "--output=again"]
    assert oper("fit", *LEARNT, *ROWS, *length, *again) == 1
    assert "never judged on held-out episodes" in capsys.readouterr().err
    for words in (["--model.start=nowhere.ckpt"], ["--model.start=held/last.ckpt", "--model.hidden_sizes=[16]"]):
        assert oper("fit", *LEARNT, *ROWS, *length, "--data.holdout=0.1", *words, f"--output=bad{len(words)}") == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith("oper: error: ")
    assert (
        oper(
            "fit",
            *LEARNT,
            *ROWS[:2],
            *length,
            "--data.holdout=0.1",
            "--data.rollouts.environment=Reacher-v5",
            "--output=w",
        )
        == 1
    )
    assert oper("collect", "Reacher-v5", "--policy=held/last.ckpt", "--output=c.npz") == 1


def trained(tmp_path: Path, patience: int, resume: str | None = None, steps: int = 300) -> DynamicsEnsemble:
    model = DynamicsEnsemble(2, (16,), patience=patience, learning_rate=3e-2)
    model.seed = 0
    data = OfflineDataModule(Arrays(linear()), batch_size=32, updates_per_epoch=10, rollouts=None, holdout=0.1, seed=0)
    torch.manual_seed(0)
    trainer = Trainer(max_steps=steps, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.fit(model, data, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return model


def test_a_run_that_had_stopped_stays_as_it_is(tmp_path: Path) -> None:
    model = trained(tmp_path, patience=2, steps=3000)
    assert model.global_step < 3000
    again = trained(tmp_path, patience=2, resume=str(tmp_path / "last.ckpt"), steps=3000)
    assert again.global_step == model.global_step
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_errors_of_models_whose_errors_are_known() -> None:
    arrays = linear(6, 60)
    data = TensorDict(
        {
            "observation": torch.from_numpy(arrays["observations"]),
            "action": torch.from_numpy(arrays["actions"]),
            "next": {
                "observation": torch.from_numpy(arrays["next_observations"]),
                "reward": torch.from_numpy(arrays["rewards"]),
            },
        },
        batch_size=[360],
    )
    ends = torch.zeros(360, dtype=torch.bool)
    ends[59::60] = True
    # Two members that always say the mean change, a standard deviation above and below it.
    model = Dynamics(2, OBSERVATIONS, ACTIONS, [4], True, False, 5.0)
    model.measure(data)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.networks.biases[-1][0], model.networks.biases[-1][1] = 1.0, -1.0
    found = Errors.of(model, data, ends)
    assert found.members.tolist() == pytest.approx([2, 2], rel=1e-3)
    assert found.error_of_mean == pytest.approx(1, rel=1e-3)
    assert found.columns.tolist() == pytest.approx([2] * OBSERVATIONS, rel=1e-3)
    targets = model.targets(data["observation"], data["next", "observation"], data["next", "reward"])
    by_episode = [float((1 + part.square()).mean()) for part in targets.split(60)]
    assert found.episodes.tolist() == pytest.approx(by_episode, rel=1e-4)
    assert found.reward_r2 == pytest.approx(-1, rel=1e-3)
    scale = model.target_std[:OBSERVATIONS] / model.observation_std
    assert found.spread == pytest.approx(float(scale.square().mean().sqrt()), rel=1e-3)
    assert found.missed == pytest.approx(float((2 * scale.square()).mean().sqrt()), rel=1e-2)
    assert found.horizons == [1, 10, 50]
    assert "worse than to say that nothing changes" in in_a_line(found)
    # Rollouts by a loop, from all rows with 50 steps before the end of their episode.
    starts = [60 * episode + first for episode in range(6) for first in range(11)]
    for place, horizon in enumerate(found.horizons):
        errors, still = [], []
        for start in starts:
            after = data["next", "observation"][start + horizon - 1]
            for sign in (1, -1):
                change = model.target_mean[:OBSERVATIONS] + sign * model.target_std[:OBSERVATIONS]
                errors.append((data["observation"][start] + horizon * change - after) / model.observation_std)
            still.append((data["observation"][start] - after) / model.observation_std)
        assert found.open_loop[place] == pytest.approx(float(torch.stack(errors).square().mean().sqrt()), rel=1e-3)
        assert found.standing_still[place] == pytest.approx(float(torch.stack(still).square().mean().sqrt()), rel=1e-3)
    assert set(found.energy) == {"1 to 10"}
    distance, halves = found.energy["1 to 10"]
    assert distance > 10 * abs(halves)


def test_the_energy_distance_of_points_on_a_line() -> None:
    generator = np.random.default_rng(3)
    one, other = generator.normal(size=400), generator.normal(1.0, 2.0, size=500)
    found = energy_distance(torch.from_numpy(one)[:, None], torch.from_numpy(other)[:, None])
    places = np.sort(np.concatenate([one, other]))
    shares = [np.searchsorted(np.sort(crowd), places[:-1], "right") / len(crowd) for crowd in (one, other)]
    expected = 2 * float(((shares[0] - shares[1]) ** 2 * np.diff(places)).sum())
    assert found == pytest.approx(expected, abs=0.02)
    same = torch.from_numpy(generator.normal(size=(1200, 5)))
    assert abs(energy_distance(same[:600], same[600:])) < 0.05


def test_a_model_is_no_policy(tmp_path: Path) -> None:
    model = trained(tmp_path, patience=20, steps=10)
    assert not hasattr(model, "act")
    with pytest.raises(InputError, match="fits no policy"):
        model.test_step(None, 0)
