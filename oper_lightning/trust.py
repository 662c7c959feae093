"""Which classes a checkpoint, and the config.yaml beside it, may name: sources, priorities, tasks and algorithms that
are imported.

Such files may come from anybody. A class that they name is looked up among the imported classes of its kind; nothing is
imported for the look-up. A person's own class is imported because the command line, or a yaml that it names, names it.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any

from oper_lightning import algorithms, priorities, renamed
from oper_lightning.algorithms.stage import Stage, class_path
from oper_lightning.data import bonuses, online, sources
from oper_lightning.data.bonuses.bonus import Bonus
from oper_lightning.data.datamodule import OfflineDataModule
from oper_lightning.data.sources.source import Source
from oper_lightning.envs import tasks
from oper_lightning.errors import InputError
from oper_lightning.priorities.priority import Priority
from oper_lightning.spec import Task

KINDS: dict[str, type] = {
    "model": Stage,
    "source": Source,
    "priority": Priority,
    "bonus": Bonus,
    "task": Task,
}
"""what can stand at a key of a configuration"""
ALL: dict[str, type] = {**KINDS, "data": OfflineDataModule, "sources": Source}


def kind_at(key: str) -> type | None:
    """The kind of class that belongs at a dotted key; None where none does."""
    return ALL.get(key.rpartition(".")[2])


def load_all() -> None:
    """Imports all files of the package that hold classes of these kinds, so that their short names are known."""
    assert issubclass(online.OnlineDataModule, OfflineDataModule)
    assert issubclass(tasks.HalfCheetah, Task)
    for package in (algorithms, sources, priorities, bonuses):
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")


def descendants(cls: type) -> list[type]:
    """All classes that exist below a class."""
    found: list[type] = []
    children: list[type] = cls.__subclasses__()
    for child in children:
        found += [child, *descendants(child)]
    return found


def existing(name: Any, kind: type | None) -> type | None:
    """The class of a kind by its name: a short name, or a dotted one from any package that holds its module."""
    for cls in [kind, *descendants(kind)] if kind is not None else []:
        package, _, short = str(name).rpartition(".")
        if short == cls.__qualname__ and f"{cls.__module__}.".startswith(f"{package}." if package else ""):
            return cls
    return None


def reaches(name: str, value: Any) -> str:
    """Why an argument would reach beyond the files that a configuration names; empty if it does not."""
    if name == "environment" and ":" in str(value):
        return "whose module would be imported"
    if name == "allow_external" and value not in (None, False):
        return "which lets the data's columns lie in any file"
    return ""


def trusted(tree: Any, origin: object, key: str = "") -> Any:
    """Part of a configuration as a file holds it, its classes under names by which they are found.

    Args:
        tree: the part.
        origin: the file.
        key: where the part stands in it.

    Raises:
        InputError: if it names anything but an existing class of the kind that belongs at its key, or an argument
            that reaches beyond the files that the configuration names.
    """
    if isinstance(tree, list | tuple):
        return [trusted(entry, origin, key) for entry in tree]
    kind = kind_at(key)
    if isinstance(tree, str) and kind is not None:
        tree = {"class_path": tree}
    if not isinstance(tree, dict):
        return tree
    tree = {str(name): entry for name, entry in tree.items()}
    if "class_path" in tree:
        name = renamed.class_path(tree["class_path"])
        cls = existing(name, kind) if isinstance(name, str) else None
        if cls is None:
            remedy = "no class belongs there"
            if kind is not None:
                remedy = f"if you trust it, name it on the command line: --{key}={name}"
            raise InputError(f"{origin}: {key} names {name!r}, no class that is known here; {remedy}")
        package, _, short = name.rpartition(".")
        at_hand = getattr(sys.modules.get(package), short, None) is cls
        tree["class_path"] = name if at_hand else class_path(cls)
    known = {}
    for name, entry in tree.items():
        at = key if name == "init_args" else f"{key}.{name}".strip(".")
        if reason := reaches(name, entry):
            listed, _, _ = at.partition(".sources.")  # what is in a list has no flag of its own
            how = f"--{at}={entry}" if listed == at else f"give --{listed} as a whole, or a yaml"
            raise InputError(
                f"{origin}: {at} is {entry!r:.60}, {reason}; if you trust it, name it on the command line: {how}"
            )
        known[name] = entry if name == "class_path" else trusted(entry, origin, at)
    return known
