"""Checkpoints: what is pickled, and the zip that it lies in."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from fuzzing.case import ACCEPT, DEEP, EITHER, NASTY, REFUSE, Kind, Mutation, Told, spoil
from fuzzing.hdf5 import DATA
from fuzzing.npz import Trap

MODELS = ("BC", "TD3BC", "IQL", "OperA")
CHECKPOINT = "runs/case/last.ckpt"
GO_ON = "--trainer.max_steps=8 --trainer.max_epochs=-1"  # stock runs are half of 8 updates
SMALL = "--data.rollouts=null --data.batch_size=8 --data.updates_per_epoch=4"
RESUME = f"fit --ckpt_path={CHECKPOINT} {GO_ON}"


def lay_run(rng: Random, model: str | None = None) -> str:
    """Chooses one of the stock's runs and puts it in the case's place."""
    Path("runs", model or rng.choice(MODELS)).rename("runs/case")
    return CHECKPOINT


def use_run(rng: Random) -> str:
    """A command that reads a run's checkpoint."""
    return rng.choice(
        [
            RESUME,
            RESUME,
            f"fit --start={CHECKPOINT} {DATA} {SMALL} {GO_ON}",
            f"fit --config=runs/case/config.yaml --output=runs/case --ckpt_path=last {GO_ON}",
            f"validate --ckpt_path={CHECKPOINT} --data.rollouts.environment=Pendulum-v1 --data.rollouts.episodes=1",
            f"test --ckpt_path={CHECKPOINT} --data.rollouts.environment=Pendulum-v1 --data.rollouts.episodes=1",
            f"predict --ckpt_path={CHECKPOINT}",
            f"predict --ckpt_path={CHECKPOINT} {DATA}",
        ]
    )


DISCRETE = "DiscreteBC"
"""a run on three discrete actions"""
DISCRETE_DATA = "--data.source=D4RL --data.source.path=discrete.hdf5"

TENSORS: list[Any] = [
    *NASTY[:20],
    *(torch.zeros(3), torch.zeros(0), torch.tensor(float("nan")), torch.full((2, 2), float("inf"))),
    *(torch.ones(1).expand(10**12), torch.ones(3, dtype=torch.complex64), torch.zeros(2, dtype=torch.int64)),
    *(torch.zeros(3).to_sparse(), {1: 2}, {"a": torch.zeros(2)}, (1, 2), "oper_lightning.algorithms.bc.BC"),
]


def _checkpoint(change: Callable[[dict[str, Any], Random], Told | None], model: str | None = None) -> Mutation:
    def mutate(rng: Random) -> Told:
        lay_run(rng, model)
        content = torch.load(CHECKPOINT, weights_only=True)
        told = change(content, rng)
        torch.save(content, CHECKPOINT)
        return told or EITHER

    return mutate


def _numbers(told: Told, **entries: Any) -> Mutation:
    """Other entries in the spec of a run on discrete actions."""

    def change(content: dict[str, Any], rng: Random) -> Told:
        content["spec"].update(entries)
        return Told(told.must, command=rng.choice([RESUME, f"predict --ckpt_path={CHECKPOINT}"]))

    return _checkpoint(change, DISCRETE)


def _within(*path: Any) -> Mutation:
    """Something else in place of an entry somewhere below ``path``, or of that itself."""

    def change(content: dict[str, Any], rng: Random) -> Told:
        if rng.random() < 0.25 and path:
            parent = content
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = rng.choice(TENSORS)
        else:
            spoil(content, rng, TENSORS, path)
        return EITHER

    return _checkpoint(change)


def _removed(key: str, told: Told) -> Mutation:
    return _checkpoint(lambda content, rng: (content.pop(key, None), told)[1])


def _network(change: Callable[[torch.Tensor], Any], told: Told) -> Mutation:
    def mutate(content: dict[str, Any], rng: Random) -> Told:
        state = content["state_dict"]
        name = rng.choice([key for key, value in state.items() if value.is_floating_point() and value.numel() > 1])
        state[name] = change(state[name])
        return told

    return _checkpoint(mutate)


def _first(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.reshape(-1)[0] = value
    return tensor


def _optimiser(change: Callable[[torch.Tensor], Any], told: Told) -> Mutation:
    def mutate(content: dict[str, Any], rng: Random) -> Told:
        states = [s for o in content["optimizer_states"] for s in o["state"].values() if "exp_avg" in s]
        state = rng.choice(states)
        key = rng.choice(["exp_avg", "exp_avg_sq"])
        state[key] = change(state[key])
        return Told(told.must, command=RESUME)

    return _checkpoint(mutate)


def _class(path: Any) -> Mutation:
    def change(content: dict[str, Any], rng: Random) -> Told:
        content["class_path"] = path
        if rng.random() < 0.5:
            Path("runs/case/config.yaml").unlink()
        return REFUSE

    return _checkpoint(change)


def _hyper(**values: Any) -> Mutation:
    def change(content: dict[str, Any], rng: Random) -> Told:
        content["hyper_parameters"].update(values)
        if rng.random() < 0.5:
            Path("runs/case/config.yaml").unlink()
        return EITHER if rng.random() < 0 else Told("refuse")

    return _checkpoint(change)


def _whole(content: Callable[[], Any], **options: Any) -> Mutation:
    def mutate(rng: Random) -> Told:
        lay_run(rng)
        torch.save(content(), CHECKPOINT, **options)
        return REFUSE

    return mutate


def _zip(change: Callable[[zipfile.ZipFile, dict[str, bytes], Random], None], told: Told = EITHER) -> Mutation:
    def mutate(rng: Random) -> Told:
        lay_run(rng)
        with zipfile.ZipFile(CHECKPOINT) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(CHECKPOINT, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is meant here
            change(archive, members, rng)
            for name, data in members.items():
                archive.writestr(name, data)
        return told

    return mutate


def _pickle_of(content: Any) -> Callable[[zipfile.ZipFile, dict[str, bytes], Random], None]:
    def change(archive: zipfile.ZipFile, members: dict[str, bytes], rng: Random) -> None:
        name = next(name for name in members if name.endswith("data.pkl"))
        members[name] = content if isinstance(content, bytes) else pickle.dumps(content, 2)

    return change


def _member(archive: zipfile.ZipFile, members: dict[str, bytes], rng: Random) -> None:
    name = rng.choice(list(members))
    match rng.randrange(4):
        case 0:
            del members[name]
        case 1:
            members[name] = members[name][: len(members[name]) // 2]
        case 2:
            members["x/" + name] = members.pop(name)
        case 3:
            archive.writestr(name, members[name])  # twice


def _deflated(archive: zipfile.ZipFile, members: dict[str, bytes], rng: Random) -> None:
    name = rng.choice(list(members))
    archive.writestr(name, bytes(50 << 20), zipfile.ZIP_DEFLATED)
    del members[name]


def _add(content: dict[str, Any], rng: Random) -> Told:
    content["state_dict"]["more.weight"] = torch.zeros(3)
    return REFUSE


def _one_gone(content: dict[str, Any], rng: Random) -> Told:
    del content["state_dict"][rng.choice(list(content["state_dict"]))]
    return REFUSE


def _no_states(content: dict[str, Any], rng: Random) -> Told:
    for optimiser in content["optimizer_states"]:
        optimiser["state"] = {}
    return Told("refuse", command=RESUME)


def _fewer_states(content: dict[str, Any], rng: Random) -> Told:
    state = rng.choice(content["optimizer_states"])["state"]
    del state[rng.choice(list(state))]
    return Told("refuse", command=RESUME)


def _fewer_optimisers(content: dict[str, Any], rng: Random) -> Told:
    content["optimizer_states"].pop()
    return Told("refuse", command=RESUME)


CHECKPOINTS = Kind(
    lay_run,
    ("runs/case", "last.ckpt"),
    use_run,
    {
        "structure: as it was": lambda rng: (lay_run(rng), ACCEPT)[1],
        **{f"structure: anything {n}": _within() for n in range(6)},
        **{
            f"structure: no {key}": _removed(key, REFUSE)
            for key in ("class_path", "spec", "hyper_parameters", "state_dict")
        },
        "structure: no optimiser states": _checkpoint(
            lambda c, rng: (c.pop("optimizer_states"), Told("refuse", command=RESUME))[1]
        ),
        "structure: no loops": _checkpoint(lambda c, rng: (c.pop("loops"), Told("refuse", command=RESUME))[1]),
        "structure: no callbacks": _removed("callbacks", EITHER),
        "structure: no version": _removed("pytorch-lightning_version", EITHER),
        "structure: no global step": _removed("global_step", EITHER),
        "discrete: as it was": _numbers(ACCEPT),
        "discrete: one more": _numbers(REFUSE, action_high=torch.tensor(3)),
        "discrete: a trillion": _numbers(REFUSE, action_high=torch.tensor(10**12)),
        "discrete: all that there are": _numbers(
            REFUSE, action_low=torch.tensor(-(2**63)), action_high=torch.tensor(2**63 - 1)
        ),
        "discrete: none": _numbers(REFUSE, action_high=torch.tensor(-1)),
        "discrete: of floats": _numbers(REFUSE, action_high=torch.tensor(2.0)),
        "discrete: of a shape": _numbers(REFUSE, action_high=torch.tensor([2])),
        "discrete: of a trillion entries": _numbers(
            REFUSE, action_shape=[10**12], action_low=torch.tensor([0]).expand(10**12)
        ),
        "discrete: said to be continuous": _numbers(REFUSE, discrete=False),
        "discrete: said with a word": _numbers(REFUSE, discrete="yes"),
        "discrete: said to be images": _numbers(REFUSE, pixels=True),
        "structure: one tensor more": _checkpoint(_add),
        "structure: one tensor less": _checkpoint(_one_gone),
        "structure: no network": _checkpoint(lambda c, rng: (c.update(state_dict={}), REFUSE)[1]),
        **{
            f"meaning: {key} {n}": _within(key)
            for key in ("spec", "hyper_parameters", "loops", "optimizer_states")
            for n in (1, 2)
        },
        **{f"meaning: {key}": _within(key) for key in ("callbacks", "state_dict")},
        "meaning: the data's state": _within("OfflineDataModule"),
        "meaning: global step": _checkpoint(
            lambda c, rng: c.update(global_step=rng.choice([-1, 10**15, None, "a", 3.5]))
        ),
        "meaning: epoch": _checkpoint(lambda c, rng: c.update(epoch=rng.choice([-1, 10**15, None, "a", 3.5]))),
        "meaning: version": _checkpoint(lambda c, rng: c.update({"pytorch-lightning_version": rng.choice(NASTY)})),
        "meaning: network of nan": _network(lambda t: _first(t, float("nan")), REFUSE),
        "meaning: network of inf": _network(lambda t: _first(t, float("inf")), REFUSE),
        "meaning: network of huge numbers": _network(lambda t: torch.full_like(t, 3e38), EITHER),
        "meaning: network of another shape": _network(lambda t: t[:1], REFUSE),
        "meaning: network of doubles": _network(lambda t: t.double(), EITHER),
        "meaning: network of integers": _network(lambda t: t.long(), EITHER),
        "meaning: network of complex numbers": _network(lambda t: t.to(torch.complex64), REFUSE),
        "meaning: network of a trillion": _network(lambda t: torch.ones(1).expand(10**12), REFUSE),
        "meaning: sparse network": _network(lambda t: t.to_sparse(), EITHER),
        "meaning: network on no device": _network(lambda t: t.to("meta"), REFUSE),
        "meaning: network of text": _network(lambda t: "text", REFUSE),
        "meaning: optimiser of nan": _optimiser(lambda t: _first(t, float("nan")), REFUSE),
        "meaning: optimiser of another shape": _optimiser(lambda t: torch.zeros(1), REFUSE),
        "meaning: optimiser of a larger shape": _optimiser(lambda t: torch.zeros(10_000), REFUSE),
        "meaning: optimiser of no shape": _optimiser(lambda t: torch.zeros(0), REFUSE),
        "meaning: optimiser of doubles": _optimiser(lambda t: t.double(), EITHER),
        "meaning: optimiser of text": _optimiser(lambda t: "text", REFUSE),
        "meaning: optimiser of a trillion": _optimiser(lambda t: torch.ones(1).expand(10**12), REFUSE),
        "meaning: optimiser without states": _checkpoint(_no_states),
        "meaning: optimiser without a state": _checkpoint(_fewer_states),
        "meaning: an optimiser less": _checkpoint(_fewer_optimisers),
        "meaning: class of a trap": _class("trap_module.Trap"),
        "meaning: class of the system": _class("os.system"),
        "meaning: class of torch": _class("torch.nn.Linear"),
        "meaning: class that is a source": _class("oper_lightning.data.sources.npz.Npz"),
        "meaning: class that is a list": _class(["oper_lightning.algorithms.bc.BC"]),
        "meaning: class that is nothing": _class(None),
        "meaning: another algorithm": _class("oper_lightning.algorithms.cql.CQL"),
        "meaning: hidden_sizes=[-8]": _hyper(hidden_sizes=[-8]),
        "meaning: hidden_sizes=[10**12]": _hyper(hidden_sizes=[10**12]),
        "meaning: hidden_sizes of text": _hyper(hidden_sizes="eight"),
        "meaning: hyper-parameters that hold tensors": _hyper(learning_rate=torch.zeros(3)),
        "meaning: hyper-parameters that hold nan": _hyper(learning_rate=float("nan")),
        "meaning: hyper-parameters of no name": _hyper(nonsense=1),
        "meaning: hyper-parameters that hold bytes": _hyper(hidden_sizes={1: b"x"}),
        "meaning: hyper-parameters that name code": _hyper(compile={"class_path": "trap_module.Trap"}),
        "structure: a list": _whole(lambda: [1, 2]),
        "structure: a number": _whole(lambda: 3),
        "structure: a tensor": _whole(lambda: torch.zeros(3)),
        "structure: an object": _whole(lambda: {"state_dict": Trap()}),
        "structure: an older file of an object": _whole(
            lambda: {"state_dict": Trap()}, _use_new_zipfile_serialization=False
        ),
        "structure: an older file": _whole(lambda: {"state_dict": {}}, _use_new_zipfile_serialization=False),
        "structure: a pickle": _zip(_pickle_of(Trap()), REFUSE),
        "structure: a deep pickle": _zip(_pickle_of(DEEP), REFUSE),
        "structure: a pickle of nothing": _zip(_pickle_of(b""), REFUSE),
        "structure: members": _zip(_member),
        "structure: members again": _zip(_member),
        "structure: a bomb": _zip(_deflated),
    },
)
