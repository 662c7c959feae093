from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import columns, transitions
from hypothesis import given, settings
from hypothesis import strategies as st

from oper_lightning.data.transitions import (
    discounted_sum,
    episode_of,
    episode_returns,
    fingerprint,
    last_row,
    n_step,
    next_action,
    return_to_go,
)

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def rows(data: dict[str, np.ndarray]) -> range:
    return range(len(data["rewards"]))


def end_of(data: dict[str, np.ndarray], row: int) -> int:
    """The last row of a row's episode, by walking there."""
    while not (data["terminals"][row] or data["timeouts"][row]):
        row += 1
    return row


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_n_step_equals_a_walk_along_the_episode(lengths: list[int], n: int, bootstrap: bool, seed: int) -> None:
    data = columns(lengths, seed=seed)
    found = n_step(transitions(data), n, 0.9, bootstrap)
    for row in rows(data):
        last = min(row + n - 1, end_of(data, row))
        total = sum(0.9**k * data["rewards"][row + k] for k in range(last - row + 1))
        ended = data["terminals"][last] or (not bootstrap and data["timeouts"][last])
        assert found["discount"][row].item() == pytest.approx(0.0 if ended else 0.9 ** (last - row + 1), abs=1e-6)
        if n > 1:
            assert found["next", "reward"][row].item() == pytest.approx(total, rel=1e-5, abs=1e-5)
            assert found["next", "row"][row].item() == last


def test_n_step_with_published_truncations_is_the_published_closed_form() -> None:
    """ret_n and done_n of the published stage 1: any end of an episode within the n rows counts as terminal."""
    data = columns([4, 3, 6], seed=3)
    ends = data["terminals"] | data["timeouts"]
    found = n_step(transitions(data), 3, 0.99, bootstrap_truncated=False)
    for row in rows(data):
        window = ends[row : row + 3]
        first = int(np.argmax(window)) if window.any() else 2
        expected = sum(0.99**k * data["rewards"][row + k] for k in range(first + 1))
        assert found["next", "reward"][row].item() == pytest.approx(expected, rel=1e-5)
        assert found["discount"][row].item() == pytest.approx(0 if window.any() else 0.99**3, rel=1e-6)


@settings(deadline=None)
@given(LENGTHS, st.floats(0, 1), st.integers(0, 99))
def test_return_to_go_equals_a_backward_loop(lengths: list[int], discount: float, seed: int) -> None:
    data = columns(lengths, seed=seed)
    ends = torch.from_numpy(data["terminals"] | data["timeouts"])
    found = return_to_go(torch.from_numpy(data["rewards"]), ends, discount)
    total = 0.0
    for row in reversed(rows(data)):
        total = float(data["rewards"][row]) + (0 if ends[row] else discount * total)
        assert found[row].item() == pytest.approx(total, rel=1e-9, abs=1e-9)


def test_discounted_sum_takes_several_rows_at_once() -> None:
    values, carry = torch.randn(3, 50), torch.rand(3, 50)
    found = discounted_sum(values, carry)
    for row in range(3):
        total = torch.zeros((), dtype=torch.float64)
        for t in reversed(range(50)):
            total = values[row, t].double() + carry[row, t].double() * total
            torch.testing.assert_close(found[row, t], total)


def test_returns_and_episode_numbers() -> None:
    data = columns([3, 1, 4])
    table = transitions(data)
    ends = table["next", "done"]
    assert episode_of(ends).tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert last_row(ends).tolist() == [2, 2, 2, 3, 7, 7, 7, 7]
    returns = episode_returns(table["next", "reward"], ends)
    assert returns[0].item() == pytest.approx(float(data["rewards"][:3].astype(np.float64).sum()))
    assert returns[3].item() == pytest.approx(float(data["rewards"][3]))
    assert returns.unique().numel() == 3


def test_next_action_is_the_following_rows_and_nothing_beyond_an_end() -> None:
    data = columns([3, 2])
    found = next_action(transitions(data))
    np.testing.assert_array_equal(found[0], data["actions"][1])
    np.testing.assert_array_equal(found[3], data["actions"][4])
    assert not found[2].any()
    assert not found[4].any()


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_fingerprint_sees_a_single_changed_value(name: str) -> None:
    data = columns([30, 30])
    before = fingerprint(transitions(data))
    assert fingerprint(transitions(columns([30, 30]))) == before
    data[name].reshape(-1)[37] += 1e-3
    assert fingerprint(transitions(data)) != before


def test_fingerprint_sees_order_and_ends() -> None:
    data = columns([5, 5])
    before = fingerprint(transitions(data))
    swapped = {key: np.concatenate([value[5:], value[:5]]) for key, value in data.items()}
    assert fingerprint(transitions(swapped)) != before
    data["terminals"][4], data["timeouts"][4] = False, True
    assert fingerprint(transitions(data)) != before
