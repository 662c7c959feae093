"""Held-out episodes: which they are, that they are never drawn, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Arrays, columns, oper, write_hdf5
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from oper_lightning import BC, CQL, D4RL, IQL, RLPD, TD3BC, InputError, Minari, OfflineDataModule, OnestepRL, OperR
from oper_lightning.algorithms.stage import Stage
from oper_lightning.data.holdout import HeldOut, spread_evenly
from oper_lightning.data.mixture import Upsample
from oper_lightning.data.sources.joined import Joined
from oper_lightning.nn import ranks
from oper_lightning.spec import ROLES

LENGTHS = [3, 7, 1, 12, 5, 9, 2, 8, 4, 6]


def module(**options: Any) -> OfflineDataModule:
    made = OfflineDataModule(
        Arrays(columns(LENGTHS)), **{"batch_size": 16, "holdout": 0.3, "rollouts": None, **options}
    )
    made.setup()
    return made


def drawn(data: OfflineDataModule, updates: int = 400) -> set[tuple[float, ...]]:
    """First columns of all that is drawn, which tell rows from each other."""
    block = data.draw(updates)
    return {float(x) for role in ROLES for x in getattr(block, role)["observation"][..., 0].reshape(-1)}


def rows(data: OfflineDataModule, kept: bool) -> set[float]:
    assert data.held_out is not None
    of = data.held_out if kept else ~data.held_out
    return {float(x) for x in data.transitions["observation"][of][:, 0]}


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=60),
    share=st.floats(0.01, 1),
    name=st.text(max_size=5),
)
def test_whole_episodes_evenly_spread_the_same_for_the_same_data(lengths: list[int], share: float, name: str) -> None:
    ends = torch.zeros(sum(lengths), dtype=torch.bool)
    ends[torch.tensor(lengths).cumsum(0) - 1] = True
    rows = spread_evenly(ends, share, name)
    assert torch.equal(rows, spread_evenly(ends, share, name))
    episodes = [part.unique().tolist() for part in rows.split(lengths)]
    assert all(len(flags) == 1 for flags in episodes)
    taken = np.flatnonzero([flags[0] for flags in episodes])
    assert abs(len(taken) - share * len(lengths)) <= 1
    gaps = np.diff(taken)
    assert not len(gaps) or (gaps.min() >= np.floor(1 / share) and gaps.max() <= np.ceil(1 / share))


@pytest.mark.parametrize("mode", ["resample", "reweight"])
@pytest.mark.parametrize("priority", [None, OperR()])
@pytest.mark.parametrize("upsample", [None, Upsample(5, "reward", 0.5)])
def test_held_out_rows_are_never_drawn_and_all_others_are(mode: Any, priority: Any, upsample: Any) -> None:
    data = module(mode=mode, priority=priority, upsample=upsample)
    seen = drawn(data)
    assert not seen & rows(data, True)
    missing = rows(data, False) - seen
    if priority is None:
        assert not missing
    weights = data.weights
    assert weights is None or missing <= {
        float(x) for x in data.transitions["observation"][weights < 0.1 * weights.mean()][:, 0]
    }


def test_loss_weights_have_mean_one_over_the_rows_that_are_left() -> None:
    data = module(mode="reweight", priority=OperR())
    block = data.draw(4000).improvement
    assert float(block["weight"].mean()) == pytest.approx(1, abs=0.03)
    whole = module(mode="reweight", priority=OperR(), holdout=0.0)
    assert whole.weights is not None
    assert torch.equal(data.weights, whole.weights)  # type: ignore[arg-type]
    assert data.held_out is not None
    left = whole.weights[~data.held_out]
    expected = left / left.mean()
    seen = {
        float(x): float(w)
        for x, w in zip(block["observation"][..., 0].flatten(), block["weight"].flatten(), strict=True)
    }
    for row, weight in zip(data.transitions["observation"][~data.held_out][:, 0], expected, strict=True):
        assert seen.get(float(row), float(weight)) == pytest.approx(float(weight), rel=1e-5)


def test_weights_of_seeds_and_other_loops_leave_them_out() -> None:
    data = module()
    data.set_weights_of_seeds(torch.rand(2, len(data.transitions)) + 0.1)
    assert drawn(data) == rows(data, False)
    for mode in ("resample", "reweight"):
        for priority in (None, OperR()):
            data = module(mode=mode, priority=priority)
            batches = [data.replay_buffer(64).sample() for _ in range(30)]
            for batch in batches:
                weight = batch["weight"] if "weight" in batch else torch.ones(64)
                first = batch["observation"][weight.reshape(-1) > 0][:, 0]
                assert not {float(x) for x in first} & rows(data, True)


def test_weights_of_seeds_stand_beside_their_rows() -> None:
    data = module(mode="reweight", prioritise=["evaluation"])
    weights = torch.rand(3, len(data.transitions)) + 0.1
    data.set_weights_of_seeds(weights)
    block = data.draw(50).evaluation
    assert data.held_out is not None
    left = weights.double().masked_fill(data.held_out, 0)
    expected = left / left.sum(-1, keepdim=True) * (~data.held_out).sum()
    rows = {float(x): row for row, x in enumerate(data.transitions["observation"][:, 0])}
    for seed in range(3):
        for x, weight in zip(
            block["observation"][:, seed, :, 0].flatten(), block["weight"][:, seed].flatten(), strict=True
        ):
            assert float(weight) == pytest.approx(float(expected[seed, rows[float(x)]]), rel=1e-5)


def test_losses_of_held_out_rows_by_hand(tmp_path: Path) -> None:
    model = BC(hidden_sizes=(8,))
    data = OfflineDataModule(Arrays(columns(LENGTHS)), batch_size=16, holdout=0.3, rollouts=None, updates_per_epoch=10)
    trainer = Trainer(max_steps=30, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.fit(model, data)
    held = data.transitions[data.held_out]
    with torch.no_grad():
        prediction = model.policy(model.observe(held["observation"]))
    error = (prediction - held["action"] / model.action_scale).square().mean()
    assert float(trainer.callback_metrics["holdout/policy_loss"]) == pytest.approx(float(error), rel=1e-5)


def test_looking_at_them_changes_nothing(tmp_path: Path) -> None:
    """The same rows are drawn whether held-out rows are looked at or not; all branches of an update are seen."""
    found = []
    for limit in (0, 1.0):
        torch.manual_seed(0)
        model = TD3BC(hidden_sizes=(8,), policy_freq=3)
        model.seed = 0
        data = OfflineDataModule(
            Arrays(columns(LENGTHS)), batch_size=4, holdout=0.3, rollouts=None, updates_per_epoch=10, seed=0
        )
        trainer = Trainer(
            max_steps=30,
            logger=False,
            enable_progress_bar=False,
            default_root_dir=tmp_path,
            limit_val_batches=limit,
            accelerator="cpu",
        )
        trainer.fit(model, data)
        found.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(*found)
    assert {"holdout/critic_loss", "holdout/improvement_loss"} <= trainer.callback_metrics.keys()


class Somebodys(LightningModule):
    """A module of another project, with batches of its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = torch.nn.Linear(4, 2)
        self.rows = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.policy(batch.improvement["observation"]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.rows += len(batch.improvement["observation"])
        self.log("loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def test_somebodys_module_gets_them_as_batches(tmp_path: Path) -> None:
    arrays = columns(LENGTHS)
    module, size = Somebodys(), arrays["observations"].shape[1]
    module.policy = torch.nn.Linear(size, 2)
    data = OfflineDataModule(Arrays(arrays), batch_size=4, holdout=0.3, rollouts=None, updates_per_epoch=10)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    Trainer(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=False, **options).fit(module, data)
    assert data.held_out is not None
    assert module.rows == int(data.held_out.sum())


def test_rows_of_two_ranks_and_of_both_together(monkeypatch: pytest.MonkeyPatch) -> None:
    data = module()
    assert data.held_out is not None
    numbers = torch.nonzero(data.held_out).squeeze(1)
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        held = HeldOut(data._at_hand("rows"), numbers, 4)
        shares.append(torch.cat([*held.parts(5)])["observation"])
        together = torch.cat([*held.parts(5, of_all_ranks=True)])["observation"]
        assert torch.equal(together, data.transitions["observation"][numbers])
        assert torch.equal(held.ends(), data.transitions["next", "done"][numbers])
        assert next(len(batch.evaluation) for batch in held.batches()) == 4
    assert torch.equal(shares[0], data.transitions["observation"][numbers][::2])
    assert torch.equal(shares[1], data.transitions["observation"][numbers][1::2])


def test_training_ends_when_their_loss_rises(tmp_path: Path) -> None:
    stop = EarlyStopping("holdout/policy_loss", patience=1)
    data = OfflineDataModule(Arrays(columns([3] * 6)), batch_size=4, holdout=0.4, rollouts=None, updates_per_epoch=100)
    trainer = Trainer(
        max_steps=20_000, logger=False, enable_progress_bar=False, default_root_dir=tmp_path, callbacks=[stop]
    )
    trainer.fit(BC(hidden_sizes=(64,), learning_rate=1e-2), data)
    assert trainer.global_step < 20_000


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"data.holdout is 1.5; a share of the episodes from 0 to 1 is needed"):
        module(holdout=1.5)
    with pytest.raises(InputError, match="whole episodes are held out"):
        module(holdout=1.0)
    whole = spread_evenly(torch.tensor([True]), 0.01, "a")
    assert not whole.any()
    joined = Joined([Arrays(columns(LENGTHS)), Arrays(columns(LENGTHS))])
    with pytest.raises(InputError, match="do not go together"):
        OfflineDataModule(joined, batch_size=4, holdout=0.3, offline_share=0.5, rollouts=None).setup()


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_hdf5(tmp_path / "rows.hdf5", columns(LENGTHS * 4))
    data = ["--data.source=D4RL", "--data.source.path=rows.hdf5", "--data.holdout=0.2", "--data.rollouts=null"]
    small = ["--model.hidden_sizes=[8]", "--data.batch_size=8", "--data.updates_per_epoch=10"]
    assert oper("fit", "--model=BC", *data, *small, "--trainer.max_steps=20", "--output=run") == 0
    assert oper("validate", "--ckpt_path=run/last.ckpt") == 0
    assert "holdout/policy_loss " in capsys.readouterr().out
    assert '"holdout/policy_loss"' in (tmp_path / "run" / "validate.json").read_text()


def test_columns_of_an_algorithm_are_there_where_nothing_is_trained(tmp_path: Path) -> None:
    def data() -> OfflineDataModule:
        return OfflineDataModule(
            Arrays(columns(LENGTHS)), batch_size=4, holdout=0.3, rollouts=None, updates_per_epoch=5
        )

    trainer = Trainer(max_steps=5, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    model = IQL(hidden_sizes=(8,))
    trainer.fit(model, data())
    (numbers,) = Trainer(logger=False, enable_progress_bar=False).validate(model, data(), verbose=False)
    assert {name for name in trainer.callback_metrics if name.startswith("holdout/")} == set(numbers)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TD3BC(hidden_sizes=(8,), policy_freq=3),
        lambda: OnestepRL(hidden_sizes=(8,), phases=(1, 2, 2)),
        lambda: CQL(policy_hidden_sizes=(8,), critic_hidden_sizes=(8,), bc_updates=3, sampled_actions=2),
        lambda: RLPD(hidden_sizes=(8,), policy_freq=2),
    ],
)
def test_a_checkpoint_is_judged_as_where_it_was_trained(make: Callable[[], Stage], tmp_path: Path) -> None:
    """By the same losses, the part of the run that it is of included."""

    def data() -> OfflineDataModule:
        return OfflineDataModule(
            Arrays(columns(LENGTHS)), batch_size=4, holdout=0.3, rollouts=None, updates_per_epoch=10
        )

    model = make()
    trainer = Trainer(max_steps=10, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.fit(model, data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    known = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("holdout/")}
    other = Trainer(logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    (numbers,) = other.validate(make(), data(), ckpt_path=tmp_path / "last.ckpt", verbose=False, weights_only=True)
    (after,) = other.validate(model, data(), verbose=False)
    assert numbers.keys() == after.keys() == known.keys()
    first = next(iter(numbers))  # others are of networks that have just learnt
    assert numbers[first] == after[first] == pytest.approx(known[first], rel=1e-5)


def test_fewer_rows_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = module()
    table, rows = data.judged or pytest.fail("nothing is held out")
    monkeypatch.setattr(ranks, "world_size", lambda: 8)
    monkeypatch.setattr(ranks, "rank", lambda: 0)
    assert len(list(HeldOut(table, rows[:8], 4).batches())) == 1
    with pytest.raises(InputError, match=r"takes 7 transitions, fewer than there are processes \(8\)"):
        HeldOut(table, rows[:7], 4)


# A file of its own ---------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with train.hdf5 and val.hdf5, of other rows."""
    monkeypatch.chdir(tmp_path)
    write_hdf5(tmp_path / "train.hdf5", columns(LENGTHS))
    write_hdf5(tmp_path / "val.hdf5", columns([4, 9, 2], seed=1))
    return tmp_path


def of_files(**options: Any) -> OfflineDataModule:
    known = {"batch_size": 16, "rollouts": None, "updates_per_epoch": 10, "seed": 0}
    return OfflineDataModule(D4RL("train.hdf5"), **{**known, **options})


@pytest.mark.parametrize("location", ["device", "memory", "memmap"])
def test_losses_of_a_file_of_its_own_by_hand(files: Path, location: Any) -> None:
    model, data = BC(hidden_sizes=(8,)), of_files(holdout="val.hdf5", location=location)
    trainer = Trainer(max_steps=30, logger=False, enable_progress_bar=False, default_root_dir=files)
    trainer.fit(model, data)
    rows = columns([4, 9, 2], seed=1)
    with torch.no_grad():
        prediction = model.policy(model.observe(torch.from_numpy(rows["observations"])))
    error = (prediction - torch.from_numpy(rows["actions"]) / model.action_scale).square().mean()
    assert float(trainer.callback_metrics["holdout/policy_loss"]) == pytest.approx(float(error), rel=1e-5)


def test_a_file_of_its_own_changes_nothing_else(files: Path) -> None:
    found = []
    for holdout in (0.0, "val.hdf5"):
        torch.manual_seed(0)
        model, data = IQL(hidden_sizes=(8,)), of_files(holdout=holdout, priority=OperR(), reward_scale="return_range")
        model.seed = 0
        options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "default_root_dir": files}
        trainer = Trainer(max_steps=30, accelerator="cpu", **options)
        trainer.fit(model, data)
        found.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(*found)
    assert data.judged is not None
    table, numbers = data.judged
    returns = columns(LENGTHS)["rewards"].astype(np.float64)
    ends = np.cumsum(LENGTHS)
    totals = [part.sum() for part in np.split(returns, ends[:-1])]
    expected = columns([4, 9, 2], seed=1)["rewards"] * 1000 / (max(totals) - min(totals))
    assert table.rows(numbers)["next", "reward"].numpy() == pytest.approx(expected, rel=1e-5)


def test_what_a_file_of_its_own_must_be(files: Path) -> None:
    write_hdf5(files / "wide.hdf5", columns(LENGTHS, observation=5))
    write_hdf5(files / "narrow.hdf5", columns(LENGTHS, action=1))
    write_hdf5(files / "discrete.hdf5", columns(LENGTHS, action=2, discrete=True))
    wild = columns(LENGTHS)
    wild["actions"][7] = 3
    write_hdf5(files / "wild.hdf5", wild)
    for name, message in (
        ("wide", r"wide.hdf5: observations of shape \(5,\), but \(3,\) in train.hdf5"),
        ("narrow", r"narrow.hdf5: actions of shape \(1,\), but \(2,\) in train.hdf5"),
        ("discrete", r"discrete.hdf5: actions of shape \(\), but \(2,\) in train.hdf5"),
        ("wild", r"wild.hdf5: 1 of 57 actions lie outside the action space"),
        ("absent", r"absent.hdf5: no such file"),
    ):
        with pytest.raises(InputError, match=message):
            of_files(holdout=f"{name}.hdf5").setup()
    data = of_files(holdout="wild.hdf5", clip_actions=True)
    data.setup()
    assert data.judged is not None
    assert float(data.judged[0].transitions["action"].max()) <= 1
    with pytest.raises(InputError, match="is no file; give a share of the episodes instead"):
        OfflineDataModule(Arrays(columns(LENGTHS)), batch_size=4, holdout="val.hdf5", rollouts=None).setup()


def test_a_file_of_its_own_from_the_command_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data.source=D4RL", "--data.source.path=train.hdf5", "--data.holdout=val.hdf5", "--data.rollouts=null"]
    small = ["--model.hidden_sizes=[8]", "--data.batch_size=8", "--data.updates_per_epoch=10"]
    assert oper("fit", "--model=IQL", *data, *small, "--trainer.max_steps=20", "--output=run") == 0
    assert "57 transitions in 10 episodes, 15 transitions of val.hdf5 are held out" in capsys.readouterr().err
    found = []
    for words in ([], ["--data.source.path=val.hdf5", "--data.holdout=1"]):
        assert oper("validate", "--ckpt_path=run/last.ckpt", *words, f"--output=judged{len(words)}") == 0
        numbers = json.loads((files / f"judged{len(words)}" / "validate.json").read_text())
        found.append({name: value for name, value in numbers.items() if name.startswith("holdout/")})
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert len(found[0]) > 3


@pytest.mark.usefixtures("files")
def test_another_dataset_of_minari_and_a_model() -> None:
    source = Minari("a", observation_keys=["x"], skip_broken=True).elsewhere("b")
    assert (source.id, source.observation_keys, source.skip_broken) == ("b", ("x",), True)
    words = ["--model=DynamicsEnsemble", "--model.members=2", "--model.hidden_sizes=[8]", "--data.rollouts=null"]
    words += ["--data.source=D4RL", "--data.source.path=train.hdf5", "--data.holdout=val.hdf5", "--data.batch_size=8"]
    words += ["--data.updates_per_epoch=10", "--trainer.max_steps=20", "--output=model"]
    assert oper("fit", *words) == 0
