"""`oper inspect` and `oper convert` keep images on the disk: their memory does not grow with the dataset."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import ctypes, json, sys, threading, time
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from helpers import oper

Path("mine.py").write_text('''
import numpy as np
from oper_lightning import Source, transitions_from
from oper_lightning.data.frames import stacked
from oper_lightning.data.sources.source import Origin

class Play(Source):
    def __init__(self, count: int) -> None:
        self.count = count
    def __len__(self):
        return self.count * 100
    def origin(self):
        return Origin(dataset="play")
    def episodes(self):
        last = np.arange(100) == 99
        for number in range(self.count):
            frames = np.random.default_rng(number).integers(0, 256, (101, 84, 84), dtype=np.uint8)
            now, after = stacked(frames, 4)
            yield transitions_from(now, np.arange(100) % 3, np.ones(100) * number, after, last, last & False)
''')

def own():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1024

def highest(count):
    ctypes.CDLL(None).malloc_trim(0)
    kept, over = [own()], threading.Event()
    def watch():
        while not over.wait(0.01):
            kept.append(own())
    thread = threading.Thread(target=watch)
    thread.start()
    words = [word.replace("NUMBER", str(len(peaks))) for word in sys.argv[2:]]
    assert oper(*words, "--source=mine.Play", f"--source.count={count}") == 0
    over.set()
    thread.join()
    return max(kept)

peaks = []
for count in (10, 10, 110):  # the first one imports what is needed
    peaks.append(highest(count))
print(json.dumps(peaks))
"""
WORDS = {
    "inspect": ["inspect", "--output=NUMBER"],
    "minari": ["convert", "--to=minari", "--output=log-vNUMBER"],
}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="reads Linux's /proc, asks glibc for what it keeps")
@pytest.mark.parametrize("what", WORDS)
def test_memory_does_not_grow_with_the_number_of_frames(what: str) -> None:
    tests = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", SCRIPT, tests, *WORDS[what]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    _, few, many = json.loads(result.stdout.splitlines()[-1])
    frames = 10_000 * 84 * 84 / 2**20  # that many more are 67 MB
    print(f"{what}: {few:.0f} MB, {many:.0f} MB")
    assert many - few < frames / 3
