"""Rows gathered step by step are what the same rows are when they were recorded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import Arrays, columns
from tensordict import TensorDict

from oper_lightning.data.gathered import Gathered
from oper_lightning.data.storage import fill
from oper_lightning.data.table import Table
from oper_lightning.data.transitions import n_step, next_action, return_to_go

CPU = torch.device("cpu")


def made(transitions: TensorDict) -> TensorDict:
    """Columns that look ahead: windows of three steps, returns-to-go, next actions."""
    following = transitions["next"]
    made = n_step(transitions, 3, 0.9)
    made["return_to_go"] = return_to_go(following["reward"], following["done"], 0.9).float()
    made["next", "action"] = next_action(transitions)
    return made


def plain(transitions: TensorDict) -> TensorDict:
    return n_step(transitions, 1, 0.9)


def steps_of(copies: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Columns ``[E, n, ...]`` of what copies went through."""
    names = {"observation": "observations", "action": "actions", "next_observation": "next_observations"}
    names |= {"reward": "rewards", "terminated": "terminals", "truncated": "timeouts"}
    return {key: torch.from_numpy(np.stack([copy[name] for copy in copies])) for key, name in names.items()}


def gathered(columns_of: Callable[[TensorDict], TensorDict], recorded: bool, visible: str) -> Gathered:
    source = Arrays(columns([10, 12], seed=9)) if recorded else Nothing(columns([3]))
    table = Table(source, fill(source, CPU, room=2 * 40), len(source))
    table.add(columns_of, table.arrange(2.0, -1.0))
    return Gathered(table, 2, columns_of, visible)  # type: ignore[arg-type]


class Nothing(Arrays):
    """Shapes and no rows."""

    def __len__(self) -> int:
        return 0

    def episodes(self):  # type: ignore[no-untyped-def]
        yield next(super().episodes())[:0]


@pytest.mark.parametrize("columns_of", [made, plain])
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("sizes", [[1] * 37, [5, 1, 7, 20, 4], [37]])
def test_rows_and_columns_are_those_of_recorded_data(
    columns_of: Callable[[TensorDict], TensorDict], recorded: bool, sizes: list[int]
) -> None:
    copies = [columns([7, 1, 20, 9], seed=1), columns([15, 15, 2, 5], seed=2)]
    steps, online = steps_of(copies), gathered(columns_of, recorded, "step")
    at, ended = 0, []
    for size in sizes:
        ended += online.put({key: column[:, at : at + size] for key, column in steps.items()})
        at += size
    assert online.steps == 37
    for copy, arrays in enumerate(copies):
        source = Arrays(arrays)
        expected = Table(source, fill(source, CPU))
        expected.add(columns_of, expected.arrange(2.0, -1.0))
        rows = torch.arange(37) + online.starts[copy]
        got, want = online.table.rows(rows), expected.rows(torch.arange(37))
        assert set(got.keys(True, True)) == set(want.keys(True, True))
        for key in want.keys(True, True):
            torch.testing.assert_close(got[key], want[key], rtol=0, atol=1e-6, msg=str(key))
    totals = []
    for arrays, lengths in zip(copies, ([7, 1, 20, 9], [15, 15, 2, 5]), strict=True):
        parts = np.split(arrays["rewards"].astype(np.float64), np.cumsum(lengths)[:-1])
        totals += [(end, part.sum(), len(part)) for end, part in zip(np.cumsum(lengths), parts, strict=True)]
    # Within a block by step, whatever the copy.
    blocks = np.searchsorted(np.cumsum(sizes), [end for end, *_ in totals])
    order = sorted(range(len(totals)), key=lambda row: (blocks[row], totals[row]))
    np.testing.assert_allclose(ended, [totals[row][1:] for row in order], rtol=1e-6)


def test_a_running_episode_is_seen_as_if_it_were_cut_here() -> None:
    arrays = columns([20, 17], seed=3)
    online = gathered(made, True, "step")
    online.put({key: column[:, :12] for key, column in steps_of([arrays, arrays]).items()})
    cut = {key: value[:12].copy() for key, value in arrays.items()}
    cut["timeouts"][-1] = True
    source = Arrays(cut)
    expected = Table(source, fill(source, CPU))
    expected.add(made, expected.arrange(2.0, -1.0))
    got, want = online.table.rows(torch.arange(12) + online.starts[1]), expected.rows(torch.arange(12))
    for key in want.keys(True, True):
        torch.testing.assert_close(got[key], want[key], rtol=0, atol=1e-6, msg=str(key))
    assert not online.part(0, 0, 12)["next", "done"].any(), "what is recorded is not cut"


def test_rows_of_running_episodes_wait_for_their_end() -> None:
    online = gathered(made, True, "episode")
    steps = steps_of([columns([7, 30], seed=1), columns([15, 22], seed=2)])
    shown = []
    for at in range(0, 37, 5):
        online.put({key: column[:, at : at + 5] for key, column in steps.items()})
        shown.append(online.rows.total)
    assert shown == [0, 7, 22, 22, 22, 22, 22, 74]


def test_the_log_holds_what_was_put() -> None:
    online, steps = gathered(plain, False, "step"), steps_of([columns([37], seed=1), columns([30, 7], seed=2)])
    online.put({key: column[:, :20] for key, column in steps.items()})
    online.put({key: column[:, 20:] for key, column in steps.items()})
    for key, column in online.log(13, 37).items():
        assert column.equal(steps[key][:, 13:].to(column.dtype)), key


def test_episodes_that_are_cut_end_there() -> None:
    online, arrays = gathered(made, True, "episode"), columns([37], seed=1)
    online.put({key: column[:, :12] for key, column in steps_of([arrays, arrays]).items()})
    online.cut([1])
    assert online.episode == [0, 1]
    assert online.began == [0, 12]
    assert online.log(0, 12)["truncated"].nonzero().tolist() == [[1, 11]]
    assert online.rows.total == 12


def test_rows_that_were_cut_short_by_a_signal_do_not_count() -> None:
    """Its second copy's rows are not there yet when the first one's are."""
    calls = []

    def stopped(transitions: TensorDict) -> TensorDict:
        calls.append(len(transitions))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return plain(transitions)

    rows = gathered(stopped, recorded=True, visible="step")
    steps = steps_of([columns([20], seed=1), columns([20], seed=2)])
    rows.put({key: value[:, :5] for key, value in steps.items()})
    before = rows.log(0, 5)
    with pytest.raises(KeyboardInterrupt):
        rows.put({key: value[:, 5:12] for key, value in steps.items()})
    assert rows.steps == 5
    assert all(value.equal(rows.log(0, rows.steps)[key]) for key, value in before.items())
