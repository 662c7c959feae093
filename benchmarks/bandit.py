"""OPER's bandit study: what iterated weights make of the data, and what TD3+BC learns from each.

    python benchmarks/bandit.py             # trains what is missing, then table and bandit.png
    python benchmarks/bandit.py --table

Raw results in benchmarks/raw/bandit.json, checkpoints in runs/bandit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from oper_lightning.algorithms.td3_bc import TD3BC
from oper_lightning.data.sources.bandit import MODES, Bandit
from oper_lightning.data.transitions import squeezed
from oper_lightning.priorities.advantages import BanditAdvantages
from oper_lightning.report.looks import canvas

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "benchmarks" / "raw" / "bandit.json"
WORK = ROOT / "runs" / "bandit"
ITERATIONS = (0, 1, 2, 3, 5, 10)  # 0: the data as they are
MODES_OF_USE = ("resample", "reweight")
UPDATES = 30_000
SAMPLES = 2000
NEAR = 0.2


def name(iterations: int, mode: str) -> str:
    return "uniform" if iterations == 0 else f"{iterations}-{mode}"


def train(iterations: int, mode: str) -> None:
    """One policy, through the command."""
    folder = WORK / name(iterations, mode)
    words = ["fit", "--config=configs/td3_bc.yaml", "--config=configs/td3_bc/bandit.yaml"]
    words += [f"--trainer.max_steps={UPDATES}", "--data.updates_per_epoch=5000"]
    words += [f"--output={folder.relative_to(ROOT)}", "--ckpt_path=last"]
    if iterations:
        priority = ["--data.priority=BanditAdvantages", f"--data.priority.iterations={iterations}"]
        words += [*priority, f"--data.mode={mode}"]
    print("$ oper", *words, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "oper_lightning", *words], cwd=ROOT, env=environment, check=True)


def samples(iterations: int, mode: str) -> torch.Tensor:
    """Actions ``[SAMPLES, 2]`` of the trained policy."""
    model = TD3BC.load_from_checkpoint(WORK / name(iterations, mode) / "last.ckpt", weights_only=True)
    torch.manual_seed(0)
    with torch.no_grad():
        return model.action_of(model.actor, model.observe(torch.zeros(SAMPLES, 1)))


def facts(actions: torch.Tensor) -> dict[str, Any]:
    """Where a policy's actions lie."""
    best = torch.tensor(MODES[0][0])
    return {
        "mean": [round(value, 3) for value in actions.mean(0).tolist()],
        "std": [round(value, 3) for value in actions.std(0).tolist()],
        "near the best mode": round(((actions - best).norm(dim=1) < NEAR).float().mean().item(), 3),
    }


def measure() -> None:
    transitions = squeezed(torch.cat(list(Bandit().episodes())))
    reward = transitions["next", "reward"].double()
    record: dict[str, Any] = {"updates": UPDATES, "seed": 0, "torch": torch.__version__, "data": {}, "policies": {}}
    figure, panels = canvas(len(ITERATIONS), 2, 2.9, 3.0)
    for place, iterations in enumerate(ITERATIONS):
        weights = BanditAdvantages(iterations)(transitions) if iterations else torch.ones_like(reward)
        record["data"][iterations] = {
            "return": round((weights * reward).mean().item(), 3),
            "std": round(weights.std(correction=0).item(), 3),
            "best mode": round(weights[: len(weights) // 4].sum().item() / len(weights), 4),
        }
        drawn = torch.multinomial(weights, SAMPLES, replacement=True, generator=torch.Generator().manual_seed(0))
        panel = panels[place]
        for mode, (_, mean) in enumerate(MODES):
            mine = drawn[drawn // (len(weights) // 4) == mode]
            panel.scatter(*transitions["action"][mine].T, s=2, alpha=0.4, color=f"C{mode}", label=f"reward {mean:g}")
        title = "the data" if iterations == 0 else f"iteration {iterations}"
        panel.set(title=f"{title}, return {record['data'][iterations]['return']:.2f}")
        for mode in MODES_OF_USE if iterations else MODES_OF_USE[:1]:
            train(iterations, mode)
            actions = samples(iterations, mode)
            record["policies"][name(iterations, mode)] = facts(actions)
            if mode == "resample":
                below = panels[len(ITERATIONS) + place]
                below.scatter(*transitions["action"][::20].T, s=2, alpha=0.3, color="silver")
                below.scatter(*actions.T, s=2, alpha=0.4, color="black")
                below.set(title=f"TD3+BC on {title}", xlabel="first action")
    for panel in panels[:: len(ITERATIONS)]:
        panel.set_ylabel("second action")
    panels[0].legend(fontsize="xx-small", markerscale=3, loc="center")
    for panel in panels:
        panel.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    figure.savefig(ROOT / "benchmarks" / "bandit.png", dpi=110)
    RAW.write_text(json.dumps(record, indent=1) + "\n")


def table() -> str:
    record = json.loads(RAW.read_text())
    lines = [
        "| iterations | return of the data | std of weights | best mode | policy, resampled | policy, reweighted |",
        "|---|---|---|---|---|---|",
    ]
    for iterations, data in record["data"].items():
        policies = []
        for mode in MODES_OF_USE:
            found = record["policies"].get(name(int(iterations), mode))
            where = "" if found is None else ", ".join(f"{value:.2f}" for value in found["mean"])
            policies.append("" if found is None else f"({where}), {found['near the best mode']:.0%} near the best mode")
        cells = [iterations, f"{data['return']:.2f}", f"{data['std']:.2f}", f"{data['best mode']:.1%}", *policies]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table of the raw results")
    if not parser.parse_args().table:
        measure()
    print(table())


if __name__ == "__main__":
    main()
