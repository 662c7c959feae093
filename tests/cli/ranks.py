"""Trains every algorithm under two ranks; started by test_ranks.py through torch.distributed.run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import oper

if __name__ == "__main__":
    for name in sys.argv[2:]:
        words = Path(f"{name}.words").read_text().split("\n")
        code = oper(*words, f"--output=ranks/{name}", "--trainer.devices=2", "--trainer.strategy=ddp", sys.argv[1])
        if code:
            sys.exit(f"rank {os.environ['RANK']}: {name} failed")
