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
import numpy as np
from helpers import Arrays, columns
from oper_lightning import OfflineDataModule, OperR, Source, transitions_from
from oper_lightning.algorithms.discrete_bc import DiscreteBC
from oper_lightning.algorithms.td3_bc import TD3BC
from oper_lightning.data.frames import stacked
from oper_lightning.data.sources.source import Origin

def own():
    ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps of memory that was given back is nobody's
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1024

class Watch(Callback):
    kept = []
    def on_train_batch_end(self, trainer, *_):
        self.kept.append(own())

class Frames(Source):
    def __len__(self):
        return 80 * 500
    def origin(self):
        return Origin(dataset="frames")
    def episodes(self):
        last = np.arange(500) == 499
        for number in range(80):
            frames = np.random.default_rng(number).integers(0, 256, (501, 44, 44), dtype=np.uint8)
            now, after = stacked(frames, 4)
            yield transitions_from(now, np.arange(500) % 3, last * float(number), after, last & False, last)

images = sys.argv[3] == "images"
source = Frames() if images else Arrays(columns([1000] * 100, 100, 2))
model = DiscreteBC(hidden_sizes=(8,)) if images else TD3BC(hidden_sizes=(8,), n_step=3)
updates = 80 if images else 400
trainer = Trainer(max_steps=updates, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, callbacks=[Watch()])
data = OfflineDataModule(source, OperR(), updates_per_epoch=updates, updates_per_block=10, rollouts=None,
    batch_size=16 if images else 256,
    location=sys.argv[2], memmap_folder="mapped")
before = own()
trainer.fit(model, datamodule=data)
size = data.storage.frames.data.nbytes if images else data.storage[:].bytes()
print(json.dumps({"size": size / 2**20, "before": before, "kept": Watch.kept}))
"""


def measured(storage: str, kind: str) -> dict[str, float]:
    tests = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", SCRIPT, tests, storage, kind]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    kept = found["kept"]
    return {"size": found["size"], "held": kept[-1] - found["before"], "grown": kept[-1] - kept[len(kept) // 4]}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="reads Linux's /proc, asks glibc for what it keeps")
@pytest.mark.parametrize("kind", ["vectors", "images"])
def test_mapped_transitions_are_not_held_and_memory_is_flat(kind: str) -> None:
    mapped, held = measured("memmap", kind), measured("memory", kind)
    assert mapped["size"] > 70
    # n-step targets and weights are of the rows' number, not of their width; the rest is Lightning and torch.
    assert held["held"] - mapped["held"] > 0.8 * mapped["size"]
    assert mapped["grown"] < 5
