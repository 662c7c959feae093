"""Ways to run updates: none of them changes what is learnt, and each goes on bit for bit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import columns, write_hdf5
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from test_shared import ALGORITHMS, DATA, algorithm, data, fit, parameters, same
from torch._dynamo.utils import counters

from oper_lightning import InputError, OperR

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")
# Each has something of its own: delays, a schedule, several losses in one step, iterations, quantiles.
RESUMED = ("TD3BC", "IQL", "CQL", "OperA", "DiscreteCQL")  # of those that are compiled, which takes long
WAYS = ["default", pytest.param("cudagraphs", marks=GPU)]


def run(name: str, way: str, device: str, folder: Path, *, weighted: bool, updates: int = 200, **options: Any) -> Any:
    torch._dynamo.reset()  # as in a process of its own
    counters.clear()
    priority = {"priority": OperR(), "mode": "reweight"} if weighted and name != "OperA" else {}
    model = algorithm(name, compile=way)
    fit(model, data(model.kinds[0], **priority), folder, updates, accelerator=device, **options)
    return parameters(model.cpu())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "BREMEN"])  # which says that it cannot
def test_every_way_learns_the_same_and_goes_on_exactly(name: str, way: str, tmp_path: Path) -> None:
    device = "gpu" if way == "cudagraphs" else "cpu"
    # Without weights roles share their batch, for every algorithm alike: one of them shows it.
    for weighted in (False, True) if name == "TD3BC" else (True,):
        plain = run(name, "none", device, tmp_path / f"plain{weighted}", weighted=weighted)
        other = run(name, way, device, tmp_path / f"other{weighted}", weighted=weighted)
        for key, value in plain.items():
            torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-5, msg=key)
    if way == "default":
        assert counters["frames"]["ok"] > 0, "nothing was compiled"
        if torch.__version__ >= "2.13":  # earlier releases may leave out gradients
            assert not counters["graph_break"], "gradients, optimisers or targets are left out"
        if name not in RESUMED:
            return

    assert same(interrupted(name, way, device, tmp_path / "part"), other)


def interrupted(name: str, way: str, device: str, folder: Path, **options: Any) -> Any:
    """What a run has learnt that was stopped half-way and went on."""

    class Stop(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.global_step == 100:
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(name, way, device, folder, weighted=True, callbacks=[Stop()], **options)
    return run(name, way, device, folder, weighted=True, seed=99, ckpt_path=folder / "last.ckpt", **options)


@pytest.mark.parametrize("name", RESUMED)
def test_bfloat16_goes_on_exactly(name: str, tmp_path: Path) -> None:
    plain = run(name, "none", "cpu", tmp_path / "plain", weighted=True)
    low = run(name, "none", "cpu", tmp_path / "low", weighted=True, precision="bf16-mixed")
    assert not same(low, plain)
    assert {value.dtype for value in low.values()} <= {torch.float32, torch.int64}
    assert same(interrupted(name, "none", "cpu", tmp_path / "part", precision="bf16-mixed"), low)


def test_bfloat16_takes_the_weights_of_each_update(tmp_path: Path) -> None:
    """Casts of weights that outlived an update would make a block of many another run than many of one."""
    rows = {name: np.repeat(column[:1], len(column), 0) for name, column in DATA["continuous"].items()}
    rows["timeouts"] = DATA["continuous"]["timeouts"]
    learnt = []
    for block in (1, 20):
        model = algorithm("BC", learning_rate=1e-2)  # draws nothing but rows, which are all the same
        fit(model, data(rows, updates_per_block=block), tmp_path / str(block), precision="bf16-mixed")
        learnt.append(parameters(model))
    assert same(*learnt)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library is not told")
def test_an_update_takes_the_memory_of_the_last_one() -> None:
    # Told so, the library gives back every block of more than 128 KB, instead of learning from what was freed before.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", FREEING]
    told = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    before, after = map(int, told.split())
    assert before > 500
    assert after < before / 10


# Page faults of taking and freeing four times 16 MB, four times over, before and after the library is told.
FREEING = """
import resource
import torch
from oper_lightning.training.execution import keep_freed_memory


def faults():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        several = [torch.ones(1 << 22) for _ in range(4)]
        del several
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun


first = faults()
keep_freed_memory()
faults()
print(first, faults())
"""


def test_cuda_graphs_without_a_gpu_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.compile=cudagraphs needs an NVIDIA GPU, and this is a cpu: use none"):
        fit(algorithm("BC", compile="cudagraphs"), data(), tmp_path)


def test_the_terminal_of_a_compiled_run_and_without_a_compiler(tmp_path: Path) -> None:
    file = write_hdf5(tmp_path / "small.hdf5", columns([25] * 4))
    words = ["fit", "--model=BC", "--model.compile=default", "--data.source=D4RL", f"--data.source.path={file}"]
    words += ["--data.rollouts=null", "--data.batch_size=32", "--trainer.max_steps=4", "--data.updates_per_epoch=4"]
    ran = {}
    for compiler, cache in (("g++", {}), ("no-such-compiler", {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "empty")})):
        ran[compiler] = subprocess.run(
            [sys.executable, "-m", "oper_lightning", *words, f"--output={tmp_path / 'run' / compiler}"],
            env={**os.environ, "CXX": compiler, **cache},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    missing = ran["no-such-compiler"]
    assert missing.returncode == 1
    assert "oper: error: model.compile=default does not work here (" in missing.stderr
    assert "no-such-compiler" in missing.stderr
    assert ran["g++"].returncode == 0
    for line in (missing.stderr + ran["g++"].stderr).splitlines():
        assert line.startswith("oper: ") or "update 4/4" in line or not line.strip(), line


def test_the_way_to_run_is_no_property_of_what_was_learnt(tmp_path: Path) -> None:
    """A checkpoint of one way goes on and acts in another."""
    run("BC", "default", "cpu", tmp_path, weighted=False, updates=20)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert "compile" not in checkpoint["hyper_parameters"]
    fit(algorithm("BC"), data(), tmp_path, 40, ckpt_path=tmp_path / "last.ckpt")
