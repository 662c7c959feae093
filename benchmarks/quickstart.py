"""The quickstart over several seeds: does prioritising close 40 % of the gap with each?

    python benchmarks/quickstart.py --seeds 5

Raw results (curves) go to benchmarks/raw/quickstart; seeds that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from oper_lightning.report.curves import final, read_curves

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "benchmarks" / "raw" / "quickstart"
LINKS = ("uniform", "oper_r", "oper_a")


def execute(seed: int) -> None:
    """Runs the chain with a seed and keeps its curves."""
    folder = f"runs/quickstart-seeds/{seed}"
    words = ["run", "configs/quickstart.yaml", f"--seed={seed}", f"--folder={folder}"]
    subprocess.run([sys.executable, "-m", "oper_lightning", *words], cwd=ROOT, check=True)
    curves = {link: read_curves(ROOT / folder / link)["eval/return"]._asdict() for link in LINKS}
    record = {"command": "oper " + " ".join(words), "eval/return": curves}
    RAW.mkdir(parents=True, exist_ok=True)
    (RAW / f"{seed}.json").write_text(json.dumps(record, indent=1))


def table() -> str:
    """Mean return of the last three evaluations and the share of uniform's gap to 0 that it closes, by seed."""
    lines = [
        "| seed | uniform | OPER-R | OPER-A | OPER-R closes | OPER-A closes |",
        "|---|---|---|---|---|---|",
    ]
    for file in sorted(RAW.glob("*.json"), key=lambda path: int(path.stem)):
        record = json.loads(file.read_text())
        finals = [final(record["eval/return"][link]["values"]) for link in LINKS]
        closed = [1 - value / finals[0] for value in finals[1:]]
        cells = [file.stem, *(f"{value:.2f}" for value in finals), *(f"{share:.0%}" for share in closed)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0")
    for seed in range(parser.parse_args().seeds):
        if not (RAW / f"{seed}.json").is_file():
            execute(seed)
    print(table())


if __name__ == "__main__":
    main()
