"""What an update of BREMEN costs, and an imagined step: dealt, by a loop over lists of rows, by all members; and what
five members cost in training, beside one.

    python benchmarks/imagination.py            # one thread; about a minute
    python benchmarks/imagination.py --table    # from the raw run

Seconds are of the processor, user time of this process. Contenders take turns; figures are medians over turns, and
ratios are medians of the ratios within turns.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning import BREMEN, DynamicsEnsemble
from oper_lightning.nn import baselines, imagination, trpo
from oper_lightning.nn.dynamics import Dynamics
from oper_lightning.spec import Batch, DataSpec, Task

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "benchmarks" / "raw" / "imagination.json"
OBSERVATIONS, ACTIONS = 17, 6
TURNS, STEPS, UPDATES = 9, 200, 5
ROLLOUTS, HORIZON = 20, 250


class Forward(Task):
    """HalfCheetah's reward, with the velocity before the step."""

    def reward(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        return observation[:, 8] - 0.1 * action.square().sum(-1)


def seconds() -> float:
    """Seconds that the processor has worked for this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def data_spec() -> DataSpec:
    """Of HalfCheetah's shapes."""
    low = -torch.ones(ACTIONS)
    return DataSpec((OBSERVATIONS,), (ACTIONS,), low, -low, torch.zeros(OBSERVATIONS), torch.ones(OBSERVATIONS), 1, "")


def ensemble(members: int, hidden: int) -> Dynamics:
    """One that changes little from step to step, within wide bounds."""
    torch.manual_seed(0)
    model = Dynamics(members, OBSERVATIONS, ACTIONS, [hidden, hidden], reward=True, gaussian=False, margin=0.5)
    model.target_std.fill_(0.05)
    model.low.fill_(-100.0)
    model.high.fill_(100.0)
    return model.requires_grad_(False)


def listed(model: Dynamics, observation: Tensor, action: Tensor) -> Tensor:
    """A step by a loop over the members, each with the list of the rows that it was drawn for."""
    inputs = model.inputs(observation, action)
    drawn = torch.randint(model.members, (len(inputs),))
    out = torch.empty(len(inputs), OBSERVATIONS + 1)
    for member in range(model.members):
        rows = torch.nonzero(drawn == member).squeeze(1)
        hidden = inputs[rows]
        for layer, (weight, bias) in enumerate(zip(model.networks.weights, model.networks.biases, strict=True)):
            hidden = torch.addmm(bias[member], hidden.relu_() if layer else hidden, weight[member])
        out[rows] = hidden
    return model._step(observation, out).observation


def everybody(model: Dynamics, observation: Tensor, action: Tensor) -> Tensor:
    """A step by all members, of which each row then takes one."""
    found = model.every(observation, action).observation
    drawn = torch.randint(model.members, (len(observation),))
    return found[drawn, torch.arange(len(observation))]


WAYS: dict[str, Callable[[Dynamics, Tensor, Tensor], Any]] = {
    "dealt": lambda model, observation, action: model.step(observation, action),
    "listed": listed,
    "all": everybody,
    "shared": lambda model, observation, action: model.step(observation, action, shared=True),
}


@torch.no_grad()
def steps(members: int, hidden: int, rows: int) -> dict[str, list[float]]:
    """Milliseconds of a step in each turn, by the way it is taken."""
    model = ensemble(members, hidden)
    observation, action = torch.randn(rows, OBSERVATIONS), torch.rand(rows, ACTIONS) * 2 - 1
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    count = STEPS if hidden < 1000 else STEPS // 5
    for _ in range(TURNS):
        for name, way in WAYS.items():
            begun = seconds()
            for _ in range(count):
                way(model, observation, action)
            taken[name].append(1000 * (seconds() - begun) / count)
    return taken


def updates() -> dict[str, list[float]]:
    """Seconds of an update in each turn: whole, with every row in the Fisher matrix, and its parts."""
    torch.manual_seed(0)
    model = BREMEN(task=Forward(), horizon=HORIZON)
    model._build(data_spec())
    model.model = ensemble(3, 256)
    part = TensorDict({"start": torch.randn(ROLLOUTS, OBSERVATIONS), "weight": torch.ones(ROLLOUTS)}, [ROLLOUTS])
    batch = Batch(part, part, part)
    taken: dict[str, list[float]] = {name: [] for name in ("share 0.2", "share 1.0", "imagining", "step", "baseline")}
    for _ in range(UPDATES):
        for share in (0.2, 1.0):
            model.fisher_share = share
            begun = seconds()
            model.update(batch)
            taken[f"share {share}"].append(seconds() - begun)
        begun = seconds()
        path = imagination.imagine(part["start"], HORIZON, model.sample, model.world)
        taken["imagining"].append(seconds() - begun)
        weight = torch.ones(HORIZON, ROLLOUTS, dtype=torch.float64)
        begun = seconds()
        advantage, target = model.advantages(path)
        seen = model.observe(path["observation"])
        assert isinstance(model.baseline, baselines.LinearBaseline)
        model.baseline.fit(seen, path["time"], target, weight)
        taken["baseline"].append(seconds() - begun)
        begun = seconds()
        trpo.trust_region_step(
            model.policy, model.normal, seen, path["action"], advantage / advantage.std(), weight, 0.05, 0.1, 0.2
        )
        taken["step"].append(seconds() - begun)
    return taken


def training() -> dict[str, dict[str, list[float]]]:
    """Milliseconds of an update of an ensemble in each turn, by sizes and number of members."""
    found: dict[str, dict[str, list[float]]] = {}
    for hidden, rows, count in ((256, 256, 60), (256, 500, 40), (1024, 1000, 3)):
        models = {}
        for members in (1, 5):
            torch.manual_seed(0)
            model = models[members] = DynamicsEnsemble(members, (hidden, hidden), reward=False)
            model._build(data_spec())
            model.rows = 100_000
            model.configure_optimizers()
        taken = found[f"2x{hidden}, batches of {rows}"] = {str(members): [] for members in models}
        for _ in range(TURNS):
            for members, model in models.items():
                shape = [members, rows]
                following = {"observation": torch.randn(*shape, OBSERVATIONS), "reward": torch.randn(shape)}
                columns = {"observation": torch.randn(*shape, OBSERVATIONS), "action": torch.rand(*shape, ACTIONS)}
                part = TensorDict({**columns, "next": following, "weight": torch.ones(shape)}, shape)
                batch = Batch(part, part, part)
                begun = seconds()
                for _ in range(count):
                    model.update(batch)
                taken[str(members)].append(1000 * (seconds() - begun) / count)
    return found


def ratio(first: list[float], second: list[float]) -> float:
    """The median of the ratios within turns."""
    return statistics.median(one / other for one, other in zip(first, second, strict=True))


def table(raw: dict[str, Any]) -> None:
    """Prints what the README shows."""
    print("| imagined step, ms | dealt | loop over lists | all members | one for all | all / dealt | lists / dealt |")
    print("|---|---|---|---|---|---|---|")
    for name, taken in raw["steps"].items():
        middle = [f"{statistics.median(taken[way]):.2f}" for way in WAYS]
        pairs = f"{ratio(taken['all'], taken['dealt']):.2f} | {ratio(taken['listed'], taken['dealt']):.2f}"
        print(f"| {name} | {' | '.join(middle)} | {pairs} |")
    print("\n| update of 5,000 steps | seconds |\n|---|---|")
    for name, values in raw["updates"].items():
        print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |")
    print("\n| update of an ensemble, ms | one member | five members | five / one |\n|---|---|---|---|")
    for name, taken in raw["training"].items():
        one, five = taken["1"], taken["5"]
        print(f"| {name} | {statistics.median(one):.2f} | {statistics.median(five):.2f} | {ratio(five, one):.2f} |")


def main() -> None:
    """Measures, keeps the raw run, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the tables of the raw run")
    if not parser.parse_args().table:
        torch.set_num_threads(1)
        sizes = [(5, 256, 200), (5, 256, 20), (3, 256, 20), (5, 1024, 200)]
        measured = {
            f"{members} x 2x{hidden}, {rows} rows": steps(members, hidden, rows) for members, hidden, rows in sizes
        }
        found = {"torch": torch.__version__, "steps": measured, "updates": updates(), "training": training()}
        RAW.write_text(json.dumps(found, indent=1))
    table(json.loads(RAW.read_text()))


if __name__ == "__main__":
    main()
