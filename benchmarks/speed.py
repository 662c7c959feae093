"""Updates per second through the whole ``fit`` path, beside loops written by hand, torchrl's losses and the machine's
limit; what weights, seeds, rows and compilers cost.

    python benchmarks/speed.py                        # every part that this machine can run, one thread
    python benchmarks/speed.py td3_bc weights         # some of them
    python benchmarks/speed.py --profile              # where the time of a TD3+BC update goes
    python benchmarks/speed.py --table                # tables from the raw runs

Contenders take turns, so that whatever else the machine does falls on all of them; figures are medians over turns, and
ratios are medians of the ratios within turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import loops
import torch
from kept import machine
from lightning.pytorch import Callback, Trainer
from loops import ACTIONS, BATCH, BLOCK, HIDDEN, OBSERVATIONS, Columns, timed
from tensordict import TensorDict
from torch import Tensor

from oper_lightning import OfflineDataModule
from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.algorithms.bc import BC
from oper_lightning.algorithms.cql import CQL
from oper_lightning.algorithms.iql import IQL
from oper_lightning.algorithms.oper_a import OperA
from oper_lightning.algorithms.td3_bc import TD3BC
from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.transitions import transitions_from
from oper_lightning.priorities.priority import Priority
from oper_lightning.training.execution import Compile

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "benchmarks" / "raw" / "speed"
WARM = 500
EPISODE = 1000


class Synthetic(Source):
    """Noise in the shapes of HalfCheetah, made as it is read."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def episodes(self) -> Iterator[TensorDict]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.rows // EPISODE):
            observation = torch.randn(EPISODE + 1, OBSERVATIONS, generator=generator).numpy()
            ends = torch.zeros(EPISODE, dtype=torch.bool).numpy()
            last = ends.copy()
            last[-1] = True
            yield transitions_from(
                observation[:-1],
                torch.rand(EPISODE, ACTIONS, generator=generator).mul_(2).sub_(1).numpy(),
                torch.rand(EPISODE, generator=generator).numpy(),
                observation[1:],
                ends,
                last,
            )

    def origin(self) -> Origin:
        return Origin("synthetic")


class Noise(Priority):
    """Weights without meaning."""

    def __call__(self, transitions: TensorDict) -> Tensor:
        return torch.rand(len(transitions), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# Our own path ------------------------------------------------------------------------------------------------------


class Clock(Callback):
    """Measures from before the update numbered ``start`` until after the last."""

    def __init__(self, start: int) -> None:
        self.start = start

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.start:
            self.began = time.process_time()  # of the only thread; other programs' time is not in it

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            self.seconds = time.process_time() - self.began


def fit(
    model: OfflineAlgorithm,
    data: OfflineDataModule,
    updates: int,
    warm: int = WARM,
    **options: Any,
) -> float:
    """Seconds of ``updates`` updates through Lightning, after an epoch to warm up; no logger, no checkpoints."""
    clock = Clock(warm)
    data.updates_per_epoch, data.updates_per_block = warm, BLOCK
    torch._dynamo.reset()
    trainer = Trainer(
        max_steps=updates + warm,
        default_root_dir=tempfile.mkdtemp(),
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
        **options,
    )
    trainer.fit(model, datamodule=data)
    return clock.seconds


def synthetic(rows: int, **options: Any) -> OfflineDataModule:
    data = OfflineDataModule(Synthetic(rows), batch_size=BATCH, rollouts=None, **options)
    data.setup()
    return data


# The machine's limit -----------------------------------------------------------------------------------------------


def products() -> dict[str, float]:
    """Floating-point operations of an update's matrix products: two for each weight, row and use of the weight.

    A layer's weight is used once forward, once for its own gradient, and once to pass the gradient on (not by the
    first layer, unless its input needs it).
    """
    first, last = (OBSERVATIONS + ACTIONS) * HIDDEN, HIDDEN
    critic, actor = first + HIDDEN * HIDDEN + last, OBSERVATIONS * HIDDEN + HIDDEN * HIDDEN + HIDDEN * ACTIONS
    actor_trained = 3 * actor - OBSERVATIONS * HIDDEN
    critics = 2 * (critic + 3 * critic - first) + actor  # targets, then both critics trained; the target's action
    improvement = actor_trained + 2 * critic  # one critic forward, and back to the action, without its own gradients
    return {"TD3+BC": 2 * BATCH * (critics + improvement / 2), "BC": 2 * BATCH * actor_trained}


def gemm_rate(buffers: int) -> float:
    """Floating-point operations per second of 256 x 256 x 256 products that go around so many matrices."""
    left, right = (torch.randn(2, buffers, HIDDEN, HIDDEN)[side].unbind() for side in (0, 1))
    seconds = timed(lambda turn: torch.mm(left[turn % buffers], right[turn % buffers]), 2000)
    return 2000 * 2 * HIDDEN**3 / seconds


# The parts ---------------------------------------------------------------------------------------------------------

Contenders = dict[str, Callable[[], float]]  # each returns updates per second, or operations per second


def td3_bc() -> Contenders:
    data, updates = synthetic(100_000), 1000
    columns = Columns(data)
    by_hand = {
        "tuned loop": loops.tuned_td3_bc,
        "plain loop": loops.plain_td3_bc,
        "torchrl": loops.torchrl_td3_bc,
        "torchrl, tuned": partial(loops.torchrl_td3_bc, tuned=True),
    }
    return {
        "fit": lambda: updates / fit(TD3BC(), data, updates),
        **{name: lambda loop=loop: updates / loop(columns, updates) for name, loop in by_hand.items()},
        "products, hot": lambda: gemm_rate(1) / products()["TD3+BC"],
        "products, cold": lambda: gemm_rate(16) / products()["TD3+BC"],
    }


def bc() -> Contenders:
    data, updates = synthetic(100_000), 4000
    columns = Columns(data)
    return {
        "fit": lambda: updates / fit(BC(), data, updates),
        "tuned loop": lambda: updates / loops.tuned_bc(columns, updates),
        "products, hot": lambda: gemm_rate(1) / products()["BC"],
        "products, cold": lambda: gemm_rate(16) / products()["BC"],
    }


def against_plain(
    algorithm: type[OfflineAlgorithm], loop: Callable[[Columns, int], float], updates: int, warm: int = WARM
) -> Contenders:
    """An algorithm in every way that this machine has, and as a plain loop."""
    data = synthetic(100_000)
    columns = Columns(data)

    def one(precision: Any, how: Compile) -> float:
        return updates / fit(algorithm(compile=how), data, updates, warm=warm, precision=precision)

    found: Contenders = {"fit": lambda: one("32-true", "none")}
    if possible("compiled"):
        found["fit, compiled"] = lambda: one("32-true", "default")
    if possible("bf16"):
        found["fit, bf16-mixed"] = lambda: one("bf16-mixed", "none")
    if possible("compiled") and possible("bf16"):
        found["fit, bf16-mixed, compiled"] = lambda: one("bf16-mixed", "default")
    return {**found, "plain loop": lambda: updates / loop(columns, updates)}


def td3_bc_plain() -> Contenders:
    return against_plain(TD3BC, loops.plain_td3_bc, 1000)


def iql_plain() -> Contenders:
    return against_plain(IQL, loops.plain_iql, 1000)


def cql_plain() -> Contenders:
    return against_plain(CQL, loops.plain_cql, 100, warm=50)


def weights() -> Contenders:
    rows, updates = 1_000_000, 1000
    drawn = {
        "uniform": synthetic(rows),
        "weighted": synthetic(rows, priority=Noise()),
        "weighted, decoupled": synthetic(rows, priority=Noise(), prioritise=["improvement", "constraint"]),
        "reweighted": synthetic(rows, priority=Noise(), mode="reweight"),
    }
    return {name: lambda data=data: updates / fit(TD3BC(), data, updates) for name, data in drawn.items()}


def seeds() -> Contenders:
    data, updates = synthetic(100_000), 1000

    def one(count: int) -> float:
        # The second iteration draws by the first one's weights.
        return updates / fit(OperA(iterations=2, first_updates=WARM, seeds=count), data, updates)

    return {f"{count} seed{'s' * (count > 1)}": lambda count=count: one(count) for count in (1, 3)}


def rows() -> Contenders:
    updates = 1000
    sizes = {f"{size:,} rows": synthetic(size) for size in (100_000, 1_000_000, 20_000_000)}
    return {name: lambda data=data: updates / fit(TD3BC(), data, updates) for name, data in sizes.items()}


PARTS = {part.__name__: part for part in (td3_bc, td3_bc_plain, iql_plain, cql_plain, bc, weights, seeds, rows)}


def possible(part: str) -> bool:
    """Whether this machine has what a part measures."""
    if part == "bf16":
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return part != "compiled" or shutil.which("g++") is not None


def measure(part: str, rounds: int) -> None:
    contenders = PARTS[part]()
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        order = [*contenders.items()]
        for name, contender in order[turn % len(order) :] + order[: turn % len(order)]:
            rates[name].append(contender())
            print(f"{part}, turn {turn + 1} of {rounds}: {name} {rates[name][-1]:.1f}/s", flush=True)
    record = {"machine": machine(), "torch": torch.__version__, "threads": torch.get_num_threads(), "rates": rates}
    RAW.mkdir(parents=True, exist_ok=True)
    (RAW / f"{part}.json").write_text(json.dumps(record, indent=1) + "\n")


def table() -> str:
    lines = [
        "| part | contender | per second | range | first one over it, or it over the plain loop |",
        "|---|---|---|---|---|",
    ]
    for part in PARTS:
        file = RAW / f"{part}.json"
        if not file.is_file():
            continue
        rates = json.loads(file.read_text())["rates"]
        plain = rates.get("plain loop")
        base = plain or next(iter(rates.values()))
        for name, values in rates.items():
            pairs = zip(values, base, strict=True) if plain else zip(base, values, strict=True)
            ratios = sorted(one / other for one, other in pairs)
            spread = f"{min(values):.1f} – {max(values):.1f}"
            over = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} – {ratios[-1]:.2f})"
            lines.append(f"| {part} | {name} | {statistics.median(values):.1f} | {spread} | {over} |")
    return "\n".join(lines)


OPERATIONS = {
    "matrix products": ("mm",),
    "optimisers and targets": ("adam", "lerp"),
    "ReLU": ("relu", "threshold"),
    "copies, gathers, sums": ("copy", "cat", "sum", "index", "stack", "unbind"),
}


def profile() -> None:
    """Time of an update by kind of operation, as PyTorch's profiler sees it, and what is left for everything else."""
    data, updates = synthetic(100_000), 500
    seconds = fit(TD3BC(), data, updates)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        fit(TD3BC(), data, updates)
    spent = dict.fromkeys(OPERATIONS, 0.0)
    rest = 0.0
    for event in profiler.key_averages():
        kind = next((kind for kind, words in OPERATIONS.items() if any(word in event.key for word in words)), None)
        milliseconds = event.self_cpu_time_total / 1e3 / (updates + WARM)
        if kind is not None:
            spent[kind] += milliseconds
        elif event.key.startswith("aten::"):
            rest += milliseconds
    spent["other operations"] = rest
    spent["Python and the rest, without the profiler"] = 1e3 * seconds / updates - sum(spent.values())
    record = {"machine": machine(), "milliseconds": spent, "an update": 1e3 * seconds / updates}
    (RAW / "profile.json").write_text(json.dumps(record, indent=1) + "\n")
    for kind, milliseconds in spent.items():
        print(f"{kind:45} {milliseconds:6.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="only where the time of an update goes")
    parser.add_argument("--table", action="store_true", help="only print the tables of the raw runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "torch._dynamo"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if arguments.profile:
        profile()
        return
    if not arguments.table:
        for part in arguments.parts or filter(possible, PARTS):
            measure(part, arguments.rounds)
    print(table())


if __name__ == "__main__":
    main()
