"""Processor seconds (user and system, one thread) from the start of a command to its first gradient update and its end.

    python benchmarks/startup.py ../shared/data/hopper-replay.hdf5
    python benchmarks/startup.py ../shared/data/hopper-replay.hdf5 --package ../earlier --name before
    python benchmarks/startup.py ../shared/data/hopper-replay.hdf5 --compiling     # what model.compile=default adds

Every command runs once more than it is counted, so that modules are compiled (into a folder of their own) and files in
the system's cache, and Reacher is recorded. Rounds are interleaved: each command once, then each of them again. Blocks
have one update, and the first is over when Lightning calls its callbacks.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from kept import machine

ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT / "benchmarks" / "raw" / "startup.json"
CLOCK = """
import resource
from lightning.pytorch import Callback

class Clock(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 1:
            used = resource.getrusage(resource.RUSAGE_SELF)
            print("first update", used.ru_utime + used.ru_stime)
"""
SHORT = "--trainer.max_steps=10 --data.updates_per_epoch=10 --data.updates_per_block=1 --trainer.callbacks=clock.Clock"


def commands(file: str) -> dict[str, list[str]]:
    """What is measured, by name; words after the interpreter's."""
    configs = ROOT / "configs"
    bc = f"fit --config {configs}/bc.yaml --config {configs}/bc/reacher.yaml"
    td3_bc = f"fit --config {configs}/td3_bc.yaml --data.source.path={file}"
    oper = {
        "oper --help": "--help",
        "oper fit, a misspelt argument": f"{bc} --data.batch_siz=3",
        "oper fit, a wrong value": f"{bc} --data.batch_size=many",
        "oper fit, BC on Reacher": f"{bc} {SHORT}",
        "oper fit, TD3+BC on hopper-replay": f"{td3_bc} {SHORT}",
    }
    ours = "from oper_lightning import OfflineDataModule"
    return {
        **{name: ["-c", name] for name in ("import torch", "import oper_lightning", ours)},
        f"{ours}, without looking for garbage": ["-c", f"import gc; gc.disable(); {ours}; gc.freeze(); gc.enable()"],
        **{name: ["-m", "oper_lightning", *words.split()] for name, words in oper.items()},
    }


def compiling(file: str) -> dict[str, dict[str, float]]:
    """Processor seconds that a run of ten updates takes more with model.compile=default: at first, and once again."""
    found = {}
    for called, name in (("TD3+BC", "td3_bc"), ("IQL", "iql"), ("CQL", "cql")):
        for precision in ("32-true", "bf16-mixed"):
            words = f"-m oper_lightning fit --config {ROOT}/configs/{name}.yaml --data.source.path={file} {SHORT}"
            words += f" --data.rollouts=null --trainer.precision={precision}"
            with tempfile.TemporaryDirectory() as cache:
                kept = {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/compiler"}
                _, plain, first, again = (  # in the first run Python compiles its modules
                    measured([*words.split(), f"--model.compile={way}"], ROOT, Path(cache), **kept)["end"]
                    for way in ("none", "none", "default", "default")
                )
            found[f"{called}, {precision}"] = {"at first": first - plain, "once again": again - plain}
    return found


def measured(words: list[str], package: Path, compiled: Path, **more: str) -> dict[str, float]:
    """Processor seconds of a process until its end, and until its first update if it makes any.

    Args:
        words: after the interpreter's.
        package: folder of the package.
        compiled: folder for compiled modules.
        more: environment variables.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | more
    environment |= {"PYTHONPATH": str(package), "PYTHONPYCACHEPREFIX": str(compiled), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "clock.py").write_text(CLOCK)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = {"end": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}
    for line in done.stdout.splitlines():
        if line.startswith("first update "):
            seconds["first update"] = float(line.split()[-1])
    if any(word.startswith("--trainer") for word in words) and "first update" not in seconds:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-500:]}")
    return seconds


def main() -> None:
    """Measures, keeps the raw figures beside those of other names, prints medians of all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", help="hopper-replay.hdf5")
    parser.add_argument("--package", default=str(ROOT), help="folder that holds the oper_lightning to measure")
    parser.add_argument("--name", default="now", help="what to call the figures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiling", action="store_true", help="measure only what compiling takes, one round")
    options = parser.parse_args()
    if options.compiling:
        found = compiling(str(Path(options.file).resolve()))
        RAW.with_name("compiling.json").write_text(json.dumps({"machine": machine(), "seconds": found}, indent=1))
        for name, seconds in found.items():
            print(f"| {name} | {' | '.join(f'{value:.0f}' for value in seconds.values())} |")
        return
    measures = commands(str(Path(options.file).resolve()))
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in measures}
    with tempfile.TemporaryDirectory() as compiled:
        for number in range(options.rounds + 1):
            for name, words in measures.items():
                seconds = measured(words, Path(options.package).resolve(), Path(compiled))
                if number:
                    runs[name].append(seconds)
    raw = json.loads(RAW.read_text()) if RAW.is_file() else {}
    raw[options.name] = runs
    RAW.parent.mkdir(parents=True, exist_ok=True)
    RAW.write_text(json.dumps(raw, indent=1))
    print(f"| processor seconds | {' | '.join(raw)} |\n|---{'|---:' * len(raw)}|")
    for name in measures:
        for until in ("first update", "end"):
            if until in runs[name][0]:
                medians = [statistics.median(run[until] for run in one[name]) for one in raw.values()]
                what = name if len(runs[name][0]) == 1 else f"{name}, until its {until}"
                print(f"| {what} | {' | '.join(f'{median:.2f}' for median in medians)} |")


if __name__ == "__main__":
    main()
