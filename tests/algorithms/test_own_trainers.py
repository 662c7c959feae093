"""Modules, data and a Lightning Trainer in a person's own program: in any order, and with numpy's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Arrays, columns
from lightning.pytorch import Trainer, seed_everything

from oper_lightning import BC, IQL, TD3BC, InputError, OfflineDataModule, OnlineDataModule, OperA
from oper_lightning.algorithms.dynamics import DynamicsEnsemble
from oper_lightning.algorithms.stage import Stage
from oper_lightning.data.bonuses.counts import CountBonus
from oper_lightning.data.sources.source import Origin
from oper_lightning.files import read_torch


def trainer(folder: Path, updates: int = 20, **options: Any) -> Trainer:
    seed_everything(0)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(max_steps=updates, accelerator="cpu", default_root_dir=folder, **quiet, **options)


def data(origin: Origin | None = None, **options: Any) -> OfflineDataModule:
    settings: dict[str, Any] = {"batch_size": 8, "updates_per_epoch": 10, "rollouts": None, "seed": 0}
    return OfflineDataModule(Arrays(columns([10] * 10), origin), **{**settings, **options})


@pytest.mark.parametrize(
    "first", [lambda: OperA(iterations=2, seeds=2, hidden_sizes=(8,)), lambda: DynamicsEnsemble(hidden_sizes=(8,))]
)
@pytest.mark.parametrize("second", [BC, TD3BC])
def test_an_algorithm_gets_batches_of_its_own_after_a_stage_of_several_seeds(
    first: Callable[[], Stage], second: type[BC | TD3BC], tmp_path: Path
) -> None:
    seed_everything(0)
    alone = second(hidden_sizes=(8,))
    trainer(tmp_path).fit(alone, data(holdout=0.2))
    shared, after = data(holdout=0.2), second(hidden_sizes=(8,))
    trainer(tmp_path).fit(first(), shared)
    shared.drawn = 0
    trainer(tmp_path).fit(after, shared)
    assert all(value.equal(after.state_dict()[name]) for name, value in alone.state_dict().items())


def test_judging_before_training_makes_room_for_what_is_gathered(tmp_path: Path) -> None:
    def online() -> OnlineDataModule:
        return OnlineDataModule(
            environment="Pendulum-v1", warmup=16, batch_size=8, updates_per_epoch=10, seed=0, patience=60
        )

    def model() -> TD3BC:
        return TD3BC(hidden_sizes=(8,), normalise_observations=False)

    seed_everything(0)
    alone, judged, module = model(), model(), online()
    trainer(tmp_path / "alone").fit(alone, online())
    first = trainer(tmp_path / "judged")
    first.validate(judged, module, verbose=False)
    first.fit(judged, module)
    assert all(value.equal(judged.state_dict()[name]) for name, value in alone.state_dict().items())


def test_judging_before_training_leaves_the_bonus_to_be_built(tmp_path: Path) -> None:
    module = data(bonus=CountBonus(low=[-3.0, -3.0, -3.0], high=[3.0, 3.0, 3.0], cells=[4, 4, 4]), holdout=0.2)
    own, model = trainer(tmp_path), TD3BC(hidden_sizes=(8,))
    own.validate(model, module, verbose=False)
    own.fit(model, module)
    assert own.global_step == 20


def test_settings_from_numpy_can_be_read_again(tmp_path: Path) -> None:
    numbers = np.linspace(0.5, 1, 3)
    origin = Origin(dataset="rows", reference=(numbers[0], numbers[1]))
    module = data(origin, seed=np.arange(4)[3], reward_scale=numbers[1])
    model = IQL(
        temperature=numbers[1],
        learning_rate=np.logspace(-4, -3, 2)[0],
        hidden_sizes=(8, 8),
        tau=numbers[0],
    )
    own = trainer(tmp_path)
    own.fit(model, module)
    own.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = read_torch(tmp_path / "last.ckpt")
    assert checkpoint["hyper_parameters"]["temperature"] == 0.75
    again = IQL.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert all(value.equal(model.state_dict()[name]) for name, value in again.state_dict().items())
    on = trainer(tmp_path, 40)
    other = IQL(temperature=0.75, learning_rate=1e-4, hidden_sizes=(8, 8), tau=0.5, schedule="none")
    with pytest.raises(InputError, match="its run has parts of 20 updates"):
        on.fit(other, data(origin, reward_scale=0.75), ckpt_path=tmp_path / "last.ckpt", weights_only=True)


def test_whole_and_short_numbers_from_numpy_are_kept() -> None:
    model = TD3BC(policy_freq=np.int64(3), discount=np.float32(0.5), hidden_sizes=(8,))
    assert dict(model.hparams)["policy_freq"] == 3
    assert model.hparams["discount"] == 0.5
    assert {type(model.hparams[name]) for name in ("policy_freq", "discount")} == {int, float}


def test_references_are_those_of_the_data_at_hand(tmp_path: Path) -> None:
    """A policy is scored by what its data say now; networks see observations as they were trained."""
    first = OfflineDataModule(
        Arrays(columns([10] * 10, 10, 2), Origin(dataset="a", reference=(0.0, 1.0), environment="Reacher-v5")),
        batch_size=8, updates_per_epoch=20, seed=0,
    )  # fmt: skip
    own = trainer(tmp_path)
    own.fit(BC(hidden_sizes=(8,), normalise_observations=True), first)
    own.save_checkpoint(tmp_path / "last.ckpt")
    for reference in ((-100.0, 0.0), None):
        origin = Origin(dataset="b", reference=reference, environment="Reacher-v5")
        other = OfflineDataModule(Arrays(columns([10] * 9, 10, 2, seed=3), origin), batch_size=8, seed=0)
        model = BC(hidden_sizes=(8,), normalise_observations=True)
        (numbers,) = trainer(tmp_path).validate(
            model, other, ckpt_path=tmp_path / "last.ckpt", verbose=False, weights_only=True
        )
        scored = {} if reference is None else {"eval/score": 100 + numbers["eval/return"]}
        assert {name: value for name, value in numbers.items() if "score" in name} == pytest.approx(scored)
        assert model.observation_mean.equal(first.spec.observation_mean)
        assert not model.observation_mean.equal(other.spec.observation_mean)


def test_a_bonus_needs_an_algorithm_that_reads_rewards(tmp_path: Path) -> None:
    module = data(bonus=CountBonus(low=[-3.0, -3.0, -3.0], high=[3.0, 3.0, 3.0], cells=[4, 4, 4]))
    with pytest.raises(InputError, match="is added to rewards, and BC reads none"):
        trainer(tmp_path).fit(BC(hidden_sizes=(8,)), module)


def test_an_action_whose_bounds_are_equal_is_refused() -> None:
    fixed = Origin(dataset="fixed", action_low=[-1.0, 0.5], action_high=[1.0, 0.5])
    with pytest.raises(InputError, match=r"action bounds \[-1.0, 0.5\] to \[1.0, 0.5\]: the lowest must be below"):
        data(fixed, clip_actions=True).setup()


def test_few_rows_can_be_judged_and_predicted_for(tmp_path: Path) -> None:
    own = trainer(tmp_path)
    model = BC(hidden_sizes=(8,))
    own.fit(model, data())
    few = OfflineDataModule(Arrays(columns([5])), rollouts=None)
    (actions,) = own.predict(model, few) or []
    assert actions["action"].shape == (5, 2)
    with pytest.raises(InputError, match=r"data.batch_size 256 is larger than the dataset \(5 transitions\)"):
        own.fit(model, few)


def test_one_iteration_may_have_its_length_named(tmp_path: Path) -> None:
    model = OperA(iterations=1, first_updates=20, seeds=2, hidden_sizes=(8,))
    trainer(tmp_path).fit(model, data())
    assert len(model.weights) == 1
    with pytest.raises(InputError, match="cannot be shared out"):
        trainer(tmp_path).fit(OperA(iterations=1, first_updates=10, seeds=2, hidden_sizes=(8,)), data())
    assert torch.isfinite(model.weights[0]).all()
