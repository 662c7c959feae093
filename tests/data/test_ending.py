"""Datasets whose episodes end with a reward, against a loop over rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Arrays, columns
from tensordict import TensorDict

from oper_lightning.data.sources.ending import Ending
from oper_lightning.data.storage import fill, transitions_in
from oper_lightning.errors import InputError


def read(source: Any) -> TensorDict:
    return transitions_in(fill(source, torch.device("cpu")))


def literally(arrays: dict[str, np.ndarray], reward: float, successful: bool) -> list[tuple[int, bool, bool]]:
    """Row, and whether it is terminated or truncated, of all that are kept."""
    found, episode = [], []
    for row in range(len(arrays["rewards"])):
        episode.append(row)
        if arrays["terminals"][row] or arrays["timeouts"][row]:
            while successful and episode and arrays["rewards"][episode[-1]] < reward:
                episode.pop()
            for kept in episode:
                there = bool(arrays["rewards"][kept] >= reward)
                found.append((kept, there, not there and kept == row))
            episode = []
    return found


@pytest.mark.parametrize("successful", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_episodes_end_with_the_reward_and_nowhere_else(
    successful: bool, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    arrays = columns([30, 1, 25, 40, 2, 17], 4, 2, seed)
    arrays["rewards"] = np.random.default_rng(seed).integers(0, 5, 115).astype(np.float32)
    arrays["rewards"][30:56] %= 4  # without success
    before = {name: array.copy() for name, array in arrays.items()}
    source = Ending(Arrays(arrays), 4, successful)
    caplog.set_level("INFO", "oper_lightning")
    expected, table = literally(arrays, 4, successful), read(source)
    rows = [row for row, _, _ in expected]
    assert len(source) == len(rows)
    assert (len(rows) < 90) == successful
    assert np.array_equal(table["observation"], arrays["observations"][rows])
    assert np.array_equal(table["next", "observation"], arrays["next_observations"][rows])
    assert table["next", "terminated"].tolist() == [terminated for _, terminated, _ in expected]
    assert table["next", "truncated"].tolist() == [truncated for _, _, truncated in expected]
    assert caplog.text.count(f"{len(rows)} of 115 rows are kept") == int(successful)
    assert all(np.array_equal(arrays[name], before[name]) for name in arrays)


def test_what_a_source_keeps_is_left_alone() -> None:
    class Kept(Arrays):
        def episodes(self) -> Iterator[TensorDict]:
            yield from parts

    arrays = columns([5, 4], 4, 2)
    parts = list(Arrays(arrays).episodes())
    before = [part.clone() for part in parts]
    read(Ending(Kept(arrays), float(np.median(arrays["rewards"]))))
    assert all((one == other).all() for one, other in zip(parts, before, strict=True))


def test_a_reward_that_nothing_reaches() -> None:
    arrays = columns([5, 4], 4, 2)
    arrays["rewards"][:] = 0.0
    truncated = read(Ending(Arrays(arrays), 1))
    assert not truncated["next", "terminated"].any()
    assert torch.nonzero(truncated["next", "truncated"])[:, 0].tolist() == [4, 8]
    with pytest.raises(InputError, match="no reward of 1 or more, so that Ending keeps no row; lower its reward"):
        len(Ending(Arrays(arrays), 1, successful=True))
