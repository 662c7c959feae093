"""`oper run`: a chain of commands from one yaml, each link handing its folder to the next."""

from __future__ import annotations

import json
import os
import shlex
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from oper_lightning.errors import InputError, nearest

HELP = """usage: oper run CHAIN.yaml [--folder FOLDER] [--NAME VALUE ...]

Runs the links of a chain one after another, each as a command of its own that is shown first, and keeps track in
FOLDER/chain.json: the same command again goes on where the last one was stopped, inside a link too.

A chain is a yaml with
  folder   where the links write; every `fit` link to FOLDER/<its name>
  set      names with values; {name} stands for them in the links, --NAME VALUE changes them
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
    done: dict[str, str] = json.loads(ledger.read_text()) if ledger.is_file() else {}
    for name, words in chain["links"].items():
        command = " ".join(["oper", *map(shlex.quote, words)])
        if name in done and done[name] != command:
            raise InputError(
                f"{ledger}: link {name!r} was run as «{done[name]}», now it is «{command}»; "
                f"name another --folder, or delete {folder}"
            )
        if name in done:
            print(f"# {name}: done already", flush=True)
            continue
        print(f"\n$ {command}", flush=True)
        code = subprocess.run([sys.executable, "-m", "oper_lightning", *words], check=False).returncode
        if code:
            print(f"oper: link {name!r} stopped with exit code {code}; the same `oper run` goes on from here")
            return code
        done[name] = command
        _write(ledger, done)
    return 0


def load(path: str, overrides: dict[str, str]) -> dict[str, Any]:
    """Reads a chain and fills in its names: ``folder``, and ``links`` as lists of words.

    Raises:
        InputError: if the file is no chain, or a name in it stands for nothing.
    """
    try:
        chain = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot read this chain: {str(error).splitlines()[0]}") from None
    if not isinstance(chain, dict) or not isinstance(chain.get("links"), dict):
        raise InputError(f"{path}: not a chain; it needs `links:` with a name and a command each")
    values = {key: str(value) for key, value in (chain.get("set") or {}).items()}
    folder = overrides.pop("folder", chain.get("folder") or f"runs/{Path(path).stem}")
    for key, value in overrides.items():
        if key not in values:
            raise InputError(f"{path}: no name {key!r} to set; {nearest(key, ['folder', *values])}")
        values[key] = value
    folder = _filled(folder, values, path)
    values["folder"] = folder
    links = {}
    for name, command in chain["links"].items():
        words = shlex.split(_filled(str(command), values, path))
        if words[0] == "fit":
            words += [f"--output={folder}/{name}", "--ckpt_path=last"]
        links[name] = words
        values[name] = f"{folder}/{name}"
    return {"folder": folder, "links": links}


def _filled(text: str, values: dict[str, str], path: str) -> str:
    for _, field, _, _ in string.Formatter().parse(text):
        if field is not None and field not in values:
            raise InputError(f"{path}: {{{field}}} stands for nothing; {nearest(field, values)}")
    return text.format(**values)


def _overrides(words: list[str]) -> dict[str, str]:
    values = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            raise InputError(f"oper run: {word!r} is no argument; --NAME VALUE sets a name of the chain")
        if not equals:
            value = next(rest, "")
        values[name[2:]] = value
    return values


def _write(path: Path, content: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(content, indent=1))
    os.replace(beside, path)
