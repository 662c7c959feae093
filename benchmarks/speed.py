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
import copy
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

import torch
from lightning.pytorch import Callback, Trainer
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from oper_lightning import OfflineDataModule
from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.algorithms.bc import BC
from oper_lightning.algorithms.oper_a import OperA
from oper_lightning.algorithms.td3_bc import TD3BC
from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.transitions import transitions_from
from oper_lightning.priorities.priority import Priority
from oper_lightning.training.execution import Compile

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "benchmarks" / "raw" / "speed"
OBSERVATIONS, ACTIONS, HIDDEN, BATCH = 17, 6, 256, 256
BLOCK, WARM = 50, 500
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


# Loops written by hand ---------------------------------------------------------------------------------------------


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)
    )


class Columns:
    """The same data as plain tensors."""

    def __init__(self, data: OfflineDataModule) -> None:
        table = data.transitions
        mean, std = data.spec.observation_mean, data.spec.observation_std + 1e-3
        self.observation = (table["observation"] - mean) / std
        self.next_observation = (table["next", "observation"] - mean) / std
        self.action = table["action"].clone()
        self.reward = table["next", "reward"].clone()
        self.discount = 0.99 * (~table["next", "terminated"]).float()

    def gather(self, index: Tensor) -> tuple[Tensor, ...]:
        columns = (self.observation, self.action, self.next_observation, self.reward, self.discount)
        return tuple(column[index] for column in columns)


def minimise(loss: Tensor, parameters: list[Tensor], optimiser: torch.optim.Optimizer) -> None:
    """One step along the gradients of these parameters only."""
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimiser.step()


def plain_td3_bc(columns: Columns, updates: int) -> float:
    """What one writes down first: two critics, default Adam, polyak by parameter, one batch per step."""
    actor = perceptron(OBSERVATIONS, ACTIONS)
    critics = [perceptron(OBSERVATIONS + ACTIONS, 1) for _ in range(2)]
    target_actor, target_critics = copy.deepcopy(actor), copy.deepcopy(critics)
    actor_optimiser = torch.optim.Adam(actor.parameters(), lr=3e-4)
    critic_optimiser = torch.optim.Adam([p for critic in critics for p in critic.parameters()], lr=3e-4)
    rows = len(columns.reward)

    def update(step: int) -> None:
        observation, action, following, reward, discount = columns.gather(torch.randint(rows, (BATCH,)))
        with torch.no_grad():
            noise = (torch.randn_like(action) * 0.2).clamp(-0.5, 0.5)
            pair = torch.cat([following, (torch.tanh(target_actor(following)) + noise).clamp(-1, 1)], 1)
            lower = torch.min(target_critics[0](pair), target_critics[1](pair)).squeeze(1)
            target = reward + discount * lower
        pair = torch.cat([observation, action], 1)
        loss = sum(functional.mse_loss(critic(pair).squeeze(1), target) for critic in critics)
        critic_optimiser.zero_grad()
        loss.backward()
        critic_optimiser.step()
        if step % 2:
            chosen = torch.tanh(actor(observation))
            value = critics[0](torch.cat([observation, chosen], 1))
            loss = -2.5 / value.abs().mean().detach() * value.mean() + functional.mse_loss(chosen, action)
            actor_optimiser.zero_grad()
            loss.backward()
            actor_optimiser.step()
            pairs = [(target_actor, actor), *zip(target_critics, critics, strict=True)]
            for slow, fast in pairs:
                for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                    old.data.copy_(0.995 * old.data + 0.005 * new.data)

    return timed(update, updates)


def tuned_td3_bc(columns: Columns, updates: int) -> float:
    """All that we know to make it fast: blocks, fused Adam, one polyak, only the gradients that are used."""
    actor = perceptron(OBSERVATIONS, ACTIONS)
    critics = nn.ModuleList(perceptron(OBSERVATIONS + ACTIONS, 1) for _ in range(2))
    target_actor, target_critics = copy.deepcopy(actor), copy.deepcopy(critics)
    actor_parameters, critic_parameters = list(actor.parameters()), list(critics.parameters())
    slow = [*target_actor.parameters(), *target_critics.parameters()]
    fast = [*actor_parameters, *critic_parameters]
    actor_optimiser = torch.optim.Adam(actor_parameters, lr=3e-4, fused=True)
    critic_optimiser = torch.optim.Adam(critic_parameters, lr=3e-4, fused=True)
    rows = len(columns.reward)
    batches: list[tuple[Tensor, ...]] = []

    def update(step: int) -> None:
        if not batches:
            block = columns.gather(torch.randint(rows, (BLOCK, BATCH)))
            batches.extend(zip(*(column.unbind() for column in block), strict=True))
        observation, action, following, reward, discount = batches.pop()
        with torch.no_grad():
            noise = (torch.randn_like(action) * 0.2).clamp_(-0.5, 0.5)
            pair = torch.cat([following, (torch.tanh(target_actor(following)) + noise).clamp_(-1, 1)], 1)
            lower = torch.min(target_critics[0](pair), target_critics[1](pair)).squeeze(1)
            target = reward + discount * lower
        pair = torch.cat([observation, action], 1)
        first, second = (critic(pair).squeeze(1) for critic in critics)
        loss = functional.mse_loss(first, target) + functional.mse_loss(second, target)
        minimise(loss, critic_parameters, critic_optimiser)
        if step % 2:
            chosen = torch.tanh(actor(observation))
            value = critics[0](torch.cat([observation, chosen], 1))
            loss = -2.5 / value.abs().mean().detach() * value.mean() + functional.mse_loss(chosen, action)
            minimise(loss, actor_parameters, actor_optimiser)
            with torch.no_grad():
                torch._foreach_lerp_(slow, fast, 0.005)

    return timed(update, updates, flush=True)


def torchrl_td3_bc(columns: Columns, updates: int, tuned: bool = False) -> float:
    """torchrl's loss module and target updater, with our batches; ``tuned``: blocks, fused Adam, denormals flushed."""
    from tensordict.nn import TensorDictModule
    from torchrl.data import Bounded
    from torchrl.modules import ValueOperator
    from torchrl.objectives import SoftUpdate, TD3BCLoss

    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = perceptron(OBSERVATIONS + ACTIONS, 1)

        def forward(self, observation: Tensor, action: Tensor) -> Tensor:
            return self.body(torch.cat([observation, action], -1))

    body = nn.Sequential(*perceptron(OBSERVATIONS, ACTIONS), nn.Tanh())
    actor = TensorDictModule(body, in_keys=["observation"], out_keys=["action"])
    critic = ValueOperator(Critic(), in_keys=["observation", "action"])
    loss_module = TD3BCLoss(
        actor, critic, action_spec=Bounded(-1, 1, (ACTIONS,)), num_qvalue_nets=2, alpha=2.5, loss_function="l2"
    )
    loss_module.make_value_estimator(gamma=0.99)
    soft = SoftUpdate(loss_module, tau=0.005)
    networks = (loss_module.actor_network_params, loss_module.qvalue_network_params)
    actor_optimiser, critic_optimiser = (
        torch.optim.Adam(list(network.flatten_keys().values()), lr=3e-4, fused=tuned or None) for network in networks
    )
    rows, batches = len(columns.reward), []

    def update(step: int) -> None:
        if not batches:
            block = columns.gather(torch.randint(rows, (BLOCK if tuned else 1, BATCH)))
            batches.extend(zip(*(column.unbind() for column in block), strict=True))
        observation, action, following, reward, discount = batches.pop()
        over = (discount == 0).unsqueeze(1)
        batch = TensorDict(
            {
                "observation": observation,
                "action": action,
                "next": {"observation": following, "reward": reward.unsqueeze(1), "terminated": over, "done": over},
            },
            batch_size=[BATCH],
        )
        loss, _ = loss_module.qvalue_loss(batch)
        critic_optimiser.zero_grad()
        loss.backward()
        critic_optimiser.step()
        if step % 2:
            loss, _ = loss_module.actor_loss(batch)
            actor_optimiser.zero_grad()
            loss.backward()
            actor_optimiser.step()
            soft.step()

    return timed(update, updates, flush=tuned)


def tuned_bc(columns: Columns, updates: int) -> float:
    """Behaviour cloning by hand."""
    actor = perceptron(OBSERVATIONS, ACTIONS)
    parameters = list(actor.parameters())
    optimiser = torch.optim.Adam(parameters, lr=3e-4, fused=True)
    batches: list[tuple[Tensor, ...]] = []

    def update(step: int) -> None:
        if not batches:
            index = torch.randint(len(columns.reward), (BLOCK, BATCH))
            batches.extend(zip(columns.observation[index].unbind(), columns.action[index].unbind(), strict=True))
        observation, action = batches.pop()
        minimise(functional.mse_loss(torch.tanh(actor(observation)), action), parameters, optimiser)

    return timed(update, updates, flush=True)


def timed(update: Callable[[int], None], updates: int, flush: bool = False) -> float:
    """Seconds of ``updates`` calls, after a tenth of them to warm up; ``flush`` counts denormal numbers as zero."""
    torch.set_flush_denormal(flush)
    for step in range(updates // 10):
        update(step)
    start = time.perf_counter()
    for step in range(updates):
        update(step)
    seconds = time.perf_counter() - start
    torch.set_flush_denormal(False)
    return seconds


# Our own path ------------------------------------------------------------------------------------------------------


class Clock(Callback):
    """Measures from before the update numbered ``start`` until after the last."""

    def __init__(self, start: int) -> None:
        self.start = start

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.start:
            self.began = self.now(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            self.seconds = self.now(trainer) - self.began

    @staticmethod
    def now(trainer: Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def fit(model: OfflineAlgorithm, data: OfflineDataModule, updates: int, device: str = "cpu", **options: Any) -> float:
    """Seconds of ``updates`` updates through Lightning, after an epoch to warm up; no logger, no checkpoints."""
    clock = Clock(WARM)
    data.updates_per_epoch, data.updates_per_block = WARM, BLOCK
    torch._dynamo.reset()
    trainer = Trainer(
        max_steps=updates + WARM,
        default_root_dir=tempfile.mkdtemp(),
        accelerator=device,
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
    loops = {
        "tuned loop": tuned_td3_bc,
        "plain loop": plain_td3_bc,
        "torchrl": torchrl_td3_bc,
        "torchrl, tuned": partial(torchrl_td3_bc, tuned=True),
    }
    return {
        "fit": lambda: updates / fit(TD3BC(), data, updates),
        **{name: lambda loop=loop: updates / loop(columns, updates) for name, loop in loops.items()},
        "products, hot": lambda: gemm_rate(1) / products()["TD3+BC"],
        "products, cold": lambda: gemm_rate(16) / products()["TD3+BC"],
    }


def bc() -> Contenders:
    data, updates = synthetic(100_000), 4000
    columns = Columns(data)
    return {
        "fit": lambda: updates / fit(BC(), data, updates),
        "tuned loop": lambda: updates / tuned_bc(columns, updates),
        "products, hot": lambda: gemm_rate(1) / products()["BC"],
        "products, cold": lambda: gemm_rate(16) / products()["BC"],
    }


def compiled() -> Contenders:
    data, updates = synthetic(100_000), 1000
    return {
        "none": lambda: updates / fit(TD3BC(), data, updates),
        "default": lambda: updates / fit(TD3BC(compile="default"), data, updates),
    }


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


def bf16() -> Contenders:
    data, updates = synthetic(100_000), 1000
    kinds = ("32-true", "bf16-mixed")
    return {kind: lambda kind=kind: updates / fit(TD3BC(), data, updates, precision=kind) for kind in kinds}


def gpu() -> Contenders:
    updates = 10_000
    data = OfflineDataModule(Synthetic(1_000_000), batch_size=BATCH, rollouts=None)
    ways: tuple[Compile, ...] = ("cudagraphs", "none", "default")
    return {way: lambda way=way: updates / fit(TD3BC(compile=way), data, updates, "gpu") for way in ways}


def gpu_seeds() -> Contenders:
    updates = 10_000
    data = OfflineDataModule(Synthetic(1_000_000), batch_size=BATCH, rollouts=None)

    def one(count: int) -> float:
        model = OperA(iterations=2, first_updates=WARM, seeds=count, compile="cudagraphs")
        return updates / fit(model, data, updates, "gpu")

    return {f"{count} seed{'s' * (count > 1)}": lambda count=count: one(count) for count in (1, 3)}


PARTS = {part.__name__: part for part in (td3_bc, bc, compiled, weights, seeds, rows, bf16, gpu, gpu_seeds)}


def possible(part: str) -> bool:
    """Whether this machine has what a part measures."""
    if part.startswith("gpu"):
        return torch.cuda.is_available()
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
    record = {"machine": machine(part), "torch": torch.__version__, "threads": torch.get_num_threads(), "rates": rates}
    RAW.mkdir(parents=True, exist_ok=True)
    (RAW / f"{part}.json").write_text(json.dumps(record, indent=1) + "\n")


def machine(part: str = "") -> str:
    if part.startswith("gpu"):
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")


def table() -> str:
    lines = ["| part | contender | per second | range | first one over it |", "|---|---|---|---|---|"]
    for part in PARTS:
        file = RAW / f"{part}.json"
        if not file.is_file():
            continue
        rates = json.loads(file.read_text())["rates"]
        base = next(iter(rates.values()))
        for name, values in rates.items():
            ratios = sorted(mine / theirs for mine, theirs in zip(base, values, strict=True))
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
