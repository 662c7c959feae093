from __future__ import annotations

from pathlib import Path

import pytest

from oper_lightning import InputError
from oper_lightning.files import whole


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
