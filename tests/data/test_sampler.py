from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import columns, transitions
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer, TensorStorage

from oper_lightning import InputError, LossWeight, WeightedSampler

DRAWS = 1_000_000


def chi_square_tail(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Probability of at least this chi-square statistic (regularised upper incomplete gamma function)."""
    statistic = ((counts - expected).square() / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, statistic.double() / 2).item()


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_frequencies_follow_the_weights(power: float) -> None:
    weights = torch.rand(200, generator=torch.Generator().manual_seed(1)).double() ** power
    weights[::7] = 0
    index = WeightedSampler(weights, seed=3).draw(DRAWS)
    counts = torch.bincount(index, minlength=200).double()
    assert not counts[::7].any()
    drawn = weights > 0
    assert chi_square_tail(counts[drawn], DRAWS * weights[drawn] / weights.sum()) > 1e-3


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-12, 1.0, 1e12]), min_size=1, max_size=50).filter(any), st.integers(0, 99))
def test_a_weight_of_zero_is_never_drawn(weights: list[float], seed: int) -> None:
    row = torch.tensor(weights, dtype=torch.float64)
    index = WeightedSampler(row, seed).draw(1000)
    assert (row[index] > 0).all()


def test_the_extremes_of_the_generator_stay_within_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = WeightedSampler(torch.tensor([0.0, 1.0, 2.0, 0.0]))
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: edges)
    assert sampler.draw(2).tolist() == [1, 2]


def test_more_rows_than_float32_can_count() -> None:
    rows = 2**24 + 1000
    weights = torch.zeros(rows)
    weights[-3:] = torch.tensor([1.0, 0.0, 3.0])
    index = WeightedSampler(weights).draw(4000) - rows
    assert set(index.tolist()) == {-3, -1}
    assert 0.7 < (index == -1).double().mean() < 0.8
    every = WeightedSampler(torch.ones(rows)).draw(DRAWS)
    assert len(every.unique()) > 0.95 * DRAWS
    assert every.max() > 2**24


def test_seeds_of_weights_are_drawn_apart() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    index = WeightedSampler(weights).draw(500)
    assert index.shape == (2, 500)
    assert index[0].unique().tolist() == [0]
    assert index[1].unique().tolist() == [1, 2]


def test_works_in_a_torchrl_replay_buffer() -> None:
    storage = TensorStorage(TensorDict({"row": torch.arange(5)}, batch_size=[5]))
    weights = torch.tensor([0.0, 1.0, 0.0, 1.0, 2.0])
    buffer = TensorDictReplayBuffer(storage=storage, sampler=WeightedSampler(weights), batch_size=4000)
    rows = buffer.sample()["row"]
    assert rows.unique().tolist() == [1, 3, 4]
    assert 0.45 < (rows == 4).double().mean() < 0.55
    short = TensorDictReplayBuffer(storage=storage, sampler=WeightedSampler(weights[:4]), batch_size=4)
    with pytest.raises(InputError, match="for 5 rows in storage"):
        short.sample()


def test_state_goes_on_where_it_was(tmp_path: Path) -> None:
    first = WeightedSampler(torch.rand(100), seed=1)
    first.draw(10)
    state = {key: value.clone() for key, value in first.state_dict().items()}
    first.dumps(tmp_path / "sampler")
    expected = first.draw(20)
    for second in (WeightedSampler(torch.ones(100)), WeightedSampler(torch.ones(100))):
        second.load_state_dict(state)
        assert second.draw(20).equal(expected)
    third = WeightedSampler(torch.ones(100))
    third.loads(tmp_path / "sampler")
    assert third.draw(20).equal(expected)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1.0], "is negative"),
        ([0.0, 0.0], "all weights are zero"),
        ([1.0, float("nan")], "weight nan at row 1"),
        ([float("inf"), 1.0], "weight inf at row 0"),
    ],
)
def test_weights_that_are_none(weights: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WeightedSampler(torch.tensor(weights))


def test_loss_weight_looks_up_by_row() -> None:
    table = transitions(columns([5, 5]))
    weights = torch.arange(10.0)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(10), transform=LossWeight(weights), batch_size=64)
    buffer.extend(table)
    sample = buffer.sample()
    assert sample["weight"].equal(sample["index"].float())
    assert table["observation"][sample["index"]].equal(sample["observation"])
