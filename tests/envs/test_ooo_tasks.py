"""Environments of the harder exploration tasks: what they show and pay, when they end, that they repeat themselves."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from oper_lightning.envs import mazes
from oper_lightning.envs.players import Players
from oper_lightning.envs.rollouts import World
from oper_lightning.errors import InputError

robotics = pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is None,
    reason="gymnasium-robotics (extra robotics) is not installed",
)
SIZES = {
    "AntSparse": (106, 8, 1000),
    "HalfCheetahSparse": (17, 6, 1000),
    "AntMazeLarge": (29, 8, 1000),
    "Maze2dLarge": (4, 2, 800),
}
HANDS = {
    "AdroitPen": (45, 24, 100),
    "AdroitDoor": (39, 28, 200),
    "AdroitRelocate": (39, 30, 200),
    "AdroitDoorEnds": (39, 28, 200),
    "KitchenComplete": (60, 9, 1000),
    "KitchenPartial": (60, 9, 1000),
    "KitchenMixedOnce": (60, 9, 1000),
}
EVERY = [*SIZES, *(pytest.param(name, marks=robotics) for name in HANDS)]


def made(name: str) -> Any:
    """One copy of a task."""
    return World(f"oper/{name}-v0", {}).copies[0]


def put(env: Any, **places: float) -> None:
    """Moves a robot: q0=1.0 sets its first coordinate; it stands still then."""
    position = env.unwrapped.data.qpos.copy()
    for name, value in places.items():
        position[int(name[1:])] = value
    env.unwrapped.set_state(position, np.zeros_like(env.unwrapped.data.qvel))


@pytest.mark.parametrize("name", EVERY)
def test_spaces_and_horizons(name: str) -> None:
    observation, action, steps = {**SIZES, **HANDS}[name]
    env = made(name)
    assert env.observation_space.shape == (observation,)
    assert env.action_space.shape == (action,)
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()
    assert env.spec.max_episode_steps == steps
    first, _ = env.reset(seed=0)
    assert env.observation_space.contains(first)
    following, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(following)
    assert (type(reward), info["success"], terminated, truncated) == (float, False, False, False)


@pytest.mark.parametrize("name", EVERY)
def test_interrupted_episodes_come_back(name: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def players() -> Players:
        return Players(World(f"oper/{name}-v0", {}, parallel=2), 5, 2, 60, torch.device("cpu"))

    whole, again = players(), players()
    whole.begin()
    first = whole.observation.copy()
    assert not np.array_equal(*first) or "Adroit" in name or "Kitchen" in name  # hands begin alike, goals aside
    actions = [2 * torch.rand(2, SIZES.get(name, HANDS.get(name, ()))[1], generator=generator) - 1 for _ in range(12)]
    for action in actions:
        whole.step(action)
    taken = np.stack([action.numpy() for action in actions])
    again.begin()
    again.step(actions[3])  # what was played before leaves no trace
    assert again.repeat(12, [0, 0], [taken[:, 0], taken[:, 1]], whole.observation)
    one, other = whole.step(actions[0]), again.step(actions[0])
    assert all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("name", "distance"), [("AntSparse", 10), ("HalfCheetahSparse", 20)])
@pytest.mark.parametrize("side", [1, -1])
def test_sparse_robots_are_paid_beyond_a_distance(name: str, distance: float, side: int) -> None:
    env = made(name)
    begin = 0.0
    for seed in range(100):  # a beginning far enough from 0 that the distance cannot be counted from there
        if abs(begin) < 0.08:
            env.reset(seed=seed)
            begin = float(env.unwrapped.data.qpos[0])
    assert abs(begin) >= 0.08
    rest = np.zeros(env.action_space.shape, dtype=np.float32)
    for away, paid in [(0.0, 0), (distance - 0.04, 0), (distance + 0.04, int(side > 0)), (distance - 0.04, 0)]:
        put(env, q0=begin + side * away)
        _, reward, terminated, truncated, info = env.step(rest)
        assert (reward, info["success"], terminated, truncated) == (paid, bool(paid), False, False)
    env.reset(seed=5)  # the next episode counts from its own beginning
    assert env.step(rest)[1] == 0


def test_the_sparse_ant_never_falls_out_of_its_episode() -> None:
    env = made("AntSparse")
    env.reset(seed=0)
    rest = np.zeros(8, dtype=np.float32)
    put(env, q2=5.0)  # far too high to be healthy
    assert env.step(rest)[2] is False
    ends = [env.step(rest)[2:4] for _ in range(999)]
    assert ends == [(False, False)] * 998 + [(False, True)]


def test_what_the_sparse_ant_sees() -> None:
    env = made("AntSparse")
    env.reset(seed=0)
    observation, *_ = env.step(np.full(8, 0.5, dtype=np.float32))
    data = env.unwrapped.data
    np.testing.assert_array_equal(observation[:28], [data.qpos[0], *data.qpos[2:], *data.qvel])


def test_the_ants_maze() -> None:
    env = made("AntMazeLarge")
    goals = []
    for seed in range(20):
        env.reset(seed=seed)
        goals.append(env.unwrapped.goal)
        assert (np.abs(env.unwrapped.data.qpos[:2]) <= 0.1).all()
    low, high = np.min(goals, 0), np.max(goals, 0)
    assert (low >= [32, 24]).all()
    assert (low < [32.5, 24.5]).all()
    assert (high <= [33.5, 25.5]).all()
    assert (high > [33, 25]).all()
    rest, (x, y) = np.zeros(8, dtype=np.float32), goals[-1]
    for away, paid in [(0.7, False), (0.3, True)]:
        put(env, q0=x + away, q1=y)
        observation, reward, terminated, truncated, info = env.step(rest)
        assert (reward, terminated, truncated, info["success"]) == (float(paid), paid, False, paid)
        np.testing.assert_array_equal(observation, [*env.unwrapped.data.qpos, *env.unwrapped.data.qvel])
    # D4RL's constants: steps of a tenth of a second, torques of 30, walls around the first cell and behind the last.
    assert env.unwrapped.dt == pytest.approx(0.1)
    assert (env.unwrapped.model.actuator_gear[:, 0] == 30).all()
    geom = env.unwrapped.model.geom_pos[env.unwrapped.model.geom_bodyid == 0]
    walls = {(round(float(wall[0])), round(float(wall[1]))) for wall in geom}
    assert {(-4, 0), (0, -4), (36, 28), (40, 24), (4, 4)} <= walls
    assert not {(0, 4), (4, 0), (32, 24), (36, 24)} & walls


def test_the_points_maze() -> None:
    env = made("Maze2dLarge")
    places = []
    for seed in range(300):
        env.reset(seed=seed)
        places.append(np.round(env.unwrapped.data.qpos))
        assert (np.abs(env.unwrapped.data.qpos - places[-1]) <= 0.1).all()
    free = {(row, column) for row, line in enumerate(mazes.MAP) for column, cell in enumerate(line) if cell != "#"}
    assert {tuple(map(int, place)) for place in places} == free
    assert len(free) == 46
    rest = np.zeros(2, dtype=np.float32)
    for away, paid in [(0.6, 0), (0.4, 1), (0.4, 1)]:
        put(env, q0=7 + away, q1=9)
        assert env.step(rest)[1:4] == (paid, False, False)
    # A wall stops the point a tenth, its radius, before it: at 0.4, as the map's zero lies 0.2 beyond its middle.
    put(env, q0=1, q1=1)
    for _ in range(100):
        observation, *_ = env.step(np.array([-1, 0], dtype=np.float32))
    assert observation[0] == pytest.approx(0.4, abs=0.03)
    assert observation[1] == pytest.approx(1, abs=1e-3)


@robotics
def test_the_map_is_the_published_one() -> None:
    from gymnasium_robotics.envs.maze.maps import LARGE_MAZE

    assert [[int(cell == "#") for cell in line] for line in mazes.MAP] == LARGE_MAZE
    assert list(mazes.cells("G")) == [(7, 9)]


@robotics
@pytest.mark.parametrize("name", ["AdroitDoor", "AdroitDoorEnds"])
def test_adroit_pays_for_success_only(name: str) -> None:
    env = made(name)
    env.reset(seed=0)
    rest = np.zeros(28, dtype=np.float32)
    hinge = env.unwrapped.door_hinge_addrs
    for place, there in [(0.0, False), (1.3, False), (1.5, True)]:
        put(env, **{f"q{hinge}": place})
        _, reward, terminated, truncated, info = env.step(rest)
        assert (reward, info["success"]) == (there - 1.0, there)
        assert (terminated, truncated) == (there and name.endswith("Ends"), False)


@robotics
@pytest.mark.parametrize(("name", "rewards"), [("Partial", [0, 1, 1, 2, 3, 4]), ("PartialOnce", [0, 1, 0, 1, 1, 1])])
def test_kitchen_counts_what_is_done(name: str, rewards: list[float]) -> None:
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import OBS_ELEMENT_GOALS, OBS_ELEMENT_INDICES

    env = made(f"Kitchen{name}")
    tasks = ["microwave", "kettle", "light switch", "slide cabinet"]
    for _ in range(2):  # the second episode begins anew
        first, _ = env.reset(seed=0)
        data = env.unwrapped.data
        begin = data.qpos.copy()
        np.testing.assert_allclose(first[:30], begin, atol=0.05)  # D4RL's, up to the sensors' noise
        wanted = np.zeros(30)
        for task in tasks:
            wanted[OBS_ELEMENT_INDICES[task]] = OBS_ELEMENT_GOALS[task]
        np.testing.assert_array_equal(first[30:], wanted)
        found = []
        for done in [[], tasks[:1], [], tasks[1:2], tasks[2:3], tasks[3:]]:
            data.qpos[:], data.qvel[:] = begin, 0
            for task in done:
                data.qpos[OBS_ELEMENT_INDICES[task]] = OBS_ELEMENT_GOALS[task]
            _, reward, terminated, truncated, _ = env.step(np.zeros(9, dtype=np.float32))
            found.append(reward)
            assert terminated == (len(found) == 6)
            assert not truncated
        assert found == rewards


@pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is not None, reason="gymnasium-robotics is installed"
)
@pytest.mark.parametrize("name", ["oper/AdroitPen-v0", "oper/KitchenPartial-v0"])
def test_what_is_missing_is_named(name: str) -> None:
    with pytest.raises(InputError, match=r"pip install 'oper-lightning\[robotics\]' brings it"):
        World(name, {})


def test_a_slip_in_a_name() -> None:
    with pytest.raises(InputError, match=r"did you mean 'oper/AntMazeLarge-v0'"):
        World("oper/AntMazeLage-v0", {})
