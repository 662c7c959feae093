"""Help that fits on a screen, made of the docstrings; Lightning's own lists five hundred lines."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from docstring_parser import parse

from oper_lightning.cli.messages import known_classes, known_types
from oper_lightning.data.datamodule import OfflineDataModule
from oper_lightning.envs.rollouts import Rollouts
from oper_lightning.errors import InputError, nearest

WIDTH = 110
TRAINER = {
    "max_steps": "length of the run in gradient updates",
    "devices": "number of GPUs, or of CPU processes; with --trainer.strategy=ddp they train together",
    "precision": "32-true or bf16-mixed",
    "logger": "another logger than TensorBoard, or false",
    "log_every_n_steps": "gradient updates between logged losses",
    "fast_dev_run": "true: one update, nothing written",
}


def describe(function: Callable[..., Any]) -> dict[str, str]:
    """What a function's or class's docstring says of its arguments."""
    return {found.arg_name: found.description or "" for found in parse(inspect.getdoc(function) or "").params}


def summary(cls: type) -> str:
    """First sentence of a class's docstring."""
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")


def _entry(name: str, text: str, indent: int = 4, column: int = 34) -> str:
    head = " " * indent + name
    lines = textwrap.wrap(text.replace("\n", " "), WIDTH - column) or [""]
    first = f"{head:<{column}}{lines[0]}" if len(head) < column else f"{head}\n{' ' * column}{lines[0]}"
    return "\n".join([first, *(" " * column + line for line in lines[1:])])


def _classes(key: str) -> list[str]:
    types = known_types(key)
    return [_entry(name, summary(types[name]), indent=8) for name in known_classes(key)]


def parameters(cls: type) -> dict[str, tuple[str, Any]]:
    """Explanation and default of each argument of a class, those that it passes on to its parent included."""
    found = {}
    own = inspect.signature(cls).parameters
    for name, parameter in own.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            found[name] = describe(cls).get(name, ""), parameter.default
        else:
            found |= {name: entry for name, entry in parameters(cls.__mro__[1]).items() if name not in own}
    return found


def _arguments(cls: type, prefix: str, skip: set[str]) -> list[str]:
    lines = []
    for name, (text, value) in parameters(cls).items():
        if name in skip:
            continue
        default = {"None": "null", "True": "true", "False": "false"}.get(str(value), value)
        known = "must be given" if default is inspect.Parameter.empty else default
        lines.append(_entry(f"--{prefix}.{name}", f"{text.rstrip('.')} [{known}]"))
    return lines


def class_help(flag: str, name: str) -> str:
    """What a class that can stand at a flag is, and its arguments.

    Raises:
        InputError: if there is no such class.
    """
    key = flag.rsplit(".", 1)[-1]
    types = known_types(key)
    if name not in types:
        raise InputError(f"--{flag}: no class {name!r}; {nearest(name, types)}")
    about = (inspect.getdoc(types[name]) or "").split("Args:")[0].strip()
    return "\n".join([f"--{flag}={name}", "", about, "", *_arguments(types[name], flag, set())])


def verb_help(verb: str, description: str) -> str:
    """The help of fit, validate, test or predict."""
    lines = [
        f"usage: oper {verb} [--config FILE] [--model CLASS] [--data.… VALUE] [--trainer.… VALUE] [--output FOLDER] "
        f"[--ckpt_path FILE]",
        "",
        *textwrap.wrap(description, WIDTH),
        "",
        _entry("--config FILE", "yaml with any of the arguments below; flags after it win over it", 2),
        _entry("--print_config", "show the configuration that the arguments make, with every default, and stop", 2),
        _entry("--output FOLDER", "where to write; by default runs/<names of the yamls>/<number>", 2),
        _entry(
            "--ckpt_path FILE",
            "go on from this checkpoint; last: from the run's last one, or from the start if there is none"
            if verb == "fit"
            else "the checkpoint; class, hyper-parameters and, from config.yaml beside it, the data come with it",
            2,
        ),
        _entry("--seed_everything N", "seed of all randomness [0]", 2),
        "",
        _entry("--model CLASS", "the algorithm, one of these; --model.help=CLASS lists its arguments", 2),
        *_classes("model"),
        "",
        _entry("--data.source CLASS", "where transitions come from; --data.source.help=CLASS lists its arguments", 2),
        *_classes("source"),
        "",
        _entry("--data.priority CLASS", "how much each transition matters; --data.priority.help=CLASS", 2),
        *_classes("priority"),
        "",
        "  --data.…",
        *_arguments(OfflineDataModule, "data", {"source", "priority", "rollouts"}),
        _entry("--data.rollouts null", "train without evaluation"),
        *_arguments(Rollouts, "data.rollouts", set()),
        "",
        "  --trainer.…  (--help=all lists every argument of Lightning's Trainer)",
        *(_entry(f"--trainer.{name}", text) for name, text in TRAINER.items()),
    ]
    return "\n".join(lines)
