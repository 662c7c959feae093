"""A hundred inputs of benchmarks/fuzz.py, spread over all kinds: none ends in anything but success or one good line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

FUZZ = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz.py"
CASES = 100


def test_broken_and_hostile_input(tmp_path: Path) -> None:
    raw = tmp_path / "fuzz.json"
    words = [sys.executable, str(FUZZ), f"--cases={CASES}", "--seed=1", "--jobs=2", f"--raw={raw}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(raw.read_text())["results"]
    assert len(results) == CASES
    kinds = Counter(kind for _, kind, *_ in results)
    assert len(kinds) >= 13
    assert min(kinds.values()) >= CASES // len(kinds)
    assert {verdict for _, _, _, verdict, *_ in results} == {"accepted", "refused"}
