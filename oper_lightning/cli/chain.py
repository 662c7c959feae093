"""`oper run`: a chain of commands from one yaml, each link handing its folder to the next."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from oper_lightning.cli import VERBS, signals
from oper_lightning.cli.names import Names, filled, split
from oper_lightning.cli.rounds import unrolled
from oper_lightning.cli.words import FLAGS, value_of, values_of, without
from oper_lightning.errors import InputError, Stopped, nearest, note
from oper_lightning.files import existing, place, read_json, read_yaml, whole

LEDGER = "chain.json"
ENTRIES = ("folder", "set", "rounds", "links", "first", "after")
VERSION = "-v0"  # of what a `collect` link writes
ABOVE = "OPER_CHAINS"  # the chains that this one is a link of, at whatever depth

HELP = """usage: oper run CHAIN.yaml [--folder FOLDER] [--NAME VALUE ...]

Runs the commands (links) of a chain one after another, and shows each before it runs. FOLDER/chain.json notes which are
done. If the chain was stopped, the same command goes on from there, inside a link too.

A chain is a yaml with these entries:
  folder   folder of the chain; a `fit` link writes to FOLDER/<name of the link>, a `collect` link without --output to
           FOLDER/<name of the link>-v0
  set      names with values. {name} in a link stands for the value, and for several words if it is a word of its own.
           {{name}} stands for {name} itself. --NAME VALUE changes a value. One value may be a list, such as
           seed: [1, 2, 3] (changed by --seed 1,2,3): links that contain {seed} are repeated, once for each entry
  links    names with commands, without the word `oper`. {name of an earlier link} stands for the folder of that link.
           If that link was repeated: as a word of its own it stands for all its folders (report {policy}); within a
           word, this link is repeated too, with the folder of the same entry (test --ckpt_path={policy}/last.ckpt)
A chain of rounds has three more, of which only the first is needed:
  rounds   how often all links run, one round after another; a number or {name}. {round} counts from 0. {policy.before}
           stands for the folder of link `policy` in the round before. A word with it is left out of round 0, and so is
           a link that only judges: validate, test, predict, report, inspect.
           {policy.all} stands for those of all rounds so far: with commas, or as several words if it is one of its own
  first    links with words that are added to their commands in round 0, where the last of several values counts
  after    links that run once, behind the last round, in which {policy} stands for the last round's folder
"""


def run(args: list[str]) -> int:
    """Runs a chain; returns the exit code."""
    if not args or {"-h", "--help"} & {*args}:
        print(HELP)
        return 0
    chain = load(args[0], _overrides(args[1:]))
    above = os.environ.get(ABOVE, "").split(os.pathsep)
    if (own := str(Path(args[0]).resolve())) in above:
        raise InputError(f"{args[0]}: a link of this chain runs the chain itself, which would never end")
    folder = Path(chain["folder"])
    ledger = folder / LEDGER
    links = _read(ledger)
    _look_for_yamls(args[0], chain["links"])
    for name, words in chain["links"].items():
        command = " ".join(["oper", *map(shlex.quote, words)])
        read = {path: _content(path) for path in values_of(words, *FLAGS["config"])}
        begun: dict[str, Any] = {"command": command, "done": False, "read": read} | links.get(name, {})
        edited = [path for path in read if path in begun["read"] and begun["read"][path] != read[path]]
        changed = ""
        if begun["command"] != command:
            changed = f"link {name!r} was another command ({_difference(begun['command'], command)})"
        elif edited:
            changed = f"{' and '.join(edited)} was edited since link {name!r} read it"
        # A link that left no checkpoint, or whose folder was deleted, may be changed. What it left must not become part
        # of another run, nor what others made of it.
        if changed:
            outdated = [name, *_made_of(name, chain["links"])]
            left = [
                str(at) for link in outdated if (at := _left(chain["links"][link], _done(links, link), link == name))
            ]
            if left:
                raise InputError(f"{ledger}: {changed}; name another --folder, or delete {' and '.join(left)}")
            for link in outdated[1:]:
                links.pop(link, None)
        # A conversion is there whole or not at all: one that this link made is done, if the chain was killed meanwhile.
        output = value_of(words, *FLAGS["output"]) if words[0] == "convert" else None
        there = output is not None and os.path.lexists(place(output))
        if there and begun.get("absent") and not begun["done"] and not changed:
            links[name] = begun = begun | {"done": True}
            _write(ledger, links)
        if begun["done"] and not changed:
            print(f"# {name}: done already", flush=True)
            continue
        if changed and begun["done"]:
            note(f"{changed}: {name} is done again")
        links[name] = {"command": command, "done": False, "read": read, "absent": not there}
        _write(ledger, links)
        print(f"\n$ {command}", flush=True)
        code = _call(name, words, os.pathsep.join([*above, own]))
        if code:
            print(f"oper: link {name!r} stopped with exit code {code}; the same `oper run` goes on from here")
            return code
        links[name]["done"] = True
        _write(ledger, links)
    return 0


def _look_for_yamls(path: str, links: dict[str, list[str]]) -> None:
    """Looks for the yamls of all links, so that none is missed when hours have passed.

    Raises:
        InputError: if one is not there, and no earlier link writes to its folder.
    """
    written: list[Path] = []
    for name, words in links.items():
        for yaml in map(Path, values_of(words, *FLAGS["config"])):
            if not any(yaml.is_relative_to(folder) for folder in written):
                try:
                    existing(yaml, "configuration")
                except InputError as error:
                    raise InputError(f"{path}: link {name!r}: {error}") from None
        if output := value_of(words, *FLAGS["output"]):
            written.append(Path(output))


def _left(words: list[str], done: bool, changed: bool) -> Path | None:
    """What a link left that must not become part of another run; a collection says itself what it was asked for."""
    output = value_of(words, *FLAGS["output"])
    if output is None or words[0] not in ("fit", "collect"):
        return None
    at = Path(output)
    if words[0] == "collect":
        return at if not changed and os.path.lexists(at) else None
    return at if (at / "last.ckpt").is_file() or (done and at.is_dir()) else None


def _done(links: dict[str, dict[str, Any]], name: str) -> bool:
    return bool(links.get(name, {}).get("done"))


def _made_of(name: str, links: dict[str, list[str]]) -> list[str]:
    """Links behind one that name what it writes, or what such a link writes, in their order."""
    written, found, behind = set[str](), [], False
    for link, words in links.items():
        read = without(words, *FLAGS["output"])
        parts = {part for word in read for part in re.findall(r"[^\s,=\[\]{}:'\"]+", word)}
        if link == name or (
            behind and any(part == at or part.startswith(f"{at}/") for part in parts for at in written)
        ):
            behind = True
            found.append(link)
            if (output := value_of(words, *FLAGS["output"])) and words[0] in ("fit", "collect", "convert"):
                written.add(output)
    return found[1:]


def _call(name: str, words: list[str], chains: str) -> int:
    """Runs a link of these nested chains in a process of its own, which ends before this one; gives its exit code."""
    # The link has some seconds for an orderly end, and this process a few more.
    signals.on_stop(lambda: f" at link {name!r}; the same `oper run` goes on from here", grace=8.0)
    environment = {**os.environ, signals.LINK: name, ABOVE: chains}
    process = subprocess.Popen([sys.executable, "-m", "oper_lightning", *words], env=environment)
    try:
        return process.wait()
    except Stopped:
        process.send_signal(signals.told() - 128)
        process.wait()
        raise


def load(path: str, overrides: dict[str, str]) -> dict[str, Any]:
    """Reads a chain and fills in its names: ``folder``, and ``links`` as lists of words.

    Raises:
        InputError: if the file is no chain, or a name in it stands for nothing.
    """
    chain = read_yaml(path)
    if not isinstance(chain, dict) or not isinstance(chain.get("links"), dict) or not chain["links"]:
        raise InputError(f"{path}: not a chain; it needs `links:` with a name and a command each")
    for key in chain:
        if key not in ENTRIES:
            raise InputError(f"{path}: no entry {key!r}; {nearest(str(key), ENTRIES)}")
    if not isinstance(chain.get("folder"), str | None):
        raise InputError(f"{path}: `folder:` is {chain['folder']!r:.60}; the name of a folder is needed")
    if "\\u0000" in json.dumps([chain["links"], chain.get("set"), chain.get("folder")], default=str):
        raise InputError(f"{path}: it holds a zero byte, which no command can")
    given = chain.get("set") or {}
    if not isinstance(given, dict):
        raise InputError(f"{path}: `set:` needs names with values")
    given = {str(key): value for key, value in given.items()}
    for key, value in given.items():
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict | list) for v in value)):
            raise InputError(f"{path}: {key} is {value!r:.60}; a text, a number or a list of them is needed")
    for key in overrides:
        if key not in ("folder", *given):
            raise InputError(f"{path}: no name {key!r} to set; {nearest(key, ['folder', *given])}")
    after = chain.get("after")
    for name in map(str, [*chain["links"], *(after if isinstance(after, dict) else ())]):
        if name in ("folder", *given):
            kind = "the chain's folder" if name == "folder" else "an entry of `set:`"
            raise InputError(f"{path}: {{{name}}} would stand for a link and for {kind}; rename the link")
    lists = [key for key, value in given.items() if isinstance(value, list)]
    if len(lists) > 1:
        raise InputError(f"{path}: {' and '.join(lists)} are lists; one name of `set:` may be")
    names = Names()
    for key, value in given.items():
        text = overrides.get(key)
        if key in lists:
            names.items = [str(item) for item in value] if text is None else [item for item in text.split(",") if item]
            if not names.items:
                raise InputError(f"{path}: {key} has no value")
        else:
            names.one[key] = filled(str(value) if text is None else text, names.one, path)
            names.several[key] = split(names.one[key], f"{path}: {key}")
    repeating = chain["links"]
    if chain.get("rounds") is not None:
        repeating = unrolled(chain, filled(str(chain["rounds"]), names.one, f"{path}: rounds"), path)
    elif entry := next((entry for entry in ("first", "after") if chain.get(entry) is not None), None):
        raise InputError(f"{path}: `{entry}:` is for chains of rounds, and there is no `rounds:`")
    folder = overrides.get("folder", str(chain.get("folder") or f"runs/{Path(path).stem}"))
    names.one["folder"] = folder = filled(folder, names.one, path)
    links = {}
    for name, command in repeating.items():
        where = f"{path}: link {name!r}"
        if not isinstance(command, str | None):
            raise InputError(f"{where} is {command!r:.60}; a command is needed, as one text")
        words = split(command or "", where)
        # A dataset's name ends in a version.
        gathers = words[:1] == ["collect"] and value_of(words, *FLAGS["output"]) is None
        repeated = bool(lists) and names.repeat(words, lists[0])
        for item in names.items if repeated else [""]:
            link = f"{name}_{item}" if repeated else str(name)
            if link in links:
                raise InputError(f"{where}: there is another link {link!r}; rename one")
            if not re.fullmatch(r"\w[\w.,+=-]*", link) or link == LEDGER:
                raise InputError(f"{where}: no folder of the chain can be called {link!r}; use letters, digits, -_.,+=")
            links[link] = (names.at(lists[0], item) if repeated else names).put_into(words, where)
            if not links[link]:
                raise InputError(f"{where} has no command")
            if links[link][0] not in (*VERBS, "--version"):
                raise InputError(f"{where}: no verb {links[link][0]!r}; {nearest(links[link][0], VERBS)}")
            if words[0] == "fit":
                links[link] += [f"--output={folder}/{link}", "--ckpt_path=last"]
            elif gathers:
                links[link] += [f"--output={folder}/{link}{VERSION}"]
        end = VERSION if gathers else ""
        if repeated:
            names.folders[str(name)] = {item: f"{folder}/{name}_{item}{end}" for item in names.items}
        else:
            names.one[str(name)] = f"{folder}/{name}{end}"
    return {"folder": folder, "links": links}


def _difference(before: str, after: str) -> str:
    """The words in which two commands differ."""
    old, new = split(before, LEDGER), split(after, LEDGER)
    gone = [word for word in old if word not in new]
    come = [word for word in new if word not in old]
    return f"{' '.join(gone) or 'nothing'} became {' '.join(come) or 'nothing'}"


def _overrides(words: list[str]) -> dict[str, str]:
    values = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            raise InputError(f"oper run: {word!r} is no argument; --NAME VALUE sets a name of the chain")
        values[name[2:]] = value if equals else next(rest, "")
    return values


def _read(ledger: Path) -> dict[str, dict[str, Any]]:
    """What was done, by link: its command, whether it is done, and what the yamls that it names held."""
    if not ledger.exists():
        return {}
    links = read_json(ledger)
    kinds = {"command": str, "done": bool}
    whole_entries = isinstance(links, dict) and all(
        isinstance(entry, dict)
        and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())
        and isinstance(entry.get("read", {}), dict)
        for entry in links.values()
    )
    if not whole_entries:
        raise InputError(f"{ledger}: not what `oper run` writes; delete it to begin the chain anew in another --folder")
    return {name: {"read": {}} | entry for name, entry in links.items()}


def _content(path: str) -> str:
    """A hash of what a yaml says, its comments aside; of nothing, if it cannot be read: its link will say why."""
    try:
        said = json.dumps(read_yaml(path), sort_keys=True, default=str)
    except (InputError, TypeError, ValueError):
        said = ""
    return hashlib.sha256(said.encode()).hexdigest()


def _write(ledger: Path, links: dict[str, Any]) -> None:
    with whole(ledger) as file:
        file.write(json.dumps(links, indent=1).encode())
