"""Gives `oper` broken and hostile input and watches how it takes it.

    python benchmarks/fuzz.py --cases 2000 --seed 0 --jobs 2
    python benchmarks/fuzz.py --only hdf5 --cases 100
    python benchmarks/fuzz.py --case 137               # one case, its folder kept
    python benchmarks/fuzz.py --table                  # what benchmarks/raw/fuzz.json holds

A case is a number: with the seed it gives a kind of input, a mutation of it and a command that reads it. What must
not happen: a traceback, more than 20 seconds, a signal, more than 2 GB of memory, a refusal of more or less than one
line or without the file's name, code from the input that runs, files outside the working folder, networks that are
not finite; nor that something harmless is refused or something poisonous taken.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: threads do not survive a fork
os.environ.setdefault("MPLBACKEND", "agg")

import argparse
import json
import platform
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fuzzing.server import GOOD, KINDS, Result, Server

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "benchmarks" / "raw" / "fuzz.json"


def table(results: list[list[Any]]) -> str:
    """Verdicts by kind, in Markdown."""
    found = [Result(*result) for result in results]
    verdicts = [*GOOD, *sorted({result.verdict for result in found} - {*GOOD})]
    lines = [
        f"| kind | cases | {' | '.join(verdicts)} | slowest, s | most memory, MB |",
        "|---" * (len(verdicts) + 4) + "|",
    ]
    for kind in [*KINDS, "all"]:
        mine = [result for result in found if kind in (result.kind, "all")]
        if mine:
            counts = Counter(result.verdict for result in mine)
            cells = [kind, len(mine), *(counts[verdict] for verdict in verdicts)]
            cells += [max(result.seconds for result in mine), max(result.megabytes for result in mine)]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--case", type=int, nargs="+", help="these cases only; their folders are kept")
    parser.add_argument("--raw", type=Path, help="where to write results; benchmarks/raw/fuzz.json for all kinds")
    parser.add_argument("--table", action="store_true", help="only print what the raw results say")
    arguments = parser.parse_args()
    raw = arguments.raw or RAW
    if arguments.table:
        print(table(json.loads(raw.read_text())["results"]))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="oper-fuzz-"))
    start, results = time.monotonic(), []
    try:
        server = Server(folder, arguments.seed, arguments.only, keep=arguments.case is not None)
        for result in server.run(arguments.case or list(range(arguments.cases)), arguments.jobs):
            results.append(result)
            if result.verdict not in GOOD or arguments.case:
                print(f"{result.number} {result.kind}, {result.mutation}: {result.verdict}: {result.line}", flush=True)
            if arguments.case:
                kept = folder / str(result.number) / "work"
                print(f"  {json.loads((kept / 'case.json').read_text())['words']} in {kept}")
    finally:
        if arguments.case is None:
            shutil.rmtree(folder)
    if not arguments.case:
        record = {
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "seed": arguments.seed,
            "minutes": round((time.monotonic() - start) / 60, 1),
            "columns": Result._fields,
            "results": sorted(results),
        }
        if arguments.raw or arguments.only == list(KINDS):
            head, body = json.dumps({**record, "results": []}, indent=1).split("[]")
            rows = ",\n".join(json.dumps(result, ensure_ascii=False) for result in record["results"])
            raw.write_text(f"{head}[\n{rows}\n]{body}\n")
        print(f"\n{table(results)}\n\n{record['minutes']} minutes")
    return int(any(result.verdict not in GOOD for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
