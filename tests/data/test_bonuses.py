"""Bonuses: moments against NumPy, RND against a literal loop, counts against a dictionary, and runs that have one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Arrays, columns, image_columns, oper
from safetensors.torch import load_file
from tensordict import TensorDict

from oper_lightning import InputError, OfflineDataModule
from oper_lightning.data.bonuses.bonus import Bonus
from oper_lightning.data.bonuses.counts import CountBonus
from oper_lightning.data.bonuses.moments import PRIOR, Moments
from oper_lightning.data.bonuses.rnd import RND
from oper_lightning.report.curves import read_curves

CPU = torch.device("cpu")
DATA = columns([20] * 10)


def ready(bonus: Bonus | None, **options: Any) -> OfflineDataModule:
    data = OfflineDataModule(Arrays(DATA), bonus=bonus, **{"batch_size": 16, "seed": 0, **options})
    data.setup()
    return data


def small(**options: Any) -> RND:
    return RND(**{"hidden_sizes": [16], "features": 4, "learning_rate": 1e-2, **options})


# Moments ---------------------------------------------------------------------------------------------------------


def test_moments_are_numpys() -> None:
    parts = [np.random.default_rng(n).normal([3, -100, 0.5], [1, 1e-2, 40], (n + 1, 3)) for n in range(30)]
    moments = Moments(3, CPU)
    for part in parts:
        moments.take(torch.from_numpy(part))
    everything = np.concatenate(parts)
    # Before the first part, mean 0 and variance 1 count for a ten-thousandth of an observation.
    weights = np.array([PRIOR, len(everything)])
    mean = np.average([np.zeros(3), everything.mean(0)], axis=0, weights=weights)
    spread = np.average([np.ones(3), everything.var(0) + everything.mean(0) ** 2], axis=0, weights=weights)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(moments.variance, spread - mean**2, rtol=1e-7)
    assert moments.count.item() == pytest.approx(len(everything) + PRIOR)


def test_what_never_changes_is_known_until_it_does() -> None:
    moments = Moments(4, CPU)
    assert not moments.constant().any()
    values = torch.randn(64, 4) * torch.tensor([1.0, 0.0, 0.0, 1e-2]) + torch.tensor([0.0, 3.0, 0.0, 0.0])
    for _ in range(3):
        moments.take(values)
    assert moments.constant().tolist() == [False, True, True, False]
    moments.take(values + torch.tensor([0.0, 1.0, 0.0, 0.0]))
    assert moments.constant().tolist() == [False, False, True, False]


# Random network distillation -------------------------------------------------------------------------------------


def by_hand(block: TensorDict, bonus: RND, reference: bool, predictor_first: bool) -> np.ndarray:
    """The bonus of a block ``[K, B]``, update by update, with a gradient written out and Adam as its paper has it."""
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    nets = {part: [bonus.state_dict()[f"{part}.{name}"].double() for name in names] for part in ("predictor", "target")}
    first, second = ([torch.zeros_like(w) for w in nets["predictor"]] for _ in range(2))
    mean, variance, count = np.zeros(3), np.ones(3), 1e-4
    error_mean, error_variance, error_count = 0.0, 1.0, 1e-4

    def output(weights: list[torch.Tensor], z: torch.Tensor) -> torch.Tensor:
        return (z @ weights[0].T + weights[1]).clamp(min=0) @ weights[2].T + weights[3]

    def merged(m: Any, v: Any, n: float, x: np.ndarray) -> tuple[Any, Any, float]:
        delta, size = x.mean(0) - m, len(x)
        total = n + size
        return m + delta * size / total, (v * n + x.var(0) * size + delta**2 * n * size / total) / total, total

    found = []
    for step in range(1, len(block) + 1):
        following = block["next", "observation"][step - 1].double().numpy()
        epsilon = 0 if reference else 1e-8
        z = torch.from_numpy(np.clip((following - mean) / np.sqrt(variance + epsilon), -5, 5))
        keep = (torch.rand(len(z)) < 0.25).double()
        old = (output(nets["predictor"], z) - output(nets["target"], z)).square().numpy()
        hidden = (z @ nets["predictor"][0].T + nets["predictor"][1]).clamp(min=0)
        difference = hidden @ nets["predictor"][2].T + nets["predictor"][3] - output(nets["target"], z)
        out = 2 * difference / difference.shape[1] * keep[:, None] / max(float(keep.sum()), 1)
        back = (out @ nets["predictor"][2]) * (hidden > 0)
        gradients = [back.T @ z, back.sum(0), out.T @ hidden, out.sum(0)]
        for weight, gradient, one, two in zip(nets["predictor"], gradients, first, second, strict=True):
            one.lerp_(gradient, 0.1)
            two.lerp_(gradient.square(), 0.001)
            weight -= 1e-2 * (one / (1 - 0.9**step)) / ((two / (1 - 0.999**step)).sqrt() + 1e-8)
        if predictor_first:
            old = (output(nets["predictor"], z) - output(nets["target"], z)).square().numpy()
        largest = old.max(1)
        divided = largest / np.sqrt(error_variance + epsilon)
        found.append(divided)
        seen = block["observation"][step - 1].double().numpy() if reference else following
        mean, variance, count = merged(mean, variance, count, seen)
        what = divided if reference else largest
        error_mean, error_variance, error_count = merged(error_mean, error_variance, error_count, what)
    return np.stack(found)


@pytest.mark.parametrize("normalise", ["raw", "reference"])
@pytest.mark.parametrize("order", ["bonus_first", "predictor_first"])
def test_rnd_is_what_a_literal_loop_says(normalise: Any, order: Any) -> None:
    bonus = small(normalise=normalise, order=order)
    data = ready(bonus)
    block = data.rows(torch.randint(200, (6, 16), generator=torch.Generator().manual_seed(1)))
    torch.manual_seed(7)
    expected = by_hand(block, bonus, normalise == "reference", order == "predictor_first")
    torch.manual_seed(7)
    found = bonus(block)
    assert found.shape == (6, 16)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)


def test_the_target_never_changes_and_the_predictor_comes_closer() -> None:
    bonus = small()
    data = ready(bonus)
    before = bonus.state_dict()
    losses = []
    for _ in range(20):
        data.draw(10)
        losses.append(bonus.numbers["predictor_loss"].item())
    after = bonus.state_dict()
    for name, tensor in before.items():
        assert tensor.equal(after[name]) == name.startswith("target"), name
    assert losses[-1] < losses[0] / 10


def test_a_quarter_of_the_transitions_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    bonus, losses = small(), []
    step = bonus._step
    monkeypatch.setattr(bonus, "_step", lambda error: losses.append(step(error)) or losses[-1])
    bonus(ready(bonus).rows(torch.randint(200, (2000, 1), generator=torch.Generator().manual_seed(0))))
    share = (torch.stack(losses) > 0).double().mean().item()  # of one transition nothing is learnt, or something
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2000)


def test_every_lets_updates_share_a_step() -> None:
    for every, steps in ((1, 7), (3, 3), (20, 1)):
        bonus = small(every=every)
        ready(bonus).draw(7)
        assert bonus.state_dict()["adam.0.weight.step"] == steps
        assert bonus.state_dict()["observations.count"].item() == pytest.approx(7 * 16 + PRIOR)


@pytest.mark.parametrize("normalise", ["raw", "reference"])
def test_where_errors_stay_as_they_are_the_bonus_has_a_known_spread(normalise: Any) -> None:
    bonus = small(normalise=normalise, learning_rate=1e-12)
    data = ready(bonus)
    block = data.rows(torch.randint(200, (400, 64), generator=torch.Generator().manual_seed(0)))
    late = bonus(block)[200:]
    with torch.no_grad():
        errors = bonus._error(bonus._normalised(block["next", "observation"][200:])).amax(-1)
    expected = 1.0 if normalise == "raw" else math.sqrt(errors.std())
    assert late.std().item() == pytest.approx(expected, rel=0.1)
    assert expected == 1 or abs(expected - 1) > 0.2, "the two modes differ in this test"


def test_the_bonus_is_another_after_the_predictor_has_learnt() -> None:
    bonus = small()
    block = ready(bonus).rows(torch.arange(160).reshape(10, 16))
    assert not bonus(block).equal(bonus(block))


def test_constant_dimensions_say_nothing() -> None:
    arrays = {**DATA, "next_observations": DATA["next_observations"].copy()}
    arrays["next_observations"][:, 1] = 7.0
    bonus = small(learning_rate=1e-12)
    data = OfflineDataModule(Arrays(arrays), bonus=bonus, batch_size=16, seed=0)
    data.setup()
    data.draw(5)
    rows = data.rows(torch.arange(16).unsqueeze(0))
    shaken = rows.clone()
    shaken["next", "observation"][..., 1] += 1e-3
    assert bonus._normalised(shaken["next", "observation"]).equal(bonus._normalised(rows["next", "observation"]))


def test_images_are_refused_in_a_line() -> None:
    data = OfflineDataModule(Arrays(image_columns([10] * 4)), bonus=RND(), batch_size=16)
    with pytest.raises(InputError, match="Arrays: images, which RND is not for"):
        data.setup()


# Counts ----------------------------------------------------------------------------------------------------------


def test_counts_are_those_of_a_dictionary() -> None:
    bonus = CountBonus(low=[-1.0, -0.5], high=[1.0, 0.5], cells=[9, 3])
    data = ready(bonus)
    visits: dict[tuple[int, ...], int] = {}

    def cell(place: np.ndarray) -> tuple[int, ...]:
        centres = np.linspace(-1, 1, 9), np.linspace(-0.5, 0.5, 3)
        return tuple(int(abs(line - x).argmin()) for line, x in zip(centres, place, strict=False))

    for place in DATA["next_observations"]:
        visits[cell(place)] = visits.get(cell(place), 0) + 1
    block = data.rows(torch.arange(200).reshape(4, 50))
    expected = [1 / math.sqrt(visits[cell(place)] + 1) for place in DATA["next_observations"]]
    np.testing.assert_allclose(bonus(block).flatten(), expected, rtol=1e-6)
    new = block.clone()
    new["next", "observation"][:] = torch.tensor([90.0, -90.0, 0.0])  # belongs to the cell at the corner
    corner = visits.get((8, 0), 0)
    assert bonus(new)[0, 0].item() == pytest.approx(1 / math.sqrt(corner + 1))
    assert bonus.state_dict() == {}


def test_published_cells_are_those_of_observations_with_actions() -> None:
    low, high = [-0.25, -0.25, -0.25, -1.0, -1.0], [1.25, 1.45, 1.0, 1.0, 1.0]
    bonus = CountBonus(low, high, [100, 100, 10, 10, 10], of="observation_and_action")
    data = ready(bonus)
    rows = data.transitions[:5]
    pairs = np.concatenate([rows["observation"], rows["action"]], 1)
    counts = [100, 100, 10, 10, 10]
    nearest = [
        [abs(np.linspace(a, b, n) - x).argmin() for a, b, n, x in zip(low, high, counts, pair, strict=True)]
        for pair in pairs
    ]
    assert bonus.cell(rows).tolist() == [int(np.ravel_multi_index(cell, counts)) for cell in nearest]
    assert int(bonus.count.sum()) == 200


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"low": [0.0], "high": [1.0, 2.0], "cells": [3]}, "lengths 1, 2 and 1"),
        ({"low": [0.0], "high": [0.0], "cells": [3]}, "low must be below high"),
        ({"low": [0.0], "high": [1.0], "cells": [1]}, "cells at least 2"),
        ({"low": [0.0] * 7, "high": [1.0] * 7, "cells": [1000] * 7}, "at most 2,147,483,648"),
        ({"low": [0.0] * 4, "high": [1.0] * 4, "cells": [3] * 4}, "cells in 4 dimensions, and next_observation has 3"),
        ({"low": [0.0], "high": [1.0], "cells": [3], "scale": math.nan}, "data.bonus.scale is nan"),
    ],
)
def test_impossible_cells_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ready(CountBonus(**arguments))


# In a run --------------------------------------------------------------------------------------------------------


def fit(output: str, *words: str, steps: int = 40) -> int:
    return oper(
        "fit", "--data=OnlineDataModule", "--data.source=PointMassWall", "--data.source.small=true",
        "--data.source.episodes=10", "--data.warmup=10", "--data.batch_size=16", "--data.rollouts=null",
        "--data.updates_per_epoch=20", "--data.reward_shift=-1", "--data.offline_share=0.5", "--model=TD3BC",
        "--model.hidden_sizes=[8]", f"--trainer.max_steps={steps}", "--trainer.log_every_n_steps=10",
        f"--output={output}", *words,
    )  # fmt: skip


def rnd(**more: Any) -> str:
    given = {"hidden_sizes": [16], "features": 8, **more}
    return f"--data.bonus={{class_path: RND, init_args: {given}}}".replace("'", "")


def parameters(run: str) -> dict[str, torch.Tensor]:
    return torch.load(Path(run) / "last.ckpt", weights_only=True)["state_dict"]  # type: ignore[no-any-return]


def learnt(run: str) -> dict[str, torch.Tensor]:
    return torch.load(Path(run) / "last.ckpt", weights_only=True)["OnlineDataModule"]["bonus"]  # type: ignore[no-any-return]


def rewards(run: str) -> torch.Tensor:
    return torch.cat([load_file(file)["reward"] for file in sorted((Path(run) / "replay").iterdir())], 1)


def test_a_scale_of_zero_is_no_bonus_bit_for_bit() -> None:
    assert fit("without") == fit("zero", rnd(scale=0.0)) == fit("one", rnd(scale=1.0)) == 0
    without, zero, one = parameters("without"), parameters("zero"), parameters("one")
    assert all(value.equal(zero[name]) for name, value in without.items())
    assert not all(value.equal(one[name]) for name, value in without.items())


def test_rewards_are_stored_without_the_bonus() -> None:
    assert fit("run", rnd(scale=100.0)) == 0
    assert set(rewards("run").unique().tolist()) <= {0.0, 1.0}
    data = ready(small(scale=100.0), reward_shift=-1.0)
    stored, seen = data.storage[:]["next", "reward"].clone(), data.table["next", "reward"].clone()
    block = data.draw(4)
    assert block.evaluation is block.improvement
    plain = ready(None, reward_shift=-1.0).draw(4)
    assert (block.evaluation["next", "reward"] > plain.evaluation["next", "reward"]).all()
    assert data.storage[:]["next", "reward"].equal(stored)
    assert data.table["next", "reward"].equal(seen)


COUNTS = "{class_path: CountBonus, init_args: {low: [-0.2, -0.2], high: [1.2, 1.4], cells: [29, 33]}}"


@pytest.mark.parametrize("bonus", [rnd(), f"--data.bonus={COUNTS}"], ids=["rnd", "counts"])
def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(bonus: str) -> None:
    assert fit("whole", bonus) == 0
    assert fit("part", bonus, steps=20) == 0
    assert fit("part", bonus, "--ckpt_path=last") == 0
    whole, part = parameters("whole"), parameters("part")
    assert all(value.equal(part[name]) for name, value in whole.items())
    assert all(value.equal(learnt("part")[name]) for name, value in learnt("whole").items())


def test_what_is_logged() -> None:
    assert fit("run", rnd(scale=2.0)) == 0
    curves = read_curves("run")
    for name in ("mean", "reward", "predictor_loss"):
        assert curves[f"bonus/{name}"].updates == [10, 20, 30, 40]
    assert all(0 < value <= 1 for value in curves["bonus/reward"].values)
    assert min(curves["bonus/mean"].values) > 0


def test_a_frozen_bonus_is_that_of_the_checkpoint_and_learns_no_more() -> None:
    assert fit("explorer", rnd()) == 0
    frozen = RND(hidden_sizes=[16], features=8, learn=False, path="explorer/last.ckpt")
    data = OfflineDataModule(Arrays(columns([20] * 10, observation=2)), bonus=frozen, batch_size=16)
    data.setup()
    rows = data.rows(torch.arange(32).reshape(2, 16))
    first, state = frozen(rows), learnt("explorer")
    assert first.equal(frozen(rows))
    assert frozen.numbers == {}
    assert all(value.equal(state[name]) for name, value in frozen.state_dict().items())
    z = (rows["next", "observation"].double() - state["observations.mean"]) / state["observations.variance"].sqrt()
    outputs = []
    for part in ("predictor", "target"):
        weights = [state[f"{part}.{name}"].double() for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
        outputs.append((z.clamp(-5, 5) @ weights[0].T + weights[1]).clamp(min=0) @ weights[2].T + weights[3])
    expected = (outputs[0] - outputs[1]).square().amax(-1) / state["errors.variance"].sqrt()
    torch.testing.assert_close(first.double(), expected, rtol=1e-3, atol=1e-5)
    go_on = RND(hidden_sizes=[16], features=8, path="explorer/last.ckpt")
    go_on.build(data.spec, CPU, 1)
    assert all(value.equal(state[name]) for name, value in go_on.state_dict().items())


def test_a_checkpoint_that_does_not_fit_is_refused_in_a_line() -> None:
    assert fit("explorer", rnd()) == fit("without") == 0
    spec = ready(None).spec
    for options, says in (
        ({"path": "gone.ckpt"}, "gone.ckpt: no such checkpoint"),
        ({"path": "without/last.ckpt"}, "no checkpoint of a run whose data.bonus learnt"),
        ({"path": "explorer/last.ckpt"}, r"predictor.0.weight of its bonus is \[16, 2\], not \[16, 3\]"),
        ({"path": "explorer/last.ckpt", "hidden_sizes": [16, 16]}, "has other parts than this one"),
        ({"path": "explorer/config.yaml"}, "not a whole checkpoint"),
    ):
        with pytest.raises(InputError, match=says):
            RND(**{"hidden_sizes": [16], "features": 8, **options}).build(spec, CPU, 0)
    with pytest.raises(InputError, match=r"data\.bonus\.learn is false"):
        RND(learn=False)
    with pytest.raises(InputError, match=r"data\.bonus\.proportion is 0"):
        RND(proportion=0)
    with pytest.raises(InputError, match=r"data\.bonus\.every is 0"):
        RND(every=0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("errors.variance", lambda value: -value),
        ("observations.mean", lambda value: value * math.nan),
        ("predictor.0.weight", lambda value: value[:, :1]),
        ("target.0.weight", lambda value: value.double()),
        ("adam.0.bias.exp_avg_sq", lambda value: -value - 1),
        ("adam.0.bias.step", lambda value: 3),
        ("observations.count", lambda value: value.to("meta")),
        ("predictor.0.bias", lambda value: value.to_sparse()),
    ],
)
def test_a_broken_state_is_refused_and_changes_nothing(name: str, change: Any) -> None:
    bonus = small()
    data = ready(bonus)
    data.draw(2)
    before = bonus.state_dict()
    with pytest.raises(InputError, match=f"^{name} of its bonus"):
        bonus.load_state_dict({**before, name: change(before[name])})
    assert all(value.equal(before[key]) for key, value in bonus.state_dict().items())


def test_a_bonus_of_the_wrong_shape_is_refused() -> None:
    class Mean(Bonus):
        def build(self, spec: Any, device: Any, seed: int) -> None:
            return

        def __call__(self, block: TensorDict) -> torch.Tensor:
            return block["next", "observation"].mean(0)

    with pytest.raises(InputError, match=r"Mean: a bonus of shape \[16, 3\] for \[2, 16\]"):
        ready(Mean()).draw(2)
