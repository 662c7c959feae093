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

from fuzzing import arrays, checkpoints, hdf5, published
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
    _minari()
    for model in checkpoints.MODELS:
        own = " --model.iterations=1 --data.rollouts=null" if model == "OperA" else ""
        fit = f"fit --model={model}{own} {hdf5.DATA} {hdf5.QUICK} --trainer.log_every_n_steps=1"
        # Half of a run, so that there is something to go on with.
        _good(run, f"{fit} --output=runs/{model} --trainer.max_steps=8 --trainer.max_epochs=1")
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
    generator = np.random.default_rng(0)
    episodes = [
        EpisodeBuffer(
            observations=generator.normal(size=(STEPS + 1, 3)).astype(np.float32),
            actions=generator.uniform(-1, 1, (STEPS, 1)).astype(np.float32),
            rewards=generator.normal(size=STEPS),
            terminations=np.arange(STEPS) == (STEPS - 1 if number % 2 else STEPS),
            truncations=np.arange(STEPS) == (STEPS if number % 2 else STEPS - 1),
        )
        for number in range(EPISODES)
    ]
    for form in ("hdf5", "arrow"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minari.create_dataset_from_buffers(
                f"mine/{form}-v0",
                episodes,
                observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (3,)),
                action_space=gymnasium.spaces.Box(-1, 1, (1,)),
                data_format=form,
                requirements=[],
            )
        file = Path("store/mine", f"{form}-v0", "data", "metadata.json")
        content = json.loads(file.read_text())
        content["ref_min_score"], content["ref_max_score"] = -10.0, 10.0
        file.write_text(json.dumps(content))
