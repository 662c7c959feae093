"""Numbers of runs: ranges of few, intervals of more, and what is no number."""

from __future__ import annotations

import math

import pytest

from oper_lightning.report.curves import Curve
from oper_lightning.report.results import over_datasets, plain_rows, results, table_of
from oper_lightning.report.runs import Group, Run, grouped, oddities, settings


def run(returns: list[float], scored: bool = False, **config: object) -> Run:
    curve = Curve([10 * k for k in range(1, len(returns) + 1)], returns)
    curves = {"eval/return": curve} | ({"eval/score": curve} if scored else {})
    return Run("a run", {"trainer.max_steps": 10 * len(returns), **config}, curves)


def test_few_runs_have_a_range_and_more_an_interval() -> None:
    few = Group("data", "few", [run([1.0]), run([2.0]), run([6.0])])
    found = results([few], None)
    assert (found[0].extent, found[0].interval, found[0].middle) == ((1, 6), None, None)
    head, rows = table_of(found, None)[:2]
    assert "lowest to highest" in head
    assert not any("95" in word for word in head)
    assert "1.0 to 6.0" in rows[0]
    many = Group("data", "many", [run([value]) for value in (1.0, 2.0, 3.0, 6.0)])
    found = results([few, many], None)
    assert found[1].interval is not None
    assert 1 <= found[1].interval[0] < found[1].interval[1] <= 6
    assert found[1].middle == 2.5
    # Each of 1, 2, 3, 6 against each of 1, 2, 6; ties are half.
    assert found[1].better == pytest.approx((0.5 + 1.5 + 2 + 2.5) / 12)
    assert found[1].better_interval is None  # the first has too few
    head, rows = table_of(found, None)[:2]
    assert rows[0][head.index("mean, 95 %")] == "–"


def test_over_datasets_few_runs_have_no_interval() -> None:
    groups = [Group(data, "method", [run([1.0], True), run([3.0], True)]) for data in ("one", "other")]
    (row,) = over_datasets(groups)
    assert (row.runs, row.extent, row.interval) == (4, (1, 3), None)


def test_what_is_no_number_is_said() -> None:
    broken = Group("data", "broken", [run([1.0, math.nan]), run([2.0, 3.0])])
    table = table_of(results([broken], 0.0), 0.0)
    assert table.rows[0].count("not finite") == 2  # last, and the range
    assert "nan" not in str(table.rows)
    assert table.rows[0][table.head.index("best")] == "2.0"  # of what was finite
    assert oddities(broken)[0] == "a run: eval/return is no finite number at update 20, the first such"
    assert table_of(results([Group("data", "lost", [run([math.nan])])], None), None).rows[0][3:5] == ["not finite"] * 2


def test_numbers_for_other_programs() -> None:
    group = Group("data", "method", [run([1.25]), run([2.5])])
    head, rows = plain_rows(results([group], 4.0))
    assert len(head) == len(rows[0])
    line = dict(zip(head, rows[0], strict=True))
    assert (line["return_last"], line["lowest"], line["highest"], line["runs"]) == (1.875, 1.25, 2.5, 2)
    assert line["gap_closed"] == 0
    assert line["iqm"] is None


def test_settings_that_differ_are_listed_once() -> None:
    def group(data: str, method: str, **config: object) -> Group:
        return Group(data, method, [run([1.0], **config)])

    head, rows = settings(
        [
            group("one", "BC", **{"model.rate": 0.1, "data.mode": "resample", "data.rollouts.episodes": 5}),
            group("other", "BC", **{"model.rate": 0.1, "data.mode": "resample", "data.rollouts.episodes": 10}),
            group("one", "IQL", **{"model.rate": 0.3, "data.mode": "resample", "output": "there", "model.tau": 2}),
        ]
    )
    assert head == ["argument", "BC", "IQL"]
    assert rows == [["model.rate", "0.1", "0.3"], ["data.rollouts.episodes", "5 or 10", ""]]


def test_joined_data_are_named_by_their_parts() -> None:
    parts = [
        {"class_path": "oper_lightning.data.sources.d4rl.D4RL", "init_args": {"path": "files/hopper.hdf5"}},
        {"class_path": "oper_lightning.data.sources.online_log.OnlineLog", "init_args": {"path": "runs/explorer"}},
        {"class_path": "oper_lightning.data.sources.point_mass_wall.PointMassWall", "init_args": {"small": True}},
    ]
    joined = run([1.0], **{"data.source": "Joined", "data.source.sources": parts, "model": "IQL"})
    relabelled = run([1.0], **{"data.source": "Relabelled", "data.source.source.path": "cheetah.hdf5", "model": "IQL"})
    rounds = run(
        [1.0], **{"data.source": "Minari", "data.source.id": ["runs/data_0-v0", "runs/data_1-v0"], "model": "BC"}
    )
    found = {group.data for group in grouped([joined, relabelled, rounds])}
    assert found == {"hopper + explorer + PointMassWall", "cheetah", "data_0-v0 + data_1-v0"}
