"""Writes docs/reference.md from the docstrings: python docs/make_reference.py"""

from __future__ import annotations

import re
from pathlib import Path

from oper_lightning.cli.help import TRAINER
from oper_lightning.cli.outline import PACKAGE, REQUIRED, Outline, class_of, classes

DATA = class_of(PACKAGE / "data" / "datamodule.py", "OfflineDataModule")
ONLINE = class_of(PACKAGE / "data" / "online.py", "OnlineDataModule")
ROLLOUTS = class_of(PACKAGE / "envs" / "rollouts.py", "Rollouts")
UPSAMPLE = class_of(PACKAGE / "data" / "mixture.py", "Upsample")
REGION = class_of(PACKAGE / "data" / "sources" / "filtered.py", "Region")
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

`oper fit --help` shows most of this page, `oper fit --model.help=IQL` the arguments of one class, `oper convert --help`
those of another verb. `null` is none, lists are written `[256,256]`, and a misspelt name is answered with the nearest
right one. A default of *required* means that the argument must be given.

| beside them | |
|---|---|
| `--config FILE` | a yaml; several are laid over each other in order |
| `--output FOLDER` | where the run writes; by default `runs/<names of the yamls>/<number>` |
| `--ckpt_path` | of a checkpoint or run to go on from (`fit`; or `last`) or to judge; [resuming](resuming.md) |
| `--start` | of a checkpoint or run whose networks and optimisers a new run begins with; [resuming](resuming.md) |
| `--seed_everything N` | the seed of all randomness, 0 by default |
| `--print_config` | shows the whole configuration and stops |
"""
QUOTE = "'"
KINDS = {"model": "Algorithms", "source": "Sources", "priority": "Priorities", "bonus": "Bonuses", "task": "Tasks"}
FLAGS = {"model": "model", "task": "model.task", **{kind: f"data.{kind}" for kind in ("source", "priority", "bonus")}}


def plain(text: str) -> str:
    """A docstring's text as Markdown on one line."""
    named = re.sub(r":\w+:`(?:\w+\.)*(\w+)`", r"`\1`", text)
    return re.sub(r"\s+", " ", re.sub(r"``?([^`]+)``?", r"`\1`", named)).replace("|", "\\|").strip()


def table(of: Outline, prefix: str, skip: tuple[str, ...] = ()) -> list[str]:
    """The arguments of a class; without a prefix they are entries of a dictionary."""
    flag = f"--{prefix}." if prefix else ""
    rows = [(name, *entry) for name, entry in of.explained().items() if name not in skip]
    if not rows:
        return ["It has no arguments."]
    return ["| argument | default | |", "|---|---|---|"] + [
        f"| `{flag}{name}` | {shown(default)} | {plain(text)} |" for name, text, default in rows
    ]


def shown(default: str | None) -> str:
    """A default as a yaml has it."""
    if default is REQUIRED:
        return "*required*"
    if default.startswith("("):
        return f"`[{default[1:-1].rstrip(',')}]`"
    words = {"None": "null", "True": "true", "False": "false"}
    return f"`{words.get(default, default.strip(QUOTE))}`"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for kind, title in KINDS.items():
        parts.append(f"## {title}: `--{FLAGS[kind]}`\n")
        for name, cls in classes(kind).items():
            parts += [f"### {name}\n", f"{plain(cls.about)}\n", *table(cls, FLAGS[kind]), ""]
            if name == "Filtered":
                parts += ["Each of its regions is such a dictionary:\n", *table(REGION, ""), ""]
    parts += ["## Data: `--data`\n", *table(DATA, "data", ("source", "priority", "bonus", "rollouts")), ""]
    parts += ["## Good transitions more often: `--data.upsample`\n", f"{plain(UPSAMPLE.about)}\n"]
    parts += [*table(UPSAMPLE, "data.upsample"), ""]
    parts += ["## Data that grow: `--data=OnlineDataModule`\n", f"{plain(ONLINE.about)} Beside the arguments above:\n"]
    parts += [*table(ONLINE, "data", tuple(DATA.arguments)), ""]
    parts += ["## Evaluation: `--data.rollouts`\n", f"{plain(ROLLOUTS.about)} `--data.rollouts=null` trains without.\n"]
    parts += [*table(ROLLOUTS, "data.rollouts"), ""]
    parts += ["## Trainer: `--trainer`\n"]
    parts += ["Those of Lightning's Trainer that one needs; [the others](lightning.md) have a page of their own.\n"]
    parts += ["| argument | |", "|---|---|"]
    parts += [f"| `--trainer.{name}` | {plain(text)} |" for name, text in TRAINER.items()]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
