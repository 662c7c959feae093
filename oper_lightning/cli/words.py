"""Reads words of a command line, and leaves of a configuration, before the parser sees them."""

from __future__ import annotations

from enum import Enum
from typing import Any


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by their dotted names."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


# Flags that decide where a run reads and writes, and so are read before the parser sees them.
FLAGS = {"output": ("--output",), "config": ("--config", "-c"), "checkpoint": ("--ckpt_path",), "start": ("--start",)}


def values_of(words: list[str], *flags: str) -> list[str]:
    """All values given to a flag as ``--flag=value`` or ``--flag value``."""
    found = []
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in flags:
            found += [value] if equals else words[place + 1 : place + 2]
    return found


def value_of(words: list[str], *flags: str) -> str | None:
    """The last value given to a flag; None if there is none."""
    return next(reversed(values_of(words, *flags)), None)


def bare(words: list[str]) -> str | None:
    """The first flag with a dotted name, such as --model.task, that no value follows."""
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--") and "." in word and "=" not in word and following.startswith("--"):
            return word
    return None


def without(words: list[str], *flags: str) -> list[str]:
    """The words without a flag and its value."""
    kept: list[str] = []
    skip = False
    for word in words:
        name, equals, _ = word.partition("=")
        if skip:
            skip = False
        elif name in flags:
            skip = not equals
        else:
            kept.append(word)
    return kept


def listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def plain(value: Any) -> Any:
    """A configuration's entry with names in place of enumerations, which yaml cannot write: Timer's default is one."""
    from jsonargparse import Namespace

    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, Namespace):
        for key, one in vars(value).items():
            setattr(value, key, plain(one))
    return value
