"""What is read as text: config.yaml beside a checkpoint, --config yamls, chains, and words of the command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

from fuzzing.case import ACCEPT, EITHER, NASTY, REFUSE, Kind, Mutation, Told, nested, places, spoil
from fuzzing.hdf5 import QUICK
from fuzzing.tensors import CHECKPOINT, DATA, lay_run

BESIDE = "runs/case/config.yaml"


def aliases(levels: int = 30) -> str:
    """A yaml of a few lines that stands for 10 to the power of ``levels`` entries."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for n in range(1, levels):
        lines.append(f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]")
    return "\n".join(lines) + "\n"


WHOLE: dict[str, tuple[bytes, Told]] = {
    "null": (b"null\n", EITHER),
    "a list": (b"- a\n- b\n", REFUSE),
    "a text": (b"text\n", REFUSE),
    "a number": (b"3\n", REFUSE),
    "not UTF-8": (b"model: \xff\xfe\n", REFUSE),
    "UTF-16": ("model: BC\n".encode("utf-16"), EITHER),
    "control characters": (b"model: \x00\x07\n", REFUSE),
    "a bomb of aliases": (aliases().encode(), REFUSE),
    "an alias of itself": (b"model: &a [*a]\n", REFUSE),
    "a merge of itself": (b"model: &a\n  <<: *a\n", REFUSE),
    "an alias of nothing": (b"model: *gone\n", REFUSE),
    "deep": (nested(50_000, "[", "]").encode(), REFUSE),
    "deep by indentation": (b"".join(b" " * n + b"a:\n" for n in range(3000)), REFUSE),
    "a call": (b"model: !!python/object/apply:os.system ['touch sprung']\n", REFUSE),
    "a name of code": (b"model: !!python/name:trap_module.Trap\n", REFUSE),
    "a module": (b"model: !!python/module:trap_module\n", REFUSE),
    "an unknown tag": (b"model: !nonsense {a: b}\n", REFUSE),
    "binary": (b"model: !!binary /w==\n", REFUSE),
    "two documents": (b"model: BC\n---\nmodel: BC\n", REFUSE),
    "a key that is a list": (b"? [a, b]\n: c\n", REFUSE),
    "a key that is a mapping": (b"? {a: b}\n: c\n", REFUSE),
    "keys that are numbers": (b"1: 2\n3.5: a\nnull: b\n", REFUSE),
    "a date": (b"seed_everything: 2001-01-01\n", REFUSE),
    "a wrong date": (b"seed_everything: 2001-99-99\n", REFUSE),
    "a long number": (b"seed_everything: " + b"9" * 50_000 + b"\n", REFUSE),
    "a large number": (b"seed_everything: 99999999999999999999\n", REFUSE),
    "base sixty": (b"seed_everything: " + b"1:" * 3000 + b"1\n", REFUSE),
    "tabs": (b"model:\n\t- x\n", REFUSE),
    "a long file": (b"# " + b"x" * (30 << 20) + b"\n", EITHER),
    "a long line": (b"model: " + b"x" * (1 << 20) + b"\n", REFUSE),
}

CALLS: list[Any] = [
    [{"class_path": "trap_module.Trap"}],
    {"class_path": "trap_module.Trap"},
    [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": "trap_module.call"}}],
    [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_predict_start": "trap_module.call"}}],
    {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "../outside"}},
    [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "../outside"}}],
    {"class_path": "lightning.pytorch.plugins.io.AsyncCheckpointIO"},
    {"class_path": "lightning.pytorch.profilers.SimpleProfiler", "init_args": {"dirpath": "../outside", "filename": "x"}},
    "trap_module.call",
    "trap_module",
]  # fmt: skip


def _text(data: bytes, told: Told, path: str, lay: Callable[[Random], Any]) -> Mutation:
    def mutate(rng: Random) -> Told:
        lay(rng)
        Path(path).write_bytes(data)
        return told

    return mutate


def _yaml(change: Callable[[dict[str, Any], Random], Told | str | None], path: str, lay: Callable[[Random], Any]) -> Mutation:
    def mutate(rng: Random) -> Told:
        lay(rng)
        content = yaml.safe_load(Path(path).read_text())
        told = change(content, rng)
        Path(path).write_text(yaml.safe_dump(content, sort_keys=False))
        return told if isinstance(told, Told) else EITHER

    return mutate


def _set(key: str, value: Any, told: Told = EITHER) -> Callable[[dict[str, Any], Random], Told]:
    def change(content: dict[str, Any], rng: Random) -> Told:
        *path, last = key.split(".")
        for part in path:
            if not isinstance(content.get(part), dict):
                content[part] = {}
            content = content[part]
        content[last] = rng.choice(value) if isinstance(value, Values) else value
        return told

    return change


class Values(list[Any]):
    """One of these."""


VALUES: dict[str, tuple[str, Any, Told]] = {
    "hidden_sizes=[-8]": ("model.init_args.hidden_sizes", [-8], REFUSE),
    "hidden_sizes=[0]": ("model.init_args.hidden_sizes", [0], REFUSE),
    "hidden_sizes=[]": ("model.init_args.hidden_sizes", [], EITHER),
    "hidden_sizes=[10**12]": ("model.init_args.hidden_sizes", [10**12], REFUSE),
    "learning_rate": ("model.init_args.learning_rate", Values([float("nan"), float("inf"), 0, -1, "fast", None]), REFUSE),
    "max_steps=0": ("trainer.max_steps", 0, REFUSE),
    "max_steps=-5": ("trainer.max_steps", -5, REFUSE),
    "log_every_n_steps=0": ("trainer.log_every_n_steps", 0, REFUSE),
    "batch_size": ("data.init_args.batch_size", Values([0, -1, 10**12, 3.5, None, "many"]), REFUSE),
    "updates_per_epoch": ("data.init_args.updates_per_epoch", Values([0, -1, 3.5, "many"]), REFUSE),
    "rollouts": ("data.init_args.rollouts", Values(NASTY), EITHER),
    "rollouts.episodes": ("data.init_args.rollouts.episodes", Values([0, -1, "many", None, 2.5]), REFUSE),
    "rollouts.environment": ("data.init_args.rollouts.environment", Values(["trap_module:T-v0", "", "a b", 3, [], "../x"]), EITHER),
    "rollouts.seed": ("data.init_args.rollouts.seed", Values([-1, 10**30, "x", None, 1.5]), EITHER),
    "reward_scale": ("data.init_args.reward_scale", Values([0, float("nan"), float("inf"), -1, 1e300, "x"]), EITHER),
    "reward_shift": ("data.init_args.reward_shift", Values([float("nan"), float("inf"), 1e300, "x"]), REFUSE),
    "source": ("data.init_args.source", Values([*NASTY, "Bandit", {"class_path": "torch.nn.Linear"}]), EITHER),
    "source.path": ("data.init_args.source.init_args.path", Values([*NASTY, "/dev/zero", "/dev/stdin", "/proc/self/mem", "."]), EITHER),
    "priority": ("data.init_args.priority", Values([*NASTY, "OperR", "WeightsFile", {"class_path": "OperR", "init_args": {"p_base": -1}}]), EITHER),
    "mode": ("data.init_args.mode", Values(["", "x", None, 3, []]), REFUSE),
    "prioritise": ("data.init_args.prioritise", Values([["x"], "x", [3], {}, []]), EITHER),
    "location": ("data.init_args.location", Values(["", "x", None, 3]), REFUSE),
    "memmap_folder": ("data.init_args.memmap_folder", Values(["/proc/x", "data.hdf5", "\x07", 3, ""]), EITHER),
    "model class": ("model.class_path", Values(["torch.nn.Linear", "os.system", "BCC", "", None, 3, []]), REFUSE),
    "data class": ("data.class_path", Values(["torch.nn.Linear", "os.system", "x.y", "", None, 3]), REFUSE),
    "seed": ("seed_everything", Values([-1, 10**30, "x", 1.5, [], True, False]), EITHER),
    "precision": ("trainer.precision", Values(["16-mixed", "17", 17, "", [], "64-true"]), EITHER),
    "accelerator": ("trainer.accelerator", Values(["tpu", "cuda", "", 3, [], "mps"]), REFUSE),
    "max_time": ("trainer.max_time", Values(["x", "-1:0:0:0", 3, [], {"days": -1}, "00:00:00:00"]), EITHER),
    "ckpt_path": ("ckpt_path", Values(["gone.ckpt", "x", 3, []]), EITHER),
    "output": ("output", Values(["../outside", 3, []]), EITHER),
}  # fmt: skip


def _config(path: str, lay: Callable[[Random], Any], files: bool) -> dict[str, Mutation]:
    """Mutations of a run's configuration; ``files``: it was not named by a person, so it may name no foreign code."""
    calls = [
        _yaml(_set(f"trainer.{key}", Values(CALLS), Told("refuse") if files else EITHER), path, lay)
        for key in ("callbacks", "plugins", "logger", "strategy", "profiler")
    ]
    foreign = [
        _yaml(_set(key, "trap_module.Trap", REFUSE), path, lay)
        for key in ("model.class_path", "data.class_path", "data.init_args.source.class_path", "data.init_args.priority")
    ]
    names = [f"trainer: {key}" for key in ("callbacks", "plugins", "logger", "strategy", "profiler")]
    return {
        "structure: as it was": lambda rng: (lay(rng), ACCEPT)[1],
        **{f"structure: {name}": _text(data, told, path, lay) for name, (data, told) in WHOLE.items()},
        **{f"meaning: anything {n}": _yaml(lambda c, rng: spoil(c, rng), path, lay) for n in range(8)},
        **{f"meaning: of the model {n}": _yaml(lambda c, rng: spoil(c, rng, within=("model",)), path, lay) for n in range(3)},
        **{f"meaning: of the data {n}": _yaml(lambda c, rng: spoil(c, rng, within=("data",)), path, lay) for n in range(5)},
        **{f"meaning: {name}": _yaml(_set(*rest), path, lay) for name, rest in VALUES.items()},
        **{f"meaning: code in {name}": mutation for name, mutation in zip(names, calls, strict=True)},
        **({f"meaning: foreign class {n}": mutation for n, mutation in enumerate(foreign)} if files else {}),
        "structure: one key more": _yaml(_set("model.init_args.nonsense", 1, REFUSE), path, lay),
        "structure: one section more": _yaml(_set("nonsense", {"a": 1}, REFUSE), path, lay),
        "structure: no model": _yaml(lambda c, rng: (c.pop("model"), EITHER)[1], path, lay),
        "structure: no data": _yaml(lambda c, rng: (c.pop("data"), EITHER)[1], path, lay),
        "structure: no trainer": _yaml(lambda c, rng: (c.pop("trainer"), EITHER)[1], path, lay),
    }


def _use_beside(rng: Random) -> str:
    return rng.choice(
        [
            f"fit --ckpt_path={CHECKPOINT} --trainer.max_steps=8",
            f"validate --ckpt_path={CHECKPOINT} --data.rollouts.environment=Pendulum-v1 --data.rollouts.episodes=1",
            f"predict --ckpt_path={CHECKPOINT}",
            "report runs/case --output=out",
            "inspect runs/case --output=out",
        ]
    )


def _only_looked_at(mutations: dict[str, Mutation]) -> dict[str, Mutation]:
    """`report` does not read all of a configuration: what must be refused elsewhere may pass there."""

    def wrap(mutation: Mutation) -> Mutation:
        def mutate(rng: Random) -> Told:
            told = mutation(rng)
            command = told.command or _use_beside(rng)
            looked = command.startswith(("report", "inspect", "predict", "validate")) and told.must != "accept"
            return Told("either" if looked else told.must, told.words, command, told.names)

        return mutate

    return {name: wrap(mutation) for name, mutation in mutations.items()}


def _lay_beside(rng: Random) -> str:
    lay_run(rng)
    return BESIDE


CONFIG = Kind(_lay_beside, ("config.yaml",), _use_beside, _only_looked_at(_config(BESIDE, lay_run, True)))

NAMED = "case.yaml"


def _lay_named(rng: Random) -> str:
    content = yaml.safe_load(Path("runs", rng.choice(["BC", "TD3BC"]), "config.yaml").read_text())
    del content["output"], content["ckpt_path"]
    Path(NAMED).write_text(yaml.safe_dump(content, sort_keys=False))
    return NAMED


# --config: what a person named may name classes of their own; what it gives must still end well.
YAML = Kind(
    _lay_named,
    (NAMED,),
    lambda rng: rng.choice([f"fit --config={NAMED} --output=out", f"fit --model=BC {QUICK} {DATA} --config={NAMED}"]),
    _config(NAMED, _lay_named, False),
    own=True,
)

# Chains --------------------------------------------------------------------------------------------------------------

CHAIN, LEDGER = "case.yaml", "out/chain.json"


def _lay_chain(rng: Random) -> str:
    content = {
        "folder": "out",
        "set": {"seed": 0, "data": "data.hdf5"},
        "links": {"one": "--version", "two": "--version {data} {one} {folder}"},  # commands that cost no time
    }
    Path(CHAIN).write_text(yaml.safe_dump(content, sort_keys=False))
    return CHAIN


def _links(**links: Any) -> Callable[[dict[str, Any], Random], Told]:
    def change(content: dict[str, Any], rng: Random) -> Told:
        content["links"] = {name: link for name, link in links.items()}
        return REFUSE

    return change


def _named_link(name: Any, told: Told) -> Callable[[dict[str, Any], Random], Told]:
    def change(content: dict[str, Any], rng: Random) -> Told:
        content["links"] = {name: "fit --model=BC --nonsense"}
        return told

    return change


CHAINS = Kind(
    _lay_chain,
    (CHAIN, "nonsense"),
    lambda rng: rng.choice([f"run {CHAIN}", f"run {CHAIN} --seed=3"]),
    {
        "structure: as it was": lambda rng: (_lay_chain(rng), ACCEPT)[1],
        **{f"structure: {name}": _text(data, REFUSE, CHAIN, _lay_chain) for name, (data, _) in WHOLE.items() if name != "a long file"},
        **{f"meaning: anything {n}": _yaml(lambda c, rng: spoil(c, rng), CHAIN, _lay_chain) for n in range(4)},
        **{f"meaning: link {name!r}": _yaml(_named_link(name, REFUSE), CHAIN, _lay_chain) for name in ("../outside", "/tmp/outside", "..", "a/b", ".", "", "~", "chain.json")},
        **{f"meaning: link {name!r}": _yaml(_named_link(name, EITHER), CHAIN, _lay_chain) for name in (None, 3, True, "a b")},
        "meaning: folder": _yaml(_set("folder", Values([[], {"a": 1}, 3, "data.hdf5/x", "/proc/x", "\x07", "{gone}", "{folder}"])), CHAIN, _lay_chain),
        "meaning: set": _yaml(_set("set", Values(NASTY)), CHAIN, _lay_chain),
        "meaning: set that names itself": _yaml(_set("set.seed", "{seed}", REFUSE), CHAIN, _lay_chain),
        "meaning: set that grows": _yaml(lambda c, rng: (c.update(set={f"a{n}": f"{{a{n - 1}}}" * 10 if n else "xxxxxxxxxx" for n in range(12)}), REFUSE)[1], CHAIN, _lay_chain),
        "meaning: a long list": _yaml(lambda c, rng: (c.update(set={"seed": list(range(100_000))}, links={"a": "fit {seed} {"}), EITHER)[1], CHAIN, _lay_chain),
        "meaning: links": _yaml(_set("links", Values([v for v in NASTY])), CHAIN, _lay_chain),
        "meaning: an unfinished quote": _yaml(_links(one="fit 'a"), CHAIN, _lay_chain),
        "meaning: no such verb": _yaml(_links(one="fitt --model=BC"), CHAIN, _lay_chain),
        "meaning: a list for a command": _yaml(_links(one=["fit", "--model=BC"]), CHAIN, _lay_chain),
        "meaning: null for a command": _yaml(_links(one=None), CHAIN, _lay_chain),
        "meaning: a number for a command": _yaml(_links(one=3), CHAIN, _lay_chain),
        "meaning: a chain in itself": _yaml(_links(one=f"run {CHAIN} --folder=out2"), CHAIN, _lay_chain),
    },
)  # fmt: skip


def _lay_ledger(rng: Random) -> str:
    _lay_chain(rng)
    Path(LEDGER).parent.mkdir()
    record = {
        "one": {"command": "oper --version", "done": True},
        "two": {"command": "oper --version data.hdf5 out/one out", "done": True},
    }
    Path(LEDGER).write_text(json.dumps(record))
    return LEDGER


def _ledger(text: str, told: Told = EITHER) -> Mutation:
    return _text(text.encode(), told, LEDGER, _lay_ledger)


def _ledger_entry(rng: Random) -> Told:
    _lay_ledger(rng)
    content = json.loads(Path(LEDGER).read_text())
    spoil(content, rng)
    Path(LEDGER).write_text(json.dumps(content))
    return EITHER


LEDGERS = Kind(
    _lay_ledger,
    ("chain.json",),
    lambda rng: f"run {CHAIN}",
    {
        "structure: as it was": lambda rng: (_lay_ledger(rng), ACCEPT)[1],
        **{f"structure: {text[:12]}": _ledger(text, REFUSE) for text in ("3", "null", "[]", '"text"', "{", "[[1, 2]]", '{"one": 3}', '{"one": null}', '{"one": []}', '{"one": {}}', "true", "NaN")},
        "structure: deep": _ledger(nested(200_000, "[", "]"), REFUSE),
        "structure: long": _ledger('{"one": "' + "x" * (20 << 20) + '"}', REFUSE),
        "structure: a long number": _ledger('{"one": ' + "9" * 50_000 + "}", REFUSE),
        **{f"meaning: anything {n}": _ledger_entry for n in range(6)},
        "meaning: done is text": _ledger('{"one": {"command": "oper x", "done": "yes"}}'),
        "meaning: command is a number": _ledger('{"one": {"command": 3, "done": true}}'),
        "meaning: an unfinished quote": _ledger('{"one": {"command": "oper \'x", "done": true}}'),
    },
)  # fmt: skip

# Words ---------------------------------------------------------------------------------------------------------------

ODD_WORDS = [
    *("", "null", "none", "-1", "0", "1e400", "nan", "inf", "[", "]", "{", "}", "[]", "{}", "[1,", "'", '"', "\\", "a b", "é", "\udcff"),
    *("[-8]", "[0]", "[8,null]", "{a: b}", "x" * 5000, "../..", "/dev/zero", "/proc/self/mem", "~", "~nobody/x", ".", "\n", "\x00", "*"),
    *("trap_module.Trap", "os.system", "!!python/object/apply:os.system [touch sprung]", "*a", "&a [*a]", "true", "1_000", "0x10", "9" * 5000),
    *("1:2:3", "2001-01-01", "[" * 3000, "data.hdf5", "runs/BC", "99999999999", "-99999999999", "3.7", "%s", "${x}", "{seed}"),
]  # fmt: skip


def _flags() -> list[str]:
    """Every argument of `fit`, as the configuration of a run lists them."""
    found = []
    for model in ("BC", "TD3BC", "IQL", "OperA"):
        content = yaml.safe_load(Path("runs", model, "config.yaml").read_text())
        for path in places(content):
            name = ".".join(str(part) for part in path if part not in ("init_args", "class_path") and isinstance(part, str))
            if name and not {"devices", "num_nodes", "strategy"} & {*path}:
                found.append(name)
    return sorted({*found})


def _word(rng: Random, verb: str | None = None) -> Told:
    flag, value = rng.choice(_flags()), rng.choice(ODD_WORDS)
    last = flag.rsplit(".", 1)[-1]
    if last in ("max_steps", "max_epochs", "min_steps", "min_epochs", "updates_per_epoch", "episodes", "parallel"):
        value = "-3" if len(value) > 3 and value.strip("9_") == "" else value
    verb = verb or rng.choice(["fit", "fit", "fit", "validate", "predict"])
    start = f"fit --model={rng.choice(['BC', 'TD3BC', 'IQL'])} {QUICK} {DATA}" if verb == "fit" else f"{verb} --ckpt_path=runs/BC/last.ckpt"
    where = {"data.source": "data.hdf5"}.get(flag, last)
    return Told("either", command=f"{start} {shlex.quote(f'--{flag}={value}')}", names=(where, last, "--" + flag, value[:40] or "''", last.replace("_", " ")))


def _words(*words: str, told: Told = REFUSE, names: tuple[str, ...] = ()) -> Mutation:
    return lambda rng: Told(told.must, command=shlex.join(words), names=names or words)


def _verb(verb: str) -> Mutation:
    def mutate(rng: Random) -> Told:
        words = [rng.choice(ODD_WORDS) for _ in range(rng.choice([0, 1, 2, 3]))]
        if rng.random() < 0.5:
            words.append("--" + rng.choice(["output", "source", "config", "p_base", "gap_to", "x", "help=", "folder", "seed"]) + "=" + rng.choice(ODD_WORDS))
        return Told("either", command=shlex.join([verb, *words]), names=("",))

    return mutate


def _fit(words: str, told: Told = REFUSE) -> Mutation:
    flag = words.split("=")[0].removeprefix("--").rsplit(".", 1)[-1]
    return lambda rng: Told(told.must, command=f"fit --model=BC {QUICK} {DATA} {words}", names=(flag, flag.replace("_", " ")))


WORDS = Kind(
    lambda rng: "unused",
    (),
    lambda rng: "",
    {
        **{f"meaning: a flag of fit {n}": lambda rng: _word(rng, "fit") for n in range(24)},
        **{f"meaning: a flag {n}": _word for n in range(10)},
        **{f"meaning: odd words for {verb}": _verb(verb) for verb in ("fit", "validate", "predict", "inspect", "report", "convert", "run", "test")},
        "meaning: hidden_sizes=[-8]": _fit("--model.hidden_sizes=[-8]"),
        "meaning: hidden_sizes=[0]": _fit("--model.hidden_sizes=[0]"),
        "meaning: hidden_sizes=[10**12]": _fit("--model.hidden_sizes=[1000000000000]"),
        "meaning: log_every_n_steps=0": _fit("--trainer.log_every_n_steps=0"),
        "meaning: max_steps=0": _fit("--trainer.max_steps=0"),
        "meaning: max_steps=-2": _fit("--trainer.max_steps=-2"),
        "meaning: max_epochs=0": _fit("--trainer.max_epochs=0"),
        "meaning: max_epochs=-3": _fit("--trainer.max_epochs=-3"),
        "meaning: max_time": _fit("--trainer.max_time=nonsense"),
        "meaning: limit_train_batches=0": _fit("--trainer.limit_train_batches=0", EITHER),
        "meaning: limit_train_batches=1.5": _fit("--trainer.limit_train_batches=1.5", EITHER),
        "meaning: overfit_batches": _fit("--trainer.overfit_batches=-1", EITHER),
        "meaning: check_val_every_n_epoch=0": _fit("--trainer.check_val_every_n_epoch=0", EITHER),
        "meaning: val_check_interval": _fit("--trainer.val_check_interval=-1", EITHER),
        "meaning: accumulate_grad_batches=0": _fit("--trainer.accumulate_grad_batches=0", EITHER),
        "meaning: gradient_clip_val": _fit("--trainer.gradient_clip_val=nan", EITHER),
        "meaning: profiler": _fit("--trainer.profiler=nonsense"),
        "meaning: precision": _fit("--trainer.precision=8"),
        "meaning: logger": _fit("--trainer.logger=nonsense"),
        "meaning: callbacks": _fit("--trainer.callbacks=nonsense"),
        "meaning: callbacks of numbers": _fit("--trainer.callbacks=[1]"),
        "meaning: reward_scale=nan": _fit("--data.reward_scale=nan"),
        "meaning: reward_shift=inf": _fit("--data.reward_shift=inf"),
        "meaning: learning_rate=nan": _fit("--model.learning_rate=nan"),
        "meaning: learning_rate=inf": _fit("--model.learning_rate=inf"),
        "meaning: batch_size of a trillion": _fit("--data.batch_size=1000000000000"),
        "meaning: memmap in /proc": _fit("--data.location=memmap --data.memmap_folder=/proc/x", Told("refuse")),
        "meaning: no verb": _words("fitt", "--x"),
        "meaning: a long verb": _words("x" * 5000, names=("verb",)),
        "meaning: an empty verb": _words("", names=("verb",)),
        "meaning: a chain that is missing": _words("run", "gone.yaml", names=("gone.yaml",)),
        "meaning: a chain that is a folder": _words("run", "runs", names=("runs",)),
        "meaning: a chain on a device": _words("run", "/dev/zero", names=("/dev/zero",)),
        "meaning: a report of nothing": _words("report", "gone", names=("gone",)),
        "meaning: a report of a file": _words("report", "data.hdf5", names=("data.hdf5",)),
        "meaning: inspect a device": _words("inspect", "/dev/zero", names=("/dev/zero",)),
        "meaning: inspect a folder": _words("inspect", ".", names=(".",)),
        "meaning: a checkpoint on a device": _words("predict", "--ckpt_path=/dev/zero", names=("/dev/zero",)),
        "meaning: a checkpoint that is a source": _words("predict", "--ckpt_path=data.hdf5", names=("data.hdf5",)),
        "meaning: a config on a device": _words("fit", "--config=/dev/zero", names=("/dev/zero",)),
        "meaning: an output in /proc": _fit("--output=/proc/x"),
        "meaning: an output in a file": _fit("--output=data.hdf5/x"),
        "meaning: a nul byte": _fit("--output='a\x00b'", Told("refuse")),
    },
    bytes=False,
    own=True,
)  # fmt: skip
