"""Names that older configurations, checkpoints and commands use, and what is called so today."""

from __future__ import annotations

from typing import Any

CLASSES = {
    "AdvantageWeights": "OperA",
    "oper_lightning.algorithms.advantage.AdvantageWeights": "oper_lightning.algorithms.oper_a.OperA",
}
DATA = {"evaluation": "rollouts", "storage": "location"}


def class_path(name: Any) -> Any:
    """Today's name of a class; anything else comes back as it is."""
    return CLASSES.get(name, name) if isinstance(name, str) else name


def word(argument: str) -> str:
    """One word of a command line: ``--data.evaluation.episodes=5`` becomes ``--data.rollouts.episodes=5``."""
    for old, new in DATA.items():
        if argument == f"--data.{old}" or argument.startswith((f"--data.{old}=", f"--data.{old}.")):
            return f"--data.{new}" + argument.removeprefix(f"--data.{old}")
    flag, equals, value = argument.partition("=")
    return f"{flag}{equals}{class_path(value)}" if flag == "--model" else argument


def config(tree: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it is read from a yaml, whether classes have their arguments beside or under ``init_args``."""
    tree = dict(tree)
    parts: dict[str, dict[str, str]] = {"model": {}, "data": DATA}
    for part, names in parts.items():
        entry = tree.get(part)
        if isinstance(entry, dict):
            entry = {
                names.get(key, key): class_path(value) if key == "class_path" else value for key, value in entry.items()
            }
            if isinstance(entry.get("init_args"), dict):
                entry["init_args"] = {names.get(key, key): value for key, value in entry["init_args"].items()}
            tree[part] = entry
        elif part in tree:
            tree[part] = class_path(entry)
    return tree
