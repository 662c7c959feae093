"""Raw results: where they were made and how they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

import oper_lightning
from oper_lightning.files import whole


def machine() -> str:
    """The processor's name; "unknown" where Linux does not tell it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")


def keep(file: Path, record: dict[str, Any]) -> None:
    """Writes the result of a run of one thread as JSON, at once or not at all, with machine and versions added."""
    made = {
        "machine": f"{machine()}, one thread of {len(os.sched_getaffinity(0))} shared cores",
        "versions": {"oper-lightning": oper_lightning.__version__, "torch": torch.__version__},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as out:
        out.write((json.dumps({**record, **made}) + "\n").encode())
