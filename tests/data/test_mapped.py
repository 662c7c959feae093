"""Transitions that lie on the disk while they are looked at, and nowhere afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from helpers import Arrays, columns, image_columns

from oper_lightning import InputError
from oper_lightning.data.mapped import mapped
from oper_lightning.data.storage import fill
from oper_lightning.data.table import Table


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("images", [False, True])
def test_the_same_transitions_as_in_memory_and_gone_at_the_end(temporary: Path, images: bool) -> None:
    source = Arrays(image_columns([7, 3]) if images else columns([7, 3]))
    with mapped(source) as storage:
        [folder] = temporary.iterdir()
        assert folder.stat().st_mode & 0o077 == 0
        size = sum(file.stat().st_size for file in folder.rglob("*"))
        assert size > (12 * 36 * 36 if images else 10 * 2 * 3 * 4)
        assert Table(source, storage).recorded == Table(source, fill(source, torch.device("cpu"))).recorded
    assert not any(temporary.iterdir())


def test_nothing_is_left_after_an_error(temporary: Path) -> None:
    content = columns([7, 3])
    content["rewards"][8] = float("nan")
    with pytest.raises(InputError, match="reward is nan"), mapped(Arrays(content)):
        pass
    assert not any(temporary.iterdir())
    with pytest.raises(KeyboardInterrupt), mapped(Arrays(columns([7, 3]))):
        raise KeyboardInterrupt
    assert not any(temporary.iterdir())


def test_what_killed_processes_left_goes_and_what_others_need_stays(temporary: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    start = f".oper-transitions.{os.uname().nodename}."
    for process in (gone.pid, os.getpid(), os.getppid()):
        (temporary / f"{start}{process}").mkdir()
        (temporary / f"{start}{process}" / "frames.u8").write_bytes(b"1234")
    with mapped(Arrays(columns([7, 3]))):
        pass
    assert [folder.name for folder in temporary.iterdir()] == [f"{start}{os.getppid()}"]


def test_no_room_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    said = r"^Arrays: no place .* in /proc/nowhere \(.*\); set TMPDIR"
    with pytest.raises(InputError, match=said), mapped(Arrays(columns([7, 3]))):
        pass
