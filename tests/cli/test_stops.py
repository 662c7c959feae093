"""How the command ends, in one line: by a signal at any moment and on any rank, a rank's death, or any error."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import oper

# An algorithm of one's own that meets with something at a moment of its choice.
MINE = """
import os, shutil, signal, threading, time
from lightning.pytorch import Callback
from oper_lightning.algorithms.bc import BC

class Mine(BC):
    def on_train_batch_start(self, batch, number):
        if self.trainer.global_step >= 40:
            {deed}

class Hanging(Callback):
    def on_exception(self, *_):  # as a logger does whose thread waits for a lock of the interrupted main thread
        threading.Event().wait()
"""
RUN = ["--model.hidden_sizes=[8]", "--data.updates_per_epoch=20", "--data.rollouts=null", "--output=run"]


def fit(file: Path, *more: str, model: str = "BC", steps: int = 20) -> list[str]:
    source = ["--data.source=D4RL", f"--data.source.path={file}"]
    return ["fit", f"--model={model}", *source, *RUN, f"--trainer.max_steps={steps}", *more]


def words(file: Path, deed: str, *more: str) -> list[str]:
    """A run that meets with a deed at its 40th update."""
    Path("mine.py").write_text(MINE.format(deed=deed))
    return fit(file, *more, model="mine.Mine", steps=4000)


def ends(*command: str) -> tuple[int, list[str]]:
    """Exit code of the command in a process of its own, and what it says beside the progress of a run."""
    result = subprocess.run(
        [sys.executable, "-m", "oper_lightning", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell starts what it puts into the background with interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    # What a run says of itself is no part of its end.
    told = re.compile(r"oper: read |oper: \w+: updates |.*  update ")
    return result.returncode, [line for line in result.stderr.splitlines() if not told.match(line)]


GOES_ON = "oper: stopped; --ckpt_path=run/last.ckpt goes on"


def test_a_signal_amid_an_import_that_drops_exceptions() -> None:
    Path("mine.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\nexcept BaseException:\n    pass\n"
    )
    assert ends("fit", "--model=mine.Mine", "--data.source=Bandit") == (143, ["oper: stopped"])


def test_an_end_that_hangs_is_cut_short(small_file: Path) -> None:
    command = words(small_file, "os.kill(os.getpid(), signal.SIGINT)", "--trainer.callbacks=mine.Hanging")
    assert ends(*command) == (130, [GOES_ON])
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 40


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (signal.SIGTERM, (143, [GOES_ON])),
        (signal.SIGKILL, (1, ["oper: error: rank 1 was killed by SIGKILL; --ckpt_path=run/last.ckpt goes on"])),
    ],
)
def test_what_ends_one_rank_ends_all(number: int, expected: tuple[int, list[str]], small_file: Path) -> None:
    deed = f"self.trainer.is_global_zero or os.kill(os.getpid(), {number})"
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    assert ends(*words(small_file, deed, *ranks)) == expected
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 40


def test_a_chain_hands_a_signal_on_and_waits(small_file: Path) -> None:
    command = words(small_file, "os.kill(os.getppid(), signal.SIGTERM); time.sleep(0.1)")
    command.remove("--output=run")  # the chain names it
    Path("chain.yaml").write_text(f"folder: runs\nlinks:\n  one: {' '.join(command)}\n")
    assert ends("run", "chain.yaml") == (143, ["oper: stopped at link 'one'; the same `oper run` goes on from here"])
    assert torch.load("runs/one/last.ckpt", weights_only=True)["global_step"] == 40


@pytest.mark.parametrize("error", ["ZeroDivisionError('1 / 0')", "RecursionError", "MemoryError('one byte')"])
def test_no_error_is_a_traceback(
    error: str, small_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    command = words(small_file, f"raise {error}")
    assert oper(*command) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("oper: error: ")
    assert line.endswith(" (OPER_TRACEBACK=1 shows where)")
    assert {"Zero": "ZeroDivisionError: 1 / 0", "Recu": "RecursionError", "Memo": "memory: one byte"}[error[:4]] in line
    monkeypatch.setenv("OPER_TRACEBACK", "1")
    assert oper(*command, "--ckpt_path=last") == 1
    assert "on_train_batch_start" in capsys.readouterr().err


def test_a_folder_that_disappears_is_named(
    small_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert oper(*words(small_file, "shutil.rmtree('run', ignore_errors=True)")) == 1
    assert "oper: error: run: the run's folder was removed" in capsys.readouterr().err
    assert not Path("run").exists()


def test_parts_of_a_killed_run_go(small_file: Path) -> None:
    assert oper(*fit(small_file)) == 0
    Path("run/best.ckpt.part").write_text("half")
    assert oper(*fit(small_file, "--ckpt_path=last", steps=40)) == 0
    assert not list(Path("run").glob("*.part"))


def test_a_folder_of_other_files_is_left_as_it_is(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/old.part").mkdir(parents=True)
    for name in ("thesis.pdf", "film.mkv.part", "old.part/notes.txt", "last.ckpt.part", "events.out.tfevents.1"):
        Path("run", name).write_text(name)

    def content() -> dict[Path, bool | str]:
        return {path: path.is_dir() or path.read_text() for path in Path("run").rglob("*")}

    before = content()
    assert oper(*fit(small_file)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "run: holds other files already" in line
    assert "ckpt_path" not in line
    assert content() == before


def test_a_refused_run_leaves_a_folder_as_it_was(small_file: Path) -> None:
    """Events that were there stay; of a folder that was made for the run nothing does."""
    Path("run").mkdir()
    Path("run/events.out.tfevents.1").write_text("of another program")
    assert oper(*fit(small_file, "--data.batch_size=5000")) == 1
    assert [path.name for path in Path("run").iterdir()] == ["events.out.tfevents.1"]
    assert oper(*fit(small_file, "--data.batch_size=5000", "--output=new")) == 1
    assert not Path("new").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB; only root can have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def test_a_full_disk_is_named(small_disk: Path, small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small_disk / "full").write_bytes(bytes(550_000))
    # In a process of its own: it would be SIGBUS otherwise, which ends the tests too.
    code, lines = ends(*fit(small_file, "--data.location=memmap", f"--data.memmap_folder={small_disk}"))
    assert (code, len(lines)) == (1, 1)
    assert "No space left on device" in lines[0]
    assert "transitions" in lines[0]
    assert [path.name for path in small_disk.iterdir()] == ["full"]
    assert oper(*fit(small_file, "--model.hidden_sizes=[256,256]", f"--output={small_disk / 'run'}")) == 1
    assert "last.ckpt: cannot write it (No space left on device)" in capsys.readouterr().err
