"""Writes docs/reference.md from the docstrings: python docs/make_reference.py"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import oper_lightning
from oper_lightning.cli.help import TRAINER, parameters
from oper_lightning.cli.messages import known_types
from oper_lightning.data.datamodule import OfflineDataModule
from oper_lightning.envs.rollouts import Rollouts

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Configuration reference

*Made from the docstrings by [make_reference.py](make_reference.py); change those, then run the script again.*

Every argument below can stand in a yaml or on the command line, and a flag wins over a yaml that stands before it:

```yaml
# mine.yaml
model:
  class_path: TD3BC
  init_args:
    alpha: 5.0
data:
  source:
    class_path: D4RL
    init_args:
      path: hopper-replay.hdf5
  batch_size: 128
trainer:
  max_steps: 100000
```

```sh
oper fit --config mine.yaml --model.alpha=10 --data.batch_size=256
oper fit --config mine.yaml --print_config
```

`oper fit --help` shows most of this page, `oper fit --model.help=IQL` the arguments of one class. `null` is none,
lists are written `[256,256]`, and a misspelt name is answered with the nearest right one. A default of *required* means
that the argument must be given.

| beside them | |
|---|---|
| `--config FILE` | a yaml; several are laid over each other in order |
| `--output FOLDER` | where the run writes; by default `runs/<names of the yamls>/<number>` |
| `--ckpt_path` | `fit`: the checkpoint to go on from, or `last`; elsewhere the one to judge; [resuming](resuming.md) |
| `--seed_everything N` | the seed of all randomness, 0 by default |
| `--print_config` | shows the whole configuration and stops |
"""
KINDS = {"model": "Algorithms", "source": "Sources", "priority": "Priorities"}
FLAGS = {"model": "model", "source": "data.source", "priority": "data.priority"}


def load_all() -> None:
    """Imports whatever holds classes that can be named."""
    for module in pkgutil.walk_packages(oper_lightning.__path__, "oper_lightning."):
        if module.name.split(".")[1] in ("algorithms", "data", "priorities"):
            importlib.import_module(module.name)


def plain(text: str) -> str:
    """A docstring's text as Markdown on one line."""
    return re.sub(r"\s+", " ", re.sub(r"``?([^`]+)``?", r"`\1`", text)).replace("|", "\\|").strip()


def table(cls: type, prefix: str, skip: frozenset[str] = frozenset()) -> list[str]:
    """The arguments of a class."""
    rows = [(name, *entry) for name, entry in parameters(cls).items() if name not in skip]
    if not rows:
        return ["It has no arguments."]
    return ["| argument | default | |", "|---|---|---|"] + [
        f"| `--{prefix}.{name}` | {shown(value)} | {plain(text)} |" for name, text, value in rows
    ]


def shown(value: Any) -> str:
    """A default as a yaml has it."""
    if value is inspect.Parameter.empty:
        return "*required*"
    known = {"None": "null", "True": "true", "False": "false"}.get(str(value), value)
    return f"`{list(known) if isinstance(known, tuple) else known}`"


def about(cls: type) -> str:
    """What a class's docstring says before its arguments."""
    return plain((inspect.getdoc(cls) or "").split("Args:")[0])


def page() -> str:
    """The whole page."""
    load_all()
    parts = [HEAD]
    for kind, title in KINDS.items():
        parts.append(f"## {title}: `--{FLAGS[kind]}`\n")
        for name, cls in sorted(known_types(kind).items()):
            parts += [f"### {name}\n", f"{about(cls)}\n", *table(cls, FLAGS[kind]), ""]
    parts += [
        "## Data: `--data`\n",
        *table(OfflineDataModule, "data", frozenset({"source", "priority", "rollouts"})),
        "",
    ]
    parts += ["## Evaluation: `--data.rollouts`\n", f"{about(Rollouts)} `--data.rollouts=null` trains without.\n"]
    parts += [*table(Rollouts, "data.rollouts"), ""]
    parts += ["## Trainer: `--trainer`\n"]
    parts += ["Those of Lightning's Trainer that one needs; [all others](lightning.md) work as well.\n"]
    parts += [
        "| argument | |",
        "|---|---|",
        *(f"| `--trainer.{name}` | {plain(text)} |" for name, text in TRAINER.items()),
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
