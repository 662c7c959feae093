"""How long 200,000 transitions take to load, and how much memory, from a file to a datamodule ready to draw.

    python benchmarks/loading.py ../shared/data/hopper-replay.hdf5 ../shared/data/halfcheetah-replay.hdf5

One thread. Memory is the growth of the process's peak over what loading the first 1,000 rows took (the libraries' code
and buffers), against the bytes of the storage.
Seconds are those of a second process, when the file is in the system's cache; five processes, all printed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

RAW = Path(__file__).resolve().parent / "raw" / "loading.json"
CHILD = """
import json, resource, sys, tempfile, time
import h5py
import torch
from oper_lightning import D4RL, OfflineDataModule
torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder, h5py.File(sys.argv[1]) as whole:
    with h5py.File(folder + "/head.hdf5", "w") as head:
        for name in whole:
            head[name] = whole[name][:1000]
    OfflineDataModule(D4RL(folder + "/head.hdf5")).setup()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
data = OfflineDataModule(D4RL(sys.argv[1]))
data.setup()
seconds = time.perf_counter() - began
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
size = sum(value.numel() * value.element_size() for value in data.storage[:].values(True, True))
print(json.dumps({"rows": len(data.transitions), "seconds": seconds, "times_size": grown / size, "bytes": size}))
"""


def main() -> None:
    """Loads the file in five processes, keeps and prints what they measured."""
    runs = []
    for file in sys.argv[1:]:
        for number in range(6):
            command = [sys.executable, "-W", "ignore", "-c", CHILD, file]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            if number:
                runs.append({"file": Path(file).name, **json.loads(out)})
    RAW.parent.mkdir(parents=True, exist_ok=True)
    RAW.write_text(json.dumps(runs, indent=1))
    for run in runs:
        print(f"{run['file']}, {run['rows']:,} rows: {run['seconds']:.2f} s, {run['times_size']:.2f} times their size")


if __name__ == "__main__":
    main()
