"""What batches are made of: shares of recorded and gathered rows, up-sampled rows, weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import Arrays, columns, transitions
from tensordict import TensorDict
from torch import Tensor

from oper_lightning import OfflineDataModule, OperR
from oper_lightning.data.draws import Chosen, Either, EveryRow, Stretches
from oper_lightning.data.mixture import Mixture, Upsample
from oper_lightning.data.sources.joined import Joined
from oper_lightning.errors import InputError
from oper_lightning.spec import ROLES

CPU = torch.device("cpu")


def numbered(index: Tensor) -> TensorDict:
    return TensorDict({"row": index}, batch_size=index.shape)


def stretches(starts: list[int], lengths: list[int]) -> Stretches:
    made = Stretches(torch.tensor(starts))
    made.reach(torch.tensor(lengths))
    return made


def even(counts: Tensor, expected: Tensor) -> bool:
    """Whether counts are what chance gives, by six standard deviations."""
    return bool(((counts - expected).abs() < 6 * expected.sqrt() + 6).all())


def test_stretches_draw_all_their_rows_alike_and_no_other() -> None:
    drawn = stretches([10, 30, 50], [4, 0, 7]).draw((200_000,), torch.Generator().manual_seed(0))
    rows = [*range(10, 14), *range(50, 57)]
    counts = torch.bincount(drawn, minlength=60)
    assert counts.nonzero().squeeze(1).tolist() == rows
    assert even(counts[rows], torch.full((11,), 200_000 / 11))


def test_the_ends_of_the_unit_interval_are_rows() -> None:
    ends = torch.tensor([0.0, np.nextafter(1, 0)], dtype=torch.float64)
    assert EveryRow(7).at(ends).tolist() == [0, 6]
    assert Chosen(torch.tensor([3, 1, 9])).at(ends).tolist() == [3, 9]
    assert stretches([10, 20], [2, 3]).at(ends).tolist() == [10, 22]
    assert Either(EveryRow(4), stretches([4], [2]), 4 / 6).at(ends).tolist() == [0, 5]


def test_all_rows_alike_means_in_proportion_to_their_numbers() -> None:
    either = Either(EveryRow(900), stretches([900, 1000], [70, 30]), 0.9)
    counts = torch.bincount(either.draw((500_000,), torch.Generator().manual_seed(1)), minlength=1030)
    there = torch.cat([torch.arange(970), torch.arange(1000, 1030)])
    assert even(counts[there], torch.full((1000,), 500.0))
    assert counts.sum() == counts[there].sum()


def test_recorded_rows_keep_their_weights_beside_gathered_ones() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0], dtype=torch.float64)
    mixture = Mixture(4, weights, CPU, stretches([4], [4]))
    batch = mixture.draw(numbered, "resample", ("improvement",), 0, 0, 1000, 100)
    counts = torch.bincount(batch.improvement["row"].flatten(), minlength=8)
    # Half of the rows are recorded, and these are drawn 0 : 1 : 3 : 0.
    assert even(counts, 100_000 * torch.tensor([0, 1 / 8, 3 / 8, 0, *[1 / 8] * 4]))
    assert even(torch.bincount(batch.evaluation["row"].flatten(), minlength=8), torch.full((8,), 12_500.0))


def test_reweighting_weighs_recorded_rows_and_leaves_gathered_ones_alone() -> None:
    weights = torch.tensor([0.5, 1.5], dtype=torch.float64)
    batch = Mixture(2, weights, CPU, stretches([2], [3])).draw(numbered, "reweight", ROLES, 0, 0, 10, 50)
    expected = torch.tensor([0.5, 1.5, 1, 1, 1])[batch.evaluation["row"]]
    torch.testing.assert_close(batch.evaluation["weight"], expected)


@pytest.mark.parametrize(("share", "old"), [(0.5, 32), (0.25, 16), (0.0, 0), (1.0, 64)])
def test_a_fixed_share_is_exact_in_every_batch(share: float, old: int) -> None:
    mixture = Mixture(10, None, CPU, stretches([10], [1]), offline_share=share)
    batch = mixture.draw(numbered, "resample", ROLES, 0, 3, 5, 64)
    assert ((batch.evaluation["row"] < 10).sum(1) == old).all()


def test_before_anything_is_gathered_batches_are_recorded_rows() -> None:
    plain = Mixture(10, None, CPU).draw(numbered, "resample", ROLES, 0, 3, 5, 64)
    empty = Mixture(10, None, CPU, stretches([10], [0]), 0.5).draw(numbered, "resample", ROLES, 0, 3, 5, 64)
    assert empty.evaluation["row"].equal(plain.evaluation["row"])
    with pytest.raises(InputError, match="warmup"):
        Mixture(0, None, CPU, stretches([0], [0])).draw(numbered, "resample", ROLES, 0, 0, 1, 4)


def joined(**options: object) -> OfflineDataModule:
    parts = [Arrays(columns([10, 20], seed=1)), Arrays(columns([5, 5], seed=2))]
    known: dict[str, object] = {"batch_size": 8, "rollouts": None, "seed": 0}
    data = OfflineDataModule(Joined(parts), **{**known, **options})  # type: ignore[arg-type]
    data.setup()
    return data


def rows_of(data: OfflineDataModule, part: TensorDict) -> Tensor:
    """Row numbers of drawn transitions, which their first observation tells."""
    known = data.transitions["observation"][:, 0]
    return (part["observation"][..., :1] == known).long().argmax(-1)


def test_joined_sources_share_batches_out() -> None:
    batch = joined(offline_share=0.75).draw(50)
    drawn = rows_of(joined(), batch.evaluation)
    assert ((drawn < 30).sum(1) == 6).all()
    assert len(drawn[drawn >= 30].unique()) == 10


def test_a_priority_holds_within_each_part() -> None:
    data = joined(offline_share=0.5, priority=OperR())
    drawn = rows_of(data, data.draw(4000).improvement)
    weights = data.weights
    assert weights is not None
    for part in (slice(0, 30), slice(30, 40)):
        counts = torch.bincount(drawn.flatten(), minlength=40)[part]
        assert even(counts, 16_000 * weights[part] / weights[part].sum())


def test_a_share_asks_for_joined_sources() -> None:
    data = OfflineDataModule(Arrays(columns([10])), batch_size=4, rollouts=None, offline_share=0.5)
    with pytest.raises(InputError, match="Joined"):
        data.setup()


def by_loop(arrays: dict[str, np.ndarray], rule: str, value: float | None, begin: int) -> list[int]:
    """Good rows, looked for one by one."""
    rewards = arrays["rewards"][begin:].tolist()
    best = max(rewards)
    good = [begin + i for i, reward in enumerate(rewards) if reward >= (best if value is None else value)]
    if rule != "episode":
        return good
    ends = np.nonzero(arrays["terminals"] | arrays["timeouts"])[0]
    episode = np.searchsorted(ends, np.arange(len(arrays["rewards"])))
    return [row for row in range(begin, len(episode)) if any(episode[row] == episode[other] for other in good)]


@pytest.mark.parametrize(("rule", "value"), [("reward", 3.0), ("episode", 3.0), ("best", None)])
@pytest.mark.parametrize("among", ["all", "gathered"])
def test_good_rows_are_those_that_a_loop_finds(rule: str, value: float | None, among: str) -> None:
    arrays = columns([10, 12, 7, 9, 11], seed=4)
    rule_of = Upsample(4, rule, value, among=among)  # type: ignore[arg-type]
    found = rule_of.good(transitions(arrays), 22).tolist()
    assert found == by_loop(arrays, rule, value, 22 if among == "gathered" else 0)
    assert found


@pytest.mark.parametrize(("mode", "size"), [("replace", 32), ("append", 40)])
def test_upsampled_rows_are_in_every_batch(mode: str, size: int) -> None:
    data = joined(batch_size=32, upsample=Upsample(8, "reward", 2.0, mode))  # type: ignore[arg-type]
    batch = data.draw(200).evaluation
    assert batch.shape == (200, size)
    assert (batch["next", "reward"][:, -8:] >= 2).all()
    share = (data.transitions["next", "reward"] >= 2).double().mean()
    others = (batch["next", "reward"][:, :-8] >= 2).double().mean()
    assert abs(others - share) < 0.03


def test_without_good_rows_batches_are_full(caplog: pytest.LogCaptureFixture) -> None:
    plain, without = joined().draw(3), joined(upsample=Upsample(4, "reward", 1e6)).draw(3)
    assert "no row is good" in caplog.text
    assert without.evaluation["observation"].equal(plain.evaluation["observation"])
    same = {**columns([10]), "rewards": np.zeros(10, dtype=np.float32)}
    assert len(Upsample(4).good(transitions(same), 0)) == 0


def test_upsampling_leaves_the_other_draws_alone() -> None:
    plain, more = joined(batch_size=8).draw(3), joined(batch_size=8, upsample=Upsample(3, mode="append")).draw(3)
    assert more.evaluation["observation"][:, :8].equal(plain.evaluation["observation"])


@pytest.mark.parametrize(
    "options",
    [{"rows": 0}, {"rows": 3, "rule": "reward"}, {"rows": 3, "rule": "best", "value": 1.0}],
)
def test_rules_that_say_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="upsample"):
        Upsample(**options)  # type: ignore[arg-type]
