"""Who says which returns score 0 and 100."""

from __future__ import annotations

from pathlib import Path

from oper_lightning.data.matching import reference_of
from oper_lightning.envs.scores import normalised
from oper_lightning.errors import InputError
from oper_lightning.report.results import measured_by
from oper_lightning.report.runs import Group, Run, read_config
from oper_lightning.report.weights import make

SLACK = 0.01  # of a score: what is logged is rounded


def references(groups: list[Group]) -> list[str]:
    """A sentence for each dataset whose runs are judged by scores."""
    scored = [group for group in groups if measured_by(groups, group.data) == "eval/score"]
    return [*dict.fromkeys(f"Scores on {group.data}: {_said(group.runs[0])}." for group in scored)]


def _said(run: Run) -> str:
    """What scores 0 and 100 in a run, as its configuration and its dataset say today."""
    try:
        data = read_config(run.folder)["data"]["init_args"]
        origin = make("source", data["source"], Path(run.folder) / "config.yaml").origin()
    except InputError as error:
        return f"the references are not known any more ({error})"
    played_in = run.config.get("data.rollouts.environment") or origin.environment
    reference, reference_from = reference_of(origin, played_in)
    scores, returns = run.curves["eval/score"].values, run.curves["eval/return"].values
    if reference is None or abs(normalised(returns[-1], reference) - scores[-1]) > SLACK:
        return "the references are others than when these runs were made, and not known any more"
    low, high = reference
    return f"0 is a return of {low:g} and 100 one of {high:g} ({reference_from})"
