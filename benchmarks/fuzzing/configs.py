"""Configurations: config.yaml beside a checkpoint, which nobody named, and yamls that a person names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

from fuzzing.case import ACCEPT, EITHER, NASTY, REFUSE, Kind, Mutation, Told, nested, spoil
from fuzzing.checkpoints import CHECKPOINT, RESUME, lay_run
from fuzzing.hdf5 import DATA, QUICK

BESIDE = "runs/case/config.yaml"


def aliases(levels: int = 30) -> str:
    """A yaml of a few lines that stands for 10 to the power of ``levels`` entries."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, levels)]
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
    [
        {
            "class_path": "lightning.pytorch.callbacks.LambdaCallback",
            "init_args": {"on_predict_start": "trap_module.call"},
        }
    ],
    {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "../outside"}},
    [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "../outside"}}],
    {"class_path": "lightning.pytorch.plugins.io.AsyncCheckpointIO"},
    {
        "class_path": "lightning.pytorch.profilers.SimpleProfiler",
        "init_args": {"dirpath": "../outside", "filename": "x"},
    },
    "trap_module.call",
    "trap_module",
]


def as_it_was(lay: Callable[[Random], Any]) -> Mutation:
    def mutate(rng: Random) -> Told:
        lay(rng)
        # Stage 1 fits no policy that the command could judge.
        return ACCEPT if Path("runs/OperA").is_dir() else EITHER

    return mutate


def write_whole(data: bytes, told: Told, path: str, lay: Callable[[Random], Any]) -> Mutation:
    def mutate(rng: Random) -> Told:
        lay(rng)
        Path(path).write_bytes(data)
        return told

    return mutate


def change_yaml(
    change: Callable[[dict[str, Any], Random], Told | str | None], path: str, lay: Callable[[Random], Any]
) -> Mutation:
    def mutate(rng: Random) -> Told:
        lay(rng)
        content = yaml.safe_load(Path(path).read_text())
        told = change(content, rng)
        Path(path).write_text(yaml.safe_dump(content, sort_keys=False))
        return told if isinstance(told, Told) else EITHER

    return mutate


def put(key: str, value: Any, told: Told = EITHER) -> Callable[[dict[str, Any], Random], Told]:
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
    "learning_rate": (
        "model.init_args.learning_rate",
        Values([float("nan"), float("inf"), 0, -1, "fast", None]),
        REFUSE,
    ),
    "max_steps=0": ("trainer.max_steps", 0, REFUSE),
    "max_steps=-5": ("trainer.max_steps", -5, REFUSE),
    "log_every_n_steps=0": ("trainer.log_every_n_steps", 0, EITHER),
    "batch_size": ("data.init_args.batch_size", Values([0, -1, 10**12, 3.5, None, "many"]), REFUSE),
    "updates_per_epoch": ("data.init_args.updates_per_epoch", Values([0, -1, 3.5, "many"]), REFUSE),
    "rollouts": ("data.init_args.rollouts", Values(NASTY), EITHER),
    "rollouts.episodes": ("data.init_args.rollouts.episodes", Values([0, -1, "many", None, 2.5]), REFUSE),
    "rollouts.environment": (
        "data.init_args.rollouts.environment",
        Values(["trap_module:T-v0", "", "a b", 3, [], "../x"]),
        EITHER,
    ),
    "rollouts.seed": ("data.init_args.rollouts.seed", Values([-1, 10**30, "x", None, 1.5]), EITHER),
    "reward_scale": ("data.init_args.reward_scale", Values([0, float("nan"), float("inf"), -1, 1e300, "x"]), EITHER),
    "reward_shift": ("data.init_args.reward_shift", Values([float("nan"), float("inf"), 1e300, "x"]), REFUSE),
    "source": ("data.init_args.source", Values([*NASTY, "Bandit", {"class_path": "torch.nn.Linear"}]), EITHER),
    "source.path": (
        "data.init_args.source.init_args.path",
        Values([*NASTY, "/dev/zero", "/dev/stdin", "/proc/self/mem", "."]),
        EITHER,
    ),
    "priority": (
        "data.init_args.priority",
        Values([*NASTY, "OperR", "WeightsFile", {"class_path": "OperR", "init_args": {"p_base": -1}}]),
        EITHER,
    ),
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
}


def _config(path: str, lay: Callable[[Random], Any], files: bool) -> dict[str, Mutation]:
    """Mutations of a run's configuration; ``files``: it was not named by a person, so it may name no foreign code."""
    calls = [
        change_yaml(put(f"trainer.{key}", Values(CALLS), Told("refuse") if files else EITHER), path, lay)
        for key in ("callbacks", "plugins", "logger", "strategy", "profiler")
    ]
    foreign = [
        change_yaml(put(key, "trap_module.Trap", REFUSE), path, lay)
        for key in (
            "model.class_path",
            "data.class_path",
            "data.init_args.source.class_path",
            "data.init_args.priority",
        )
    ]
    names = [f"trainer: {key}" for key in ("callbacks", "plugins", "logger", "strategy", "profiler")]
    return {
        "structure: as it was": as_it_was(lay),
        **{f"structure: {name}": write_whole(data, told, path, lay) for name, (data, told) in WHOLE.items()},
        **{f"meaning: anything {n}": change_yaml(lambda c, rng: spoil(c, rng), path, lay) for n in range(8)},
        **{
            f"meaning: of the model {n}": change_yaml(lambda c, rng: spoil(c, rng, within=("model",)), path, lay)
            for n in range(3)
        },
        **{
            f"meaning: of the data {n}": change_yaml(lambda c, rng: spoil(c, rng, within=("data",)), path, lay)
            for n in range(5)
        },
        **{f"meaning: {name}": change_yaml(put(*rest), path, lay) for name, rest in VALUES.items()},
        **{f"meaning: code in {name}": mutation for name, mutation in zip(names, calls, strict=True)},
        **({f"meaning: foreign class {n}": mutation for n, mutation in enumerate(foreign)} if files else {}),
        "structure: one key more": change_yaml(put("model.init_args.nonsense", 1, REFUSE), path, lay),
        "structure: one section more": change_yaml(put("nonsense", {"a": 1}, REFUSE), path, lay),
        "structure: no model": change_yaml(lambda c, rng: (c.pop("model"), EITHER)[1], path, lay),
        "structure: no data": change_yaml(lambda c, rng: (c.pop("data"), EITHER)[1], path, lay),
        "structure: no trainer": change_yaml(lambda c, rng: (c.pop("trainer"), EITHER)[1], path, lay),
    }


def _use_beside(rng: Random) -> str:
    return rng.choice(
        [
            RESUME,
            f"validate --ckpt_path={CHECKPOINT} --data.rollouts.environment=Pendulum-v1 --data.rollouts.episodes=1",
            f"predict --ckpt_path={CHECKPOINT}",
            "report runs/case --output=out",
            "inspect runs/case --output=out",
        ]
    )


def _not_all_taken(mutations: dict[str, Mutation]) -> dict[str, Mutation]:
    """Of a config.yaml that nobody named, no trainer is taken, and no hyper-parameter that the checkpoint has, too."""

    def wrap(mutation: Mutation) -> Mutation:
        return lambda rng: Told("accept" if mutation(rng).must == "accept" else "either")

    return {name: wrap(mutation) for name, mutation in mutations.items()}


def _lay_beside(rng: Random) -> str:
    lay_run(rng)
    return BESIDE


CONFIG = Kind(_lay_beside, ("runs/case",), _use_beside, _not_all_taken(_config(BESIDE, lay_run, True)))

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
