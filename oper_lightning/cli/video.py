"""`oper video`: films of what a policy does."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oper_lightning.cli import policies
from oper_lightning.envs.rollouts import Act, World
from oper_lightning.errors import InputError, first_line
from oper_lightning.files import place
from oper_lightning.nn.ranks import stream_seed

HEADLESS = "on a machine without a screen set the environment variable MUJOCO_GL to egl, or to osmesa"


def video(
    *,
    ckpt_path: str,
    output: str | None = None,
    episodes: int = 1,
    environment: str | None = None,
    environment_options: dict[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Film episodes that a policy plays, with Gymnasium's RecordVideo.

    Each episode becomes an MP4 file. For pictures of MuJoCo's robots on a machine without a screen, set the environment
    variable MUJOCO_GL to egl, or to osmesa. It needs MoviePy, which comes with the extra video.

    Args:
        ckpt_path: who plays, its best actions: the folder of a run (its best.ckpt), a checkpoint, or the dotted name of
            a controller of your own.
        output: folder of the films; by default the folder videos beside the checkpoint.
        episodes: how many are filmed.
        environment: Gymnasium id of the environment; by default the checkpoint's.
        environment_options: arguments of the environment, such as {max_episode_steps: 200}.
        seed: of the episodes.
    """
    if episodes < 1:
        raise InputError(f"episodes is {episodes}; at least 1 is needed")
    if importlib.util.find_spec("moviepy") is None:
        raise InputError("films are written by MoviePy, which is not installed: pip install 'oper-lightning[video]'")
    found = policies.policy(ckpt_path)
    if found.behaviour.begin is None:
        raise InputError(f"{ckpt_path}: name a checkpoint, or a controller of your own")
    if output is not None:
        folder = place(output)
    elif found.path is not None:
        folder = found.path.parent / "videos"
    else:
        raise InputError(f"{ckpt_path}: name the folder of the films with --output")
    told, options = policies.environment_of(found, environment, environment_options or {})
    world = World(told, {**options, "render_mode": "rgb_array"}, found.spec.observation_keys if found.spec else ())
    try:
        found.fits(world)
        name = found.behaviour.name.split()[0]
        folder.mkdir(parents=True, exist_ok=True)
        # Films are written elsewhere and moved here when they are whole.
        with tempfile.TemporaryDirectory(prefix=".film-", dir=folder) as unfinished:
            world.copies[0] = recorder = _recorder(world, unfinished, name)
            torch.manual_seed(seed)
            for episode in range(episodes):
                start = stream_seed(seed, "episode", episode) >> 32
                returns, _ = world.rollouts(_in_tensors(found.behaviour.begin()), [start])
                recorder.stop_recording()
                film = f"{name}-episode-{episode}.mp4"
                os.replace(Path(unfinished) / film, folder / film)
                print(f"{folder}/{film}: return {returns.item():.2f}")
    finally:
        world.close()


def _in_tensors(act: Act) -> Act:
    """A policy whose actions are tensors; those of a controller are arrays."""
    return lambda seen: torch.as_tensor(np.asarray(act(seen)))


def _recorder(world: World, folder: str, name: str) -> Any:
    """The world's environment, filmed; refused in a line if it cannot be drawn here."""
    from gymnasium.wrappers import RecordVideo

    try:
        world.copies[0].reset(seed=0)
        picture = np.asarray(world.copies[0].render())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the folder is there already
            filmed = RecordVideo(world.copies[0], folder, episode_trigger=lambda number: True, name_prefix=name)
    except Exception as error:  # whatever a library of graphics raises
        raise InputError(
            f"environment {world.environment!r} cannot be drawn here ({first_line(error)}); {HEADLESS}"
        ) from None
    if picture.ndim != 3:
        raise InputError(f"environment {world.environment!r} draws no pictures [H, W, 3] in render_mode rgb_array")
    return filmed
