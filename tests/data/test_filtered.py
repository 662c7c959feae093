"""Datasets in which something is missing, against a loop over rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Arrays, columns, oper, write_hdf5
from tensordict import TensorDict

from oper_lightning.data.sources.filtered import Filtered, Region
from oper_lightning.data.storage import fill, transitions_in
from oper_lightning.errors import InputError


def read(source: Any) -> TensorDict:
    return transitions_in(fill(source, torch.device("cpu")))


def literally(arrays: dict[str, np.ndarray], inside: Any, above: float, most: int) -> list[tuple[int, bool, bool]]:
    """Row, and whether it is terminated or truncated, of all that are kept."""
    found: list[tuple[int, bool, bool]] = []
    step = 0
    for row in range(len(arrays["rewards"])):
        ends = bool(arrays["terminals"][row] or arrays["timeouts"][row])
        if inside(arrays["observations"][row]) or arrays["rewards"][row] > above or step >= most:
            if found and found[-1][0] == row - 1 and not found[-1][1]:
                found[-1] = (row - 1, False, True)
        else:
            found.append((row, bool(arrays["terminals"][row]), bool(arrays["timeouts"][row])))
        step = 0 if ends else step + 1
    return found


@pytest.mark.parametrize("seed", range(3))
def test_regions_rewards_and_lengths(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    arrays = columns([30, 1, 25, 40, 2, 17], 4, 2, seed)
    ball, box = Region([0.5, -0.5], 0.8), Region([1.0, 0.0], 0.6, "box", [3, 1])
    source = Filtered(Arrays(arrays), [ball, box], rewards_above=5.5, max_len=20)

    def inside(observation: np.ndarray) -> bool:
        x, y, _, w = map(float, observation)
        return (x - 0.5) ** 2 + (y + 0.5) ** 2 <= 0.64 or max(abs(w - 1), abs(y)) <= 0.6

    expected = literally(arrays, inside, 5.5, 20)
    caplog.set_level("INFO", "oper_lightning")
    table = read(source)
    rows = [row for row, _, _ in expected]
    assert len(source) == len(rows) < 115
    assert np.array_equal(table["observation"], arrays["observations"][rows])
    assert np.array_equal(table["next", "observation"], arrays["next_observations"][rows])
    assert table["next", "terminated"].tolist() == [terminated for _, terminated, _ in expected]
    # An end that was recorded stays what it was.
    truncated = [cut and not terminated for _, terminated, cut in expected]
    assert table["next", "truncated"].tolist() == truncated
    assert caplog.text.count(f"{len(rows)} of 115 rows are kept") == 1


def test_first_steps_only() -> None:
    table = read(Filtered(Arrays(columns([30, 5, 25])), max_len=20))
    assert table["next", "done"].nonzero().squeeze(1).tolist() == [19, 24, 44]
    assert table["next", "truncated"].nonzero().squeeze(1).tolist() == [19, 24, 44]


def test_what_is_refused() -> None:
    arrays = Arrays(columns([9]))
    with pytest.raises(InputError, match="Filtered: nothing to leave out"):
        Filtered(arrays)
    with pytest.raises(InputError, match="Filtered: max_len is 0"):
        Filtered(arrays, max_len=0)
    with pytest.raises(InputError, match="Arrays: no row is kept"):
        len(Filtered(arrays, rewards_above=-1e9))
    with pytest.raises(InputError, match=r"a region's centre has 4 numbers for the entries \[0, 1, 2, 3\]"):
        len(Filtered(arrays, [Region([0, 0, 0, 0], 1.0)]))


def test_in_a_yaml(small_file: Path) -> None:
    write_hdf5(Path("small.hdf5"), columns([25] * 40, 10, 2), env_id="Reacher-v5")
    Path("a.yaml").write_text(
        "model: {class_path: BC, init_args: {hidden_sizes: [8]}}\n"
        "data: {source: {class_path: Filtered, init_args: {source: {class_path: D4RL, init_args: {path: small.hdf5}}, "
        "regions: [{centre: [0, 0], radius: 0.5}], max_len: 20}}, rollouts: null, updates_per_epoch: 10}\n"
        "trainer: {max_steps: 10}\n"
    )
    assert oper("fit", "--config=a.yaml", "--output=run") == 0
    assert oper("inspect", "run", "--output=page") == 0
    assert oper("predict", "--ckpt_path=run") == 0


@pytest.mark.parametrize("first", [1, 29, 30, 31, 56, 115, 200])
def test_only_the_first_rows_are_looked_at(first: int) -> None:
    arrays = columns([30, 1, 25, 40, 2, 17], 4, 2)
    source = Filtered(Arrays(arrays), first=first)
    table, count = read(source), min(first, 115)
    assert len(source) == count
    assert np.array_equal(table["observation"], arrays["observations"][:count])
    terminated = arrays["terminals"][:count].astype(bool)
    assert table["next", "terminated"].tolist() == terminated.tolist()
    cut = arrays["timeouts"][:count].astype(bool)
    cut[-1] = not terminated[-1]
    assert table["next", "truncated"].tolist() == (cut & ~terminated).tolist()
