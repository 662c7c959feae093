"""Notes about what changed in a training run that goes on."""

from __future__ import annotations

from typing import Any

from oper_lightning.cli.words import flat
from oper_lightning.errors import note


def changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Notes each argument that differs between the configurations ``before`` and ``now`` of a run that goes on."""
    was, is_now = flat(before), flat(now)
    for key in sorted(was.keys() | is_now.keys()):
        pair = was.get(key), is_now.get(key)
        if key.endswith("class_path"):  # a class may be found in several modules
            pair = str(pair[0]).rpartition(".")[2], str(pair[1]).rpartition(".")[2]
        if key.startswith(("model.", "data.", "seed")) and pair[0] != pair[1]:
            note(f"{key} was {_short(was.get(key))} in this run, now it is {_short(is_now.get(key))}")


def _short(value: Any) -> str:
    return " ".join(str(value).split())[:80]
