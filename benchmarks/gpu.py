"""What a GPU is worth: updates per second, memory, and whether every way of running learns the same.

    python benchmarks/gpu.py                            # all parts; some eight minutes on an H100
    python benchmarks/gpu.py 'TD3BC/*' 'loop/*'         # some of them
    python benchmarks/gpu.py --table                    # tables of what has been measured
    python benchmarks/gpu.py --device=cpu --small --raw=/tmp/gpu.json    # tries the script itself, without a GPU

ALGORITHM/none, /cudagraphs, /cudagraphs, bf16-mixed and /default: updates per second through the whole of `fit`, with
the algorithm's defaults and batches of 256 rows of 17 + 6 numbers (discrete: 6 actions); the seconds of the first 200
updates, compiling and recording included; the most memory that PyTorch had in use; and how far parameters are from
those of eager updates (model.compile=none) in the same precision, after 50 and 200 updates from the same seeds.
The unit is how far eager updates have moved them: once for the largest differences, once for root mean squares. Under
none it is what becomes of a change of all parameters in their last bit, which is what rounding alone can do.
loop/…: TD3+BC as a plain PyTorch loop, as a JAX loop (if jax is there), and as `fit`, with and without TensorFloat-32.
batch/…: TD3+BC with larger batches. draws/…: a million rows on the device, drawn alike, by weight, or reweighted.
evaluation: ten episodes of HalfCheetah-v5, which has the shapes of the data and always takes 1000 steps.

Results are written after every part. Parts that are there for the same card, failed ones too, are not run again unless
--again is given; parts that were cut off are.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import gc
import json
import logging
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import loops
import torch
from kept import machine
from lightning.pytorch import Callback, Trainer, seed_everything
from loops import Columns, now
from speed import Noise, Synthetic
from tensordict import TensorDict
from torch import Tensor

from oper_lightning import OfflineDataModule, Rollouts
from oper_lightning.algorithms.bc import BC
from oper_lightning.algorithms.bcq import BCQ
from oper_lightning.algorithms.cal_ql import CalQL
from oper_lightning.algorithms.cql import CQL
from oper_lightning.algorithms.crr import CRR
from oper_lightning.algorithms.discrete_bc import DiscreteBC
from oper_lightning.algorithms.discrete_bcq import DiscreteBCQ
from oper_lightning.algorithms.discrete_cql import DiscreteCQL
from oper_lightning.algorithms.discrete_iql import DiscreteIQL
from oper_lightning.algorithms.dynamics import DynamicsEnsemble
from oper_lightning.algorithms.iql import IQL
from oper_lightning.algorithms.onestep import OnestepRL
from oper_lightning.algorithms.oper_a import OperA
from oper_lightning.algorithms.qrdqn import QRDQN
from oper_lightning.algorithms.rlpd import RLPD
from oper_lightning.algorithms.stage import Stage
from oper_lightning.algorithms.td3_bc import TD3BC
from oper_lightning.errors import InputError, one_line

HERE = Path(__file__).resolve().parent
RAW = HERE / "raw" / "gpu.json"
EPOCH = 5000  # updates between evaluations, by default
CUT_OFF = "was cut off"
BEGAN = "OPER_GPU_BEGAN"  # when the script began, for the process that goes on after a broken one


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rows: int = 100_000
    many: int = 1_000_000
    batch: int = 256
    batches: tuple[int, ...] = (256, 1024, 4096, 16384)
    block: int = 50
    compared: int = 200
    epoch: int = 1000
    longest: int = 20_000
    seconds: float = 1.0
    loop: int = 1000
    rollouts: Rollouts = field(default_factory=lambda: Rollouts(environment="HalfCheetah-v5"))


SMALL = Scale(
    rows=10_000,
    many=20_000,
    batch=32,
    batches=(32, 64),
    block=5,
    compared=20,
    epoch=20,
    longest=200,
    seconds=0.2,
    loop=20,
    rollouts=Rollouts(environment="HalfCheetah-v5", episodes=2, steps=20),
)
device, scale = "gpu", Scale()  # as the command line has it


class Discrete(Synthetic):
    """The same noise with six discrete actions."""

    def episodes(self) -> Iterator[TensorDict]:
        for episode in super().episodes():
            episode["action"] = ((episode["action"][:, 0] + 1) * 3).long().clamp(max=5)
            yield episode


# One run -----------------------------------------------------------------------------------------------------------


def onestep(**options: Any) -> OnestepRL:
    """Behaviour for a quarter of the updates that are compared, then the critic, which is what takes time."""
    quarters = 4 * scale.longest / scale.compared
    return OnestepRL(phases=(1, quarters - 2, 1), **options)


def oper_a(seeds: int, **options: Any) -> OperA:
    """The second iteration, which begins with the second epoch, draws by the first one's weights."""
    return OperA(iterations=2, first_updates=scale.epoch, seeds=seeds, **options)


ALGORITHMS: dict[str, Callable[..., Stage]] = {
    "TD3BC": TD3BC,
    "IQL": IQL,
    "CQL": CQL,
    "BC": BC,
    "OperA, 1 seed": functools.partial(oper_a, 1),
    "OperA, 3 seeds": functools.partial(oper_a, 3),
    "BCQ": BCQ,
    "OnestepRL": onestep,
    "CalQL": CalQL,
    "RLPD": RLPD,
    "DynamicsEnsemble": DynamicsEnsemble,
    "DiscreteCQL": DiscreteCQL,
    "DiscreteBCQ": DiscreteBCQ,
    "CRR": CRR,
    "DiscreteIQL": DiscreteIQL,
    "DiscreteBC": DiscreteBC,
    "QRDQN": QRDQN,
}
DISCRETE = ("DiscreteCQL", "DiscreteBCQ", "CRR", "DiscreteIQL", "DiscreteBC", "QRDQN")
WAYS = {  # model.compile and trainer.precision
    "none": ("none", "32-true"),
    "cudagraphs": ("cudagraphs", "32-true"),
    "cudagraphs, bf16-mixed": ("cudagraphs", "bf16-mixed"),
    "default": ("default", "32-true"),
}


def trained(model: Stage) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.named_parameters() if value.requires_grad}


def waited() -> float:
    """Seconds by the clock, once the device has caught up; what compilers take in other processes is in it."""
    now()
    return time.perf_counter()


class Watch(Callback):
    """Keeps parameters before the first update, after a block and after all updates that are compared; then times each
    block.
    """

    def __init__(self, seconds: float, nudge: bool) -> None:
        self.seconds = seconds
        self.nudge = nudge
        self.kept: dict[int, dict[str, Tensor]] = {}
        self.ticks: list[float] = []
        self.evaluations: list[float] = []

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, model: Any) -> None:
        self.kept[0] = trained(model)
        if self.nudge:
            for parameter in model.parameters():
                parameter.mul_(1 + torch.finfo(parameter.dtype).eps)
        self.began = waited()

    def on_train_batch_end(self, trainer: Trainer, model: Any, *_: Any) -> None:
        if trainer.global_step == scale.compared:
            self.first = waited() - self.began
        if trainer.global_step in (scale.block, scale.compared):
            self.kept[trainer.global_step] = trained(model)
        if trainer.global_step < scale.compared:
            return
        self.ticks.append(now())
        if self.ticks[-1] - self.ticks[0] >= self.seconds:
            trainer.should_stop = True

    def on_validation_start(self, *_: Any) -> None:
        self.judged = time.perf_counter()

    def on_validation_end(self, *_: Any) -> None:
        self.evaluations.append(time.perf_counter() - self.judged)


@dataclass
class Run:
    """What a run left."""

    watch: Watch
    data: OfflineDataModule
    record: dict[str, Any]


def rates(seconds: list[float], updates: int) -> dict[str, Any]:
    """Of blocks that took so long: the median leaves out those in which something was recorded, or an epoch ended."""
    if not seconds:
        return {}
    slowest, fastest = updates / max(seconds), updates / min(seconds)
    return {"per_second": updates / statistics.median(seconds), "range": [slowest, fastest], "blocks": len(seconds)}


def run(
    name: str,
    how: str,
    precision: Any,
    *,
    seconds: float | None = None,
    nudge: bool = False,
    rows: int | None = None,
    longest: int | None = None,
    **data: Any,
) -> Run:
    """Trains an algorithm in one way, from the same seeds as ever.

    Args:
        name: one of ``ALGORITHMS``.
        how: ``model.compile``.
        precision: ``trainer.precision``.
        seconds: how long it is timed after the updates that are compared.
        nudge: whether all parameters begin one bit off.
        rows: of the data.
        longest: updates after which it ends in any case.
        data: options of the datamodule.
    """
    torch._dynamo.reset()
    memory = Memory()
    source = (Discrete if name in DISCRETE else Synthetic)(rows or scale.rows)
    lengths = {"updates_per_epoch": scale.epoch, "updates_per_block": scale.block}
    options: dict[str, Any] = {"batch_size": scale.batch, "rollouts": None, "seed": 0, **lengths, **data}
    if name == "DynamicsEnsemble":
        options["holdout"] = 0.1
    seed_everything(0, verbose=False)
    module, model = OfflineDataModule(source, **options), ALGORITHMS[name](compile=how)
    watch = Watch(scale.seconds if seconds is None else seconds, nudge)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=longest or scale.longest,
            default_root_dir=folder,
            accelerator=device,
            devices=1,
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[watch],
        )
        trainer.fit(model, datamodule=module)
    spent = [after - before for before, after in zip(watch.ticks, watch.ticks[1:])]  # noqa: B905
    way = {"compile": how, "precision": precision}
    record = {**way, **rates(spent, scale.block), "first": watch.first, **memory.peak()}
    return Run(watch, module, record)


class Memory:
    """The most megabytes that PyTorch has had in use on the GPU since this was made, and has kept for itself."""

    def __init__(self) -> None:
        gc.collect()  # what other runs have left
        if device == "gpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 1e6

    def peak(self) -> dict[str, float]:
        if device != "gpu":
            return {}
        return {
            "memory": torch.cuda.max_memory_allocated() / 1e6,
            "memory_before": self.before,
            "reserved": torch.cuda.max_memory_reserved() / 1e6,
        }


@functools.cache
def eager(name: str, precision: str) -> Run:
    """What others are compared with; also the rate of eager updates in full precision."""
    found = run(name, "none", precision, seconds=None if precision == "32-true" else 0)
    del found.data  # and the device's memory with it
    return found


def distances(one: Watch, other: Watch) -> dict[str, dict[str, float]]:
    """How far ``one`` is from ``other``, where 1 is as far as ``other`` has come: by largest and by mean squares."""
    found = {}
    for updates in (scale.block, scale.compared):
        start, end, there = other.kept[0], other.kept[updates], one.kept[updates]
        apart = torch.cat([(there[key] - value).flatten() for key, value in end.items()]).double()
        moved = torch.cat([(value - start[key]).flatten() for key, value in end.items()]).double()
        largest, overall = apart.abs().max() / moved.abs().max(), apart.norm() / moved.norm()
        found[f"after {updates}"] = {"largest": float(largest), "overall": float(overall)}
    return found


# The parts ---------------------------------------------------------------------------------------------------------

Record = dict[str, Any]


def one_way(name: str, way: str) -> Record:
    how, precision = WAYS[way]
    reference = eager(name, precision)
    if way == "none":
        nudged = run(name, how, precision, seconds=0, nudge=True)
        return {**reference.record, "apart": distances(nudged.watch, reference.watch)}
    found = run(name, how, precision)
    return {**found.record, "apart": distances(found.watch, reference.watch)}


@functools.cache
def best() -> str:
    """The way that should be fastest without compiling: CUDA graphs, if they can be recorded here."""
    if device == "cpu":
        return "none"
    try:
        run("TD3BC", "cudagraphs", "32-true", seconds=0)
    except InputError:
        return "none"
    return "cudagraphs"


def batch(rows: int, precision: str) -> Record:
    return run("TD3BC", best(), precision, batch_size=rows, rows=scale.many).record


def draws(**options: Any) -> Record:
    """Updates per second, and milliseconds that drawing and gathering take of each."""
    found = run("TD3BC", best(), "32-true", rows=scale.many, **options)
    found.data.draw(scale.block)
    began, blocks = now(), 20
    for _ in range(blocks):
        found.data.draw(scale.block)
    return {**found.record, "drawing": 1e3 * (now() - began) / (blocks * scale.block)}


def fit_tf32() -> Record:
    torch.set_float32_matmul_precision("high")
    try:
        return run("TD3BC", best(), "32-true").record
    finally:
        torch.set_float32_matmul_precision("highest")


def plain_loop() -> Record:
    data = OfflineDataModule(Synthetic(scale.rows), rollouts=None)
    data.setup()
    columns, memory = Columns(data), Memory()
    for name, column in vars(columns).items():
        setattr(columns, name, column.to("cuda" if device == "gpu" else device))
    return {"per_second": scale.loop / loops.plain_td3_bc(columns, scale.loop), **memory.peak()}


def jax_loop(precision: str) -> Record:
    """In a process of its own, with CUDA libraries of its own."""
    options = [f"--precision={precision}", f"--rows={scale.rows}", f"--seconds={scale.seconds}"]
    command = [sys.executable, str(HERE / "jax_loop.py"), device, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=80)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no reason given"])[-1])
    found: Record = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def evaluation() -> Record:
    """Seconds of an evaluation, with the policy on the device, beside those of an epoch of updates."""
    twice = 2 * scale.epoch  # the first evaluation also pays for what is loaded then
    found = run("TD3BC", best(), "32-true", seconds=math.inf, longest=twice, rollouts=scale.rollouts)
    seconds = {"evaluation": found.watch.evaluations[-1], "epoch": EPOCH / found.record["per_second"]}
    return {**seconds, "updates": EPOCH, "compile": best()}


def parts() -> dict[str, Callable[[], Record]]:
    """In the order in which they are run: what takes long comes last, in case that time is short."""
    ways = [way for way in WAYS if way != "default" and (device == "gpu" or "cudagraphs" not in way)]
    names = list(ALGORITHMS)

    def of(name: str, ways: list[str]) -> dict[str, Callable[[], Record]]:
        return {f"{name}/{way}": functools.partial(one_way, name, way) for way in ways}

    found = of(names[0], ways)
    found["loop/plain PyTorch"] = plain_loop
    found["loop/JAX"] = functools.partial(jax_loop, "highest")
    found["loop/JAX, TensorFloat-32"] = functools.partial(jax_loop, "tensorfloat32")
    found["loop/fit, TensorFloat-32"] = fit_tf32
    for rows in scale.batches:
        for precision in ("32-true", "bf16-mixed"):
            found[f"batch/{rows}, {precision}"] = functools.partial(batch, rows, precision)
    found["draws/uniform"] = draws
    found["draws/weighted"] = functools.partial(draws, priority=Noise())
    decoupled = ["improvement", "constraint"]
    found["draws/weighted, decoupled"] = functools.partial(draws, priority=Noise(), prioritise=decoupled)
    found["draws/reweighted"] = functools.partial(draws, priority=Noise(), mode="reweight")
    found["evaluation"] = evaluation
    for name in names[1:]:
        found |= of(name, ways)
    for name in names:
        found |= of(name, ["default"])
    return found


# Running them ------------------------------------------------------------------------------------------------------


class Kept:
    """The raw results: for each card, its parts and what they were measured with."""

    def __init__(self, path: Path, card: str) -> None:
        self.path = path
        self.all: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0]}
        self.here = self.all.setdefault(card, {"parts": {}})
        self.here.setdefault("versions", versions)
        self.parts: dict[str, Record] = self.here["parts"]

    def write(self, part: str, record: Record) -> None:
        """At once: the file is whole at any time."""
        self.parts[part] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps(self.all, indent=1) + "\n")
        beside.replace(self.path)

    def has(self, part: str) -> bool:
        return part in self.parts and self.parts[part].get("error") != CUT_OFF


class TooLong(BaseException):
    """A part took longer than it may; no Exception, so that no library takes it for a failure of its own."""


def interrupt(*_: Any) -> None:
    raise TooLong


def tried(part: Callable[[], Record], limit: int) -> Record:
    """What a part measured, or why it failed."""
    signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(limit)
    try:
        return part()
    except TooLong:
        return {"error": f"took more than {limit} s"}
    except Exception as error:  # whatever it is, the other parts can be measured
        reason = getattr(error, "inner_exception", error)
        return {"error": f"{type(reason).__name__}: {one_line(str(reason))[:300]}"}
    finally:
        signal.alarm(0)


def go_on_afresh() -> None:
    """Starts the script anew if the GPU no longer answers this process, as after an illegal access to memory."""
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").sum().item()
    except Exception:
        print("the GPU does not answer any more: a new process goes on", flush=True)
        os.execv(sys.executable, [sys.executable, *(word for word in sys.argv if word != "--again")])


def measure(chosen: dict[str, Callable[[], Record]], kept: Kept, minutes: float, limit: int) -> None:
    began = float(os.environ.setdefault(BEGAN, str(time.time())))
    # Those that were cut off come last: they may have brought the process down.
    waiting = sorted((part for part in chosen if not kept.has(part)), key=lambda part: part in kept.parts)
    for number, part in enumerate(waiting):
        left = minutes * 60 - (time.time() - began)
        if left <= 0:
            print(f"{minutes:g} minutes are over; {len(waiting) - number} parts are left for another time", flush=True)
            return
        kept.write(part, {"error": CUT_OFF})
        start = time.time()
        record = tried(chosen[part], limit)
        kept.write(part, {**record, "took": time.time() - start})
        print(f"{time.time() - began:4.0f} s  {part}: {shown(record)}", flush=True)
        if "error" in record and device == "gpu":
            go_on_afresh()


def shown(record: Record) -> str:
    if "error" in record:
        return str(record["error"])
    found = [f"{record['per_second']:.1f}/s"] if "per_second" in record else []
    found += [f"{name} {record[name]:.3g}" for name in ("first", "memory", "drawing", "evaluation") if record.get(name)]
    return ", ".join(
        found + [f"apart {when} {value['overall']:.1e}" for when, value in record.get("apart", {}).items()]
    )


# Tables ------------------------------------------------------------------------------------------------------------


def tables(found: dict[str, Record]) -> str:
    """One for algorithms and ways, one for the rest."""
    of_ways = {part: record for part, record in found.items() if part.partition("/")[2] in WAYS}
    rest = {part: record for part, record in found.items() if part not in of_ways}
    lines = [
        "| algorithm | way | per second | over `none` | first, s | memory, MB | apart, early | later | largest |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for part, record in sorted(of_ways.items(), key=lambda pair: list(ALGORITHMS).index(pair[0].partition("/")[0])):
        name, _, way = part.partition("/")
        base = of_ways.get(f"{name}/none", {}).get("per_second")
        times = f"{record['per_second'] / base:.2f}" if base and "per_second" in record else ""
        early, later = record.get("apart", {"": {}, " ": {}}).values()
        numbers = [
            number(record.get("per_second")),
            times,
            number(record.get("first"), 1),
            number(record.get("memory")),
        ]
        apart = (early.get("overall"), later.get("overall"), later.get("largest"))
        numbers += ["" if value is None else f"{value:.1e}" for value in apart]
        lines.append(row(name, way, numbers, record))
    lines += [
        "",
        "| part | | per second | memory, MB | drawing, ms an update | seconds |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for part, record in rest.items():
        name, _, what = part.partition("/")
        seconds = "{evaluation:.2f}, beside {epoch:.2f} of {updates} updates" if "evaluation" in record else ""
        numbers = [number(record.get("per_second")), number(record.get("memory")), number(record.get("drawing"), 3)]
        lines.append(row(name, what, [*numbers, seconds.format(**record)], record))
    return "\n".join(lines)


def row(name: str, what: str, numbers: list[str], record: Record) -> str:
    if "error" in record:
        numbers = [record["error"].replace("|", "/"), *[""] * (len(numbers) - 1)]
    return f"| {name} | {what} | {' | '.join(numbers)} |"


def number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def main() -> None:
    global device, scale
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="names of parts, or patterns; all by default")
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--small", action="store_true", help="a few updates of each: whether the script works")
    parser.add_argument("--minutes", type=float, default=7, help="no part is begun after so many (7)")
    parser.add_argument("--limit", type=int, default=90, help="seconds that a part may take (90)")
    parser.add_argument("--again", action="store_true", help="forget what was measured of these parts before")
    parser.add_argument("--raw", type=Path, default=RAW, help="where results are kept")
    parser.add_argument("--list", action="store_true", help="only print the names of the parts")
    parser.add_argument("--table", action="store_true", help="only print tables of what has been measured")
    given = parser.parse_intermixed_args()
    device, scale = given.device, SMALL if given.small else Scale()
    if given.table:
        for card, kept in json.loads(given.raw.read_text()).items():
            print(f"{card}, torch {kept['versions']['torch']}\n\n{tables(kept['parts'])}\n")
        return
    chosen = {
        name: part
        for name, part in parts().items()
        if not given.parts or any(fnmatch.fnmatchcase(name, pattern) for pattern in given.parts)
    }
    if given.list or not chosen:
        print("\n".join(parts()))
        return
    if device == "gpu" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --device=cpu --small tries the script without one")
    quiet()
    card = torch.cuda.get_device_name() if device == "gpu" else machine()
    kept = Kept(given.raw, f"{card}, small" if given.small else card)
    if given.again:
        for name in chosen:
            kept.parts.pop(name, None)
    measure(chosen, kept, given.minutes, given.limit)
    print(f"\n{tables(kept.parts)}")


def quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "torch._dynamo", "oper_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
