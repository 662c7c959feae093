"""Runs every case in a process of its own, forked from one that has imported everything, and judges how it ended."""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from fuzzing import stock
from fuzzing.bonuses import BONUSES
from fuzzing.bundles import BUNDLES
from fuzzing.case import LARGEST_FILE, Kind, Told
from fuzzing.chains import CHAINS, LEDGERS
from fuzzing.checkpoints import CHECKPOINTS
from fuzzing.configs import CONFIG, YAML
from fuzzing.earlier import EARLIER
from fuzzing.events import EVENTS
from fuzzing.hdf5 import HDF5
from fuzzing.logs import LOGS
from fuzzing.minari import MINARI
from fuzzing.npz import NPZ
from fuzzing.published import NPY
from fuzzing.shards import SHARD
from fuzzing.tianshou import TIANSHOU
from fuzzing.weights import WEIGHTS
from fuzzing.words import WORDS

KINDS = {
    "hdf5": HDF5,
    "npz": NPZ,
    "tianshou": TIANSHOU,
    "minari": MINARI,
    "shard": SHARD,
    "bundle": BUNDLES,
    "weights": WEIGHTS,
    "checkpoint": CHECKPOINTS,
    "earlier": EARLIER,
    "config": CONFIG,
    "yaml": YAML,
    "chain": CHAINS,
    "ledger": LEDGERS,
    "npy": NPY,
    "words": WORDS,
    "events": EVENTS,
    "log": LOGS,
    "bonus": BONUSES,
}
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20  # of a case, on a machine that does nothing else
MEMORY = 2 << 30
UNFORESEEN = "OPER_TRACEBACK=1 shows where"  # what the last guard says of an error that nothing named
# What a run tells of itself while nothing is wrong: what it read, what it will do, how far it is.
PROGRESS = re.compile(r"oper: |read .* transitions|\w+: updates \d|\w+  update \d")
CUT = 160  # characters of a line that are kept


class Result(NamedTuple):
    """How a case ended."""

    number: int
    kind: str
    mutation: str
    verdict: str
    """accepted or refused where that is right; else what is wrong with it"""
    seconds: float
    megabytes: int
    line: str


GOOD = ("accepted", "refused")


def choose(number: int, seed: int, only: list[str]) -> tuple[str, str, Random]:
    """Kind, mutation and randomness of a case. Every mutation of a kind comes once before any comes again."""
    kind = only[number % len(only)]
    mutations = list(KINDS[kind].all())
    turn, place = divmod(number // len(only), len(mutations))
    Random(f"{seed} {kind} {turn}").shuffle(mutations)
    return kind, mutations[place], Random(f"{seed} {kind} {number}")


class Server:
    """Forks a process per case.

    Args:
        folder: where cases work; each in a folder of its own, which is removed unless ``keep``.
        seed: of all cases.
        only: the kinds.
        keep: leave the folders.
    """

    def __init__(self, folder: Path, seed: int, only: list[str], keep: bool) -> None:
        self.folder, self.seed, self.only, self.keep = folder, seed, only, keep
        _import_everything()
        resource_tracker.ensure_running()  # or every case would start one, which complains when the case is gone
        self.stock = folder / "stock"
        self.stock.mkdir(parents=True)
        pid = os.fork()
        if pid == 0:
            _become(self.stock)
            _leave(lambda: stock.make(_in_a_fork) or 0)
        if os.waitpid(pid, 0)[1]:
            raise SystemExit((self.stock / "stderr").read_text())
        for name in ("stdout", "stderr"):
            (self.stock / name).unlink()
        if (pid := os.fork()) == 0:
            os._exit(0)
        self.base = os.wait4(pid, 0)[2].ru_maxrss * 1024

    def run(self, numbers: list[int], jobs: int) -> Iterator[Result]:
        """Runs cases, ``jobs`` at a time; yields results as they come."""
        waiting, running = list(reversed(numbers)), {}
        while waiting or running:
            while waiting and len(running) < jobs:
                number = waiting.pop()
                running[self._start(number)] = (number, time.monotonic())
            time.sleep(0.02)
            for pid, (number, start) in list(running.items()):
                ended, status, usage = os.wait4(pid, os.WNOHANG)
                seconds = time.monotonic() - start
                why = ""
                if not ended and seconds > SECONDS * max(1, os.getloadavg()[0] / (os.cpu_count() or 1)):
                    why = "hang"
                elif not ended and self._memory(pid) > MEMORY:
                    why = "memory"
                if why:
                    os.killpg(pid, signal.SIGKILL)
                    ended, status, usage = os.wait4(pid, 0)
                if ended:
                    del running[pid]
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)  # what it left running
                    peak = usage.ru_maxrss * 1024 - self.base
                    yield self._judge(number, status, seconds, peak, why)

    def _start(self, number: int) -> int:
        place = self.folder / f"{number}"
        shutil.rmtree(place, ignore_errors=True)
        work = place / "work"
        shutil.copytree(self.stock, work)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _become(work)
            _leave(lambda: _case(*choose(number, self.seed, self.only)))
        return pid

    def _memory(self, pid: int) -> int:
        try:
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() - self.base
        except (OSError, IndexError):
            return 0

    def _judge(self, number: int, status: int, seconds: float, peak: int, why: str) -> Result:
        kind, mutation, _ = choose(number, self.seed, self.only)
        place = self.folder / f"{number}"
        work = place / "work"
        out, err = (_tail(work / name) for name in ("stdout", "stderr"))
        lines = [line for line in err.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("oper: error: ")]
        note = _tail(work / "case.json")
        code = os.waitstatus_to_exitcode(status)
        verdict = why
        line = (errors or lines or out.splitlines() or [""])[-1]
        if not note:
            verdict, line = "not made", (lines or [""])[-1]
        elif not why:
            case = json.loads(note)
            stray = [line for line in lines if not PROGRESS.match(line)]
            if peak > MEMORY:
                verdict = "memory"
            elif code < 0:
                verdict, line = "crash", signal.Signals(-code).name
            elif "Traceback (most recent call last)" in err + out or "Fatal Python error" in err:
                verdict = "traceback"
            elif UNFORESEEN in err:
                verdict = "unforeseen"
            elif (work / "sprung").exists() and not KINDS[kind].own:
                verdict = "trap"
            elif not KINDS[kind].own and (
                [file.name for file in place.iterdir()] != ["work"] or Path("/tmp/outside").exists()
            ):
                verdict = "escaped"
            elif code == 0:
                verdict = case["after"] or ("accepted" if case["must"] != "refuse" else "let through")
            elif len(errors) != 1 or stray or len(errors[0]) > 1000:
                verdict, line = "lines", " | ".join(stray or lines)
            elif case["must"] == "accept":
                verdict = "turned away"
            elif not any(name in errors[0] for name in case["names"]) and "at update" not in errors[0]:
                verdict = "unnamed"
            else:
                verdict = "refused"
        line = line.replace(str(work), ".").replace(f"{ROOT}/", "").removeprefix("oper: error: ")
        if not self.keep:
            shutil.rmtree(place, ignore_errors=True)
        return Result(number, kind, mutation, verdict, round(seconds, 1), max(0, peak >> 20), line[:CUT])


def _tail(path: Path) -> str:
    """The end of a file that may have grown without bound."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 200_000))
        return file.read().decode(errors="replace")


def _import_everything() -> None:
    """What a command imports; nothing that starts threads or keeps a file open."""
    import torch
    import torch.utils.tensorboard

    from oper_lightning.algorithms import load_all
    from oper_lightning.cli import main

    load_all()
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(["fit", "--model=BC", "--data.source=Bandit", "--print_config"])  # fills the parser's caches


def _become(work: Path) -> None:
    """Makes this process one that stands in its own folder, reads nothing from and writes nothing to the terminal."""
    os.setsid()
    os.chdir(work)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), line_buffering=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    unreachable = "http://127.0.0.1:9"
    os.environ.update(
        HOME=str(work),
        TMPDIR=str(work),
        D4RL_DATASET_DIR=str(work / "d4rl"),
        MINARI_DATASETS_PATH=str(work / "store"),
        PYTHONPATH=os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path),
        **{f"{scheme}_proxy": unreachable for scheme in ("http", "https", "ftp")},
    )
    os.environ.pop("PL_GLOBAL_SEED", None)


def _leave(function: Callable[[], int]) -> None:
    """Ends this process with what ``function`` returns, as Python ends one."""
    try:
        code = function()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _in_a_fork(words: list[str]) -> int:
    """A command in a process of its own; gives its exit code."""
    from oper_lightning.cli import main

    pid = os.fork()
    if pid == 0:
        _leave(lambda: main(words))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _case(kind: str, mutation: str, rng: Random) -> int:
    """Makes a case's input, runs its command, and looks at what that left."""
    from oper_lightning.cli import main

    one: Kind = KINDS[kind]
    told: Told = one.all()[mutation](rng)
    command = told.command or one.commands(rng)
    while told.words and command.startswith(("inspect", "convert")):  # which have no such arguments
        command = one.commands(rng)
    more = told.words.replace("--data.source", "--source") if command.startswith("convert") else told.words
    words = shlex.split(f"{command} {more}")
    case: dict[str, Any] = {"words": words, "must": told.must, "names": told.names or one.names, "after": ""}
    Path("case.json").write_text(json.dumps(case))
    before = {file: file.stat().st_mtime_ns for file in Path().rglob("*.*") if file.is_file()}
    code = main(words)
    if code == 0 and (poisoned := _poisoned(before)):
        Path("case.json").write_text(json.dumps({**case, "after": poisoned}))
    return code


def _poisoned(before: dict[Path, int]) -> str:
    """What is wrong with the files that a command has written: numbers that are not finite, a script in a page."""
    import torch
    from safetensors.torch import load_file

    for file in Path().rglob("*"):
        if not file.is_file() or before.get(file) == file.stat().st_mtime_ns:
            continue
        if file.suffix == ".html" and "<script>trap" in file.read_text():
            return "script"
        if file.suffix == ".ckpt":
            tensors = torch.load(file, weights_only=True)["state_dict"]
        elif file.suffix in (".safetensors", ".st"):
            tensors = load_file(file)
        else:
            continue
        if not all(value.isfinite().all() for value in tensors.values() if value.is_floating_point()):
            return "poisoned"
    return ""
