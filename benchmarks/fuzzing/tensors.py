"""Weights files, checkpoints, and published weights."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from fuzzing.arrays import ROWS
from fuzzing.case import ACCEPT, EITHER, NASTY, REFUSE, Kind, Mutation, Told, nested, spoil
from fuzzing.hdf5 import QUICK
from fuzzing.npz import Trap, header

DATA = "--data.source=D4RL --data.source.path=data.hdf5"

# weights.safetensors -------------------------------------------------------------------------------------------------

WEIGHTS_FILE = "case.safetensors"


def _weights_command(rng: Random) -> str:
    read = f"{DATA} --data.priority=WeightsFile --data.priority.path={WEIGHTS_FILE}"
    return rng.choice(
        [
            f"fit --model=BC {QUICK} {read}",
            f"fit --model=TD3BC {QUICK} {read} --data.mode=reweight",
            f"fit --model=BC {QUICK} {read} --data.priority.rescale=exp --data.priority.average=median",
            f"inspect data.hdf5 {WEIGHTS_FILE} --output=out",
        ]
    )


def _safetensors(change: Callable[[dict[str, Any], Random], bytes | None], told: Told = EITHER) -> Mutation:
    """Changes the header; what it returns are other data."""

    def mutate(rng: Random) -> Told:
        raw = Path("runs/OperA/weights.safetensors").read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        head, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
        other = change(head, rng)
        text = json.dumps(head).encode()
        Path(WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(text)) + text + (data if other is None else other))
        return told

    return mutate


def _entry(key: str, values: list[Any]) -> Mutation:
    def change(head: dict[str, Any], rng: Random) -> None:
        head[rng.choice([name for name in head if name != "__metadata__"])][key] = rng.choice(values)

    return _safetensors(change, REFUSE)


def _told(key: str, values: list[Any], told: Told = EITHER) -> Mutation:
    def change(head: dict[str, Any], rng: Random) -> None:
        value = rng.choice(values)
        head["__metadata__"][key] = value if isinstance(value, str) else json.dumps(value)

    return _safetensors(change, told)


def _weights(change: Callable[[torch.Tensor], torch.Tensor], told: Told, name: str = "weights") -> Mutation:
    def mutate(rng: Random) -> Told:
        from oper_lightning.priorities.file import load_tensors, save_tensors

        tensors, metadata = load_tensors("runs/OperA/weights.safetensors")
        tensors[name] = change(tensors[name].clone())
        save_tensors(Path(WEIGHTS_FILE), tensors, metadata)
        return told

    return mutate


def _at(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(weights: torch.Tensor) -> torch.Tensor:
        weights[..., 3] = value
        return weights

    return change


def _raw_head(data: bytes) -> Mutation:
    def mutate(rng: Random) -> Told:
        Path(WEIGHTS_FILE).write_bytes(data)
        return REFUSE

    return mutate


def _length(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _lay_weights(rng: Random) -> str:
    Path(WEIGHTS_FILE).write_bytes(Path("runs/OperA/weights.safetensors").read_bytes())
    return WEIGHTS_FILE


WEIGHTS = Kind(
    _lay_weights,
    (WEIGHTS_FILE,),
    _weights_command,
    {
        "structure: as it was": lambda rng: (_lay_weights(rng), ACCEPT)[1],
        "structure: header announced": _raw_head(struct.pack("<Q", 2**62) + b"{}"),
        "structure: header of 90 MB announced": _raw_head(struct.pack("<Q", 90_000_000) + b"{}"),
        "structure: an empty header": _raw_head(_length("{}")),
        "structure: a header that is a list": _raw_head(_length("[]")),
        "structure: a deep header": _raw_head(_length(nested(90_000, "[", "]"))),
        "structure: a number of strange types": _entry("dtype", ["F4", "", 3, None, "C64", "F8_E8M0", "BOOL", "I64"]),
        "structure: shapes": _entry("shape", [[], [-1], [10**18], [2**32, 2**32], "a", None, [1, 1, 10**9], [0, 0, 0]]),
        "structure: shapes again": _entry("shape", [[0, 1, 96], [1, 1, 95], [1.5], [[1]]]),
        "structure: offsets": _entry("data_offsets", [[0, 1], [5, 1], [0, 10**18], [-4, 0], "a", None, [0]]),
        "structure: overlapping": _entry("data_offsets", [[0, 4 * ROWS]]),
        "structure: no data": _safetensors(lambda head, rng: b"", REFUSE),
        "structure: no metadata": _safetensors(lambda head, rng: head.pop("__metadata__") and None, REFUSE),
        "structure: metadata that is a list": _safetensors(lambda head, rng: head.update(__metadata__=["a"]), REFUSE),
        "structure: metadata that is no JSON": _told("fingerprint", ["{", "", "nul"], REFUSE),
        "structure: deep metadata": _told("dataset", [nested(100_000, "[", "]")]),
        "structure: a long number": _told("rows", ["9" * 50_000]),
        **{f"meaning: {key}": _told(key, NASTY) for key in ("format", "fingerprint", "rows", "dataset", "hyper_parameters")},
        "meaning: statistics": _told("statistics", NASTY),
        "meaning: nan": _weights(_at(float("nan")), REFUSE),
        "meaning: inf": _weights(_at(float("inf")), REFUSE),
        "meaning: negative": _weights(_at(-1.0), REFUSE),
        "meaning: huge": _weights(_at(3e38), EITHER),
        "meaning: all zero": _weights(torch.zeros_like, REFUSE),
        "meaning: all huge": _weights(lambda w: torch.full_like(w, 3e38), EITHER),
        "meaning: one that is not zero": _weights(lambda w: (torch.zeros_like(w).index_fill_(2, torch.tensor(3), 1.0)), EITHER),
        "meaning: double": _weights(lambda w: w.double(), EITHER),
        "meaning: half": _weights(lambda w: w.half(), EITHER),
        "meaning: integers": _weights(lambda w: w.long() + 1, EITHER),
        "meaning: flags": _weights(lambda w: w > 0, EITHER),
        "meaning: complex": _weights(lambda w: w.to(torch.complex64), REFUSE),
        "meaning: no iterations": _weights(lambda w: w[:0], REFUSE),
        "meaning: no seeds": _weights(lambda w: w[:, :0], REFUSE),
        "meaning: no rows": _weights(lambda w: w[..., :0], REFUSE),
        "meaning: too short": _weights(lambda w: w[..., :-1], REFUSE),
        "meaning: two dimensions": _weights(lambda w: w[0], REFUSE),
        "meaning: four dimensions": _weights(lambda w: w[None], REFUSE),
        "meaning: advantages of nan": _weights(_at(float("nan")), EITHER, "advantage"),
        "meaning: advantages of another shape": _weights(lambda w: w[0, 0, :5], EITHER, "advantage"),
    },
)  # fmt: skip

# Checkpoints ---------------------------------------------------------------------------------------------------------

MODELS = ("BC", "TD3BC", "IQL", "OperA")
CHECKPOINT = "runs/case/last.ckpt"


def lay_run(rng: Random, model: str | None = None) -> str:
    """Chooses one of the stock's runs and puts it in the case's place."""
    Path("runs", model or rng.choice(MODELS)).rename("runs/case")
    return CHECKPOINT


def use_run(rng: Random) -> str:
    """A command that reads a run's checkpoint."""
    return rng.choice(
        [
            f"fit --ckpt_path={CHECKPOINT} --trainer.max_steps=8",
            f"fit --ckpt_path={CHECKPOINT} --trainer.max_steps=8",
            "fit --config=runs/case/config.yaml --output=runs/case --ckpt_path=last --trainer.max_steps=8",
            f"validate --ckpt_path={CHECKPOINT} --data.rollouts.environment=Pendulum-v1 --data.rollouts.episodes=1",
            f"test --ckpt_path={CHECKPOINT} --data.rollouts.environment=Pendulum-v1 --data.rollouts.episodes=1",
            f"predict --ckpt_path={CHECKPOINT}",
            f"predict --ckpt_path={CHECKPOINT} {DATA}",
        ]
    )


RESUME = f"fit --ckpt_path={CHECKPOINT} --trainer.max_steps=8"
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
        with zipfile.ZipFile(CHECKPOINT, "w") as archive:
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


DEEP = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
CHECKPOINTS = Kind(
    lay_run,
    ("runs/case", "last.ckpt"),
    use_run,
    {
        "structure: as it was": lambda rng: (lay_run(rng), ACCEPT)[1],
        **{f"structure: anything {n}": _within() for n in range(6)},
        **{f"structure: no {key}": _removed(key, REFUSE) for key in ("class_path", "spec", "hyper_parameters", "state_dict")},
        "structure: no optimiser states": _checkpoint(lambda c, rng: (c.pop("optimizer_states"), Told("refuse", command=RESUME))[1]),
        "structure: no loops": _checkpoint(lambda c, rng: (c.pop("loops"), Told("refuse", command=RESUME))[1]),
        "structure: no callbacks": _removed("callbacks", EITHER),
        "structure: no version": _removed("pytorch-lightning_version", EITHER),
        "structure: no global step": _removed("global_step", EITHER),
        "structure: one tensor more": _checkpoint(_add),
        "structure: one tensor less": _checkpoint(_one_gone),
        "structure: no network": _checkpoint(lambda c, rng: (c.update(state_dict={}), REFUSE)[1]),
        **{f"meaning: {key} {n}": _within(key) for key in ("spec", "hyper_parameters", "loops", "optimizer_states") for n in (1, 2)},
        **{f"meaning: {key}": _within(key) for key in ("callbacks", "state_dict")},
        "meaning: the data's state": _within("OfflineDataModule"),
        "meaning: global step": _checkpoint(lambda c, rng: c.update(global_step=rng.choice([-1, 10**15, None, "a", 3.5]))),
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
        "structure: an older file of an object": _whole(lambda: {"state_dict": Trap()}, _use_new_zipfile_serialization=False),
        "structure: an older file": _whole(lambda: {"state_dict": {}}, _use_new_zipfile_serialization=False),
        "structure: a pickle": _zip(_pickle_of(Trap()), REFUSE),
        "structure: a deep pickle": _zip(_pickle_of(DEEP), REFUSE),
        "structure: a pickle of nothing": _zip(_pickle_of(b""), REFUSE),
        "structure: members": _zip(_member),
        "structure: members again": _zip(_member),
        "structure: a bomb": _zip(_deflated),
    },
)  # fmt: skip

# Published weights ---------------------------------------------------------------------------------------------------

PUBLISHED = "case.npy"
KEPT = ROWS - 5  # of D4RL's qlearning_dataset: no timeout step, not the last row


def publish(path: str, content: Any, protocol: int = 3) -> None:
    """Saves as numpy does."""
    array = np.empty((), dtype=object)
    array[()] = content
    Path(path).write_bytes(header("{'descr': '|O', 'fortran_order': False, 'shape': ()}") + pickle.dumps(array, protocol))


def iterated() -> dict[Any, Any]:
    """The newer layout."""
    generator = np.random.default_rng(0)
    return {"iter": 2, "eval_steps": np.float64(1e6), **{k: generator.uniform(0, 2, (KEPT, 1)) for k in (1, 2)}}


def older() -> dict[Any, Any]:
    """The older layout."""
    column = np.linspace(-1, 1, KEPT, dtype=np.float32)[:, None]
    return {1_000_000: {"adv": column, "q": column, "v": column}}


def _published(change: Callable[[dict[Any, Any], Random], Any], told: Told = EITHER, layout: Any = None) -> Mutation:
    def mutate(rng: Random) -> Told:
        content = (layout or rng.choice([iterated, older]))()
        change(content, rng)
        publish(PUBLISHED, content, rng.choice([2, 3, 4, 5]))
        return told

    return mutate


def _array(change: Callable[[np.ndarray], Any], told: Told) -> Mutation:
    def mutate(content: dict[Any, Any], rng: Random) -> None:
        key = 1 if 1 in content else 1_000_000
        if key == 1:
            content[1] = change(content[1])
        else:
            content[key]["adv"] = change(content[key]["adv"])

    return _published(mutate, told)


def _pickled(data: bytes, head: str = "{'descr': '|O', 'fortran_order': False, 'shape': ()}") -> Mutation:
    def mutate(rng: Random) -> Told:
        Path(PUBLISHED).write_bytes(header(head) + data)
        return REFUSE

    return mutate


def _laughs() -> bytes:
    """A tuple of two of a tuple of two ..., 64 levels: small as a pickle, endless when walked through."""
    stream = io.BytesIO()
    stream.write(b"\x80\x04]q\x00")
    for _ in range(64):
        stream.write(b"h\x00h\x00\x86q\x00")
    return stream.getvalue() + b"."


def _circle(content: dict[Any, Any], rng: Random) -> None:
    content["self"] = content


def _put(values: np.ndarray, value: float) -> np.ndarray:
    values = values.copy()
    values[3] = value
    return values


def _lay_published(rng: Random) -> str:
    publish(PUBLISHED, rng.choice([iterated, older])())
    return PUBLISHED


NPY = Kind(
    _lay_published,
    (PUBLISHED,),
    lambda rng: f"convert {PUBLISHED} --source=D4RL --source.path=data.hdf5 --source.qlearning_rows=true --output=out.st",
    {
        "structure: as it was": lambda rng: (_lay_published(rng), ACCEPT)[1],
        **{f"meaning: anything {n}": _published(lambda c, rng: spoil(c, rng)) for n in (1, 2, 3)},
        "meaning: iter": _published(lambda c, rng: c.update(iter=rng.choice(NASTY)), EITHER, iterated),
        "meaning: iter of 10**12": _published(lambda c, rng: c.update(iter=10**12), REFUSE, iterated),
        "meaning: iter of 0": _published(lambda c, rng: c.update(iter=0), REFUSE, iterated),
        "meaning: iter of -1": _published(lambda c, rng: c.update(iter=-1), REFUSE, iterated),
        "meaning: iter of an array": _published(lambda c, rng: c.update(iter=np.arange(2)), REFUSE, iterated),
        "meaning: steps of text": _published(lambda c, rng: c.update(a={"adv": np.zeros(KEPT)}), EITHER, older),
        "meaning: no array": _published(lambda c, rng: c.pop(1), REFUSE, iterated),
        "meaning: nan": _array(lambda a: _put(a, np.nan), REFUSE),
        "meaning: inf": _array(lambda a: _put(a, np.inf), REFUSE),
        "meaning: huge": _array(lambda a: _put(a.astype(np.float64), 1e308), EITHER),
        "meaning: zeros": _array(lambda a: a * 0, REFUSE),
        "meaning: negative": _array(lambda a: -abs(a), EITHER),
        "meaning: too short": _array(lambda a: a[:-1], REFUSE),
        "meaning: of another shape": _array(lambda a: a.reshape(7, -1), EITHER),
        "meaning: complex": _array(lambda a: a.astype(np.complex64), REFUSE),
        "meaning: text": _array(lambda a: a.astype("U9"), REFUSE),
        "meaning: records": _array(lambda a: np.zeros(KEPT, [("x", "f4")]), REFUSE),
        "meaning: objects": _array(lambda a: np.array([Trap()] * KEPT, dtype=object), REFUSE),
        "meaning: a list": _array(lambda a: a.reshape(-1).tolist(), EITHER),
        "meaning: masked": _array(lambda a: np.ma.masked_array(a), REFUSE),
        "structure: a trap": _published(lambda c, rng: c.update(x=Trap()), REFUSE),
        "structure: a circle": _published(_circle, REFUSE),
        "structure: laughs": _pickled(_laughs()),
        "structure: deep": _pickled(DEEP),
        "structure: bytes announced": _pickled(b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x."),
        "structure: gigabytes announced": _pickled(b"\x80\x04B" + struct.pack("<I", 2**32 - 1) + b"x."),
        "structure: a frame announced": _pickled(b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N."),
        "structure: a long number": _pickled(b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"x."),
        "structure: a far memo": _pickled(b"\x80\x04Nr\xff\xff\xff\x7f."),
        "structure: an array's memo": _pickled(b"\x80\x04j\xff\xff\xff\x7f."),
        "structure: nothing": _pickled(b""),
        "structure: a stop": _pickled(b"\x80\x04."),
        "structure: protocol 200": _pickled(b"\x80\xc8N."),
        "structure: a list": _pickled(pickle.dumps([1])),
        "structure: an array": _pickled(np.zeros(KEPT).tobytes(), f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({KEPT},)}}"),
        "structure: a header that calls": _pickled(b"N.", "__import__('os').system('touch sprung')"),
        "structure: a deep header": _pickled(b"N.", "(" * 5000 + ")" * 5000),
        "structure: many objects announced": _pickled(b"N.", "{'descr': '|O', 'fortran_order': False, 'shape': (1000000000000,)}"),
    },
)  # fmt: skip
