"""A priority that no loss hears is refused, by trying what an update reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_shared import POLICIES, algorithm, data, fit, parameters, same

from oper_lightning import BC, Batch, InputError, OperR
from oper_lightning.training import guards

ROLES = [["evaluation", "improvement", "constraint"], ["improvement", "constraint"]]


class Deaf(BC):
    """Clones all alike, from a copy of what it was given."""

    def update(self, batch: Batch) -> dict[str, torch.Tensor]:
        rows = batch.improvement.clone()
        loss = (self.policy(rows["observation"]) - rows["action"]).square().mean()
        self.minimise(loss, self.optimiser)
        return {"policy_loss": loss}


class Late(Deaf):
    """Deaf to the evaluation's data at first, hears the weights of the improvement's later."""

    def prepare(self, number: int) -> bool:
        return number >= 20

    def update(self, batch: Batch) -> dict[str, torch.Tensor]:
        rows = batch.improvement if self.branch else batch.evaluation
        error = (self.policy(rows["observation"]) - rows["action"]).square().mean(-1)
        with torch.no_grad():
            weight = rows.clone()["weight"].clamp(max=2.0) if self.branch else 1.0
        loss = (weight * error).mean()
        self.minimise(loss, self.optimiser)
        return {"policy_loss": loss}


class Silent(Late):
    """The same, but its results say nothing of the loss."""

    def update(self, batch: Batch) -> dict[str, torch.Tensor]:
        super().update(batch)
        return {"constant": torch.ones(())}


def small(cls: type[BC]) -> BC:
    return cls(hidden_sizes=(8, 8))


def test_an_algorithm_that_reads_no_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Deaf .* batch.evaluation\['weight'\].* data.mode=reweight would change"):
        fit(small(Deaf), data(priority=OperR(), mode="reweight"), tmp_path / "a")
    for number, options in enumerate(({"priority": OperR()}, {"mode": "reweight"})):  # where there is nothing to hear
        fit(small(Deaf), data(**options), tmp_path / str(number))


@pytest.mark.parametrize("cls", [Late, Silent])
def test_one_that_comes_to_it_late_is_not(cls: type[BC], tmp_path: Path) -> None:
    fit(small(cls), data(priority=OperR(), mode="reweight", prioritise=["improvement", "constraint"]), tmp_path)


@pytest.mark.parametrize(
    ("name", "roles"),
    [(name, roles) for name, cls in POLICIES.items() for roles in ROLES if {*roles} & {*cls.reads}],
)
def test_trying_leaves_no_trace(name: str, roles: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All algorithms hear the priority, in the first updates or later, and end where they would have untried."""
    found = []
    for untried in (False, True):
        if untried:
            monkeypatch.setattr(guards, "Hears", lambda model: lambda batch: None)
        model = algorithm(name)
        fit(model, data(model.kinds[0], priority=OperR(), mode="reweight", prioritise=roles), tmp_path / str(untried))
        found.append(parameters(model))
    assert same(*found)
