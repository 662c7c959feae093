"""What is wrong with a dataset is said; of sound data nothing is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import columns, transitions

from oper_lightning.report.describe import coverage, describe

BOUNDS = -torch.ones(2), torch.ones(2)
LENGTHS = [20] * 30


def sound() -> dict[str, np.ndarray]:
    """Columns in which every step follows from the one before."""
    return columns(LENGTHS)


def said(arrays: dict[str, np.ndarray]) -> list[str]:
    return describe(transitions(arrays), *BOUNDS).warnings


def test_sound_data() -> None:
    facts = describe(transitions(sound()), *BOUNDS)
    assert facts.warnings == []
    assert facts.lengths.tolist() == LENGTHS
    assert facts.terminated.sum() == 15
    rewards = sound()["rewards"].astype(float).reshape(30, 20)
    np.testing.assert_allclose(facts.returns, rewards.sum(1), rtol=1e-6)


def test_one_hot_actions() -> None:
    arrays = {**sound(), "actions": np.eye(2, dtype=np.int64)[np.random.default_rng(0).integers(0, 2, 600)]}
    assert any("with a single 1, and counts as continuous" in line for line in said(arrays))


def changed(key: str, **options: Any) -> dict[str, np.ndarray]:
    arrays = sound()
    values = arrays[key].copy()
    if "rows" in options:
        values[options["rows"], options.get("column", slice(None))] = options["to"]
    else:
        values[:] = options["to"]
    arrays[key] = values
    return arrays


def joined(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every next observation is the next row's observation, across ends too."""
    return {**arrays, "next_observations": np.roll(arrays["observations"], -1, 0)}


def copied() -> dict[str, np.ndarray]:
    arrays = sound()
    for key in ("observations", "actions", "rewards", "next_observations"):
        arrays[key][20:40] = arrays[key][:20]
    return arrays


def torn() -> dict[str, np.ndarray]:
    arrays = sound()
    arrays["next_observations"][5] += 1
    return arrays


def uncut() -> dict[str, np.ndarray]:
    """Slow episodes that begin anywhere; the ends of two are not marked, so that the next row is what follows."""
    arrays = sound()
    generator = np.random.default_rng(0)
    starts = np.repeat(generator.normal(size=(30, arrays["observations"].shape[1])), 20, 0)
    arrays["observations"] = starts + 1e-4 * generator.normal(size=starts.shape)
    arrays["next_observations"] = np.roll(arrays["observations"], -1, 0)
    arrays["next_observations"][19::20] = arrays["observations"][19::20]
    for row in (59, 199):
        arrays["next_observations"][row] = arrays["observations"][row + 1]
        arrays["terminals"][row] = arrays["timeouts"][row] = False
    return arrays


def spiked() -> dict[str, np.ndarray]:
    """A padded column, in 3 % of rows 1e6."""
    arrays = changed("observations", rows=slice(None), column=1, to=0.0)
    arrays["observations"][EIGHTEEN, 1] = 1e6
    return arrays


def balanced() -> dict[str, np.ndarray]:
    """Rewards that cancel in every episode, but for rounding."""
    arrays = sound()
    halves = arrays["rewards"].reshape(30, 2, 10)
    halves[:, 1] = -halves[:, 0, ::-1] * np.float32(1 + 1e-7)
    return arrays


def one_long() -> dict[str, np.ndarray]:
    return columns([2000, *LENGTHS])


def offset() -> dict[str, np.ndarray]:
    """A clock, in seconds since 1970."""
    arrays = sound()
    for key in ("observations", "next_observations"):
        arrays[key][:, 0] = 1.7e9 + np.float32(1e3) * arrays[key][:, 0]
    return arrays


EIGHTEEN = np.arange(0, 600, 600 // 18)[:18]  # 3 %


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            changed("observations", rows=slice(None), column=1, to=0.5),
            ["observation columns that never change", "only: 1"],
        ),
        (
            changed("actions", rows=slice(None), column=0, to=0.5),
            ["action columns that never change", "only: 0"],
        ),
        (
            changed("observations", rows=EIGHTEEN, column=2, to=1e4),
            ["observation[2]: 3.00% (18) of values lie far from all others, 1e+04 where", "first: row 0"],
        ),
        (
            changed("rewards", rows=[7], column=..., to=-900.0),
            ["reward: 0.18% (1) of", "-900 where", "first: row 7"],
        ),
        (spiked(), ["observation[1]: 3.00% (18) of values lie far from all others, 1e+06 where the others are 0"]),
        (
            changed("actions", rows=EIGHTEEN, column=1, to=1e6),
            ["action[1]: 3.00% (18) of values lie far from all others"],
        ),
        (changed("actions", rows=slice(None), column=1, to=1.0), ["action columns that are nearly always at"]),
        (balanced(), ["all episodes return"]),
        (one_long(), ["one episode holds 77% of all transitions"]),
        (offset(), ["change by little around a large value, of which single precision keeps few digits: 0"]),
        (changed("rewards", to=0.25), ["all episodes return 5:", "every reward is 0.25"]),
        (changed("actions", rows=[3], column=0, to=1.5), ["of actions lie outside their bounds"]),
        (copied(), ["1 of 30 episodes are copies of others"]),
        (torn(), ["0.17% (1) of steps within episodes begin elsewhere", "first: row 6"]),
        (uncut(), ["2 steps within episodes are over a hundred times", "(rows 59, 199)"]),
        (joined(sound()), ["29 of 30 episodes begin exactly where the one before ended"]),
        (columns([50]), ["only one episode"]),
    ],
)
def test_what_is_wrong_is_said(arrays: dict[str, np.ndarray], words: list[str]) -> None:
    lines = "\n".join(said(arrays))
    for word in words:
        assert word in lines, lines


def tailed() -> dict[str, np.ndarray]:
    """Feature with a long tail, a flag that is seldom set, a bonus at the end of each episode."""
    arrays = sound()
    generator = np.random.default_rng(0)
    arrays["observations"][:, 0] = np.exp(2 * generator.normal(size=600))
    arrays["observations"][:, 1] = generator.random(600) < 0.02
    arrays["rewards"] *= 0.01
    arrays["rewards"][arrays["terminals"]] += 100
    arrays["next_observations"][:-1] = arrays["observations"][1:]
    arrays["next_observations"][19::20] += 1
    return arrays


def test_long_tails_flags_and_final_rewards_are_nothing_strange() -> None:
    assert said(tailed()) == []


def test_coverage_is_the_share_of_cells_that_weights_visit() -> None:
    cell = torch.arange(8).repeat_interleave(10)
    assert coverage(cell, torch.ones(80)) == pytest.approx(1)
    half = torch.ones(80)
    half[40:] = 0
    assert coverage(cell, half) == pytest.approx(0.5)
    uneven = torch.ones(80)
    uneven[:10] = 71 / 9  # half of the mass of a share of its own
    assert 0.5 < coverage(cell, uneven) < 1


def test_saturated_actions_are_counted() -> None:
    arrays = sound()
    arrays["actions"][:300, 0] = 1
    share = describe(transitions(arrays), *BOUNDS).saturation
    assert share[0] == pytest.approx(0.5, abs=0.02)
    assert share[1] < 0.1
