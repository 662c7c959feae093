from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import oper

Snapshot = dict[Path, bytes]


def snapshot() -> Snapshot:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end in one line; gives the line. Files that were there are there still, untouched."""

    def run(*words: Any) -> str:
        capsys.readouterr()
        before = snapshot()
        code = oper(*map(str, words))
        out, err = capsys.readouterr()
        assert code == 1
        errors = [line for line in err.splitlines() if not line.startswith("oper: ") or line.startswith("oper: error")]
        assert len(errors) == 1, err
        assert "Traceback" not in out + err
        assert "update" not in out
        after = snapshot()
        assert {path: after.get(path) for path in before} == before
        assert not [path for path in after if path.suffix in (".ckpt", ".safetensors") and path not in before]
        return errors[0].removeprefix("oper: error: ")

    return run
