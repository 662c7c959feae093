"""Point-mass-wall: whether a policy trained anew on what an explorer gathered is better than its data and its explorer.

    python benchmarks/wall.py
    python benchmarks/wall.py --table

Five arms, which differ in the explorer's bonus; the settings stand in configs/rlpd/wall.yaml and configs/iql/wall.yaml
and below, and were fixed before the first run. Every run is a process of its own and goes on where it was stopped; raw
results go to benchmarks/raw/wall, and runs that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from intervals import interval
from kept import keep
from safetensors.numpy import load_file

from oper_lightning import IQL, RLPD
from oper_lightning.data.sources.point_mass_wall import PointMassWall
from oper_lightning.envs.point_mass_wall import GOAL, HIGH, LOW, START, WALL
from oper_lightning.envs.rollouts import World
from oper_lightning.report.curves import read_curves
from oper_lightning.report.looks import COLOURS, canvas

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "runs" / "wall"
RAW = ROOT / "benchmarks" / "raw" / "wall"
SEEDS = (0, 1, 2, 3, 4, 5)
RND = "{class_path: RND, init_args: {hidden_sizes: [128], features: 128, normalise: reference, scale: %d}}"


class Arm(NamedTuple):
    """How data are gathered, and what is changed when the last policy is trained on them."""

    explore: tuple[str, ...] | None
    """settings of the explorer; None: recorded data only"""
    retrain: tuple[str, ...] = ()
    gathered_by: str | None = None
    """the arm whose log is used, where it is another's"""


FASTER = ("--model.tau=0.02",)
# The order is that of the runs. Both arms with faster targets came later: their setting was found on seed 0.
ARMS = {
    "offline only": Arm(None),
    "count 5": Arm(()),
    "no bonus": Arm(("--data.bonus=null",)),
    "RND 1": Arm((f"--data.bonus={RND % 1}",)),
    "RND 10": Arm((f"--data.bonus={RND % 10}",)),
    "offline only, faster targets": Arm(None, FASTER),
    "count 5, faster targets": Arm((), FASTER, gathered_by="count 5"),
}
EXPLORE = ["--config=configs/rlpd.yaml", "--config=configs/rlpd/wall.yaml"]
RETRAIN = ["--config=configs/iql.yaml", "--config=configs/iql/wall.yaml"]
# The published size: longer episodes of shorter steps. Chosen by nothing, as an hour allows.
LARGE_EXPLORE = ["--data.environment=oper/PointMassWall-v0", "--trainer.max_steps=60000"]
# What decides how the policy trained anew on the first log of the strong bonus does: one setting changed at a time.
VARIED: dict[str, list[str]] = {
    "as it is": [],
    "half recorded": ["--data.offline_share=0.5"],
    "no good rows": ["--data.upsample=null"],
    "32 good rows": ["--data.upsample={rows: 32, rule: reward, value: 1}"],
    "expectile 0.7": ["--model.expectile=0.7"],
    "temperature 10": ["--model.temperature=10"],
    "temperature 1": ["--model.temperature=1"],
    "no bounds": ["--model.value_bounds=null"],
    "targets by 0.02": ["--model.tau=0.02"],
    "learning rate falls": ["--model.schedule=cosine"],
    "observations normalised": ["--model.normalise_observations=true"],
    "256-256 units": ["--model.hidden_sizes=[256,256]"],
}
VARIED_UPDATES = 15_000
JUDGED = 100  # starts


def oper(*words: str) -> float:
    """One command in a process of its own; its CPU seconds."""
    print("$ oper", *words, flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "oper_lightning", *words, "--trainer.enable_progress_bar=false"], cwd=ROOT, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def crossings(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """How often steps between positions ``[n, 2]`` lead past the wall's line under it, and over it."""
    passes = (before[:, 0] < 0.5) & (after[:, 0] >= 0.5)
    share = (0.5 - before[passes, 0]) / (after[passes, 0] - before[passes, 0])
    height = before[passes, 1] + share * (after[passes, 1] - before[passes, 1])
    return int((height < 0.1).sum()), int((height > 1.2).sum())


def gathered(folder: Path) -> dict[str, Any]:
    """What an explorer did, by its log."""
    files = [load_file(file) for file in sorted((folder / "replay").glob("*.safetensors"))]
    rows = {key: np.concatenate([file[key][0] for file in files]) for key in files[0]}
    under, over = crossings(rows["observation"], rows["next_observation"])
    late = slice(-3000, None)
    ends = rows["terminated"] | rows["truncated"]
    return {
        "steps": len(ends),
        "episodes": int(ends.sum()),
        "successes": int(rows["terminated"].sum()),
        "episodes of the last 3,000 steps": int(ends[late].sum()),
        "successes of the last 3,000 steps": int(rows["terminated"][late].sum()),
        "times under the wall": under,
        "times over the wall": over,
    }


def judged(policy: Any, environment: str) -> dict[str, Any]:
    """What a policy earns from the starts of `oper test`, and on which side of the wall it passes."""
    world = World(environment, {}, parallel=JUDGED)
    seen = np.stack([world.reset(copy, 1_010_000 + copy) for copy in range(JUDGED)])
    returns, under, over = np.zeros(JUDGED), np.zeros(JUDGED, bool), np.zeros(JUDGED, bool)
    running, reached = np.ones(JUDGED, bool), np.zeros(JUDGED, bool)
    while running.any():
        action = world.clipped(policy.act(torch.from_numpy(seen.copy())).numpy())
        for copy in np.nonzero(running)[0]:
            following, reward, terminated, truncated = world.step(copy, action[copy])
            below, above = crossings(seen[copy : copy + 1], following[None])
            under[copy] |= below > 0
            over[copy] |= above > 0
            returns[copy] += reward
            seen[copy], reached[copy], running[copy] = following, terminated, not (terminated or truncated)
    world.close()
    return {
        "mean return": float(returns.mean()),
        "spread": float(returns.std()),
        "reached": int(reached.sum()),
        "under the wall": int((under & ~over).sum()),
        "over the wall": int((over & ~under).sum()),
    }


def name_of(arm: str, seed: int, phase: str, large: bool) -> str:
    return f"{'large-' * large}{arm.replace(',', '').replace(' ', '-')}-{seed}-{phase}"


def run(arm: str, seed: int, phase: str, large: bool, varied: str | None = None) -> None:
    """One run, unless its result is there; then it is judged, and the result kept."""
    name = name_of(arm, seed, phase, large) + (f"-{varied.replace(' ', '-')}" if varied is not None else "")
    file, folder = RAW / f"{name}.json", WORK / name
    if file.is_file():
        return
    recorded = "{class_path: PointMassWall" + ("}" if large else ", init_args: {small: true}}")
    environment = f"oper/PointMassWall{'' if large else 'Small'}Cost-v0"
    words = [*(EXPLORE if phase == "explore" else RETRAIN), f"--seed_everything={seed}"]
    if large:
        words += [f"--data.rollouts.environment={environment}", "--data.source.small=false"]
    explored_by, retrained_by, another = ARMS[arm]
    if phase == "explore":
        words += [*(explored_by or ()), *(LARGE_EXPLORE if large else [])]
    elif explored_by is not None:
        log = WORK / name_of(another or arm, seed, "explore", large)
        both = f"[{recorded}, {{class_path: OnlineLog, init_args: {{path: {log.relative_to(ROOT)}}}}}]"
        words = [word for word in words if not word.startswith("--data.source")]
        words += ["--data.source=Joined", f"--data.source.sources={both}"]
    if phase == "retrain":
        words += retrained_by
    if varied is not None:
        words += [*VARIED[varied], f"--trainer.max_steps={VARIED_UPDATES}"]
    seconds = oper("fit", *words, f"--output={folder.relative_to(ROOT)}", "--ckpt_path=last")
    cls = RLPD if phase == "explore" else IQL
    curve = read_curves(folder)["eval/return"]
    record = {
        "command": "oper fit " + " ".join(words),
        "cpu seconds": round(seconds, 1),
        "eval/return": {"updates": curve.updates, "values": [round(value, 2) for value in curve.values]},
        "test": judged(cls.load_from_checkpoint(folder / "last.ckpt", weights_only=True), environment),
    }
    if phase == "explore":
        record["gathered"] = gathered(folder)
    keep(file, record)


def results(arm: str, phase: str, large: bool) -> list[dict[str, Any]]:
    files = [RAW / f"{name_of(arm, seed, phase, large)}.json" for seed in SEEDS]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def table(large: bool = False) -> str:
    """A row for each arm: how its explorer ends, and how the policy trained on all its data does."""
    lines = [
        "| explorer | its return | its successes, last 3,000 steps | times under, over the wall "
        "| policy trained anew | seeds | reached the goal | seeds under the wall |",
        "|---|---:|---|---|---:|---|---:|---:|",
    ]
    for arm in ARMS:
        explored, retrained = results(arm, "explore", large), results(arm, "retrain", large)
        if not retrained and not explored:
            continue
        gone = [entry["gathered"] for entry in explored]
        late = [
            f"{entry['successes of the last 3,000 steps']}/{entry['episodes of the last 3,000 steps']}"
            for entry in gone
        ]
        ways = [f"{entry['times under the wall']}, {entry['times over the wall']}" for entry in gone]
        tests = [entry["test"] for entry in retrained]
        returns = [test["mean return"] for test in tests]
        cells = [
            arm,
            interval([entry["test"]["mean return"] for entry in explored]),
            " ".join(late) or "–",
            "; ".join(ways) or "–",
            interval(returns),
            " ".join(f"{value:.1f}" for value in returns),
            f"at least {min(test['reached'] for test in tests)} %" if tests else "–",
            f"{sum(test['under the wall'] > JUDGED // 2 for test in tests)} of {len(tests)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(retrain: str) -> None:
    """Where the three phases go, for the strong bonus and seed 0; ``retrain`` names the last one's folder."""
    import matplotlib.lines

    explorer = WORK / name_of("count 5", 0, "explore", False)
    figure, (recorded, gathered, ways) = canvas(3, 1, 3.6, 3.9)
    seen = torch.cat([part["next", "observation"] for part in PointMassWall(small=True).episodes()]).numpy()
    visited = np.concatenate([load_file(f)["next_observation"][0] for f in sorted((explorer / "replay").iterdir())])
    edges = [np.linspace(low, high, 51) for low, high in zip(LOW, HIGH, strict=True)]
    for panel, places in ((recorded, seen), (gathered, visited)):
        panel.hist2d(*places.T, bins=edges, cmin=1, norm="log", cmap="viridis")
    recorded.set_title(f"1. recorded: {len(seen):,} steps")
    gathered.set_title(f"2. gathered for a bonus: {len(visited):,} steps")
    ways.set_title("3. what policies do")
    policies = (
        ("from recorded data", WORK / name_of("offline only", 0, "retrain", False)),
        ("from both", WORK / retrain),
    )
    handles = []
    for number, (name, folder) in enumerate(policies):
        policy = IQL.load_from_checkpoint(WORK / folder / "last.ckpt", weights_only=True)
        for start in range(10):
            ways.plot(*walk(policy, 1_010_000 + start).T, color=COLOURS[number], linewidth=0.8, alpha=0.7)
        handles.append(matplotlib.lines.Line2D([], [], color=COLOURS[number], label=name))
    for panel in (recorded, gathered, ways):
        panel.plot(*np.stack(WALL).T, color="black", linewidth=2.5)
        panel.plot(*START, "o", color=COLOURS[6], markersize=4)
        panel.plot(*GOAL, "*", color=COLOURS[1], markersize=11)
        panel.set(xlim=(LOW[0], HIGH[0]), ylim=(LOW[1], HIGH[1]), aspect="equal")
    figure.legend(handles=handles, fontsize="small", loc="outside lower right", ncols=2)
    figure.savefig(ROOT / "benchmarks" / "wall.png", dpi=110)


def walk(policy: Any, seed: int) -> np.ndarray:
    """Positions ``[T + 1, 2]`` of one episode."""
    world = World("oper/PointMassWallSmallCost-v0", {})
    places, over = [world.reset(0, seed)], False
    while not over:
        action = world.clipped(policy.act(torch.from_numpy(places[-1][None])).numpy())[0]
        following, _, terminated, truncated = world.step(0, action)
        places.append(following)
        over = terminated or truncated
    world.close()
    return np.stack(places)


def varied_table() -> str:
    """A row for each setting that was varied, on the first log of the strong bonus."""
    lines = [
        f"| varied, {VARIED_UPDATES:,} updates | return every 5,000 | reached, under the wall | CPU s |",
        "|---|---|---|---:|",
    ]
    for varied in VARIED:
        file = RAW / f"{name_of('count 5', 0, 'retrain', False)}-{varied.replace(' ', '-')}.json"
        if file.is_file():
            record = json.loads(file.read_text())
            curve = " ".join(f"{value:.1f}" for value in record["eval/return"]["values"])
            test = record["test"]
            ways = f"{test['reached']}, {test['under the wall']} of {JUDGED}"
            lines.append(f"| {varied} | {curve} | {ways} | {record['cpu seconds']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, seed after seed, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--arms", nargs="*", default=[*ARMS], help="such as 'count 5'")
    parser.add_argument("--phase", choices=("explore", "retrain"), help="only this one")
    parser.add_argument("--large", action="store_true", help="the task in its published size")
    parser.add_argument("--vary", nargs="*", help="vary what decides; such as 'no bounds', or all of it")
    parser.add_argument("--picture", metavar="RUN", help="draw benchmarks/wall.png, with RUN as the last phase")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    if arguments.picture is not None:
        return picture(arguments.picture)
    if arguments.vary is not None and not arguments.table:
        for varied in arguments.vary or VARIED:
            run("count 5", 0, "retrain", False, varied)
    elif not arguments.table:
        for seed in arguments.seeds:
            for arm in arguments.arms:
                for phase in ("explore", "retrain"):
                    idle = phase == "explore" and (ARMS[arm].explore is None or ARMS[arm].gathered_by is not None)
                    if not idle and arguments.phase in (None, phase):
                        run(arm, seed, phase, arguments.large)
    print(table(arguments.large), varied_table(), sep="\n\n")


if __name__ == "__main__":
    main()
