"""Checks of what a checkpoint holds, before any of it is used."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from oper_lightning import renamed
from oper_lightning.errors import InputError, reading
from oper_lightning.files import read_torch
from oper_lightning.nn.optim import Adam
from oper_lightning.spec import DataSpec

if TYPE_CHECKING:
    from oper_lightning.algorithms.stage import Stage

SECTIONS: dict[str, type] = {
    "class_path": str,
    "hyper_parameters": dict,
    "spec": dict,
    "state_dict": dict,
    "lengths": list,
    "seed": int,
    "global_step": int,
}
TO_GO_ON: dict[str, type] = {"optimizer_states": list, "lr_schedulers": list, "loops": dict, "callbacks": dict}
NEVER_NEGATIVE = ("step", "exp_avg_sq", "max_exp_avg_sq")
ORIGIN = "read_from"
"""entry of a checkpoint under which its reader says which file it is"""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of this package onto the CPU.

    Raises:
        InputError: if it is missing, broken, or of another make.
    """
    checkpoint = read_torch(path)
    with reading(path, "a checkpoint"):
        sections(checkpoint, str(path))
        version = str(checkpoint.get("pytorch-lightning_version"))
        if not re.fullmatch(r"[2-9]\.\d.*", version):
            raise InputError(f"{path}: written by Lightning {version:.20}; 2 or later is needed")
    checkpoint["class_path"] = renamed.class_path(checkpoint["class_path"])
    checkpoint[ORIGIN] = str(path)
    return cast(dict[str, Any], checkpoint)


def origin(checkpoint: dict[str, Any]) -> str:
    """What a checkpoint is called in a message: its file, where that is known."""
    return str(checkpoint.get(ORIGIN, "the checkpoint"))


def sections(checkpoint: Any, name: str) -> None:
    """Refuses what is no checkpoint of this package, or lacks a part of one.

    Args:
        checkpoint: what was read.
        name: what to call it.

    Raises:
        InputError: if a section is missing, or holds something of another kind.
    """
    if not isinstance(checkpoint, dict):
        raise InputError(f"{name}: not a checkpoint of oper-lightning: it holds no sections")
    if missing := [section for section in SECTIONS if section not in checkpoint]:
        raise InputError(f"{name}: not a whole checkpoint of oper-lightning: it has no {', '.join(missing)}")
    _of_kinds(checkpoint, SECTIONS, name)
    for key, value in checkpoint["hyper_parameters"].items():
        if not isinstance(key, str) or not _plain(value):
            kind = type(value).__name__
            raise InputError(f"{name}: hyper-parameter {key!r:.40} is a {kind}; numbers, words and lists are needed")
        if value != value:
            raise InputError(f"{name}: hyper-parameter {key!r:.40} is not a number (nan)")
    for key, value in checkpoint["state_dict"].items():
        usual = (
            isinstance(value, Tensor) and value.layout is torch.strided and not (value.is_meta or value.is_quantized)
        )
        if not isinstance(key, str) or not usual:
            raise InputError(f"{name}: state_dict has {key!r:.40}, a {type(value).__name__}; plain tensors are needed")
    if not all(type(part) is int for part in checkpoint["lengths"]):
        raise InputError(f"{name}: lengths must be whole numbers")
    try:
        DataSpec.from_dict(checkpoint["spec"])
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _of_kinds(checkpoint: dict[str, Any], kinds: dict[str, type], name: str) -> None:
    for section, kind in kinds.items():
        value = checkpoint[section]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InputError(f"{name}: under {section} it has {type(value).__name__}, not {kind.__name__}")


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(entry) for entry in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(entry) for key, entry in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def without_numpy(value: Any) -> Any:
    """The same with Python's numbers in place of numpy's, in lists, tuples and dictionaries too."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: without_numpy(entry) for key, entry in value.items()}
    return type(value)(map(without_numpy, value)) if type(value) in (list, tuple) else value


def networks(model: Stage, checkpoint: dict[str, Any]) -> None:
    """Refuses a checkpoint whose networks have other shapes than those at hand, or are not finite.

    Raises:
        InputError: names the hyper-parameters that differ, or the first tensor that is not finite.
    """
    stored = {name: (tuple(value.shape), value.dtype) for name, value in checkpoint["state_dict"].items()}
    here = {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}
    if stored != here:
        theirs, mine = checkpoint["hyper_parameters"], dict(model.hparams)
        changed = [f"{key} {theirs.get(key)} there, {mine[key]} here" for key in mine if mine[key] != theirs.get(key)]
        odd = sorted(name for name in {*stored, *here} if stored.get(name) != here.get(name))
        reason = ", ".join(changed) or f"differing: {odd[0]}"
        raise InputError(f"{origin(checkpoint)}: its networks do not fit those at hand: {reason}")
    for name, value in checkpoint["state_dict"].items():
        if not value.isfinite().all():
            raise InputError(
                f"{origin(checkpoint)}: {name} is not finite: training had failed; take an earlier checkpoint"
            )


def to_go_on(model: Stage, checkpoint: dict[str, Any]) -> None:
    """Refuses a checkpoint from which networks can be read, but training cannot go on.

    Raises:
        InputError: if progress, or the states of callbacks or data, are missing or of another make.
    """
    name, trainer = origin(checkpoint), model.trainer
    if missing := [section for section in TO_GO_ON if section not in checkpoint]:
        raise InputError(f"{name}: training cannot go on from it: it has no {', '.join(missing)}")
    _of_kinds(checkpoint, TO_GO_ON, name)
    data = trainer.datamodule  # type: ignore[attr-defined]
    expected = {"loops": {"fit_loop": trainer.fit_loop.state_dict()}}
    if state := data.state_dict():
        kept = checkpoint.get(type(data).__qualname__, {})
        for younger in {"rows", "rewards"} - {*kept} if isinstance(kept, dict) else ():
            state.pop(younger, None)
        expected[type(data).__qualname__] = state
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback.state_key in checkpoint["callbacks"]:
            expected.setdefault("callbacks", {})[callback.state_key] = callback.state_dict()
    if wrong := unlike(checkpoint, expected):
        raise InputError(f"{name}: training cannot go on from it: {wrong}")


def unlike(found: Any, expected: Any, place: str = "") -> str | None:
    """The first place at which what was found is of another kind than expected, in words."""
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            return f"{place or 'it'} is of type {type(found).__name__}"
        for key, value in expected.items():
            if key not in found:
                return f"{place or 'it'} has no {key}"
            if wrong := unlike(found[key], value, f"{place}.{key.split('{')[0]}".strip(".")):
                return wrong
        return None
    same = isinstance(found, type(expected)) or (isinstance(found, int | float) and isinstance(expected, int | float))
    return None if same or expected is None or found is None else f"{place} is of type {type(found).__name__}"


def optimisers(model: Stage, checkpoint: dict[str, Any]) -> None:
    """Refuses optimiser states that do not fit the parameters: a fused step would write past their ends.

    Args:
        model: with its optimisers.
        checkpoint: what training is to go on from.

    Raises:
        InputError: names the optimiser and what is wrong with it.
    """
    name, states, updates = origin(checkpoint), checkpoint.get("optimizer_states"), checkpoint["global_step"]
    mine = model.trainer.optimizers
    if not isinstance(states, list):
        raise InputError(f"{name}: training cannot go on from it: it has no optimizer_states")
    if len(states) != len(mine):
        raise InputError(
            f"{name}: it has the states of {len(states)} optimisers; {type(model).__name__} has {len(mine)}"
        )
    for number, (optimiser, state) in enumerate(zip(mine, states, strict=True)):
        if wrong := _optimiser(optimiser, state):
            raise InputError(f"{name}: training cannot go on from it: in the state of optimiser {number} {wrong}")
    adams = [state for optimiser, state in zip(mine, states, strict=True) if isinstance(optimiser, torch.optim.Adam)]
    if updates and adams and not any(state["state"] for state in adams):
        raise InputError(f"{name}: training cannot go on from it: its optimisers have no states")


def _optimiser(optimiser: torch.optim.Optimizer, stored: Any) -> str | None:
    """What is wrong with an optimiser's stored state, in words."""
    plain = optimiser.state_dict()
    layout: dict[str, Any] = {"state": {}, "param_groups": []}
    if wrong := unlike(stored, layout):
        return wrong
    if len(stored["param_groups"]) != len(plain["param_groups"]):
        return f"are {len(stored['param_groups'])} groups of parameters, not {len(plain['param_groups'])}"
    parameters: dict[int, Tensor] = {}
    for group, here, real in zip(stored["param_groups"], plain["param_groups"], optimiser.param_groups, strict=True):
        expected = {key: value for key, value in here.items() if key not in ("lr", "initial_lr")}
        if wrong := unlike(group, expected):
            return f"is a group of parameters of which {wrong}"
        if group["params"] != here["params"]:
            return f"is a group of {len(group['params'])} parameters; {len(here['params'])} are needed"
        if any(
            isinstance(value, tuple) and not all(type(v) in (int, float) for v in value) for value in group.values()
        ):
            return "are options that are no numbers"
        if wrong := _options(group):
            return wrong
        parameters |= dict(zip(here["params"], real["params"], strict=True))
    if not stored["state"]:
        return None  # it had no step yet
    if set(stored["state"]) != set(parameters):
        return f"are {len(stored['state'])} of {len(parameters)} parameters"
    moments = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimiser, torch.optim.Adam) else set()
    for number, parameter in parameters.items():
        state = stored["state"][number]
        if not isinstance(state, dict) or not moments <= state.keys():
            return f"parameter {number} has not all of {', '.join(sorted(moments))}"
        for key, value in state.items():
            if not isinstance(value, Tensor):
                if key in moments:
                    return f"{key} of parameter {number} is of type {type(value).__name__}"
                continue
            like = torch.zeros(()) if key == "step" else parameter
            if (value.shape, value.dtype, value.layout) != (like.shape, like.dtype, like.layout):
                return (
                    f"{key} of parameter {number} is {value.dtype} {[*value.shape]}, not {like.dtype} {[*like.shape]}"
                )
            if value.stride() != like.stride() or not value.isfinite().all():
                return f"{key} of parameter {number} is not finite, or lies in memory as no moment does"
            if key in NEVER_NEGATIVE and value.min() < 0:
                return f"{key} of parameter {number} is negative"
    if isinstance(optimiser, Adam):
        counts = {float(state["step"]) for state in stored["state"].values()}
        if len(counts) > 1:
            return f"parameters have made {min(counts):.0f} to {max(counts):.0f} steps; all must have made as many"
    return None


def _options(group: dict[str, Any]) -> str | None:
    """What is wrong with the numbers that an optimiser takes its steps by, in words."""
    for key in ("lr", "initial_lr", "eps", "weight_decay", "momentum", "betas"):
        value = group.get(key, 0.0)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(type(number) in (int, float) or isinstance(number, Tensor) for number in numbers):
            return f"{key} is of type {type(value).__name__}"
        if not all(0 <= float(number) < (1 if key == "betas" else math.inf) for number in numbers):
            return f"{key} is {value}"
    return None
