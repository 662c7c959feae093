"""NeoRL-2's tasks: recorded transitions taken again, how episodes begin and end, and what counts as too fast."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oper_lightning.envs import neorl2
from oper_lightning.envs.rollouts import World
from oper_lightning.errors import InputError


def recorded(shared: Path, name: str) -> dict[str, np.ndarray]:
    """Arrays of a published file."""
    with np.load(shared / f"neorl2-{name}.npz") as file:
        return {key: file[key] for key in ("obs", "action", "next_obs", "reward", "truncated")}


def dmsd() -> Any:
    env = neorl2.DMSD()
    env.reset(seed=0)
    return env


@pytest.mark.parametrize("split", ["train", "val"])
def test_recorded_steps_of_the_masses(shared: Path, split: str) -> None:
    rows, env = recorded(shared, f"DMSD-{split}"), dmsd()
    missed, earned = [], []
    for number in range(len(rows["obs"])):
        env.state, env.steps = rows["obs"][number].astype(float), number % 100
        env.second = rows["next_obs"][number, 4:].astype(float)
        following, reward, *_ = env.step(rows["action"][number])
        missed.append(np.abs(following - rows["next_obs"][number]).max())
        earned.append(abs(reward - rows["reward"][number]))
    assert max(missed) < 3e-7
    assert max(earned) < 2e-5


def test_recorded_episodes_of_the_masses(shared: Path) -> None:
    """Whole episodes from their first state, targets of the second half told beforehand: errors do not grow."""
    rows, env = recorded(shared, "DMSD-val"), dmsd()
    for start in range(0, 2000, 100):
        env.state, env.steps = rows["obs"][start].astype(float), 0
        env.second = rows["obs"][start + 50, 4:].astype(float)
        for number in range(start, start + 100):
            following, *_ = env.step(rows["action"][number])
            np.testing.assert_allclose(following, rows["next_obs"][number], atol=3e-6)


def test_a_step_of_the_masses_by_hand() -> None:
    env = dmsd()
    env.state = np.array([0.1, -0.2, 0.3, 0.05, 1.0, -1.0])
    env.second = env.state[4:]
    following, reward, *_ = env.step(np.array([0.5, -3.0]))  # the second counts as -1
    left = -4 * 0.1 + 2 * -0.2 - 8 * 0.3 + 4 * 0.05 + 15
    right = 2 * 0.1 - 4 * -0.2 + 4 * 0.3 - 8 * 0.05 - 30
    expected = [0.1 + 0.06, -0.2 + 0.01, 0.3 + 0.01 * left, 0.05 + 0.01 * right, 1, -1]
    np.testing.assert_allclose(following, expected, rtol=1e-6)
    assert reward == pytest.approx(-math.log(0.84 + 0.01) - math.log(0.81 + 0.01))


def test_episodes_of_the_masses_begin_like_recorded_ones(shared: Path) -> None:
    rows = recorded(shared, "DMSD-train")
    theirs = rows["obs"].reshape(1000, 100, 6)
    starts, changed = [], []
    world = World("oper/DMSD-v0", {})
    for seed in range(1000):
        first = world.reset(0, seed)
        shown = [first[4:]]
        for _ in range(100):
            following, _, terminated, truncated = world.step(0, np.zeros(2, np.float32))
            shown.append(following[4:])
            assert not terminated
        assert truncated
        starts.append(first)
        differ = np.array(shown) != first[4:]
        assert not differ[:50].any()  # after 49 steps the first target is still shown
        assert (differ[50:] == differ[-1]).all()
        changed.append(differ[-1])
    ours = np.array(starts)
    for column, reach in enumerate([0.25, 0.25, 0.1, 0.1, 1.5, 1.5]):
        for values in (ours[:, column], theirs[:, 0, column]):
            assert 0.98 * reach < np.abs(values).max() <= reach
            assert values.std() == pytest.approx(reach / 3**0.5, rel=0.06)
    both = [np.array(changed), theirs[:, 49, 4:] != theirs[:, 50, 4:]]
    for flags in both:
        assert flags.mean() == pytest.approx(0.5, abs=0.04)
        assert flags.all(1).mean() == pytest.approx(0.25, abs=0.05)  # each mass for itself
    np.testing.assert_array_equal(world.reset(0, 3), ours[3])


def test_random_actions_earn_about_what_scores_0() -> None:
    generator = torch.Generator().manual_seed(0)
    world = World("oper/DMSD-v0", {}, parallel=50)
    random, _ = world.rollouts(lambda seen: 2 * torch.rand(len(seen), 2, generator=generator) - 1, range(500))
    still, _ = world.rollouts(lambda seen: torch.zeros(len(seen), 2), range(500))
    # Published as the lowest: 30.60. One standard error is 3; at rest it is 5.
    assert random.mean().item() == pytest.approx(31, abs=12)
    assert still.mean().item() == pytest.approx(112, abs=16)


@pytest.mark.parametrize("split", ["train", "val"])
def test_recorded_steps_of_the_cheetah(shared: Path, split: str) -> None:
    rows = recorded(shared, f"SafetyHalfCheetah-{split}")
    env = World("oper/SafetyHalfCheetah-v0", {}).copies[0]
    env.reset(seed=0)
    missed, earned = [], []
    for number, seen in enumerate(rows["obs"].astype(float)):
        if number % 900 == 0:  # before the time is over
            env.reset(seed=0)
        env.unwrapped.set_state(seen[:9], seen[9:])
        following, reward, terminated, _, _ = env.step(rows["action"][number])
        missed.append(np.abs(following - rows["next_obs"][number]).max())
        earned.append(abs(reward - rows["reward"][number]))
        assert not terminated
    assert np.median(missed) < 3e-6
    assert np.mean(np.array(missed) < 3e-4) >= 0.999
    assert max(missed) < 2e-3
    assert max(earned) < 2e-4


@pytest.mark.parametrize(("speed", "fined"), [(2.5, False), (4.5, True)])
def test_the_cheetah_is_fined_for_speed(speed: float, fined: bool) -> None:
    world = World("oper/SafetyHalfCheetah-v0", {})
    env = world.copies[0]
    first = world.reset(0, 0)
    assert first.shape == (18,)
    assert env.spec.max_episode_steps == 1000
    env.unwrapped.set_state(np.zeros(9), np.append(speed, np.zeros(8)))
    action = np.full(6, 0.5, np.float32)
    following, reward, *_ = world.step(0, action)
    went = float(following[0]) / 0.05
    assert (went > 3.2096) == fined
    assert reward == pytest.approx(-100 if fined else went - 0.15, abs=1e-4)
    formula = neorl2.progress(np.zeros(1), action, following[:1].astype(float))
    assert reward == pytest.approx(formula.item(), abs=1e-4)


def test_the_limit_itself_is_allowed() -> None:
    places = np.array([0.05 * 3.2095, 0.05 * 3.2097])
    rewards = neorl2.progress(np.zeros(2), np.zeros((2, 6)), places)
    np.testing.assert_allclose(rewards, [3.2095, -100])


def test_a_misspelt_id() -> None:
    with pytest.raises(InputError, match="did you mean 'oper/DMSD-v0'"):
        World("oper/DMSD-v1", {})
