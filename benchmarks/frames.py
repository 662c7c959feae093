"""What images cost: filling, drawing, and an update of a network for Atari.

    python benchmarks/frames.py fill draw update       # each part; --frames for fewer than a million
    python benchmarks/frames.py draw --tianshou PYTHON  # Tianshou's own buffer in the same run, by that interpreter
    python benchmarks/frames.py --table

CPU seconds of one thread (of the process, the system's share included). Contenders take turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept import machine
from lightning.pytorch import Callback, Trainer
from memory import own_memory
from tensordict import TensorDict
from torch import Tensor, nn

from oper_lightning import Batch, OfflineAlgorithm, OfflineDataModule, adam, frozen_copy
from oper_lightning.data import storage
from oper_lightning.data.frames import stacked
from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.table import Table
from oper_lightning.data.transitions import transitions_from
from oper_lightning.nn.encoders import NatureCNN
from oper_lightning.nn.optim import flushed_denormals

RAW = Path(__file__).resolve().parent / "raw" / "frames"
EPISODE, UPDATES, BATCH, ACTIONS, QUANTILES = 1000, 50, 32, 6, 200
CPU = torch.device("cpu")


class Noise(Source):
    """Episodes of 1,000 steps over 84x84 frames of noise."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def origin(self) -> Origin:
        return Origin("noise", action_low=np.array(0), action_high=np.array(ACTIONS - 1))

    def episodes(self) -> Iterator[TensorDict]:
        generator = np.random.default_rng(0)
        frames = generator.integers(0, 256, (EPISODE + 1, 84, 84), dtype=np.uint8)
        last = np.arange(EPISODE) == EPISODE - 1
        for number in range(self.rows // EPISODE):
            frames[:, 0, :8] = number % 256  # no two episodes are the same
            now, after = stacked(frames, 4)
            actions = generator.integers(0, ACTIONS, EPISODE)
            yield transitions_from(now, actions, generator.normal(size=EPISODE), after, last & False, last)


def cpu(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def record(name: str, found: dict[str, Any]) -> None:
    RAW.mkdir(parents=True, exist_ok=True)
    (RAW / f"{name}.json").write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def fill(arguments: argparse.Namespace) -> None:
    """A million frames, memory-mapped; and what it takes to hash them, which is a part of it."""
    source, before = Noise(arguments.frames), own_memory()
    playing = cpu(lambda: [None for _ in source.episodes()])
    with tempfile.TemporaryDirectory(prefix="frames-", dir=arguments.folder) as folder:
        place, kept = Path(folder) / "map", []

        def watched() -> Iterator[TensorDict]:
            for number, episode in enumerate(source.episodes()):
                if number % 50 == 0:
                    kept.append(round(own_memory() - before))
                yield episode

        source_watched = copy.copy(source)
        source_watched.episodes = watched  # type: ignore[method-assign]
        seconds = cpu(lambda: storage.map_new(source_watched, place, lambda episodes: None))
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        opening = cpu(lambda: Table(source, storage.load_mapped(place)))
    record(
        "fill",
        {
            "frames": arguments.frames,
            "GB on disk": round(size / 1e9, 2),
            "CPU s, of which the source": [round(seconds, 1), round(playing, 1)],
            "CPU s to open": round(opening, 2),
            "own MB, over the start, while filling": kept,
        },
    )


TIANSHOU = """
import sys, time
import numpy as np
from tianshou.data import Batch, ReplayBuffer
rows = int(sys.argv[1])
buffer = ReplayBuffer(rows, stack_num=4, ignore_obs_next=True, save_only_last_obs=True)
generator = np.random.default_rng(0)
frames = generator.integers(0, 256, (1001, 84, 84), dtype=np.uint8)
for row in range(rows):
    t = row % 1000
    step = {"obs": frames[t:t+1], "act": 0, "rew": 0.0, "terminated": False, "truncated": t == 999, "info": {}}
    buffer.add(Batch(obs_next=frames[t+1:t+2], **step))
for line in sys.stdin:
    start = time.process_time()
    for _ in range(50):
        batch, _ = buffer.sample(32)
        assert batch.obs.shape == batch.obs_next.shape == (32, 4, 84, 84)
    print(time.process_time() - start, flush=True)
"""


def draw(arguments: argparse.Namespace) -> None:
    """50 updates' worth of 32 pairs, in memory and memory-mapped, beside Tianshou's buffer if it is at hand."""
    source, found = Noise(arguments.drawn), {}
    with tempfile.TemporaryDirectory(prefix="frames-", dir=arguments.folder) as folder:
        storage.map_new(source, Path(folder) / "map", lambda episodes: None)
        tables = {
            "memory": Table(source, storage.fill(source, CPU)),
            "memmap": Table(source, storage.load_mapped(Path(folder) / "map")),
        }
        other = None
        if arguments.tianshou:
            command = [arguments.tianshou, "-W", "ignore", "-c", TIANSHOU, str(arguments.drawn)]
            other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        generator = torch.Generator().manual_seed(0)
        for turn in range(arguments.turns):
            index = torch.randint(len(source), (UPDATES, BATCH), generator=generator)
            for name, table in tables.items():
                found.setdefault(name, []).append(UPDATES / cpu(lambda table=table, index=index: table.rows(index)))
            if other is not None and other.stdin is not None and other.stdout is not None:
                other.stdin.write(f"{turn}\n")
                other.stdin.flush()
                found.setdefault("tianshou", []).append(UPDATES / float(other.stdout.readline()))
        if other is not None:
            other.communicate()
    record("draw", {"frames": arguments.drawn, "updates' worth per CPU s": {k: rounded(v) for k, v in found.items()}})


def rounded(values: list[float]) -> list[float]:
    return [round(value, 1) for value in values]


# An update -----------------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    body = NatureCNN((4, 84, 84))
    return nn.Sequential(body, nn.Linear(body.features, 512), nn.ReLU(), nn.Linear(512, ACTIONS * QUANTILES))


def loss_of(online: nn.Module, target: nn.Module, row: dict[str, Tensor]) -> Tensor:
    """Quantile regression with double Q-learning, one number per row."""
    count = len(row["action"])
    taken = torch.arange(count)
    with torch.no_grad():
        best = online(row["next_observation"]).view(count, ACTIONS, QUANTILES).mean(-1).argmax(-1)
        ahead = target(row["next_observation"]).view(count, ACTIONS, QUANTILES)[taken, best]
        wanted = row["reward"][:, None] + row["discount"][:, None] * ahead
    found = online(row["observation"]).view(count, ACTIONS, QUANTILES)
    error = wanted[:, None] - found[taken, row["action"]][:, :, None]
    share = (torch.arange(QUANTILES) + 0.5) / QUANTILES
    huber = torch.where(error.abs() < 1, 0.5 * error.square(), error.abs() - 0.5)
    pinball = (share[:, None] - (error < 0).float()).abs() * huber
    penalty = torch.logsumexp(found.mean(-1), -1) - found.mean(-1)[taken, row["action"]]
    return pinball.mean(-1).sum(-1) + 10 * penalty


class QuantileCQL(OfflineAlgorithm):
    """The same through the library."""

    kinds = ("discrete",)
    images = True

    def __init__(self, channels_last: bool = False, **options: Any) -> None:
        super().__init__(False, **options)
        self.channels_last = channels_last

    def build(self, spec: Any) -> None:
        self.online = network()
        self.target = frozen_copy(self.online)
        if self.channels_last:
            self.online, self.target = (net.to(memory_format=torch.channels_last) for net in (self.online, self.target))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.optimiser = adam(self.online.parameters(), 1e-4)
        return [self.optimiser]

    def columns(self, transitions: TensorDict) -> TensorDict:
        discount = 0.99 * (~transitions["next", "terminated"]).float()
        return TensorDict({"discount": discount}, transitions.batch_size)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        data = batch.evaluation
        row = {key: data[key] for key in ("observation", "action", "discount")}
        row |= {"next_observation": data["next", "observation"], "reward": data["next", "reward"]}
        loss = (data["weight"] * loss_of(self.online, self.target, row)).mean()
        self.minimise(loss, self.optimiser)
        return {"loss": loss}

    def act(self, observation: Tensor) -> Tensor:
        raise NotImplementedError


class Watch(Callback):
    """CPU seconds of the blocks after the first."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.marks.append(time.process_time())


def through_the_library(source: Source, updates: int, channels_last: bool) -> float:
    """CPU seconds of an update."""
    data = OfflineDataModule(
        source, batch_size=BATCH, updates_per_epoch=updates, updates_per_block=10, rollouts=None, location="memory"
    )
    watch = Watch()
    trainer = Trainer(
        max_steps=updates, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[watch],
    )  # fmt: skip
    trainer.fit(QuantileCQL(channels_last), datamodule=data)
    return (watch.marks[-1] - watch.marks[0]) / (updates - 10)


def by_hand(source: Source, updates: int) -> float:
    """A plain loop over whole stacks that lie in memory, with the same Adam."""
    rows = next(iter(source.episodes()))
    rows = TensorDict({key: rows[key] for key in rows.keys(True, True)}, rows.batch_size).contiguous()
    online = network()
    target = frozen_copy(online)
    optimiser = adam(online.parameters(), 1e-4)
    parameters = list(online.parameters())
    start = 0.0
    with flushed_denormals():
        for number in range(updates):
            if number == 10:
                start = time.process_time()
            index = torch.randint(len(rows), (BATCH,))
            row = {"observation": rows["observation"][index], "next_observation": rows["next", "observation"][index]}
            row |= {"action": rows["action"][index], "reward": rows["next", "reward"][index].squeeze(-1)}
            row["discount"] = 0.99 * (~rows["next", "terminated"][index].squeeze(-1)).float()
            loss = loss_of(online, target, row).mean()
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimiser.step()
    return (time.process_time() - start) / (updates - 10)


def update(arguments: argparse.Namespace) -> None:
    """Updates per CPU second: through the library, by hand, and with channels last."""
    source, found = Noise(EPISODE), {"library": [], "by hand": [], "library, channels last": []}
    for _ in range(arguments.turns_of_updates):
        found["library"].append(1 / through_the_library(source, arguments.updates, False))
        found["by hand"].append(1 / by_hand(source, arguments.updates))
        found["library, channels last"].append(1 / through_the_library(source, arguments.updates, True))
    ratios = [one / other for one, other in zip(found["library"], found["by hand"], strict=True)]
    rates = {name: [round(value, 2) for value in values] for name, values in found.items()}
    record("update", {"updates per CPU s": rates, "library over by hand": [round(ratio, 3) for ratio in ratios]})


def table() -> None:
    filled, drawn, updated = (json.loads((RAW / f"{name}.json").read_text()) for name in ("fill", "draw", "update"))
    print("| | |\n|---|---:|")
    print(f"| {filled['frames']:,} frames on disk | {filled['GB on disk']} GB |")
    print(f"| filling them, of which the source takes | {filled['CPU s, of which the source']} CPU s |")
    for name, values in drawn["updates' worth per CPU s"].items():
        print(f"| drawing 32 pairs, {name} | {statistics.median(values):,.0f} per CPU s |")
    for name, values in updated["updates per CPU s"].items():
        print(f"| updates, {name} | {statistics.median(values):.1f} per CPU s |")
    print(f"| library over by hand | {statistics.median(updated['library over by hand']):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["fill", "draw", "update"])
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--drawn", type=int, default=100_000, help="frames that are drawn from")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--turns-of-updates", type=int, default=5)
    parser.add_argument("--folder", help="where files lie meanwhile")
    parser.add_argument("--tianshou", help="a Python in which Tianshou is installed")
    parser.add_argument("--table", action="store_true", help="only print what the raw runs say")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.parts:
        {"fill": fill, "draw": draw, "update": update}[part](arguments)
    if arguments.table:
        table()


if __name__ == "__main__":
    main()
