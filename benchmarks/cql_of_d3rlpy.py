"""d3rlpy's CQL on NeoRL-2's DMSD, with the settings that cql_search.py calls "as it is": does it score what ours does?

    pip install d3rlpy==2.8.1
    python benchmarks/cql_of_d3rlpy.py --data ../shared/data

Seed 0, one thread, float32, 100 episodes every 10,000 updates. d3rlpy's target takes the policy's mode where ours takes
a sample, and it has no updates of cloning at first. The result goes to benchmarks/raw/neorl2/search.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import d3rlpy
import gymnasium
import numpy as np
import torch
from cql_search import RAW
from kept import keep

from oper_lightning.envs.neorl2 import register
from oper_lightning.envs.scores import NEORL2, normalised

TASK = "oper/DMSD-v0"
EPISODES, UPDATES, EVERY = 100, 20_000, 10_000


def returns(policy: Any) -> np.ndarray:
    """Returns ``[n]`` of episodes that are played side by side."""
    worlds = [gymnasium.make(TASK) for _ in range(EPISODES)]
    seen = np.stack([world.reset(seed=seed)[0] for seed, world in enumerate(worlds)]).astype(np.float32)
    total = np.zeros(EPISODES)
    for _ in range(100):
        steps = [world.step(action) for world, action in zip(worlds, policy.predict(seen), strict=True)]
        seen = np.stack([step[0] for step in steps]).astype(np.float32)
        total += [step[1] for step in steps]
    return total


def main() -> None:
    """Trains, and keeps the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default="../shared/data", help="folder of the data")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    register()
    d3rlpy.seed(0)
    rows = np.load(arguments.data / "neorl2-DMSD-train.npz")
    dataset = d3rlpy.dataset.MDPDataset(
        rows["obs"], rows["action"], rows["reward"], np.zeros(len(rows["reward"])), rows["truncated"]
    )
    cql = d3rlpy.algos.CQLConfig(
        observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(),
        actor_learning_rate=3e-4,
        temp_learning_rate=3e-4,
        alpha_learning_rate=0.0,
        tau=0.02,
        n_action_samples=4,
    ).create(device="cpu:0")
    began = time.process_time()
    scores = []
    fitter = cql.fitter(
        dataset,
        n_steps=UPDATES,
        n_steps_per_epoch=EVERY,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    for _, losses in fitter:
        score = normalised(float(returns(cql).mean()), NEORL2[TASK])
        scores.append(round(score, 3))
        print(f"score {score:.1f} after {time.process_time() - began:.0f} CPU s; {losses}", flush=True)
    updates = list(range(EVERY, UPDATES + 1, EVERY))
    record = {"d3rlpy": d3rlpy.__version__, "cpu seconds": round(time.process_time() - began, 1)}
    keep(RAW / "d3rlpy.json", {**record, "curves": {"eval/score": {"updates": updates, "values": scores}}})


if __name__ == "__main__":
    main()
