"""Help that fits on a screen, made of the docstrings; Lightning's own lists five hundred lines."""

from __future__ import annotations

import textwrap

from oper_lightning.cli.outline import PACKAGE, REQUIRED, Outline, class_of, classes, function
from oper_lightning.errors import InputError, nearest

WIDTH = 110
KINDS = {
    "model": "the algorithm, one of these; --model.help=CLASS shows its arguments",
    "source": "where transitions come from; --{}.help=CLASS shows its arguments",
    "priority": "how much each transition matters; --{}.help=CLASS shows its arguments",
    "bonus": "what novelty is worth, added to the rewards that critics see; --{}.help=CLASS shows its arguments",
    "task": "what a step earns and where an episode ends, by formula, for a model that imagines steps; "
    "--{}.help=CLASS shows its arguments",
}
LIGHTNING = {
    "fit": "Train an algorithm on recorded data, or let it gather its own. Leaves last.ckpt, best.ckpt, config.yaml "
    "and TensorBoard events in the run's folder (from OPER-A's stage 1 also weights.safetensors, from an online run "
    "replay, with what it gathered).",
    "validate": "Score a checkpoint in the environment.",
    "test": "Score a checkpoint in the environment, on other episode seeds than validate.",
    "predict": "Write what a checkpoint predicts for every transition of a dataset: actions, or values and advantages.",
}
FUNCTIONS = {
    "inspect": PACKAGE / "report" / "inspect.py",
    "report": PACKAGE / "report" / "report.py",
    "convert": PACKAGE / "cli" / "convert.py",
    "collect": PACKAGE / "cli" / "collect.py",
    "video": PACKAGE / "cli" / "video.py",
}
TRAINER = {
    "max_steps": "length of the run in gradient updates",
    "accelerator": "auto takes a GPU where there is one; cpu, cuda",
    "devices": "number of GPUs, or of CPU processes; several work together with --trainer.strategy=ddp",
    "precision": "32-true or bf16-mixed",
    "logger": "another logger in place of TensorBoard, or false for none",
    "log_every_n_steps": "number of gradient updates between two logged losses",
    "fast_dev_run": "true makes one update and writes nothing",
}
WITHOUT_TRAINING = ("accelerator", "devices", "precision")


def _entry(name: str, text: str, indent: int = 4, column: int = 34) -> str:
    head = " " * indent + name
    lines = textwrap.wrap(text.replace("\n", " "), WIDTH - column) or [""]
    first = f"{head:<{column}}{lines[0]}" if len(head) < column else f"{head}\n{' ' * column}{lines[0]}"
    return "\n".join([first, *(" " * column + line for line in lines[1:])])


def _arguments(of: Outline, prefix: str = "", skip: tuple[str, ...] = (), indent: int = 4) -> list[str]:
    lines = []
    for name, (text, default) in of.explained().items():
        if name not in skip:
            known = "must be given" if default is REQUIRED else _as_yaml(default)
            lines.append(_entry(f"--{prefix}{name}", f"{text.rstrip('.')} [{known}]", indent))
    return lines


def _as_yaml(default: str) -> str:
    """A default as one would write it in a yaml."""
    if default.startswith("("):
        return f"[{default[1:-1].rstrip(',')}]"
    return {"None": "null", "True": "true", "False": "false"}.get(default, default.strip("'"))


def _kind(kind: str, flag: str) -> list[str]:
    known = classes(kind).values()
    return [
        _entry(f"--{flag} CLASS", KINDS[kind].format(flag), 2),
        *(_entry(cls.name, cls.summary, indent=8) for cls in known),
        "",
    ]


def class_help(flag: str, name: str) -> str:
    """What a class that can stand at a flag is, and its arguments.

    Raises:
        InputError: if there is no such class.
    """
    known = classes(flag.rsplit(".", 1)[-1])
    if name not in known:
        raise InputError(f"--{flag}: no class {name!r}; {nearest(name, known)}")
    cls = known[name]
    paper = [cls.module_doc, ""] if flag == "model" else []
    return "\n".join([f"--{flag}={name}", "", cls.about, "", *paper, *_arguments(cls, f"{flag}.")])


def verb_help(verb: str) -> str:
    """The help of one verb, with its own arguments only."""
    return _function_help(verb) if verb in FUNCTIONS else _lightning_help(verb)


def _function_help(verb: str) -> str:
    """Help of a verb that calls a function. The first argument of the function needs no flag; its name is a plural if
    it takes several words."""
    called = function(FUNCTIONS[verb], verb)
    first, (text, default) = next(iter(called.explained().items()))
    word = first.rstrip("s").upper()
    several = f"{word} [{word} ...]" if default is REQUIRED else f"[{word} ...]"
    by_name = first == "ckpt_path"  # the word of Lightning's verbs for a checkpoint, which is a flag there too
    words = [f"--{first} VALUE" if by_name else several if first.endswith("s") else word]
    words += [f"[--{name} VALUE]" for name in list(called.arguments)[1:]]
    return "\n".join(
        [
            *textwrap.wrap(f"usage: oper {verb} {' '.join(words)}", WIDTH, subsequent_indent=" " * 10),
            "",
            *textwrap.wrap(" ".join(called.about.split()), WIDTH),
            "",
            _entry(f"--{first}" if by_name else word, text.rstrip("."), 2),
            "",
            *_arguments(called, skip=(first, "source"), indent=2),
            "",
            *(_kind("source", "source") if "source" in called.arguments else []),
        ]
    )


def _lightning_help(verb: str) -> str:
    """Help of fit, validate, test and predict."""
    fit, scores = verb == "fit", verb != "predict"
    data, online = classes("data")["OfflineDataModule"], classes("data")["OnlineDataModule"]
    upsample = class_of(PACKAGE / "data" / "mixture.py", "Upsample")
    rollouts = class_of(PACKAGE / "envs" / "rollouts.py", "Rollouts")
    output = "folder to write to; by default runs/<names of the yamls>/<number>" if fit else "folder for the result"
    start = (
        "go on from this checkpoint, or from the last.ckpt of a run's folder; last: from that of --output, or from "
        "the start if there is none"
        if fit
        else "a checkpoint, or a run's folder: its best.ckpt, or last.ckpt where there is no best. It brings class and "
        "hyper-parameters; config.yaml beside it brings the data"
    )
    first = "[--config FILE] [--model CLASS] [--ckpt_path PATH]" if fit else "--ckpt_path PATH [--config FILE]"
    begin = (
        "begin with what another run has learnt: class and hyper-parameters, networks, targets, optimisers and bonus "
        "of this checkpoint, or of the last.ckpt of a run's folder; counters begin at 0, and the data may be others"
    )
    usage = f"usage: oper {verb} {first} [--output FOLDER] [--data.… VALUE] [--trainer.… VALUE]"
    lines = [
        *textwrap.wrap(usage, WIDTH, subsequent_indent=" " * 10, break_on_hyphens=False),
        "",
        *textwrap.wrap(LIGHTNING[verb], WIDTH),
        "",
        *([] if fit else [_entry("--ckpt_path PATH", start, 2)]),
        _entry("--config FILE", "yaml with any of the arguments below; flags that stand after it win over it", 2),
        _entry("--print_config", "show the configuration that the arguments make, with every default, and stop", 2),
        _entry("--output FOLDER", output if fit else f"{output}; by default the checkpoint's folder", 2),
        *([_entry("--ckpt_path PATH", start, 2), _entry("--start PATH", begin, 2)] if fit else []),
        _entry("--seed_everything N", "seed of all randomness [0]", 2),
        "",
        *([*_kind("model", "model"), *_kind("task", "model.task")] if fit else []),
    ]
    if fit:
        for kind in ("source", "priority", "bonus"):
            lines += _kind(kind, f"data.{kind}")
        lines += ["  --data.…", *_arguments(data, "data.", skip=(*KINDS, "rollouts", "upsample"))]
        lines += _arguments(upsample, "data.upsample.")
        lines += [_entry("--data.rollouts null", "train without evaluation")]
    else:
        other = "another dataset than the run's, with observations and actions of the same shapes"
        lines += ["  --data.…", _entry("--data.source CLASS", f"{other}; --data.source.help=CLASS says more")]
        lines += _arguments(data, "data.", skip=tuple(name for name in data.arguments if name != "location"))
    if scores:
        lines += _arguments(rollouts, "data.rollouts.")
    if fit:
        gathers = "the policy gathers transitions in an environment, beside recorded ones or alone; it takes also"
        lines += ["", _entry("--data OnlineDataModule", gathers, 2)]
        lines += _arguments(online, "data.", skip=tuple(name for name in data.arguments if name != "offline_share"))
    lines += ["", "  --trainer.…  (--help=all lists every argument of Lightning's Trainer)"]
    lines += [_entry(f"--trainer.{name}", text) for name, text in TRAINER.items() if fit or name in WITHOUT_TRAINING]
    return "\n".join(lines)
