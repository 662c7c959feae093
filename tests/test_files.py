from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from oper_lightning import InputError
from oper_lightning.files import beside, existing, whole


def fail_halfway(path: Path) -> None:
    with whole(path) as file:
        file.write(b"half of the ne")
        raise KeyError


def test_a_write_that_fails_leaves_the_old_file() -> None:
    path = Path("folder/file.txt")
    with whole(path) as file:
        file.write(b"old")
    with pytest.raises(KeyError):
        fail_halfway(path)
    assert path.read_bytes() == b"old"
    with whole(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [child.name for child in path.parent.iterdir()] == ["file.txt"]


def test_a_place_that_cannot_be_written_is_one_line() -> None:
    Path("file").touch()
    with (
        pytest.raises(InputError, match=r"file/below.txt: cannot write it .*; name another folder"),
        whole(Path("file/below.txt")),
    ):
        pass


def test_what_dead_processes_left_is_removed() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = os.uname().nodename
    for name in (f".rows.{host}.{gone.pid}", f".rows.{host}.{os.getppid()}", f".rows.elsewhere.{gone.pid}"):
        Path(name, "below").mkdir(parents=True)
    Path(f".file.{host}.{gone.pid}").touch()
    assert beside(Path("rows")) == Path(f".rows.{host}.{os.getpid()}")
    assert {path.name for path in Path().iterdir()} == {
        f".rows.{host}.{os.getppid()}", f".rows.elsewhere.{gone.pid}", f".file.{host}.{gone.pid}"
    }  # fmt: skip
    beside(Path("file"))
    assert not list(Path().glob(".file*"))


def test_a_missing_file_gets_a_nearest_name() -> None:
    Path("data").mkdir()
    Path("data/hopper-replay.hdf5").touch()
    with pytest.raises(InputError, match=r"did you mean 'hopper-replay\.hdf5'\?"):
        existing("data/hoper-replay.hdf5")
    with pytest.raises(InputError, match=r"there is no folder dat; did you mean 'data'\?"):
        existing("dat/hopper-replay.hdf5")
    with pytest.raises(InputError, match=r"no such file \(looked for at [^;]*\)$"):
        existing("data/else.csv")
