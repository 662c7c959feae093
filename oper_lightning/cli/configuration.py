"""What a command takes from files: the yamls that it names, and what lies beside a checkpoint that it names."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import yaml

from oper_lightning import renamed
from oper_lightning.cli.messages import unwrap
from oper_lightning.cli.words import FLAGS, value_of, values_of
from oper_lightning.envs.rollouts import Rollouts
from oper_lightning.errors import InputError, nearest, note
from oper_lightning.files import place, read_yaml
from oper_lightning.trust import KINDS, existing, kind_at, reaches, trusted

# Flags that name a class, by the kind of the class.
CLASS_FLAGS = {"model": "--model", **{kind: f"--data.{kind}" for kind in ("source", "priority", "bonus")}}
TASK_FLAGS = "--model.task", "--data.source.task"


def read_mapping(path: str | Path) -> dict[str, Any]:
    """A configuration file, old names translated.

    Raises:
        InputError: if it cannot be read, or is no mapping.
    """
    tree = read_yaml(path)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a configuration has names with values, such as `model: BC`; this is {tree!r:.60}")
    return renamed.config({str(key): value for key, value in tree.items()})


def inline(flag: str, value: Any) -> str:
    """A value as a word of the command line, on one line of yaml."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return f"{flag}={text.removesuffix('...' + chr(10)).strip()}"


def import_named(words: list[str], yamls: dict[str, dict[str, Any]]) -> None:
    """Imports the classes of a person's own that the command line and its yamls name, so that files may name them too.

    Names of which nothing can be imported are the parser's to explain.
    """
    trees: list[Any] = list(yamls.values())
    for key, flag in [*CLASS_FLAGS.items(), *(("task", flag) for flag in TASK_FLAGS)]:
        for value in values_of(words, flag):
            with contextlib.suppress(yaml.YAMLError):
                trees.append({key: yaml.safe_load(value)})
    for name in _classes(trees):
        module, _, _ = name.rpartition(".")
        if Path(name).is_file():
            continue  # a yaml that holds the class's arguments
        with contextlib.suppress(Exception):  # whatever the module does when it is imported
            importlib.import_module(module)


def _classes(tree: Any, key: str = "") -> list[str]:
    """Dotted names of classes anywhere in a tree."""
    if isinstance(tree, list):
        return [name for entry in tree for name in _classes(entry, key)]
    if isinstance(tree, dict):
        return [name for key, entry in tree.items() for name in _classes(entry, str(key))]
    return [tree] if isinstance(tree, str) and "." in tree and key in ("class_path", *KINDS) else []


def checkpoint_words(path: Path, checkpoint: dict[str, Any], earlier: dict[str, Any], words: list[str]) -> list[str]:
    """What a checkpoint and its run's configuration say, as words to stand before a person's own, which win over them.

    Of the configuration only model, data and seed are taken: where to write and what Lightning's trainer does is
    today's command to say.

    Args:
        path: the checkpoint.
        checkpoint: what it holds.
        earlier: what the run's config.yaml holds, empty to leave it out.
        words: the person's own.

    Raises:
        InputError: if one of them names a class that is not known.
    """
    origin = path.with_name("config.yaml")
    made = trusted({"class_path": checkpoint["class_path"], "init_args": checkpoint["hyper_parameters"]}, path, "model")
    model = earlier.get("model")
    if isinstance(model, dict) and existing(model.get("class_path"), KINDS["model"]) is existing(
        made["class_path"], KINDS["model"]
    ):
        # Arguments that are no hyper-parameters, such as `compile`.
        made["init_args"] = {**_mapping(model.get("init_args"), origin, "model"), **made["init_args"]}
    found = [inline("--model", trusted(made, origin, "model"))]
    if earlier.get("data") is not None:
        found.append(inline("--data", _data(earlier["data"], origin, words)))
    if earlier.get("seed_everything") is not None:
        found.append(inline("--seed_everything", earlier["seed_everything"]))
    return found


def _data(tree: Any, origin: Path, words: list[str]) -> dict[str, Any]:
    """The data of a run as its config.yaml has them, without what this command replaces or a file cannot decide."""
    data = dict(_mapping(tree, origin, "data"))
    arguments = dict(_mapping(data.get("init_args"), origin, "data.init_args"))
    arguments.pop("memmap_folder", None)  # what lies there is replaced
    for key in ("source", "priority", "bonus"):
        entry = arguments.get(key)
        name = entry.get("class_path") if isinstance(entry, dict) else entry
        if value_of(words, CLASS_FLAGS[key]) is not None and existing(name, KINDS[key]) is None:
            arguments.pop(key, None)
    _mapping(arguments.get("rollouts"), origin, "data.rollouts")
    arguments = _without_replaced(arguments, ("--data",), words)
    return dict(trusted({**data, "init_args": arguments}, origin, "data"))


def _without_replaced(entry: Any, flags: tuple[str, ...], words: list[str]) -> Any:
    """A part of a configuration without what a file must not say, where the command says it.

    Args:
        entry: the part.
        flags: that of the part, and before it those of the parts around it, which replace it if they are given whole.
        words: the command.
    """
    if isinstance(entry, list):
        return [_without_replaced(one, flags, words) for one in entry]
    if not isinstance(entry, dict):
        return entry
    kept = {}
    around = [flag for flag in flags[:-1] if (value_of(words, flag) or "").lstrip().startswith("{")]
    for name, value in entry.items():
        own = (f"{flags[-1]}.{name}", f"{flags[-1]}.init_args.{name}")
        if not (reaches(name, value) and value_of(words, *own, flags[-1], *around) is not None):
            kept[name] = _without_replaced(value, flags if name == "init_args" else (*flags, own[0]), words)
    return kept


def _mapping(value: Any, origin: object, key: str) -> dict[str, Any]:
    if not isinstance(value, dict | None):
        raise InputError(f"{origin}: {key} is {value!r:.60}; names with values are needed")
    return value or {}


def checkpoint_file(named: str, verb: str) -> Path:
    """The checkpoint that a word on the command line means: a file, or the folder of a run.

    Args:
        named: the word.
        verb: what it is for: the verb of the command, or start for a run that begins with it.

    Raises:
        InputError: if it is neither; the line names what is there.
    """
    path = place(named)
    if path.is_dir():
        names = ("last.ckpt",) if verb in ("fit", "start") else ("best.ckpt", "last.ckpt")
        for name in names:
            if (path / name).is_file():
                note(f"{named}: {'going on from' if verb == 'fit' else 'taking'} {path / name}")
                return path / name
        raise InputError(f"{named}: no {' or '.join(names)} in this folder; a run of `oper fit` leaves them")
    if not path.is_file():
        where = path.parent.absolute()
        if not where.is_dir():
            raise InputError(f"{named}: no such checkpoint; {where} is no folder")
        there = [child.name for child in where.iterdir() if child.suffix == ".ckpt" or child.is_dir()]
        hint = nearest(path.name, there) if there else "it holds no checkpoint"
        raise InputError(f"{named}: no such checkpoint in {where}; {hint}")
    return path


def possible(trainer: Any, verb: str) -> None:
    """Refuses numbers with which Lightning would train nothing, or divide by zero.

    Args:
        trainer: its arguments.
        verb: of the command.

    Raises:
        InputError: names the argument.
    """
    # Lightning's log_every_n_steps of 0 logs nothing.
    for name, least in (("log_every_n_steps", 0), ("check_val_every_n_epoch", 1)):
        if (value := trainer[name]) is not None and value < least:
            raise InputError(f"trainer.{name} is {value}; at least {least} is needed")
    for name in ("max_steps", "max_epochs"):
        if verb == "fit" and trainer[name] == 0:
            raise InputError(f"trainer.{name} is 0: this run would do no update; give a positive number")


def complete(config: dict[str, Any]) -> None:
    """Refuses seeds out of range, and null where it is no value: the parser lets it pass everywhere.

    Raises:
        InputError: names the argument.
    """
    if type(seed := config.get("seed_everything")) is int and not 0 <= seed < 2**32:
        raise InputError(f"seed_everything is {seed}; from 0 to {2**32 - 1:,} is possible")
    data = (config.get("data") or {}).get("init_args") or {}
    if isinstance(rollouts := data.get("rollouts"), dict):
        _no_nulls(Rollouts, rollouts, "data.rollouts")
    parts = {"model": config.get("model"), "data": config.get("data")}
    parts |= {f"data.{key}": data.get(key) for key in ("source", "priority", "bonus")}
    for key, entry in parts.items():
        if isinstance(entry, dict) and (cls := existing(entry.get("class_path"), kind_at(key))):
            _no_nulls(cls, entry.get("init_args") or {}, key)


def _no_nulls(cls: type, arguments: dict[str, Any], key: str) -> None:
    for name, parameter in parameters_of(cls).items():
        optional = parameter.default is None or any(word in str(parameter.annotation) for word in ("None", "Optional"))
        if name in arguments and arguments[name] is None and not optional:
            raise InputError(f"{key}.{name} is null, but needs a value; leave it out for its default")


def parameters_of(cls: type) -> dict[str, inspect.Parameter]:
    """The parameters of a class, and of the classes above it to which it hands on those that it does not name."""
    own = dict(inspect.signature(cls).parameters)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()) or cls.__mro__[1] is object:
        return own
    return {**parameters_of(cls.__mro__[1]), **own}


def with_origin(message: str, checkpoint: Path | None, words: list[str]) -> str:
    """A message that says from which files the command took what it does not say itself, if from any.

    Args:
        message: what is wrong.
        checkpoint: the checkpoint that the command uses.
        words: the words of the command line.
    """
    yamls = values_of(words, *FLAGS["config"])
    known = [*yamls, *([str(checkpoint), str(checkpoint.with_name("config.yaml"))] if checkpoint else [])]
    # What stands behind the last yaml wins over it.
    last = max((place for place, word in enumerate(words) if word.partition("=")[0] in FLAGS["config"]), default=0)
    said = [word.partition("=")[0].removeprefix("--") for word in words[last:] if word.startswith("--")]
    if not known or any(file in message for file in known) or message.startswith(tuple(said)):
        return message
    files = [*yamls, *([str(checkpoint)] if checkpoint else [])]
    begins = checkpoint is not None and value_of(words, *FLAGS["checkpoint"]) is None  # which brings the model alone
    if checkpoint and not yamls and not begins and (beside := checkpoint.with_name("config.yaml")).is_file():
        files.append(str(beside))
    return f"{message} (what the command does not say comes from {' and '.join(files)})"


def longer(earlier: dict[str, Any], path: Path | None) -> str:
    """A hint for a person who goes on with a run and did not say its length: the length that it had."""
    trainer = earlier.get("trainer")
    steps = trainer.get("max_steps") if isinstance(trainer, dict) else None
    if path is None or not isinstance(steps, int) or steps < 1:
        return ""
    return f" (this run had {steps:,}: --trainer.max_steps={steps}, or --config={path.with_name('config.yaml')})"


def named_yamls(words: list[str]) -> dict[str, dict[str, Any]]:
    """The yamls that the command line names, by their paths."""
    return {path: read_mapping(path) for path in values_of(words, *FLAGS["config"])}


def with_text(words: list[str], yamls: dict[str, dict[str, Any]]) -> list[str]:
    """The words with what the yamls hold in place of their paths."""
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag in FLAGS["config"]:
            path = value if equals else next(rest, "")
            found.append(inline("--config", yamls[path]) if yamls.get(path) else "--config={}")
        else:
            found.append(word)
    return found


def blamed(parser: Any, verb: str, parts: dict[str, list[str]], message: str, yamls: dict[str, Any]) -> str:
    """The parser's objection with the file that it is about, if that file alone gives rise to it.

    Args:
        parser: of all verbs.
        verb: of the command.
        parts: words that came from files, by what to call the file.
        message: the objection.
        yamls: the configurations that the command names, by their paths.
    """
    for origin, words in parts.items():
        try:
            parser.parse_args([verb, *words])
        except InputError as error:
            if unwrap(str(error)) == message:
                return f"{origin}: {message}"
    unknown = re.search(r"no argument '([\w.]+)'", message)
    return next((f"{path}: {message}" for path in yamls if unknown and unknown[1] in yamls[path]), message)
