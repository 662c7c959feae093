"""Finds slips on a command line before Lightning and torch are imported, which takes seconds.

Only what is certainly wrong is refused here. The parser judges everything else.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from oper_lightning.cli.help import FUNCTIONS, LIGHTNING
from oper_lightning.cli.outline import PACKAGE, class_of, classes, function
from oper_lightning.cli.words import FLAGS, value_of, values_of
from oper_lightning.errors import InputError, nearest
from oper_lightning.files import existing

TOP = (
    "help",
    "h",
    "config",
    "c",
    "print_config",
    "seed_everything",
    "model",
    "data",
    "trainer",
    "output",
    "ckpt_path",
    "start",
)
ENTRIES = ("help", "class_path", "init_args", "dict_kwargs")  # what jsonargparse takes for any class
LONGEST = 4000  # digits of a number; Python reads 4,300


def readable(words: list[str]) -> None:
    """Refuses words that are no text, and numbers that Python does not read.

    Raises:
        InputError: at the first of them.
    """
    for word in words:
        if word != word.encode(errors="replace").decode():
            raise InputError(f"{word[:80]!a} is not UTF-8")
        if re.search(rf"\d{{{LONGEST}}}", word):
            raise InputError(f"{word.partition('=')[0][:80]!r} has a number of more than {LONGEST:,} digits")


def check(verb: str, words: list[str]) -> None:
    """Looks at names of flags, names of classes, and whether the files of ``--config`` are there.

    Raises:
        InputError: if one of them cannot be right.
    """
    if verb in FUNCTIONS:
        called = list(function(FUNCTIONS[verb], verb).arguments)
        called = called if called[0] == "ckpt_path" else called[1:]  # any other first argument has no flag
        known: dict[str, Iterable[str]] = {"": ["help", "h", "config", "print_config", *called]}
        kinds = {"source": "source"} if "source" in called else {}
    elif verb in LIGHTNING:
        known = {"": (*TOP, *(["start"] if verb == "fit" else [])), "trainer": _trainer(), **_data(words)}
        kinds = {"model": "model", "model.task": "task", "data": "data"}
        kinds |= {f"data.{kind}": kind for kind in ("source", "priority", "bonus")}
        for file in values_of(words, *FLAGS["config"]):
            existing(file, "configuration")
    else:
        return
    for flag, kind in kinds.items():
        name = value_of(words, f"--{flag}")
        if name is None or not re.fullmatch(r"[A-Za-z]\w*", name) or name in ("null", "None"):
            continue
        if name not in (found := classes(kind)):
            raise InputError(f"{flag}: no class {name!r} of that kind; {nearest(name, found)}")
        known.setdefault(flag, [*ENTRIES, *found[name].arguments])
    for flag in _flags(words):
        _check_flag(flag.split("."), known)


def _data(words: list[str]) -> dict[str, Iterable[str]]:
    """What flags of the data take, by their prefix.

    Raises:
        InputError: if a flag belongs to another class of data than the command has.
    """
    named, modules = value_of(words, "--data"), classes("data")
    if named is not None and named not in modules:
        return {}
    # Which of them it is, a yaml or a checkpoint may say.
    said = named is not None or values_of(words, *FLAGS["config"], *FLAGS["checkpoint"])
    for flag in () if said else _flags(words):
        name = flag.removeprefix("data.")
        if (
            name != flag
            and name in modules["OnlineDataModule"].arguments.keys() - modules["OfflineDataModule"].arguments
        ):
            raise InputError(f"data: {name!r} belongs to another class: give --data=OnlineDataModule too")
    own = modules.values() if named is None else [modules[named]]
    known = {"data": [*ENTRIES, *(name for one in own for name in one.arguments)]}
    for flag, file in (("rollouts", "envs/rollouts.py"), ("upsample", "data/mixture.py")):
        known[f"data.{flag}"] = [*ENTRIES, *class_of(PACKAGE / file, flag.capitalize()).arguments]
    return {**known}


def _flags(words: list[str]) -> Iterator[str]:
    """The flags among the words, without dashes; a word after a flag may be its value."""
    for word in words:
        if found := re.fullmatch(r"--?([A-Za-z][\w.]*)\+?(=.*)?", word, re.DOTALL):
            yield found[1]


def _check_flag(parts: list[str], known: dict[str, Iterable[str]]) -> None:
    """Refuses the first part of a flag that is not among what its prefix takes, where that is known."""
    for count in range(len(parts)):
        prefix = ".".join(parts[:count])
        if prefix not in known:
            continue
        if parts[count] not in (names := list(known[prefix])):
            where = f"{prefix}: " if prefix else ""
            raise InputError(f"{where}no argument {parts[count]!r}; {nearest(parts[count], names)}")


def _trainer() -> list[str]:
    """What Lightning's Trainer takes, read from its file."""
    found = importlib.util.find_spec("lightning")
    places = (found.submodule_search_locations or []) if found else []
    file = Path(next(iter(places), "")) / "pytorch" / "trainer" / "trainer.py"
    return [*ENTRIES, *class_of(file, "Trainer").arguments]
