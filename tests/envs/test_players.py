"""Copies of an environment that are stepped together, interrupted, and brought back."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from oper_lightning.envs.players import Players
from oper_lightning.envs.rollouts import World
from oper_lightning.errors import TrainingError

CPU = torch.device("cpu")


def players(environment: str, copies: int = 3, patience: float = 60.0, seed: int = 5) -> Players:
    return Players(World(environment, {}, parallel=copies), seed, copies, patience, CPU)


def actions(made: Players, generator: np.random.Generator) -> torch.Tensor:
    """Random actions for all copies, some of them beyond the bounds."""
    space = made.world.action_space
    if hasattr(space, "n"):
        return torch.from_numpy(generator.integers(0, space.n, made.copies) + space.start)
    return torch.from_numpy(generator.normal(size=(made.copies, *space.shape)).astype(np.float32) * 1.5)


@pytest.mark.parametrize("environment", ["Pendulum-v1", "CartPole-v1", "Hopper-v5", "Reacher-v5"])
def test_rows_are_what_plain_environments_do(environment: str) -> None:
    made, generator = players(environment), np.random.default_rng(0)
    seeds: list[tuple[int, int]] = []
    reset = made.world.reset
    made.world.reset = lambda copy, seed: seeds.append((copy, seed)) or reset(copy, seed)  # type: ignore[method-assign, func-returns-value]
    made.begin()
    rows = [made.step(actions(made, generator)) for _ in range(230)]
    for copy in range(3):
        env, own = gymnasium.make(environment), iter([seed for place, seed in seeds if place == copy])
        observation, _ = env.reset(seed=next(own))
        for row in ({key: value[copy] for key, value in row.items()} for row in rows):
            following, reward, terminated, truncated, _ = env.step(row["action"])
            expected = {"observation": observation, "next_observation": following, "reward": reward}
            for key, value in expected.items():
                np.testing.assert_array_equal(row[key], np.float32(value), key)
            assert (row["terminated"], row["truncated"]) == (terminated, truncated and not terminated)
            observation = following
            if terminated or truncated:
                observation, _ = env.reset(seed=next(own))
        assert next(own, None) is None
    assert len(seeds) == 3 + made.episode.sum()
    assert len(set(seeds)) == len({seed for _, seed in seeds}), "every episode has a seed of its own"


@pytest.mark.parametrize("environment", ["Pendulum-v1", "CartPole-v1", "Hopper-v5", "Reacher-v5"])
@pytest.mark.parametrize("steps", [1, 37, 50, 211])
def test_interrupted_episodes_come_back(environment: str, steps: int) -> None:
    one, generator = players(environment), np.random.default_rng(steps)
    one.begin()
    rows = [one.step(actions(one, generator)) for _ in range(steps)]
    own: list[np.ndarray] = []
    for copy in range(3):
        ends = [at + 1 for at, row in enumerate(rows) if row["terminated"][copy] or row["truncated"][copy]]
        own.append(np.array([row["action"][copy] for row in rows[ends[-1] if ends else 0 :]]))
    other = players(environment)
    assert other.repeat(steps, one.episode.tolist(), own, rows[-1]["next_observation"])
    np.testing.assert_array_equal(other.observation, one.observation)
    for _ in range(60):
        action = actions(one, generator)
        first, second = one.step(action), other.step(action)
        for key in first:
            np.testing.assert_array_equal(first[key], second[key], key)


def test_episodes_differ_between_copies_numbers_and_seeds() -> None:
    starts = []
    for seed in (5, 6):
        made = players("Pendulum-v1", seed=seed)
        for number in range(4):
            made.episode[:] = number
            made.begin()
            starts += made.observation.tolist()
    assert len({tuple(start) for start in starts}) == 2 * 4 * 3


class Forgetful(gymnasium.Env[np.ndarray, np.ndarray]):
    """Its steps are not a function of seed and actions; it does what it is told to do at step 3."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, does: str = "forget") -> None:
        self.does = does

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count += 1
        if self.count == 3:
            if self.does == "raise":
                raise ValueError("the simulator lost its joint")
            if self.does == "hang":
                while True:
                    pass
            if self.does == "nan":
                return np.full(2, np.nan, np.float32), 0.0, False, False, {}
            if self.does == "reward":
                return np.zeros(2, np.float32), np.inf, False, False, {}
            if self.does == "shape":
                return np.zeros(3, np.float32), 0.0, False, False, {}
        return np.random.normal(size=2).astype(np.float32), 0.0, False, self.count == 9, {}  # noqa: NPY002


for what in ("forget", "raise", "hang", "nan", "reward", "shape"):
    gymnasium.register(f"Forgetful-{what}-v0", Forgetful, kwargs={"does": what}, disable_env_checker=True)


def test_an_environment_that_forgets_is_found_out() -> None:
    made = players("Forgetful-forget-v0", copies=1)
    made.begin()
    row = [made.step(torch.zeros(1, 1)) for _ in range(4)][-1]
    other = players("Forgetful-forget-v0", copies=1)
    assert not other.repeat(4, [0], [np.zeros((4, 1), np.float32)], row["next_observation"])


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("raise", "ValueError: the simulator lost its joint"),
        ("hang", "no answer within 0.5 seconds"),
        ("nan", "not finite"),
        ("reward", "its reward is inf"),
        ("shape", r"shape \(3,\) instead of \(2,\)"),
    ],
)
def test_what_goes_wrong_is_said_with_name_and_step(what: str, words: str) -> None:
    made = players(f"Forgetful-{what}-v0", copies=2, patience=0.5)
    made.begin()
    made.step(torch.zeros(2, 1))
    made.step(torch.zeros(2, 1))
    with pytest.raises(TrainingError, match=f"environment 'Forgetful-{what}-v0' failed at step 4: .*{words}"):
        made.step(torch.zeros(2, 1))


class Dial(gymnasium.Env[np.ndarray, np.int64]):
    """Shows the sum of the numbers of its actions, which do not begin at 0."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(3, start=-4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.sum, self.left = int(self.np_random.integers(100)), 7
        return np.float32([self.sum]), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert -4 <= action <= -2
        self.sum, self.left = self.sum + int(action), self.left - 1
        return np.float32([self.sum]), float(action), False, self.left == 0, {}


gymnasium.register("Dial-v0", Dial, disable_env_checker=True)


@pytest.mark.parametrize("steps", [1, 16])
def test_discrete_actions_with_another_first_number_are_taken_and_repeated(steps: int) -> None:
    one, generator = players("Dial-v0"), np.random.default_rng(0)
    one.begin()
    rows = [one.step(actions(one, generator)) for _ in range(steps)]
    for row in rows:
        assert row["action"].dtype == np.int64
        assert row["next_observation"][:, 0].tolist() == (row["observation"][:, 0] + row["action"]).tolist()
        assert row["reward"].tolist() == row["action"].tolist()
    since = steps // 7 * 7
    own = [np.array([row["action"][copy] for row in rows[since:]]) for copy in range(3)]
    other = players("Dial-v0")
    assert other.repeat(steps, one.episode.tolist(), own, rows[-1]["next_observation"])
    assert other.observation.tolist() == one.observation.tolist()


class Shorter(gymnasium.Env[np.ndarray, np.ndarray]):
    """Its second episode, whatever the seed, is over earlier; after that it must not be stepped."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    played = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        Shorter.played += 1
        self.left = 9 if Shorter.played == 1 else 2
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.left:
            raise RuntimeError("stepped after its end")
        self.left -= 1
        return np.zeros(1, np.float32), 0.0, not self.left, False, {}


gymnasium.register("Shorter-v0", Shorter, disable_env_checker=True)


def test_an_episode_that_is_over_earlier_the_second_time_is_found_out() -> None:
    made = players("Shorter-v0", copies=1)
    made.begin()
    rows = [made.step(torch.zeros(1, 1)) for _ in range(4)]
    assert not made.repeat(4, [0], [np.zeros((4, 1), np.float32)], rows[-1]["next_observation"])


class Slow(gymnasium.Env[np.ndarray, np.ndarray]):
    """Takes its time, always less than the patience."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(0.1)
        return np.zeros(1, np.float32), 0.0, False, False, {}


gymnasium.register("Slow-v0", Slow, disable_env_checker=True)


def test_patience_is_for_a_step_and_not_for_all_that_are_repeated() -> None:
    made = players("Slow-v0", copies=1, patience=1.0)
    assert made.repeat(15, [0], [np.zeros((15, 1), np.float32)], np.zeros((1, 1), np.float32))
