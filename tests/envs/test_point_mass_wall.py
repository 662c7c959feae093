"""Point-mass-wall: its constants by scripted ways, and the recorded episodes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from oper_lightning import InputError, OfflineDataModule
from oper_lightning.data.sources.point_mass_wall import PointMassWall
from oper_lightning.data.transitions import squeezed
from oper_lightning.envs import point_mass_wall as task
from oper_lightning.envs.rollouts import World

UNDER, OVER = [(0.48, 0.08)], [(0.48, 1.215), (0.515, 1.215)]


def walk(ways: list[tuple[float, float]], cost: bool) -> list[float]:
    """Rewards of a controller that goes straight from place to place, from the middle of the start."""
    world = task.PointMassWall(cost=cost)
    world.reset(seed=0)
    world.position = task.START
    places, rewards, there = [*map(np.array, ways), task.GOAL], [], False
    while not there:
        if len(places) > 1 and np.linalg.norm(places[0] - world.position) < 1e-6:
            places.pop(0)
        action = task.towards(world.position, places[0], world.length).clip(-1, 1)
        _, reward, there, _, _ = world.step(action)
        rewards.append(reward)
        assert len(rewards) < 100
    return rewards


def test_the_way_under_the_wall_is_the_shorter_one() -> None:
    assert walk(UNDER, cost=True) == [-1.0] * 28 + [0.0]
    assert walk(OVER, cost=True) == [-1.0] * 51 + [0.0]
    assert walk(UNDER, cost=False) == [0.0] * 28 + [1.0]


@pytest.mark.parametrize(
    ("start", "action", "moves"),
    [
        ((0.48, 0.5), (1.0, 0.0), False),  # through the wall
        ((0.48, 0.5), (1.0, 1.0), False),  # the whole move is cancelled, upwards too
        ((0.52, 0.5), (-1.0, 0.3), False),  # from the other side
        ((0.48, 0.09), (1.0, 0.0), True),
        ((0.48, 1.21), (1.0, 0.0), True),
        ((0.5, 0.5), (0.0, 1.0), True),  # along the wall
    ],
)
def test_moves_through_the_wall_are_cancelled(
    start: tuple[float, float], action: tuple[float, float], moves: bool
) -> None:
    world = task.PointMassWall()
    world.reset(seed=0)
    world.position = np.array(start)
    following, *_ = world.step(np.array(action))
    expected = np.array(start) + moves * np.sqrt(0.5) * 0.05 * np.array(action)
    np.testing.assert_array_equal(following, expected.astype(np.float32))


def test_segments_cross_where_lines_do() -> None:
    """Against solving for the point in which two lines meet."""
    generator = np.random.default_rng(0)
    crossed = 0
    for a, b, c, d in generator.uniform(-1, 1, (2000, 4, 2)):
        s, t = np.linalg.solve(np.stack([b - a, c - d], 1), c - a)
        expected = 0 < s < 1 and 0 < t < 1
        assert task.cross(a, b, c, d) == expected
        crossed += expected
    assert 300 < crossed < 700


@pytest.mark.parametrize(("size", "steps"), [("", 150), ("Small", 50)])
def test_ids_reset_end_and_repeat(size: str, steps: int) -> None:
    for cost in ("", "Cost"):
        world = World(f"oper/PointMassWall{size}{cost}-v0", {}, parallel=2)
        first, again, other = world.reset(0, 3), world.reset(1, 3), world.reset(1, 4)
        np.testing.assert_array_equal(first, again)
        assert (abs(first - task.START) <= 0.02 + 1e-6).all()
        assert not np.array_equal(first, other)
        for step in itertools.count(1):  # noqa: B007
            observation, reward, terminated, truncated = world.step(0, np.array([-1.0, 1.0], np.float32))
            assert reward == -bool(cost)
            assert not terminated
            if truncated:
                break
        assert step == steps
        np.testing.assert_allclose(observation, [-0.25, 1.45], atol=1e-6)
        world.close()
    with pytest.raises(InputError, match="did you mean 'oper/PointMassWall-v0'"):
        World("oper/PointMassWal-v0", {}) if not size else World("oper/PointMassWalls-v0", {})


@pytest.mark.parametrize(("small", "lengths"), [(False, (61, 77, 66.9)), (True, (18, 25, 21.15))])
def test_all_recorded_episodes_go_over_the_wall(small: bool, lengths: tuple[int, int, float]) -> None:
    source = PointMassWall(small=small)
    rows = squeezed(torch.cat(list(source.episodes())))
    assert len(source) == len(rows)
    ends = rows["next", "done"]
    assert int(ends.sum()) == int(rows["next", "terminated"].sum()) == 100
    assert rows["next", "reward"].equal(ends.float())
    each = torch.diff(torch.nonzero(ends).squeeze(1), prepend=torch.tensor([-1]))
    assert each.min() >= lengths[0]
    assert each.max() <= lengths[1]
    assert each.double().mean().item() == pytest.approx(lengths[2], abs=1)
    passes = (rows["observation"][:, 0] < 0.5) & (rows["next", "observation"][:, 0] >= 0.5)
    assert (rows["observation"][passes, 1] > 1.1).all()
    assert int(passes.sum()) >= 100
    assert rows["action"].abs().max() <= 1 - 1e-5
    again = squeezed(torch.cat(list(PointMassWall(small=small).episodes())))
    assert again["observation"].equal(rows["observation"])


def test_the_recording_is_what_the_environment_does() -> None:
    source = PointMassWall(episodes=3, small=True, seed=5)
    data = OfflineDataModule(source, batch_size=8)
    data.setup()
    assert source.origin().environment == "oper/PointMassWallSmall-v0"
    world = task.PointMassWall("Small")
    for episode in source.episodes():
        world.reset(seed=0)
        world.position = episode["observation"][0].double().numpy()
        for row in squeezed(episode):
            following, reward, there, _, _ = world.step(row["action"].numpy())
            np.testing.assert_allclose(following, row["next", "observation"].numpy(), atol=1e-6)
            assert (reward, there) == (row["next", "reward"].item(), row["next", "terminated"].item())
            world.position = row["next", "observation"].double().numpy()
    with pytest.raises(InputError, match="episodes is 0"):
        PointMassWall(episodes=0)
