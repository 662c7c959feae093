"""Curves over deployments, and runs of chains whose folders' names end in their seeds."""

from __future__ import annotations

import pytest

from oper_lightning.report.curves import Curve
from oper_lightning.report.deployments import deployed, draw
from oper_lightning.report.runs import Group, Run, grouped, without_seed


def policy(deployments: int, seed: int, **config: object) -> Run:
    """A run on the data of so many deployments, as a chain names them."""
    given = {
        "model": "BREMEN",
        "model.clone": f"runs/chain/clone_{deployments - 1}_{seed}/last.ckpt",
        "data.source": "Minari",
        "data.source.id": [f"runs/chain/data_{number}_{seed}-v0" for number in range(deployments)],
        "seed_everything": seed,
        "trainer.max_steps": 20,
        **config,
    }
    earned = Curve([10, 20], [100.0 * deployments + seed, 200.0 * deployments + seed])
    curves = {"eval/return": earned, "eval/promised": Curve([10, 20], [300.0, 400.0])}
    name = f"runs/chain/policy_{deployments - 1}_{seed}"
    return Run(name, {key: without_seed(value, seed) for key, value in given.items()}, curves)


@pytest.mark.parametrize(
    ("value", "without"),
    [
        ("runs/a_3/last.ckpt", "runs/a_#/last.ckpt"),
        ("runs/a_1_3", "runs/a_1_#"),
        (["x_3/y", "z_3-v12"], ["x_#/y", "z_#-v12"]),
        ([{"init_args": {"path": "runs/explorer_3"}}], [{"init_args": {"path": "runs/explorer_#"}}]),
    ],
)
def test_a_seed_at_the_end_of_a_folder_is_left_out(value: object, without: object) -> None:
    assert without_seed(value, 3) == without
    assert without_seed(value, 4) == value


@pytest.mark.parametrize("value", ["level_3.hdf5", "run_33/last.ckpt", "a3/last.ckpt", 3, None, "hopper_3x-v0"])
def test_other_numbers_stay(value: object) -> None:
    assert without_seed(value, 3) == value


def test_seeds_of_a_chain_are_one_method_and_its_rounds_a_course() -> None:
    runs = [policy(deployments, seed) for seed in (1, 2, 12) for deployments in (3, 1, 2)]
    groups = grouped(runs)
    assert sorted(len(group.runs) for group in groups) == [3, 3, 3]
    (course,) = deployed(groups)
    assert [group.data.count("data_") for group in course] == [1, 2, 3]
    (panel,) = draw([course]).axes
    earned = [line for line in panel.lines if line.get_label() == "earned in the environment"]
    assert [line.get_xdata().tolist() for line in earned] == [[10, 20], [30, 40], [50, 60]]
    assert [line.get_ydata().tolist() for line in earned] == [[105, 205], [205, 405], [305, 605]]


def test_runs_on_unlike_data_are_no_course() -> None:
    other = policy(2, 1, **{"data.source.id": ["elsewhere-v0", "runs/chain/data_1_1-v0"]})
    assert deployed(grouped([policy(1, 1), other])) == []
    assert deployed(grouped([policy(1, 1)])) == []
    alone = Group("data", "method", [policy(2, 1)])
    assert deployed([alone]) == []
