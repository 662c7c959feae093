"""Notes about what changed in a training run that goes on."""

from __future__ import annotations

from typing import Any

from oper_lightning.cli.words import flat
from oper_lightning.errors import note


def changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Notes each argument that differs between the configurations ``before`` and ``now`` of a run that goes on."""
    was, is_now = flat(before), flat(now)
    groups = {key.rpartition(".")[0] for key in was}
    for key in sorted(was.keys() | is_now.keys()):
        group = key.rpartition(".")[0]
        cls = f"{group.removesuffix('.init_args')}.class_path"
        if key not in was and group in groups and _last(was.get(cls)) == _last(is_now.get(cls)):
            continue  # the argument is younger than the run, which had its default
        pair = was.get(key), is_now.get(key)
        if key.endswith("class_path"):  # a class may be found in several modules
            pair = _last(pair[0]), _last(pair[1])
        if key.startswith(("model.", "data.", "seed")) and pair[0] != pair[1]:
            note(f"{key} was {_short(was.get(key))} in this run, now it is {_short(is_now.get(key))}")


def _last(name: Any) -> str:
    return str(name).rpartition(".")[2]


def _short(value: Any) -> str:
    return " ".join(str(value).split())[:80]
