"""Chains whose links run in rounds, written out as the links of all rounds one after another."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from oper_lightning.errors import InputError, first_line, nearest

MOST = 1000  # rounds
JUDGES = ("validate", "test", "predict", "report", "inspect")  # verbs that have nothing to do without what they name
BEFORE = re.compile(r"(?<!\{)\{\w+\.before\}")
NAME = re.compile(r"(?<!\{)\{(\w+)(?:\.(before|all))?\}(?!\})")


def unrolled(chain: Mapping[str, Any], rounds: str, path: str) -> dict[str, Any]:
    """The links of a chain with rounds, and those behind them, as links without rounds.

    Link ``x`` of round r becomes ``x_r``. In a command of round r ``{x}`` becomes ``{x_r}``; ``{x.before}`` the link of
    the round before: in round 0 a word with it is left out, and so is a link that judges; ``{x.all}`` all rounds of the
    link so far, with commas, or as several words if it is a word of its own; ``{round}`` the number r. In the links of
    ``after`` ``{x}`` is the last round's. Words that ``first`` has for a link stand at the end of its command in
    round 0.

    Args:
        chain: with ``links`` and, perhaps, ``first`` and ``after``.
        rounds: their number, as text.
        path: the file, for messages.

    Raises:
        InputError: if there is no such number of rounds, or a link is missing.
    """
    if not re.fullmatch(r"\d{1,6}", rounds) or not 1 <= int(rounds) <= MOST:
        raise InputError(f"{path}: `rounds:` is {rounds!r:.40}; a whole number from 1 to {MOST:,} is needed")
    after, first = chain.get("after") or {}, chain.get("first") or {}
    for entry, commands, what in (("after", after, "a command"), ("first", first, "words")):
        if not isinstance(commands, dict):
            raise InputError(f"{path}: `{entry}:` needs links: names with {what} each")
    if odd := next((name for name, words in first.items() if not isinstance(words, str)), None):
        raise InputError(f"{path}: `first:` has {first[odd]!r:.60} for {odd!r}; words are needed, as one text")
    repeated = [str(name) for name in chain["links"]]
    if unknown := {str(name) for name in first} - {*repeated}:
        raise InputError(f"{path}: `first:` has words for {min(unknown)!r}; {nearest(min(unknown), repeated)}")
    if both := {*repeated} & {str(name) for name in after}:
        raise InputError(f"{path}: link {min(both)!r} is there twice, in `links:` and in `after:`; rename one")
    links: dict[str, Any] = {}
    for number in range(int(rounds)):
        done: dict[str, int] = dict.fromkeys(repeated, number)  # rounds of each link that lie behind
        for name, command in chain["links"].items():
            if number == 0 and isinstance(command, str) and (more := first.get(name)):
                command = f"{command} {more}"
            where = f"{path}: link {str(name)!r}"
            done[str(name)] += 1
            filled = _of_round(command, number, done | {str(name): number}, where)
            if filled is not None or command is None:  # whoever reads links says what is wrong with it
                links[f"{name}_{number}"] = filled
    for name, command in after.items():
        if str(name) in links:
            raise InputError(f"{path}: link {str(name)!r} of `after:` is called as one of the rounds is; rename it")
        links[str(name)] = _of_round(command, int(rounds), dict.fromkeys(repeated, int(rounds)), f"{path}: {name}")
    return links


def _of_round(command: Any, number: int, done: dict[str, int], where: str) -> Any:
    """A link's command in a round; None if there is nothing to do."""
    if not isinstance(command, str):
        return command  # whoever reads links says what is wrong with it
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"{where}: {first_line(error)}") from None
    found: list[str] = []
    if number == 0 and words[:1] and words[0] in JUDGES and any(BEFORE.search(word) for word in words):
        return None
    for place, word in enumerate(words):
        if number == 0 and BEFORE.search(word):
            option = words[place - 1] if place else ""
            if option.startswith("--") and "=" not in option:
                raise InputError(
                    f"{where}: write {option}={word} as one word: it is left out of the first round as a whole"
                )
            continue
        alone = re.fullmatch(r"\{(\w+)\.all\}", word)
        if alone and alone[1] in done:
            found += [_link(alone[1], earlier) for earlier in range(done[alone[1]])]
        else:
            found.append(NAME.sub(lambda name: _named(name, number, done, where), word))
    return shlex.join(found)


def _link(name: str, number: int) -> str:
    """A link of a round, in braces."""
    return f"{{{name}_{number}}}"


def _named(found: re.Match[str], number: int, done: dict[str, int], where: str) -> str:
    """What a name in braces becomes."""
    name, which = found.groups()
    if name not in done:
        if which is not None:
            raise InputError(f"{where}: {found.group()}: no link of the rounds is called {name!r}")
        return str(number) if name == "round" else found.group()
    if which == "all":
        return ",".join(_link(name, earlier) for earlier in range(done[name]))
    if which is None and done[name] == 0:
        raise InputError(f"{where}: {found.group()} has not run yet; links name those above them, or {{{name}.before}}")
    return _link(name, number - 1 if which == "before" else done[name] - 1)
