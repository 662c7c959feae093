"""Curves over deployments, and runs of chains whose folders' names end in their seeds."""

from __future__ import annotations

import pytest

from oper_lightning.report.curves import Curve
from oper_lightning.report.deployments import deployed, draw
from oper_lightning.report.runs import Group, Run, grouped, without_seed


def policy(deployments: int, seed: int, **config: object) -> Run:
    """A run on the data of so many deployments, as a chain names them."""
    name = f"runs/chain/policy_{deployments - 1}_{seed}"
    given = {
        "model": "BREMEN",
        "model.clone": f"runs/chain/clone_{deployments - 1}_{seed}/last.ckpt",
        "data.source": "Minari",
        "data.source.id": [f"runs/chain/data_{number}_{seed}-v0" for number in range(deployments)],
        "seed_everything": seed,
        "trainer.max_steps": 20,
        "output": name,
        **config,
    }
    earned = Curve([10, 20], [100.0 * deployments + seed, 200.0 * deployments + seed])
    return Run(name, without_seed(given), {"eval/return": earned, "eval/promised": Curve([10, 20], [300.0, 400.0])})


@pytest.mark.parametrize(
    ("value", "without"),
    [
        ("runs/a_3/last.ckpt", "runs/a_#/last.ckpt"),
        ("runs/a_1_3", "runs/a_1_#"),
        (["runs/x_3/y", "runs/z_3-v12"], ["runs/x_#/y", "runs/z_#-v12"]),
        ([{"init_args": {"path": "runs/explorer_3"}}], [{"init_args": {"path": "runs/explorer_#"}}]),
    ],
)
def test_a_seed_at_the_end_of_a_neighbours_folder_is_left_out(value: object, without: object) -> None:
    config = {"seed_everything": 3, "output": "runs/policy_3", "model.clone": value}
    assert without_seed(config)["model.clone"] == without
    # Not where the run's own folder does not end so: somebody else gave these names.
    for other in ({**config, "seed_everything": 4}, {**config, "output": "runs/policy"}, {**config, "output": None}):
        assert without_seed(other) == other


@pytest.mark.parametrize(
    "value",
    ["runs/level_3.hdf5", "runs/run_33/last.ckpt", "runs/a3/last.ckpt", "data_3-v0", "other/a_3", 3, None],
)
def test_other_numbers_and_other_places_stay(value: object) -> None:
    config = {"seed_everything": 3, "output": "runs/policy_3", "model.clone": value}
    assert without_seed(config)["model.clone"] == value


def test_other_peoples_numbers_are_no_seeds() -> None:
    """Three seeds on one dataset are one method, and one seed on each of two datasets are two."""
    same = [policy(1, seed, **{"data.source.id": "data_0-v0", "model.clone": None}) for seed in (0, 1, 2)]
    assert [len(group.runs) for group in grouped(same)] == [3]
    other = [policy(1, seed, **{"data.source.id": f"expert_{seed}-v0", "model.clone": None}) for seed in (1, 2)]
    assert [len(group.runs) for group in grouped(other)] == [1, 1]


def test_seeds_of_a_chain_are_one_method_and_its_rounds_a_course() -> None:
    runs = [policy(deployments, seed) for seed in (1, 2, 12) for deployments in (3, 1, 2)]
    groups = grouped(runs)
    assert sorted(len(group.runs) for group in groups) == [3, 3, 3]
    (course,) = deployed(groups)
    assert [group.data.count("data_") for group in course] == [1, 2, 3]
    (panel,) = draw([course]).axes
    earned = [line for line in panel.lines if line.get_label() == "earned in the environment"]
    assert [line.get_xdata().tolist() for line in earned] == [[10, 20, 30, 40, 50, 60]]
    assert [line.get_ydata().tolist() for line in earned] == [[105, 205, 205, 405, 305, 605]]


def test_runs_on_unlike_data_are_no_course() -> None:
    other = policy(2, 1, **{"data.source.id": ["elsewhere-v0", "runs/chain/data_1_1-v0"]})
    assert deployed(grouped([policy(1, 1), other])) == []
    assert deployed(grouped([policy(1, 1)])) == []
    alone = Group("data", "method", [policy(2, 1)])
    assert deployed([alone]) == []


def test_methods_that_differ_from_the_second_round_on_have_their_curves() -> None:
    runs = [policy(1, 1), policy(2, 1), policy(2, 1, **{"model.std": 0.2, "output": "elsewhere"})]
    courses = deployed(grouped(runs))
    assert [len(course) for course in courses] == [2]
