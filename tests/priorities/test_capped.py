"""Capped weights against the formula, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import columns, transitions

from oper_lightning import InputError, OperR, WeightsFile
from oper_lightning.priorities.capped import Capped
from oper_lightning.priorities.priority import Priority
from oper_lightning.priorities.starts import FirstObservations

RAW = [0.0, 0.5, 30.0, 1.0, 4.0, 0.5]


class Given(Priority):
    def __call__(self, transitions: object) -> torch.Tensor:
        return torch.tensor(RAW)


@pytest.mark.parametrize(("share", "cap"), [(0.5, 10.0), (0.3, 2.0), (1.0, 1.5), (0.0, 10.0)])
def test_weights_are_bounded_and_mixed(share: float, cap: float) -> None:
    table = transitions(columns([2, 4]))
    mean = sum(RAW) / len(RAW)
    mixed = [(1 - share) + share * min(weight / mean, cap) for weight in RAW]
    expected = [weight * len(mixed) / sum(mixed) for weight in mixed]
    np.testing.assert_allclose(Capped(Given(), share, cap)(table), expected, rtol=1e-12)


def test_roles_are_those_of_the_other_priority() -> None:
    assert Capped(WeightsFile("w")).roles == WeightsFile("w").roles
    assert Capped(OperR()).roles == OperR().roles


def test_first_observations_take_another_priority_on_the_first_rows_only() -> None:
    table = transitions(columns([2, 1, 3]))
    assert FirstObservations()(table).tolist() == [2, 0, 2, 2, 0, 0]
    expected = np.array([RAW[0], 0, RAW[2], RAW[3], 0, 0])
    np.testing.assert_allclose(FirstObservations(Given())(table), expected / expected.mean(), rtol=1e-12)


@pytest.mark.parametrize(
    ("share", "cap"), [(-0.1, 1.0), (1.1, 1.0), (float("nan"), 1.0), (0.5, 0.0), (0.5, float("nan"))]
)
def test_what_is_out_of_range_is_refused(share: float, cap: float) -> None:
    with pytest.raises(InputError, match=r"^Capped: "):
        Capped(OperR(), share, cap)
