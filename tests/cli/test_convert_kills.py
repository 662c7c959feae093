"""`oper convert`, killed with SIGKILL, leaves nothing under the name that was asked for, or a whole dataset there."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from helpers import columns, image_columns, oper, write_hdf5

from oper_lightning import D4RL, Minari, Source
from oper_lightning.data.sources.tianshou import Tianshou
from oper_lightning.data.storage import fill
from oper_lightning.data.table import Table

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["oper_lightning.cli.verbs", "oper_lightning.cli.convert", "minari", "helpers"])

FORMS: dict[str, tuple[str, Callable[[str], Source]]] = {
    "minari": ("log-v0", Minari),
    "tianshou": ("replay.hdf5", Tianshou),
    "d4rl": ("flat.hdf5", D4RL),
}


def run(words: list[str], temporary: str) -> None:
    """One command in a process of its own; what it writes to the terminal goes to a file."""
    torch.set_num_threads(1)
    tempfile.tempdir = temporary
    with open("terminal.txt", "a") as terminal:
        os.dup2(terminal.fileno(), 1)
        os.dup2(terminal.fileno(), 2)
    os._exit(oper(*words))


def recorded(source: Source) -> str:
    return Table(source, fill(source, torch.device("cpu"))).recorded


@pytest.mark.parametrize("form", FORMS)
def test_kills_leave_nothing_or_all(form: str, tmp_path: Path) -> None:
    images = form == "tianshou"
    write_hdf5(tmp_path / "log.hdf5", image_columns([20] * 20) if images else columns([20] * 60))
    name, made = FORMS[form]
    place, temporary = tmp_path / "made", tmp_path / "temporary"
    temporary.mkdir()
    target = place / name
    process = start(form, tmp_path / "alone" / name)
    assert finished(process)
    expected = recorded(made(str(tmp_path / "alone" / name)))

    def reads() -> bool:
        return any(temporary.glob(f"*.{process.pid}"))

    def writes(size: int = 0) -> bool:
        new = [file for start in (name, f".{name}.*.{process.pid}") for file in place.glob(start)]
        return bool(new) and sum(file.stat().st_size for one in new for file in (one, *one.rglob("*"))) >= size

    # While it reads, as soon as it writes, later on, between writing and reading back, and at any time.
    amid = [reads, writes, lambda: writes(20_000), lambda: writes() and not reads()]
    chance, left = random.Random(), []
    for number, moment in enumerate([*amid, reads, writes]):
        process = start(form, target)
        wait_for(process, moment)
        if number >= len(amid):
            time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.join()
        if target.exists():  # a moment too late
            break
        left.append([*temporary.iterdir(), *(place.iterdir() if place.is_dir() else ())])
        assert all(file.name.endswith(f".{process.pid}") for file in left[-1]), "what an earlier one left is there"
    if not target.exists():
        process = start(form, target)
        assert finished(process)
        assert not any(temporary.iterdir())
    assert [path.name for path in place.iterdir()] == [name]
    assert recorded(made(str(target))) == expected
    assert sum(map(bool, left)) >= 2, "hardly ever killed amid its work"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    write_hdf5(tmp_path / "log.hdf5", columns([20] * 200))
    Path("temporary").mkdir()
    process = start("minari", tmp_path / "log-v0")
    wait_for(process, lambda: len([*tmp_path.glob(f".log-v0.*.{process.pid}/data/*")]) > 3)
    os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode == 128 + number
    assert Path("terminal.txt").read_text().splitlines()[-1] == "oper: stopped"
    assert sorted(os.listdir()) == ["log.hdf5", "temporary", "terminal.txt"]
    assert not os.listdir("temporary")


def start(form: str, target: Path) -> BaseProcess:
    words = ["convert", "log.hdf5", f"--to={form}", f"--output={target}"]
    process = FORKS.Process(target=run, args=(words, str(Path("temporary").absolute())))
    process.start()
    return process


def wait_for(process: BaseProcess, moment: Callable[[], bool]) -> None:
    """Waits until a moment or the end of the process."""
    while process.is_alive():
        with suppress(OSError):  # of a file that went while it was looked at
            if moment():
                return
        time.sleep(1e-4)


def finished(process: BaseProcess) -> bool:
    """Waits for the end of a process; whether it was a good one."""
    process.join(60)
    assert process.exitcode == 0, Path("terminal.txt").read_text()
    return True
