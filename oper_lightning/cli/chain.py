"""`oper run`: a chain of commands from one yaml, each link handing its folder to the next."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from oper_lightning.errors import InputError, Stopped, first_line, nearest
from oper_lightning.files import whole

HELP = """usage: oper run CHAIN.yaml [--folder FOLDER] [--NAME VALUE ...]

Runs the links of a chain one after another, each as a command of its own that is shown first, and keeps track in
FOLDER/chain.json: the same command again goes on where the last one was stopped, inside a link too.

A chain is a yaml with
  folder   where the links write; every `fit` link to FOLDER/<its name>
  set      names with values; {name} stands for them in the links, for several words where it stands alone, {{name}}
           for itself in braces; --NAME VALUE changes them
  links    name: command, without `oper`; {name of an earlier link} stands for that link's folder
"""


def run(args: list[str]) -> int:
    """Runs a chain; returns the exit code."""
    if not args or {"-h", "--help"} & {*args}:
        print(HELP)
        return 0
    chain = load(args[0], _overrides(args[1:]))
    folder = Path(chain["folder"])
    ledger = folder / "chain.json"
    links = _read(ledger)
    for name, words in chain["links"].items():
        command = " ".join(["oper", *map(shlex.quote, words)])
        begun = links.get(name)
        # A link that left nothing may be mended; what it left must not become part of something else.
        if begun and begun["command"] != command and (begun["done"] or (folder / name / "last.ckpt").is_file()):
            raise InputError(
                f"{ledger}: link {name!r} was another command ({_difference(begun['command'], command)}); "
                f"name another --folder, or delete {folder / name} and what came after it"
            )
        if begun and begun["done"]:
            print(f"# {name}: done already", flush=True)
            continue
        links[name] = {"command": command, "done": False}
        _write(ledger, links)
        print(f"\n$ {command}", flush=True)
        try:
            code = subprocess.run([sys.executable, "-m", "oper_lightning", *words], check=False).returncode
        except KeyboardInterrupt:
            raise Stopped(130, f" at link {name!r}; the same `oper run` goes on from here") from None
        if code:
            print(f"oper: link {name!r} stopped with exit code {code}; the same `oper run` goes on from here")
            return code
        links[name]["done"] = True
        _write(ledger, links)
    return 0


def load(path: str, overrides: dict[str, str]) -> dict[str, Any]:
    """Reads a chain and fills in its names: ``folder``, and ``links`` as lists of words.

    Raises:
        InputError: if the file is no chain, or a name in it stands for nothing.
    """
    try:
        chain = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot read this chain: {first_line(error)}") from None
    if not isinstance(chain, dict) or not isinstance(chain.get("links"), dict):
        raise InputError(f"{path}: not a chain; it needs `links:` with a name and a command each")
    given = chain.get("set") or {}
    if not isinstance(given, dict):
        raise InputError(f"{path}: `set:` needs names with values")
    values = {str(key): str(value) for key, value in given.items()}
    folder = overrides.pop("folder", str(chain.get("folder") or f"runs/{Path(path).stem}"))
    for key, value in overrides.items():
        if key not in values:
            raise InputError(f"{path}: no name {key!r} to set; {nearest(key, ['folder', *values])}")
        values[key] = value
    folder = _filled(folder, values, path)
    values["folder"] = folder
    links = {}
    for name, command in chain["links"].items():
        where = f"{path}: link {name!r}"
        words = []
        for word in _split(str(command or ""), where):
            alone = re.fullmatch(r"\{(\w+)\}", word)
            several = alone and alone.group(1) in given
            words += _split(values[word[1:-1]], where) if several else [_filled(word, values, where)]
        if not words:
            raise InputError(f"{path}: link {name!r} has no command")
        if words[0] == "fit":
            words += [f"--output={folder}/{name}", "--ckpt_path=last"]
        links[str(name)] = words
        values[str(name)] = f"{folder}/{name}"
    return {"folder": folder, "links": links}


def _split(text: str, where: str) -> list[str]:
    """Words as a shell sees them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"{where}: {first_line(error)}") from None


def _filled(text: str, values: dict[str, str], where: str) -> str:
    """``text`` with ``{name}`` replaced; ``{{name}}`` becomes ``{name}``, other braces stay."""

    def value(found: re.Match[str]) -> str:
        if found.group(2):
            return "{" + found.group(2) + "}"
        if found.group(1) not in values:
            raise InputError(f"{where}: {found.group()} stands for nothing; {nearest(found.group(1), values)}")
        return values[found.group(1)]

    return re.sub(r"\{(\w+)\}|\{\{(\w+)\}\}", value, text)


def _difference(before: str, after: str) -> str:
    """The words in which two commands differ."""
    old, new = shlex.split(before), shlex.split(after)
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
    try:
        return dict(json.loads(ledger.read_text())) if ledger.exists() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{ledger}: cannot read it ({first_line(error)})") from None


def _write(ledger: Path, links: dict[str, Any]) -> None:
    with whole(ledger) as file:
        file.write(json.dumps(links, indent=1).encode())
