"""Good input of every kind, made once: every case begins with a copy of it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fuzzing import arrays, bonuses, checkpoints, earlier, hdf5, logs, published
from fuzzing.arrays import EPISODES, STEPS

TRAP = """open("sprung", "w").close()


class Trap:
    def __init__(self, *args, **kwargs):
        open("sprung", "w").close()


def call(*args, **kwargs):
    open("sprung", "w").close()
"""


def make(run: Callable[[list[str]], int]) -> None:
    """Fills the working folder; ``run`` is the command `oper`."""
    Path("trap_module.py").write_text(TRAP)
    hdf5.write("data.hdf5", arrays.good())
    np.savez("data.npz", **arrays.good())
    published.publish("published.npy", published.iterated())
    hdf5.write("discrete.hdf5", arrays.discrete())
    _minari()
    discrete = f"fit --model={checkpoints.DISCRETE} {checkpoints.DISCRETE_DATA} {hdf5.QUICK}"
    _good(run, f"{discrete} --output=runs/{checkpoints.DISCRETE} --trainer.max_steps=8 --trainer.max_epochs=1")
    for model in checkpoints.MODELS:
        own = " --model.iterations=1 --data.rollouts=null" if model == "OperA" else ""
        fit = f"fit --model={model}{own} {hdf5.DATA} {hdf5.QUICK} --trainer.log_every_n_steps=1"
        # Half of a run, so that there is something to go on with.
        _good(run, f"{fit} --output=runs/{model} --trainer.max_steps=8 --trainer.max_epochs=1")
    for model, own in (
        ("DynamicsEnsemble", "--model.members=2 --data.holdout=0.3"),
        ("BREMEN", f"--model.dynamics={earlier.ENSEMBLE} --model.clone={earlier.CLONE} --model.horizon=3"),
    ):
        quick = f"{hdf5.QUICK} --data.rollouts=null --trainer.max_steps=8 --trainer.max_epochs=1"
        _good(run, f"fit --model={model} {own} {hdf5.DATA} {quick} --output=runs/{model}")
    online = "--data=OnlineDataModule --data.environment=Pendulum-v1 --data.warmup=30 --data.parallel=2"
    _good(run, f"fit --model=TD3BC --model.normalise_observations=false {online} {logs.QUICK} --output={logs.RUN}")
    curious = f"{online} --data.bonus=RND {bonuses.SIZES}"
    _good(run, f"fit --model=TD3BC --model.normalise_observations=false {curious} {logs.QUICK} --output={bonuses.RUN}")
    _good(run, f"{fit} --output=whole")
    shutil.move("whole/weights.safetensors", "weights.safetensors")
    shutil.rmtree("whole")
    shutil.copytree("runs/BC", "runs/BC2")


def _good(run: Callable[[list[str]], int], words: str) -> None:
    if code := run(shlex.split(words)):
        raise SystemExit(f"a good run ended with exit code {code}: {words}")


def _minari() -> None:
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    os.environ["MINARI_DATASETS_PATH"] = os.path.abspath("store")
    box, three = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(3)
    for name, form, space in (
        *(("hdf5", "hdf5", box), ("arrow", "arrow", box)),
        *(("discrete-hdf5", "hdf5", three), ("discrete-arrow", "arrow", three)),
    ):
        generator = np.random.default_rng(0)
        episodes = [
            EpisodeBuffer(
                observations=generator.normal(size=(STEPS + 1, 3)).astype(np.float32),
                actions=np.arange(STEPS) % 3
                if space is three
                else generator.uniform(-1, 1, (STEPS, 1)).astype(np.float32),
                rewards=generator.normal(size=STEPS),
                terminations=np.arange(STEPS) == (STEPS - 1 if number % 2 else STEPS),
                truncations=np.arange(STEPS) == (STEPS if number % 2 else STEPS - 1),
            )
            for number in range(EPISODES)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minari.create_dataset_from_buffers(
                f"mine/{name}-v0",
                episodes,
                observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (3,)),
                action_space=space,
                data_format=form,
                requirements=[],
            )
        file = Path("store/mine", f"{name}-v0", "data", "metadata.json")
        content = json.loads(file.read_text())
        content["ref_min_score"], content["ref_max_score"] = -10.0, 10.0
        file.write_text(json.dumps(content))
