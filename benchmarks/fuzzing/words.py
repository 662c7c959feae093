"""Words of the command line."""

from __future__ import annotations

import shlex
from pathlib import Path
from random import Random

import yaml

from fuzzing.case import ACCEPT, EITHER, REFUSE, Kind, Mutation, Told, places
from fuzzing.hdf5 import DATA, QUICK

ODD_WORDS = [
    *(
        "",
        "null",
        "none",
        "-1",
        "0",
        "1e400",
        "nan",
        "inf",
        "[",
        "]",
        "{",
        "}",
        "[]",
        "{}",
        "[1,",
        "'",
        '"',
        "\\",
        "a b",
        "é",
        "\udcff",
    ),
    *(
        "[-8]",
        "[0]",
        "[8,null]",
        "{a: b}",
        "x" * 5000,
        "../..",
        "/dev/zero",
        "/proc/self/mem",
        "~",
        "~nobody/x",
        ".",
        "\n",
        "*",
    ),
    *(
        "trap_module.Trap",
        "os.system",
        "!!python/object/apply:os.system [touch sprung]",
        "*a",
        "&a [*a]",
        "true",
        "1_000",
        "0x10",
        "9" * 5000,
    ),
    *(
        "1:2:3",
        "2001-01-01",
        "[" * 3000,
        "data.hdf5",
        "runs/BC",
        "99999999999",
        "-99999999999",
        "3.7",
        "%s",
        "${x}",
        "{seed}",
    ),
]


def _flags() -> list[str]:
    """Every argument of `fit`, as the configuration of a run lists them."""
    found = []
    for model in ("BC", "TD3BC", "IQL", "OperA"):
        content = yaml.safe_load(Path("runs", model, "config.yaml").read_text())
        for path in places(content):
            name = ".".join(
                str(part) for part in path if part not in ("init_args", "class_path") and isinstance(part, str)
            )
            if name and not {"devices", "num_nodes", "strategy"} & {*path}:
                found.append(name)
    return sorted({*found})


def _word(rng: Random, verb: str | None = None) -> Told:
    flag, value = rng.choice(_flags()), rng.choice(ODD_WORDS)
    last = flag.rsplit(".", 1)[-1]
    if last in ("max_steps", "max_epochs", "min_steps", "min_epochs", "updates_per_epoch", "episodes", "parallel"):
        value = "-3" if len(value) > 3 and value.strip("9_") == "" else value
    verb = verb or rng.choice(["fit", "fit", "fit", "validate", "predict"])
    start = (
        f"fit --model={rng.choice(['BC', 'TD3BC', 'IQL'])} {QUICK} {DATA}"
        if verb == "fit"
        else f"{verb} --ckpt_path=runs/BC/last.ckpt"
    )
    where = {"data.source": "data.hdf5"}.get(flag, last)
    return Told(
        "either",
        command=f"{start} {shlex.quote(f'--{flag}={value}')}",
        # A checkpoint without an environment is not scored, whatever else is wrong.
        names=(where, last, "--" + flag, value[:40] or "''", last.replace("_", " "), "nothing to score"),
    )


def _words(*words: str, told: Told = REFUSE, names: tuple[str, ...] = ()) -> Mutation:
    return lambda rng: Told(told.must, command=shlex.join(words), names=names or words)


def _verb(verb: str) -> Mutation:
    def mutate(rng: Random) -> Told:
        words = [rng.choice(ODD_WORDS) for _ in range(rng.choice([0, 1, 2, 3]))]
        if rng.random() < 0.5:
            words.append(
                "--"
                + rng.choice(["output", "source", "config", "p_base", "gap_to", "x", "help=", "folder", "seed"])
                + "="
                + rng.choice(ODD_WORDS)
            )
        return Told("either", command=shlex.join([verb, *words]), names=("",))

    return mutate


def _fit(words: str, told: Told = REFUSE) -> Mutation:
    flags = [word.split("=")[0].rsplit(".", 1)[-1].removeprefix("--") for word in words.split(" --")]
    names = (*flags, *(flag.replace("_", " ") for flag in flags), words.partition("=")[2])
    return lambda rng: Told(told.must, command=f"fit --model=BC {QUICK} {DATA} {words}", names=names)


WORDS = Kind(
    lambda rng: "unused",
    (),
    lambda rng: "",
    {
        **{f"meaning: a flag of fit {n}": lambda rng: _word(rng, "fit") for n in range(24)},
        **{f"meaning: a flag {n}": _word for n in range(10)},
        **{
            f"meaning: odd words for {verb}": _verb(verb)
            for verb in ("fit", "validate", "predict", "inspect", "report", "convert", "run", "test")
        },
        "meaning: hidden_sizes=[-8]": _fit("--model.hidden_sizes=[-8]"),
        "meaning: hidden_sizes=[0]": _fit("--model.hidden_sizes=[0]"),
        "meaning: hidden_sizes=[10**12]": _fit("--model.hidden_sizes=[1000000000000]"),
        "meaning: log_every_n_steps=0": _fit("--trainer.log_every_n_steps=0", ACCEPT),
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
    },
    bytes=False,
    own=True,
)
