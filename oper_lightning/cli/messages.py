"""Errors of the parser as one line that names the field and the nearest right words.

jsonargparse parses nested classes with nested parsers, and wraps the inner error in outer ones of many lines. Only the
innermost parser knows the right words. So its message travels outwards as ``OPEN keys BETWEEN message CLOSE``, and each
outer parser adds its key.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from oper_lightning.cli.outline import FOLDERS
from oper_lightning.errors import InputError, TrainingError, first_line, nearest
from oper_lightning.trust import ALL, KINDS, descendants

OPEN, BETWEEN, CLOSE = "\x01", "\x02", "\x03"


@contextmanager
def lightnings_objections(prefix: str = "") -> Iterator[None]:
    """Turns what Lightning itself raises, whatever its type, into one line; others' exceptions pass.

    Raises:
        InputError: in place of an exception that was raised by a line of Lightning's.
    """
    try:
        yield
    except (InputError, TrainingError):
        raise
    except Exception as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        if place is None or not place.tb_frame.f_globals["__name__"].startswith("lightning."):
            raise
        raise InputError(f"{prefix}{first_line(error)}") from error


def wrap(message: str, parser: Any) -> str:
    """The message of one parser as a marked line: ``keys``, then what is wrong."""
    inner = re.search(f"{OPEN}([^{BETWEEN}]*){BETWEEN}([^{CLOSE}]*){CLOSE}", message)
    outer = message[: inner.start()] if inner else message
    keys = [key for key in re.findall(r'Parser key "([\w.]+)"', outer) if key != "config"]
    if inner:
        keys += [inner.group(1)] if inner.group(1) else []
        return f"{OPEN}{'.'.join(keys)}{BETWEEN}{inner.group(2)}{CLOSE}"
    keys = [key for place, key in enumerate(keys) if keys[place - 1 : place] != [key]]
    return f"{OPEN}{'.'.join(keys)}{BETWEEN}{explain(message, keys[-1] if keys else '', parser)}{CLOSE}"


def unwrap(marked: str) -> str:
    """The marked line for a person."""
    found = re.search(f"{OPEN}([^{BETWEEN}]*){BETWEEN}([^{CLOSE}]*){CLOSE}", marked)
    if not found:
        return marked
    key, text = found.groups()
    return f"{key}: {text}" if key else text


def explain(message: str, key: str, parser: Any) -> str:
    """What is wrong, in words, with the nearest right ones."""
    if found := re.search(r"Option '(\S+)' is not accepted", message):
        return f"no argument {found.group(1)!r}; {nearest(found.group(1), _arguments(parser))}"
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        name = found.group(1).split("=")[0].lstrip("-")
        return f"no argument {name!r}; {nearest(name, _arguments(parser))}"
    if found := re.search(r"Subcommand '(\w+)' does not accept option '(\S+)'", message):
        verb, name = found.groups()
        return f"no argument {name!r}; {nearest(name, _arguments(parser._subcommands_action.choices[verb]))}"
    if found := re.search(r"arguments are required: (.+)", message):
        names = found.group(1).replace("fit.", "").strip()
        kind = names.rsplit(".", 1)[-1]
        return f"{names} must be given" + (f", one of {', '.join(known_classes(kind))}" if kind in KINDS else "")
    if "is abstract" in message:
        return f"name the class first, one of {', '.join(known_classes(key))}"
    unknown = r"Expected a dot import path string: (\S+)|No module named '(\S+)'"
    unknown += r"|Expected a path but (\S+) either|given class_path '(\S+)'|Not a valid subclass of.* Got value: (\S+)"
    if key in KINDS and (found := re.search(unknown, message)):
        name = next(word for word in found.groups() if word)
        return _not_found(name) or (
            f"no class {name!r} of that kind; {nearest(name.rsplit('.', 1)[-1], known_classes(key))}"
        )
    if found := re.search(r"Unable to load config ['\"](.*)['\"]", message):
        return f"{found.group(1)!r} is no configuration; names with values are needed"
    # A class of another package objected when it was made, such as a logger that is not installed.
    if found := re.search(
        r"Problem with given class_path '((?!oper_lightning)\S+)':\s*(?!Parser key)([^\n]+)", message
    ):
        return f"{found.group(1)}: {found.group(2)}"
    if wanted := _wanted(message):
        return wanted
    if found := re.search(r"File does not exist: '?([^'\n]+)'?", message):
        return f"{found.group(1)}: no such file"
    plain = re.sub(r'Parser key "[^"]*":', "", message)
    lines = [line.strip(" -") for line in plain.splitlines() if line.strip(" -")]
    return "; ".join(lines)[:300]


# What people call Python's types.
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "NoneType": "null",
    "dict": "names with values",
    "list": "a list",
    "Sequence": "a list",
    "Iterable": "a list",
}
TYPE = r"list\[.*?\]+|typing\.Literal\[.*?\]|<class '[\w.]+'>|(?:\w+\.)*(?:Iterable|Sequence|dict)\[.*?\]+"


def _wanted(message: str) -> str | None:
    """Says in words what value is needed, in place of a list of Python's types; None if the message names no types."""
    one = re.search(r"Expected an? (.+?)\. Got value: (.*)", message)
    union = re.search(r"Subtypes: \[(.*)\]\n", message)
    given = re.search(r"Given value: (.*)", message)
    if union and given:
        types, value = union.group(1), given.group(1).strip("'")
    elif one:
        types, value = one.group(1), one.group(2).strip("'")
    else:
        return None
    choices = re.findall(r"'([^'\s<>]+)'", " ".join(re.findall(r"typing\.Literal\[(.*?)\]", message)))
    if value in choices:
        return f"a list is needed: [{value}]"
    names = [name for found in re.findall(TYPE, types) for name in _names(found)]
    if list(dict.fromkeys(names)) and not choices:
        return f"{value!r} is not {_either(names)}"
    if not choices:
        return None
    written = re.findall(r"[\w-]+", value)
    near = [word for part in written for word in difflib.get_close_matches(part, choices, n=1, cutoff=0.8)]
    hint = f"; did you mean {' or '.join(repr(word) for word in dict.fromkeys(near))}?" if near else ""
    return f"{value!r} is none of {', '.join(dict.fromkeys([*names, *choices]))}{hint}"


def _names(found: str) -> list[str]:
    """What a person calls a type; nothing for one that only lists words."""
    if "Literal" in found:
        return []
    if found.startswith("<class"):
        short = found.split("'")[1].rpartition(".")[2]
        return [TYPES.get(short, f"a {short}")]
    return [TYPES.get(found.split("[")[0].rpartition(".")[2], found)]


def _either(names: list[str]) -> str:
    """The names with "or" before the last."""
    *others, last = dict.fromkeys(names)
    return f"{', '.join(others)} or {last}" if others else last


def _not_found(name: str) -> str | None:
    """Why a class in a person's own module cannot be imported; None if the name is no such class."""
    module, _, attribute = name.rpartition(".")
    if not module or module.startswith(("oper_lightning", "torch.")):
        return None
    try:
        if not hasattr(importlib.import_module(module), attribute):
            return f"module {module!r} has no class {attribute!r}"
    except Exception as error:  # whatever the module does when it is imported
        return f"module {module!r} cannot be imported: {first_line(error)}"
    return None


def _arguments(parser: Any) -> list[str]:
    names = {option.lstrip("-") for option in parser._option_string_actions if len(option) > 2}
    return sorted(name for name in names if not name.endswith(("help", "+")))


def known_classes(key: str) -> list[str]:
    """Short names of the classes that can stand at a key (``model``, ``source``, ``priority``, or any of them)."""
    return sorted(known_types(key))


def known_types(key: str) -> dict[str, type]:
    """The classes of :func:`known_classes`, by name."""
    found = {}
    for kind in [key] if key in FOLDERS else KINDS:
        folder = f"oper_lightning.{FOLDERS[kind][0].replace('/', '.')}."
        for cls in (ALL[kind], *descendants(ALL[kind])):
            if cls.__module__.startswith(folder) and not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
                found[cls.__name__] = cls
    return found
