"""What a word on the command line means as a policy: random, a run, a checkpoint, or a scripted controller."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.algorithms.stage import Stage
from oper_lightning.cli.configuration import checkpoint_file
from oper_lightning.data.sources.online_log import environment_told
from oper_lightning.envs.collecting import Behaviour
from oper_lightning.envs.rollouts import Act, World
from oper_lightning.errors import InputError, first_line
from oper_lightning.files import place
from oper_lightning.report.weights import make
from oper_lightning.spec import DataSpec
from oper_lightning.training.stored import read_checkpoint

RANDOM = "random"


class Policy(NamedTuple):
    """A policy and what is known beside it."""

    behaviour: Behaviour
    known_by: str
    """what tells it from others: its name, and of a checkpoint a hash"""
    spec: DataSpec | None = None
    """of a checkpoint"""
    path: Path | None = None
    """of a checkpoint"""

    def fits(self, world: World) -> None:
        """Refuses an environment with other observations than those that a checkpoint's networks take.

        Raises:
            InputError: if it has others.
        """
        shape = world.observation_shape
        if self.spec is not None and (self.spec.observation_shape, self.spec.pixels) != (shape, world.images):
            raise InputError(
                f"{self.path}: made for observations of shape {self.spec.observation_shape}; environment "
                f"{world.environment!r} has {shape}"
            )


def policy(word: str, explore: bool = False) -> Policy:
    """The policy that a word means.

    Args:
        word: ``random``; a run's folder, of which the best checkpoint is taken; a checkpoint; or the dotted name of a
            function or class, which is imported.
        explore: whether a checkpoint plays as it would to gather transitions to learn from.

    Raises:
        InputError: if it means none.
    """
    if word == RANDOM:
        return Policy(Behaviour(RANDOM, None), RANDOM)
    if _is_dotted(word) and not place(word).exists():
        return Policy(Behaviour(word, scripted(word)), word)
    path = checkpoint_file(word, "collect")
    checkpoint = read_checkpoint(path)
    kind = checkpoint["class_path"].rpartition(".")[2]
    model: Stage = make(
        "model", {"class_path": checkpoint["class_path"], "init_args": checkpoint["hyper_parameters"]}, path
    )
    if not isinstance(model, OfflineAlgorithm):
        raise InputError(f"{path} holds {kind}, which is no policy; name a checkpoint of an algorithm that acts")
    if explore and type(model).explore is OfflineAlgorithm.explore:
        raise InputError(f"{path} holds {kind}, which has no policy that explores: leave out explore")
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    model.eval()
    act = model.explore if explore else model.act
    name = f"{kind} at update {checkpoint['global_step']:,}" + (", exploring" if explore else "")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return Policy(Behaviour(name, lambda: act), f"{name}, {digest}", model.spec, path)


def _is_dotted(word: str) -> bool:
    return all(part.isidentifier() for part in word.split(".")) and "." in word


def scripted(name: str) -> Callable[[], Act]:
    """Makes a scripted controller, anew for every round of episodes, from its dotted name.

    A function is called with observations ``[E, *O]``, a NumPy array, and gives actions ``[E, A]`` or ``[E]``. A class
    is made without arguments, and then called likewise; what it remembers lasts a round.

    Raises:
        InputError: if there is nothing of that name, or it cannot be called.
    """
    module, _, short = name.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module), short, None)
    except Exception as error:  # whatever the module does when it is imported
        raise InputError(
            f"{name}: no folder or checkpoint, and {module} cannot be imported: {first_line(error)}"
        ) from None
    if not callable(found):
        raise InputError(f"{name}: {module} has no function or class {short!r}")

    def begin() -> Act:
        try:
            controller: Any = found() if inspect.isclass(found) else found
        except Exception as error:
            raise InputError(f"{name}: cannot be made without arguments: {first_line(error)}") from None

        def act(observation: Tensor) -> Any:
            try:
                return np.asarray(controller(observation.numpy()))
            except Exception as error:
                raise InputError(f"{name} failed: {first_line(error)}") from None

        return act

    return begin


def environment_of(found: Policy, named: str | None, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Id and options of the environment to play in: the one that was named, or else the checkpoint's.

    Raises:
        InputError: if none is known, or the checkpoint's would import a module.
    """
    if named is not None:
        return named, options
    told = found.spec.environment if found.spec is not None else None
    if told is None or found.spec is None:
        raise InputError(f"{found.behaviour.name}: no environment known; name one with --environment")
    if ":" in told:
        raise InputError(
            f"{found.path}: environment is {told!r:.60}, whose module would be imported; if you trust it, name it on "
            f"the command line: --environment={told}"
        )
    about = {"environment": told, "environment_options": found.spec.environment_options}
    environment, known = environment_told(about, found.path)
    if environment is None:
        raise InputError(f"{found.path}: its environment cannot be made again here; name one with --environment")
    return environment, {**known, **options}


def evaluated(run: Path) -> list[tuple[int, float, Path]]:
    """Update, mean evaluation return, and file of each checkpoint in a run's folder that was evaluated, in order."""
    found = []
    for path in sorted(run.rglob("*.ckpt")):
        checkpoint = read_checkpoint(path)
        value = (checkpoint.get("metrics") or {}).get("eval/return")
        if isinstance(value, float) and path.name != "last.ckpt":
            found.append((checkpoint["global_step"], value, path))
    return sorted(found)


def first_to_reach(run: Path, share: float, random: float) -> tuple[Path, float, float]:
    """The first checkpoint of a run whose evaluation reached a share of the way from a random policy to the best.

    Args:
        run: its folder, in which checkpoints were kept at evaluations.
        share: from 0 to 1.
        random: mean return of a random policy.

    Returns:
        the checkpoint, its evaluation's return, and the best one.

    Raises:
        InputError: if the run kept no checkpoints, or was never better than a random policy.
    """
    found = evaluated(run)
    if len({step for step, _, _ in found}) < 2:
        raise InputError(
            f"{run}: it kept no checkpoints but the last and the best; train with Lightning's ModelCheckpoint, its "
            f"save_top_k -1, as the chains in configs/collect do"
        )
    best = max(value for _, value, _ in found)
    if not best > random:
        raise InputError(f"{run}: its best evaluation, {best:.2f}, is no better than a random policy's {random:.2f}")
    wanted = min(random + share * (best - random), best)  # rounding may lead beyond the best
    return next((path, value, best) for _, value, path in found if value >= wanted)
