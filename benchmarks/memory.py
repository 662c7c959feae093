"""Trains on a memory-mapped dataset and watches the process's memory.

    python benchmarks/memory.py                # 20 million transitions (3.5 GB on disk), 10,000 updates of TD3+BC
    python benchmarks/memory.py --table

Memory is what the process holds for itself (RssAnon of /proc/self/status); pages of the mapped files belong to the
system, which takes them back when it needs them, and all processes of a machine share them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from kept import machine
from lightning.pytorch import Callback, Trainer
from speed import Synthetic

from oper_lightning import OfflineDataModule, OperR
from oper_lightning.algorithms.td3_bc import TD3BC

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "benchmarks" / "raw" / "memory.json"


def own_memory(peak: bool = False) -> float:
    """Megabytes; with ``peak`` the largest resident size ever, mapped files included."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM" if peak else "RssAnon"].split()[0]) / 1024


class Watch(Callback):
    def __init__(self) -> None:
        self.kept: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % 1000 == 0 or not self.kept:
            self.kept[trainer.global_step] = round(own_memory(), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--table", action="store_true", help="only print what the raw run says")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(1)
        folder = ROOT / "runs" / "memory"
        before = own_memory()
        data = OfflineDataModule(
            Synthetic(arguments.rows),
            OperR(),
            updates_per_epoch=1000,
            rollouts=None,
            location="memmap",
            memmap_folder=str(folder),
        )
        watch, start = Watch(), time.perf_counter()
        trainer = Trainer(
            max_steps=arguments.updates, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[watch]
        )
        trainer.fit(TD3BC(), datamodule=data)
        size = sum(file.stat().st_size for file in folder.rglob("*.memmap")) / 2**20
        record = {
            "machine": machine(),
            "rows": arguments.rows,
            "mapped MB": round(size),
            "own MB before": round(before),
            "own MB by update": watch.kept,
            "seconds": round(time.perf_counter() - start),
        }
        RAW.write_text(json.dumps(record, indent=1) + "\n")
        shutil.rmtree(folder)
    print(RAW.read_text())


if __name__ == "__main__":
    main()
