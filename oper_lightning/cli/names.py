"""What names in braces stand for in the commands of a chain."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field

from oper_lightning.errors import InputError, first_line, nearest

LONGEST = 100_000  # characters that a name may stand for; a command's words cannot be much longer


@dataclass
class Names:
    """What names in braces stand for."""

    one: dict[str, str] = field(default_factory=dict)
    """within a word"""
    several: dict[str, list[str]] = field(default_factory=dict)
    """where they are a word of their own"""
    items: list[str] = field(default_factory=list)
    """values of the name that repeats links"""
    folders: dict[str, dict[str, str]] = field(default_factory=dict)
    """of the links that were repeated, by value"""

    def at(self, name: str, item: str) -> Names:
        """What they stand for in the repetition for one value."""
        folders = {link: folder[item] for link, folder in self.folders.items()}
        return Names({**self.one, name: item, **folders}, self.several)

    def repeat(self, words: list[str], name: str) -> bool:
        """Whether a command is to be repeated for each value of ``name``."""
        found = {inner for word in words if word[1:-1] not in self.folders for inner in re.findall(r"\{(\w+)\}", word)}
        return bool(found & {name, *self.folders})

    def put_into(self, command: list[str], where: str) -> list[str]:
        """The words of a command."""
        several = {**self.several, **{link: list(folder.values()) for link, folder in self.folders.items()}}
        words = []
        for word in command:
            alone = re.fullmatch(r"\{(\w+)\}", word)
            words += several[word[1:-1]] if alone and alone[1] in several else [filled(word, self.one, where)]
        return words


def split(text: str, where: str) -> list[str]:
    """Words as a shell sees them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"{where}: {first_line(error)}") from None


def filled(text: str, values: dict[str, str], where: str) -> str:
    """``text`` with ``{name}`` replaced; ``{{name}}`` becomes ``{name}``, other braces stay."""

    def value(found: re.Match[str]) -> str:
        if found.group(2):
            return "{" + found.group(2) + "}"
        if found.group(1) not in values:
            raise InputError(f"{where}: {found.group()} stands for nothing; {nearest(found.group(1), values)}")
        return values[found.group(1)]

    whole = re.sub(r"\{(\w+)\}|\{\{(\w+)\}\}", value, text)
    if len(whole) > LONGEST:
        raise InputError(f"{where}: {text[:40]!r} stands for {len(whole):,} characters; {LONGEST:,} are the most")
    return whole
