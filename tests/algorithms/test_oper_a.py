from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import columns
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from networks import ROWS, as_module, batch, moved_by_role, ready
from test_shared import Arrays, algorithm, data, fit, parameters, same

from oper_lightning import InputError, OfflineDataModule, OperR, WeightsFile
from oper_lightning.algorithms.oper_a import OperA
from oper_lightning.priorities.advantages import next_weights, stretch_std
from oper_lightning.priorities.file import load_weights
from oper_lightning.spec import Batch

ADVANTAGES = st.lists(st.integers(-800, 800).map(lambda part: part / 8), min_size=2, max_size=30)


@settings(deadline=None)
@given(st.lists(ADVANTAGES, min_size=1, max_size=3))
def test_weights_are_the_product_of_distances_from_the_worst(rows: list[list[float]]) -> None:
    size = min(map(len, rows))
    advantages = [torch.tensor([row[:size]], dtype=torch.float64) for row in rows]
    weights, product = torch.ones(1, size), np.ones(size)
    for advantage in advantages:
        if (advantage == advantage[0, 0]).all():
            return
        if not (weights * (advantage - advantage.min())).any():
            return
        weights = next_weights(weights, advantage)
        product *= (advantage - advantage.min())[0].numpy()
        assert weights.mean().item() == pytest.approx(1)
        assert (weights >= 0).all()
        assert weights[0, advantage[0].argmin()] == 0
        np.testing.assert_allclose(weights[0], product / product.mean(), rtol=1e-6, atol=1e-9)


def test_seeds_are_weighted_apart_and_equal_advantages_do_nothing(caplog: pytest.LogCaptureFixture) -> None:
    advantage = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    assert next_weights(torch.ones(2, 3), advantage).tolist() == [[0, 1, 2], [1, 1, 1]]
    assert "all advantages of a seed are equal" in caplog.text


def test_stretching_is_the_published_scale_option() -> None:
    narrow = torch.tensor([[0.9, 1.0, 1.1, 1.0]], dtype=torch.float64)
    wide = torch.tensor([[0.0, 0.0, 0.0, 4.0]], dtype=torch.float64)
    factor = 0.5 / narrow.std(correction=0)
    expected = (factor * (narrow - 1) + 1).clamp(min=0.6)
    torch.testing.assert_close(stretch_std(narrow, 0.5, 0.6), expected / expected.mean())
    assert stretch_std(wide, 0.5, 0.6).equal(wide)


ARRAYS = columns([7, 4, 9, 5])


def trained(folder: Path, updates: int = 40, **options: Any) -> tuple[OperA, OfflineDataModule]:
    model = OperA(**{"iterations": 2, "seeds": 2, "hidden_sizes": (8, 8), **options})
    module = OfflineDataModule(Arrays(ARRAYS), batch_size=8, updates_per_epoch=10, rollouts=None)
    fit(model, module, folder, updates)
    return model, module


def members(ensemble: Any, seed: int) -> list[torch.nn.Sequential]:
    """The heads of one seed as plain networks."""
    heads = ensemble.members[1]
    return [as_module(ensemble.weights, ensemble.biases, seed * heads + head) for head in range(heads)]


def lowest(ensemble: Any, observations: np.ndarray) -> np.ndarray:
    """The lowest of each seed's heads for raw observations, head by head; ``[S, N]``."""
    known = ARRAYS["observations"].astype(float)
    seen = torch.from_numpy((observations - known.mean(0)) / (known.std(0) + 1e-3)).float()
    with torch.no_grad():
        heads = [[head(seen)[:, 0].double().numpy() for head in members(ensemble, seed)] for seed in range(2)]
    return np.array([np.min(values, 0) for values in heads])


def literal(kind: str, n: int, bootstrap: bool, value: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Advantages over the values ``[S, N]`` of the rows, given those of what follows; row by row; ``[S, N]``."""
    rewards, terminal = ARRAYS["rewards"].astype(float), ARRAYS["terminals"]
    ends = terminal | ARRAYS["timeouts"]
    found = np.zeros_like(value)
    for seed in range(len(value)):
        for row in reversed(range(len(rewards))):
            if kind == "mc":
                total, step, place = 0.0, 1.0, row
                while True:
                    total, step = total + step * rewards[place], step * 0.99
                    if ends[place]:
                        break
                    place += 1
                found[seed, row] = total - value[seed, row]
            elif kind == "gae":
                error = rewards[row] + 0.99 * (not terminal[row]) * following[seed, row] - value[seed, row]
                rest = 0.0 if ends[row] else found[seed, row + 1]
                found[seed, row] = error + 0.99 * 0.95 * rest
            else:
                total, place = 0.0, row
                for k in range(n):
                    place = row + k
                    total += 0.99**k * rewards[place]
                    if ends[place]:
                        break
                over = terminal[place] if bootstrap else ends[place]
                total += 0.0 if over else 0.99 ** (place - row + 1) * following[seed, place]
                found[seed, row] = total - value[seed, row]
    return found


@pytest.mark.parametrize(
    ("kind", "n", "bootstrap"),
    [("nstep", 1, True), ("nstep", 3, True), ("nstep", 3, False), ("mc", 1, True), ("gae", 1, True), ("gae", 3, True)],
)
def test_advantages_are_those_of_the_definition(kind: str, n: int, bootstrap: bool, tmp_path: Path) -> None:
    model, _ = trained(tmp_path, advantage=kind, n_step=n, bootstrap_truncated=bootstrap)
    value, advantage = model.evaluate()
    online, following = (lowest(model.value, ARRAYS[key]) for key in ("observations", "next_observations"))
    np.testing.assert_allclose(value, online, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(advantage, literal(kind, n, bootstrap, online, following), rtol=1e-3, atol=1e-4)
    assert model.advantages[-1].equal(advantage)
    assert model.values[-1].equal(value)


@pytest.mark.parametrize(
    ("target", "n", "bootstrap"), [("nstep", 1, True), ("nstep", 3, True), ("nstep", 3, False), ("mc", 3, True)]
)
def test_values_are_fitted_to_what_the_definition_says(target: str, n: int, bootstrap: bool) -> None:
    model = OperA(target=target, n_step=n, bootstrap_truncated=bootstrap, seeds=2, hidden_sizes=(8, 8))
    module = OfflineDataModule(Arrays(ARRAYS), batch_size=8, rollouts=None)
    module.setup()
    model._build(module.spec)
    for parameter in model.target_value.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    module.table.update(model.columns(module.transitions))
    found = model.fitted_to(model._normalise(module.rows(torch.arange(25).expand(2, 25))))
    following = lowest(model.target_value, ARRAYS["next_observations"])
    expected = literal(target, n, bootstrap, np.zeros((2, 25)), following)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def built(critic: str, **options: Any) -> tuple[OperA, Any]:
    """A model whose targets are off the online networks, and a batch for each of its two seeds."""
    model = OperA(critic=critic, seeds=2, hidden_sizes=(8, 8), **options)
    ready(model, "target_value", *(["target_q"] if critic == "vq" else []))
    return model, torch.stack([batch(0), batch(1)])


def test_vq_fits_q_to_the_target_value_and_the_value_to_the_lower_target_q() -> None:
    model, rows = built("vq")
    q_loss, value_loss = model.q_loss(rows), model.value_loss(rows)
    for seed in range(2):
        names = ("value", "target_value", "q", "target_q")
        value, target_value, q, target_q = (members(getattr(model, name), seed) for name in names)
        for number in range(ROWS):
            row = rows[seed, number]
            pair = torch.cat([row["observation"], row["action"]])
            wanted = row["next", "reward"] + row["discount"] * target_value[0](row["next", "observation"])
            expected = sum((head(pair) - wanted).item() ** 2 for head in q)
            assert q_loss[seed, number].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
            lower = min(head(pair).item() for head in target_q)
            expected = (value[0](row["observation"]).item() - lower) ** 2
            assert value_loss[seed, number].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_targets_begin_as_what_they_follow() -> None:
    model = OperA(critic="vq", seeds=2, hidden_sizes=(8, 8))
    ready(model)
    for target, online in ((model.target_value, model.value), (model.target_q, model.q)):
        assert same(parameters(target), parameters(online))


@pytest.mark.parametrize("critic", ["doublev", "v", "vq"])
def test_each_update_moves_all_targets_a_share_of_the_way(critic: str) -> None:
    model, rows = built(critic, tau=0.3, learning_rate=1e-2)
    before = parameters(model)
    model.update(Batch(rows, rows, rows))
    after = parameters(model)
    targets = [name for name in after if name.startswith("target_")]
    assert {name.split(".")[0] for name in targets} == {"target_value", *(["target_q"] if critic == "vq" else [])}
    for name in targets:
        torch.testing.assert_close(after[name], 0.7 * before[name] + 0.3 * after[name.removeprefix("target_")])
        assert not after[name].isclose(before[name]).all()


def test_one_step_targets_bootstrap_through_time_limits_even_in_the_published_form(tmp_path: Path) -> None:
    """With n = 1 the published code looks at terminals only; the switch concerns n > 1."""
    _, module = trained(tmp_path, n_step=1, bootstrap_truncated=False)
    assert (module.table["discount"] == 0).numpy().tolist() == ARRAYS["terminals"].tolist()


@pytest.mark.parametrize("critic", ["doublev", "v", "vq"])
@pytest.mark.parametrize(("target", "n"), [("nstep", 1), ("nstep", 2), ("mc", 1)])
def test_every_critic_and_target_trains(critic: str, target: str, n: int, tmp_path: Path) -> None:
    model, _ = trained(tmp_path, critic=critic, target=target, n_step=n)
    assert model.value.members == (2, 2 if critic == "doublev" else 1)
    assert len(model.weights) == 2
    tensors, metadata = load_weights(tmp_path / "weights.safetensors")
    assert tensors["weights"].shape == (2, 2, 25)
    assert metadata["hyper_parameters"]["critic"] == critic


def test_the_double_value_regresses_both_heads_to_the_lower_target(tmp_path: Path) -> None:
    model, module = trained(tmp_path)
    rows = model._normalise(module.draw(1).evaluation[0])
    with torch.no_grad():
        following = model.target_value(rows["next", "observation"])
        lower = torch.minimum(following[:, 0], following[:, 1])
        target = rows["next", "reward"] + rows["discount"] * lower
        values = model.value(rows["observation"])
        expected = (values[:, 0] - target) ** 2 + (values[:, 1] - target) ** 2
        torch.testing.assert_close(model.value_loss(rows), expected)


def test_the_file_holds_what_the_run_used(tmp_path: Path) -> None:
    model, module = trained(tmp_path)
    tensors, metadata = load_weights(tmp_path / "weights.safetensors")
    assert tensors["weights"].equal(torch.stack(model.weights))
    assert module.weights is not None
    assert module.weights.equal(model.weights[-1])
    for iteration, rows in enumerate(model.weights):
        torch.testing.assert_close(rows.mean(-1), torch.ones(2))
        before = model.weights[iteration - 1] if iteration else torch.ones_like(rows)
        torch.testing.assert_close(next_weights(before, model.advantages[iteration]).float(), rows)
    assert metadata["fingerprint"] == module.spec.fingerprint
    assert metadata["rows"] == 25
    assert len(metadata["statistics"]) == 2
    assert {"std", "ess", "max", "min", "at_floor"} == metadata["statistics"][0][1].keys()
    policy = OfflineDataModule(Arrays(ARRAYS), WeightsFile(str(tmp_path / "weights.safetensors")), batch_size=8)
    policy.setup()
    assert policy.roles == ("improvement", "constraint")


def test_stretched_weights_have_their_deviation_and_the_next_iteration_draws_by_them(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, block: Batch, *_: Any) -> None:
            if trainer.global_step > 100:  # the second iteration
                seen.append(block.evaluation["observation"])

    model = OperA(iterations=2, seeds=2, hidden_sizes=(8, 8), scale_std=1.5, scale_floor=0.3)
    module = OfflineDataModule(Arrays(ARRAYS), batch_size=25, updates_per_epoch=100, rollouts=None)
    fit(model, module, tmp_path, 200, callbacks=[Watch()])
    for iteration, seed in np.ndindex(2, 2):
        before = model.weights[iteration - 1][seed].double().numpy() if iteration else np.ones(25)
        advantage = model.advantages[iteration][seed].double().numpy()
        raw = before * (advantage - advantage.min())
        weights = model.weights[iteration][seed].double().numpy()
        assert weights.mean() == pytest.approx(1)
        stretched = weights * 0.3 / weights.min()  # as they were before their mean was brought back to 1
        above = stretched > 0.3 + 1e-4
        line = np.polyfit(raw[above] / raw.mean(), stretched[above], 1)
        everywhere = np.polyval(line, raw / raw.mean())  # as they were without a floor
        np.testing.assert_allclose(everywhere[above], stretched[above], atol=1e-4)
        assert (everywhere[~above] < 0.3 + 1e-3).all()
        assert (everywhere.mean(), everywhere.std()) == pytest.approx((1, 1.5), rel=1e-3)
    rows = torch.from_numpy(ARRAYS["observations"])
    drawn = (torch.cat(seen).unsqueeze(-2) == rows).all(-1).float().mean((0, 2))  # the share of each row
    np.testing.assert_allclose(drawn, model.weights[0] / 25, atol=0.02)
    assert drawn[[0, 1], model.advantages[0].argmin(1)].min() > 0  # unstretched, its weight would be 0


def test_each_iteration_starts_with_a_fresh_adam_and_the_full_learning_rate(tmp_path: Path) -> None:
    seen: list[tuple[list[float], list[float]]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            steps = [next(iter(part.state.values()))["step"].item() for part in pl_module.optimisers]
            seen.append((steps, [part.param_groups[0]["lr"] for part in pl_module.optimisers]))

    model = OperA(iterations=2, seeds=1, hidden_sizes=(8,), learning_rate=1.0e-3, critic="vq")
    module = OfflineDataModule(Arrays(ARRAYS), batch_size=8, updates_per_epoch=10, updates_per_block=1, rollouts=None)
    fit(model, module, tmp_path, 40, callbacks=[Watch()])
    assert [steps for steps, _ in seen] == [[k, k] for k in range(1, 21)] * 2
    expected = [[0.5e-3 * (1 + np.cos(np.pi * k / 20))] * 2 for k in range(20)]
    np.testing.assert_allclose([rates for _, rates in seen], expected * 2)


def test_a_first_iteration_of_its_own_length(tmp_path: Path) -> None:
    model, _ = trained(tmp_path, 40, iterations=3, first_updates=20)
    assert [model.position(number) for number in (0, 19, 20, 29, 30, 39)] == [
        (0, 0, 20), (0, 19, 20), (1, 0, 10), (1, 9, 10), (2, 0, 10), (2, 9, 10),
    ]  # fmt: skip
    assert len(model.weights) == 3


def test_seeds_that_train_together_do_not_touch_each_other(tmp_path: Path) -> None:
    for critic in ("doublev", "vq"):
        model, module = trained(tmp_path / critic, critic=critic)
        rows = model._normalise(module.draw(1).evaluation[0])
        state = parameters(model)
        results = []
        for factor in (1.0, -5.0):
            model.load_state_dict(state)
            model.configure_optimizers()
            changed = rows.clone()
            changed["next", "reward"][0] *= factor
            for number in range(3):
                model.prepare(number)
                model.update(Batch(changed, changed, changed))
            results.append(parameters(model))
        names = [name for name in results[0] if name.startswith(("value", "q"))]
        first, other = (torch.cat([result[name].reshape(2, -1) for name in names], 1) for result in results)
        assert first[1].equal(other[1])
        assert not first[0].isclose(other[0]).all()


def test_a_seed_has_the_gradient_that_it_would_have_alone() -> None:
    model, rows = built("vq")
    expected = {}
    for seed in range(2):
        for network, loss in ((model.value, model.value_loss(rows)), (model.q, model.q_loss(rows))):
            gradients = torch.autograd.grad(loss[seed].mean(), network.weights[0])
            expected[network, seed] = gradients[0].view(2, -1)[seed]
    model.update(Batch(rows, rows, rows))
    for (network, seed), gradient in expected.items():
        torch.testing.assert_close(network.weights[0].grad.view(2, -1)[seed], gradient)


def test_values_are_fitted_to_the_evaluations_data() -> None:
    model, rows = built("vq")
    other = torch.stack([batch(2), batch(3)])
    assert moved_by_role(model, [rows] * 3, [other] * 3) == [{"value_loss", "q_loss"}, set(), set()]


def test_values_converge_to_the_returns_of_a_known_chain(tmp_path: Path) -> None:
    """One state, reward 1, episodes that end with probability one half: V = 1 / (1 - discount / 2)."""
    generator = np.random.default_rng(0)
    lengths = [int(x) for x in generator.geometric(0.5, 400)]
    arrays = columns(lengths)
    arrays["observations"][:] = 1
    arrays["next_observations"][:] = 1
    arrays["rewards"][:] = 1
    arrays["terminals"] |= arrays["timeouts"]
    arrays["timeouts"][:] = False
    model = OperA(iterations=1, seeds=2, hidden_sizes=(8,), discount=0.9, learning_rate=1e-2, tau=0.1)
    module = OfflineDataModule(Arrays(arrays), batch_size=256, updates_per_epoch=600, rollouts=None)
    fit(model, module, tmp_path, 600)
    ended = arrays["terminals"].mean()
    np.testing.assert_allclose(model.values[0][:, 0], 1 / (1 - 0.9 * (1 - ended)), rtol=0.03)


@pytest.mark.parametrize(
    ("updates", "options", "message"),
    [
        (60, {"iterations": 2}, "max_steps 60 cannot be shared out among 2 iterations of whole epochs of 20"),
        (60, {"iterations": 2, "first_updates": 30}, "max_steps 60 cannot be shared out"),
    ],
)
def test_lengths_that_do_not_fit(updates: int, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        fit(algorithm("OperA", **options), data(updates_per_epoch=20), tmp_path, updates)


def test_a_priority_or_an_evaluation_makes_no_sense_here(tmp_path: Path) -> None:
    for number, options in enumerate([{"priority": OperR()}, {"mode": "reweight"}, {"prioritise": ["improvement"]}]):
        with pytest.raises(InputError, match="makes the priority itself"):
            fit(algorithm("OperA"), data(**options), tmp_path / str(number))
    with pytest.raises(InputError, match=r"OperA fits no policy that could be played: --data\.rollouts=null"):
        algorithm("OperA").test_step(None, 0)
