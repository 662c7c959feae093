"""OGBench's files as recordings of one task, compared with its rule written out row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from oper_lightning.data.sources.npz import Npz
from oper_lightning.data.sources.ogbench import OGBench
from oper_lightning.data.storage import fill
from oper_lightning.errors import InputError


def play(lengths: list[int]) -> dict[str, np.ndarray]:
    """Trajectories of so many observations each, whose positions wander through a box."""
    generator, rows = np.random.default_rng(0), sum(lengths)
    terminals = np.zeros(rows, dtype=np.float32)
    terminals[np.cumsum(lengths) - 1] = 1
    return {
        "observations": generator.normal(size=(rows, 4)).astype(np.float32),
        "actions": generator.uniform(-1, 1, size=(rows, 2)).astype(np.float32),
        "terminals": terminals,
        "qpos": generator.uniform(0, 2, size=(rows, 17)),
        "button_states": generator.integers(0, 2, size=(rows, 2)),
    }


TASKS: dict[str, dict[str, Any]] = {
    "maze": {"goals": [[1.0, 1.0]]},
    "soccer": {"goals": [[1.0, 1.0]], "at": [15], "tolerance": 0.8},
    "two cubes": {"goals": [[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]], "at": [3, 10], "tolerance": 1.0},
    "buttons": {"buttons": [1, 0]},
    "a scene": {"goals": [[1.0]], "at": [4], "buttons": [0, 1]},
}


@pytest.mark.parametrize("task", TASKS)
def test_rewards_are_those_of_the_task(task: str) -> None:
    arrays, options = play([30, 2, 50, 20]), TASKS[task]
    np.savez("play.npz", **arrays)
    expected: list[tuple[Any, ...]] = []
    for row in range(len(arrays["terminals"]) - 1):
        if arrays["terminals"][row]:
            continue  # only an observation
        parts = []
        for goal, start in zip(options.get("goals", []), options.get("at", [0]), strict=False):
            away = sum((arrays["qpos"][row, start + k] - goal[k]) ** 2 for k in range(len(goal))) ** 0.5
            parts.append(away <= options.get("tolerance", 0.5))
        parts += [arrays["button_states"][row, k] == state for k, state in enumerate(options.get("buttons", []))]
        done = all(parts)
        cut = bool(arrays["terminals"][row + 1]) and not done
        seen = arrays["observations"][row], arrays["observations"][row + 1]
        expected.append((*seen, sum(parts) - len(parts), done, cut))
    table = fill(OGBench("play.npz", **options), torch.device("cpu"))[:]
    assert len(table) == len(expected)
    assert 0 < sum(done for *_, done, _ in expected) < len(expected) / 2
    for row, (observation, following, reward, done, cut) in zip(table, expected, strict=True):
        assert row["observation"].tolist() == observation.tolist()
        if not done:  # what follows a termination is not used
            assert row["next", "observation"].tolist() == following.tolist()
        assert row["next", "reward"].item() == reward
        assert bool(row["next", "terminated"]) == done
        assert bool(row["next", "truncated"]) == cut


def test_what_does_not_fit_is_one_line() -> None:
    arrays = play([10, 10])
    np.savez("play.npz", **arrays)
    np.savez("bare.npz", **{name: arrays[name] for name in ("observations", "actions", "terminals")})
    with pytest.raises(InputError, match=r"play\.npz: OGBench's files have no rewards: name the task"):
        OGBench("play.npz")
    with pytest.raises(InputError, match="2 goals, but at names 1 columns"):
        OGBench("play.npz", goals=[[0.0], [1.0]])
    with pytest.raises(InputError, match=r"bare\.npz: no array 'qpos', which the task needs; the file has obs"):
        len(OGBench("bare.npz", goals=[[0.0, 0.0]]))
    with pytest.raises(InputError, match=r"play\.npz: columns 16 to 17 of qpos, which has shape \[20, 17\]"):
        len(OGBench("play.npz", goals=[[0.0, 0.0]], at=[16]))
    with pytest.raises(InputError, match=r"play\.npz: 1 buttons, but button_states has shape \[20, 2\]"):
        len(OGBench("play.npz", buttons=[1]))
    with pytest.raises(InputError, match=r"no array 'rewards', but qpos: .* read it with OGBench"):
        len(Npz("play.npz"))
