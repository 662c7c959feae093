"""Memory-mapped transitions stay out of the process's own memory."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import ctypes, json, sys
from pathlib import Path
import torch
from lightning.pytorch import Callback, Trainer
sys.path.insert(0, sys.argv[1])
from helpers import Arrays, columns
from oper_lightning import OfflineDataModule, OperR
from oper_lightning.algorithms.td3_bc import TD3BC

def own():
    ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps of memory that was given back is nobody's
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1024

class Watch(Callback):
    kept = []
    def on_train_batch_end(self, trainer, *_):
        self.kept.append(own())

arrays = columns([1000] * 100, 100, 2)
source = Arrays(arrays)
model = TD3BC(hidden_sizes=(8,), n_step=3)
trainer = Trainer(max_steps=400, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, callbacks=[Watch()])
data = OfflineDataModule(source, OperR(), updates_per_epoch=400, updates_per_block=10, rollouts=None,
    location=sys.argv[2], memmap_folder="mapped")
before = own()
trainer.fit(model, datamodule=data)
print(json.dumps({"size": data.storage[:].bytes() / 2**20, "before": before, "kept": Watch.kept}))
"""


def measured(storage: str) -> dict[str, float]:
    tests = str(Path(__file__).resolve().parents[1])
    result = subprocess.run([sys.executable, "-c", SCRIPT, tests, storage], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    kept = found["kept"]
    return {"size": found["size"], "held": kept[-1] - found["before"], "grown": kept[-1] - kept[len(kept) // 4]}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="reads Linux's /proc, asks glibc for what it keeps")
def test_mapped_transitions_are_not_held_and_memory_is_flat() -> None:
    mapped, held = measured("memmap"), measured("memory")
    assert mapped["size"] > 70
    # n-step targets and weights are of the rows' number, not of their width; the rest is Lightning and torch.
    assert held["held"] - mapped["held"] > 0.8 * mapped["size"]
    assert mapped["grown"] < 5
