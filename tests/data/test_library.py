"""The datamodule in somebody else's program: copies, workers, loops, and what it leaves behind."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import Arrays, columns, write_hdf5
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import oper_lightning
from oper_lightning import D4RL, Batch, InputError, OfflineDataModule, OperR, ReturnWeighting, WeightedSampler
from oper_lightning.priorities.priority import Priority

DATA = columns([20] * 5)


def made(**options: object) -> OfflineDataModule:
    return OfflineDataModule(Arrays(DATA), **{"batch_size": 10, "seed": 0, **options})  # type: ignore[arg-type]


def ready(**options: object) -> OfflineDataModule:
    data = made(**options)
    data.setup()
    return data


def same(one: Batch, other: Batch) -> bool:
    return all(bool((a == b).all()) for a, b in zip(one, other, strict=True))


class Told(Priority):
    """Gives what it is told to."""

    def __init__(self, weights: object) -> None:
        self.given = weights

    def __call__(self, transitions: object) -> torch.Tensor:
        return self.given  # type: ignore[return-value]


# Weights that anybody made --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.arange(1.0, 11), r"Told: weights have shape \[10\]; one number .* 100 transitions, shape \[100\]"),
        (torch.arange(1.0, 101)[:, None], r"Told: weights have shape \[100, 1\]; .* flatten them with .reshape\(-1\)"),
        (torch.ones(3, 100), r"Told: weights have shape \[3, 100\]"),
        (np.full(100, np.nan), "Told: weight nan at row 0"),
        (np.linspace(-1, 1, 100), "Told: weight -1 at row 0 .* is negative"),
        (np.zeros(100), "Told: all weights are zero"),
        (np.ones(100, dtype=complex), "Told: weights are complex"),
        (None, "Told: weights are of type NoneType"),
        ({"a": 1}, "Told: weights are of type dict"),
    ],
)
def test_weights_that_do_not_fit_the_data_are_refused(weights: object, message: str) -> None:
    for mode in ("resample", "reweight"):
        with pytest.raises(InputError, match=message) as caught:
            ready(priority=Told(weights), mode=mode)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [lambda w: w, lambda w: torch.from_numpy(w), list, lambda w: w.astype(np.float32)])
def test_weights_come_to_mean_one_whoever_made_them(make: object) -> None:
    given = np.arange(1.0, 101)
    data = ready(priority=Told(make(5 * given)), mode="reweight")  # type: ignore[operator]
    assert data.weights is not None
    assert data.weights.dtype == torch.float64
    np.testing.assert_allclose(data.weights, given / given.mean(), rtol=1e-6)
    assert data.draw(1).evaluation["weight"].max() < 2.01
    data.set_weights(make(given))  # type: ignore[operator]
    np.testing.assert_allclose(data.weights, given / given.mean(), rtol=1e-6)
    with pytest.raises(InputError, match=r"set_weights: weights have shape \[10\]"):
        data.set_weights(given[:10])
    with pytest.raises(InputError, match=r"weights of seeds have shape \[3, 10\]; \[S, 100\] is needed"):
        data.set_weights_of_seeds(torch.ones(3, 10))


# setup() -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["device", "memmap"])
def test_a_priority_that_changes_the_data_is_refused(location: Literal["device", "memmap"]) -> None:
    class Careless(Priority):
        def __call__(self, transitions: TensorDict) -> Tensor:
            rewards: Tensor = transitions["next", "reward"]
            rewards -= rewards.min()  # in place
            return rewards

    class Careful(Priority):
        def __call__(self, transitions: TensorDict) -> Tensor:
            transitions["next", "reward"] = transitions["next", "reward"] * 0 + 1  # an entry of its own
            return transitions["next", "reward"]

    with pytest.raises(InputError, match="Careless: changes the transitions"):
        OfflineDataModule(Arrays(columns([25] * 4)), Careless(), batch_size=8, location=location).setup()
    data = OfflineDataModule(Arrays(columns([25] * 4)), Careful(), batch_size=8, location=location)
    data.setup()
    assert data.transitions["next", "reward"].unique().numel() > 1


def test_setup_again_takes_another_priority() -> None:
    data = ready(priority=OperR())
    assert data.weights is not None
    data.priority = ReturnWeighting()
    data.setup()
    expected = ready(priority=ReturnWeighting())
    assert data.weights.equal(expected.weights)
    assert same(data.draw(2), expected.draw(2))
    data.priority = None
    data.setup()
    assert data.weights is None
    assert "uniform" in repr(data)
    data.priority = OperR(0.5)
    data.setup()
    assert data.weights.equal(ready(priority=OperR(0.5)).weights)


def test_setup_again_takes_the_roles_of_another_priority(tmp_path: Path) -> None:
    class Decoupled(Told):
        roles = ("improvement", "constraint")

    data = ready(priority=OperR())
    data.priority = Decoupled(np.arange(100.0))
    data.setup()
    block = data.draw(1)
    assert block.evaluation is not block.improvement


def test_setup_again_weighs_what_was_recorded_not_what_was_clipped() -> None:
    """A priority may look at actions; those that it sees are the file's, whenever it is asked."""

    class BySize(Priority):
        def __call__(self, transitions: object) -> torch.Tensor:
            return transitions["action"].abs().sum(-1)  # type: ignore[index, no-any-return]

    wide = {**DATA, "actions": DATA["actions"] * 3}
    source = Arrays(wide)
    source.known.action_low, source.known.action_high = np.float32(-1), np.float32(1)
    options = {"batch_size": 10, "clip_actions": True}
    first = OfflineDataModule(source, BySize(), **options)  # type: ignore[arg-type]
    later = OfflineDataModule(source, OperR(), **options)  # type: ignore[arg-type]
    for data in (first, later):
        data.setup()
    later.priority = BySize()
    later.setup()
    assert later.weights is not None
    assert later.weights.equal(first.weights)
    assert later.storage[:]["action"].abs().max() == 1
    assert later.spec.fingerprint == first.spec.fingerprint


def test_setup_again_takes_another_source() -> None:
    data, other = ready(), columns([20] * 5, seed=9)
    data.source = Arrays(other)
    data.setup()
    assert data.transitions["observation"].equal(torch.from_numpy(other["observations"]))


@pytest.mark.parametrize(
    "use",
    [
        lambda data: data.draw(1),
        lambda data: data.replay_buffer(4),
        lambda data: data.rows(slice(0, 2)),
        lambda data: list(data.in_order()),
        lambda data: data.spec,
        lambda data: data.weights,
        lambda data: data.storage,
        lambda data: data.transitions,
        lambda data: data.table,
        lambda data: data.set_weights(np.ones(100)),
        lambda data: next(iter(data.train_dataloader())),
        lambda data: data.predict_dataloader(),
    ],
)
def test_what_needs_setup_says_so(use: object) -> None:
    with pytest.raises(InputError, match=r"call setup\(\) first"):
        use(made())  # type: ignore[operator]


def test_a_setup_that_failed_does_not_pass_for_one() -> None:
    data = ready()
    data.priority = Told(np.zeros(100))
    with pytest.raises(InputError):
        data.setup()
    with pytest.raises(InputError, match=r"call setup\(\) first"):
        data.draw(1)
    data.priority = OperR()
    data.setup()
    assert same(data.draw(1), ready(priority=OperR()).draw(1))


def test_what_is_printed() -> None:
    assert "call setup()" in repr(made())
    shown = str(ready(priority=OperR()))
    for word in ("arrays", "100 transitions", "5 episodes", "OperR", "evaluation, improvement, constraint"):
        assert word in shown
    data = ready(priority=OperR())
    data.set_weights(np.arange(100))
    assert "weights set by hand" in repr(data)
    data.set_weights_of_seeds(torch.ones(2, 100))
    assert "weights of 2 seeds" in repr(data)


def test_arguments_read_back_under_their_names() -> None:
    data = made(location="memory", seed=3)
    assert (data.location, data.seed) == ("memory", 3)
    assert not same(ready(seed=3).draw(1), ready(seed=4).draw(1))
    assert same(ready(seed=3).draw(1), ready(seed=3).draw(1))
    with pytest.raises(InputError, match=r"data.prioritise has 'improvment'; did you mean 'improvement'"):
        made(prioritise=["improvment"])


# Copies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [lambda data: pickle.loads(pickle.dumps(data)), copy.deepcopy])
@pytest.mark.parametrize("location", ["memory", "memmap"])
@pytest.mark.parametrize("loaded", [True, False])
def test_copies_draw_alike_and_apart(way: object, location: str, loaded: bool, tmp_path: Path) -> None:
    file = write_hdf5(tmp_path / "a.hdf5", DATA)
    data = OfflineDataModule(D4RL(str(file)), OperR(), batch_size=10, reward_scale=2.0, location=location, seed=0)  # type: ignore[arg-type]
    data.source.origin()  # the file is open
    if loaded:
        data.setup()
        data.draw(3)
    other = way(data)  # type: ignore[operator]
    if not loaded:
        data.setup()
        other.setup()
    assert same(data.draw(2), other.draw(2))
    other.priority = None
    other.setup()
    assert data.weights is not None
    assert other.weights is None
    expected = pickle.loads(pickle.dumps(WeightedSampler(data.weights, 5))).draw(20)
    assert expected.equal(WeightedSampler(data.weights, 5).draw(20))
    buffer = data.replay_buffer(16).sample()
    assert buffer.batch_size == torch.Size([16])


def test_a_copy_belongs_to_no_trainer(tmp_path: Path) -> None:
    data = made(rollouts=None, updates_per_epoch=2)
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    trainer.fit(Theirs(), datamodule=data)
    assert data.trainer is trainer
    other = pickle.loads(pickle.dumps(data))
    assert other.trainer is None
    assert same(other.draw(1), data.draw(1))


class Stream(IterableDataset):  # type: ignore[type-arg]
    """One worker's batches: each begins at an update of its own."""

    def __init__(self, data: OfflineDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        self.data.drawn = 0 if info is None else 10 * info.id
        for batch in self.data.train_dataloader():
            yield batch.evaluation["observation"]


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_draw_what_the_process_itself_would(method: str, workers: int) -> None:
    data = ready(priority=OperR(), updates_per_epoch=3)
    loader = DataLoader(Stream(data), batch_size=None, num_workers=workers, multiprocessing_context=method)
    found = torch.stack(list(loader))
    assert found.shape == (3 * workers, 10, 3)
    for worker in range(workers):
        data.drawn = 10 * worker
        assert found[worker].equal(data.draw(1).evaluation["observation"][0])


# Somebody else's loop ------------------------------------------------------------------------------------------------


class Theirs(pl.LightningModule):
    """A module that knows nothing of this package but what a batch holds."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = torch.nn.Linear(3, 2)
        self.shapes: list[tuple[int, ...]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        rows = batch.improvement
        self.shapes.append(tuple(rows["observation"].shape))
        return (rows["weight"] * (self.policy(rows["observation"]) - rows["action"]).square().mean(-1)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def test_somebody_elses_module_gets_one_batch_at_a_time() -> None:
    module = Theirs()
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    trainer.fit(module, datamodule=made(updates_per_epoch=7, rollouts=None))
    assert module.shapes == [(10, 3)] * 14
    assert trainer.global_step == 14


def test_a_loop_without_a_trainer_gets_one_batch_at_a_time() -> None:
    loader = ready(updates_per_epoch=7).train_dataloader()
    assert len(loader) == 7
    assert [batch.improvement.batch_size for batch in loader] == [torch.Size([10])] * 7


def test_two_datamodules_live_side_by_side() -> None:
    other = columns([20] * 5, seed=1)
    pair = [
        OfflineDataModule(Arrays(arrays), priority, batch_size=10, location="memmap", seed=0)
        for arrays, priority in ((DATA, OperR()), (other, None))
    ]
    for data in pair:
        data.setup()
    for data, arrays in zip(pair, (DATA, other), strict=True):
        assert data.transitions["observation"].equal(torch.from_numpy(arrays["observations"]))
    assert same(pair[0].draw(2), ready(priority=OperR()).draw(2))
    assert pair[1].weights is None


# What is left behind -------------------------------------------------------------------------------------------------


def test_a_memory_map_goes_with_its_datamodule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    data = ready(location="memmap")
    assert list((tmp_path / "scratch").rglob("*.memmap"))
    assert data.memmap_folder is None
    kept = data.transitions["observation"]
    del data
    gc.collect()
    assert not list((tmp_path / "scratch").iterdir())
    assert kept.equal(torch.from_numpy(DATA["observations"]))  # who holds the rows keeps them


def test_a_process_is_left_as_it_was(tmp_path: Path) -> None:
    """No start method is chosen by the import or the use, and a memory map is gone when the process ends."""
    file, scratch = write_hdf5(tmp_path / "a.hdf5", DATA), tmp_path / "scratch"
    scratch.mkdir()
    code = f"""
import multiprocessing, sys
from oper_lightning import D4RL, OfflineDataModule
data = OfflineDataModule(D4RL({str(file)!r}), batch_size=10, location="memmap")
data.setup()
data.replay_buffer().sample()
assert list(__import__("pathlib").Path({str(scratch)!r}).rglob("*.memmap"))
print(multiprocessing.get_start_method(allow_none=True))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(scratch)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "None\n"
    assert not list(scratch.iterdir())


def test_the_front_page_names_what_an_algorithm_of_ones_own_needs() -> None:
    for name in ("OfflineAlgorithm", "Batch", "DataSpec", "adam", "polyak", "frozen_copy", "squared_error", "OperA"):
        assert name in oper_lightning.__all__
        assert name in dir(oper_lightning)
        assert name in (oper_lightning.__doc__ or "")
