"""The policies that BREMEN's authors published, as checkpoints of this package.

A policy has layers of 200 units with ReLU between them, and two outputs for each entry of the action: its mean, through
a tanh, and the logarithm of a standard deviation. The latter had sunk to the lowest value that it can have, and is left
out. What observations were normalised by was not published.
"""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from torch import Tensor

from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.algorithms.bc import BC
from oper_lightning.algorithms.stage import SMALLEST_STD, class_path
from oper_lightning.data.online import OnlineDataModule
from oper_lightning.data.sources.npz import read_arrays
from oper_lightning.data.sources.tf_bundle import Bundle, is_bundle
from oper_lightning.envs.rollouts import World, number_of_actions
from oper_lightning.errors import InputError, nearest
from oper_lightning.files import beside, remove, whole
from oper_lightning.spec import DataSpec

NAMES = {"npz": r"layer_(\d+)_([wb])", "bundle": r"policy/layer_(\d+)/([wb])"}
"""of weights and biases"""

LARGEST = np.finfo(np.float32).max

Layers = list[tuple[np.ndarray, np.ndarray]]
"""weights ``[in, out]`` and biases ``[out]``"""


def convert_policy(policy: str, statistics: str | None, environment: str | None, target: Path) -> None:
    """Writes a folder as a run leaves it: last.ckpt of a BC, and config.yaml, which says where it is judged.

    Args:
        policy: a .npz file, or a checkpoint of TensorFlow with or without .index.
        statistics: a .npz file with mean and std ``[O]``, by which observations are normalised.
        environment: Gymnasium id of the environment that it acts in.
        target: the folder, which must not be there.

    Raises:
        InputError: if something is missing, or does not fit together.
    """
    if environment is None:
        raise InputError("environment must be given: where the policy acts, such as bremen/HalfCheetah-v0")
    if statistics is None:
        raise InputError(
            "statistics must be given: a .npz file with mean and std of the observations that the policy was trained "
            "on, by which they are normalised; the policy's own files do not hold them"
        )
    layers = read_layers(policy)
    sizes = [layers[0][0].shape[0], *(bias.shape[0] for _, bias in layers)]
    low, high = _bounds(environment, policy, sizes)
    mean, std = _statistics(statistics, sizes[0])
    spec = DataSpec(
        observation_shape=(sizes[0],),
        action_shape=tuple(low.shape),
        action_low=low,
        action_high=high,
        observation_mean=mean,
        observation_std=std - SMALLEST_STD,  # which networks see added
        rows=0,
        fingerprint="",
        dataset=f"published policy {Path(policy).name}",
        environment=environment,
    )
    arguments = {"policy": "deterministic", "hidden_sizes": sizes[1:-1]}
    algorithm = BC(**arguments)  # type: ignore[arg-type]
    algorithm._build(spec)
    linear = [layer for layer in algorithm.policy.body if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for layer, (weight, bias) in zip(linear, layers, strict=True):
            layer.weight.copy_(torch.from_numpy(weight.T[: layer.out_features].copy()))
            layer.bias.copy_(torch.from_numpy(bias[: layer.out_features]))
    _write(algorithm, spec, arguments, target)
    print(f"{target}: last.ckpt, a policy for {environment}; oper validate --ckpt_path={target} plays it")


def read_layers(policy: str) -> Layers:
    """The layers of a published policy.

    Raises:
        InputError: if there are none, or they do not follow from each other.
    """
    if is_bundle(policy):
        bundle, kind = Bundle(policy), "bundle"
        names = _named(bundle.names, kind, policy)
        bundle.possible(names.values())
        arrays = {ours: bundle.read(theirs) for ours, theirs in names.items()}
    else:
        arrays = read_arrays(policy, lambda present, _: _named(present, "npz", policy))
    layers = []
    for number in range((len(arrays) + 1) // 2):
        if f"{number}w" not in arrays or f"{number}b" not in arrays:
            raise InputError(f"{policy}: it has no weights and biases of layer {number}")
        layers.append((arrays[f"{number}w"], arrays[f"{number}b"]))
    for number, (weight, bias) in enumerate(layers):
        if weight.dtype.kind != "f" or bias.dtype.kind != "f" or weight.shape[1:] != bias.shape or bias.ndim != 1:
            raise InputError(
                f"{policy}: layer {number} has weights {weight.dtype} {list(weight.shape)} and biases {bias.dtype} "
                f"{list(bias.shape)}; numbers [in, out] and [out] are needed"
            )
        if not ((abs(weight) <= LARGEST).all() and (abs(bias) <= LARGEST).all()):
            raise InputError(f"{policy}: layer {number} is not finite")
    for number, ((_, before), (weight, _)) in enumerate(pairwise(layers)):
        if len(before) != len(weight):
            raise InputError(
                f"{policy}: layer {number} has {len(before)} outputs, layer {number + 1} {len(weight)} inputs"
            )
    return layers


def _named(present: list[str], kind: str, policy: str) -> dict[str, str]:
    """What the file calls the weights and biases of each layer, by ``0w``, ``0b`` and so on."""
    found = {f"{match[1]}{match[2]}": name for name in present if (match := re.fullmatch(NAMES[kind], name))}
    if not found:
        wanted = "layer_0_w" if kind == "npz" else "policy/layer_0/w"
        raise InputError(f"{policy}: no published policy: no array {wanted!r}; {nearest(wanted, present)}")
    return found


def _bounds(environment: str, policy: str, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Lowest and highest action ``[A]`` of the environment, which must be the policy's."""
    world = World(environment, {})
    try:
        space, shape = world.action_space, world.observation_shape
    finally:
        world.close()
    if shape != (sizes[0],) or number_of_actions(space) is not None or space.shape != (sizes[-1] / 2,):
        raise InputError(
            f"{policy}: a policy for {sizes[0]} observations and {sizes[-1] // 2} actions; environment "
            f"{environment!r} has {list(shape)} and {space}"
        )
    return torch.as_tensor(space.low, dtype=torch.float32), torch.as_tensor(space.high, dtype=torch.float32)


def _statistics(path: str, size: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``[O]`` of observations."""

    def choose(present: list[str], _: Any) -> dict[str, str]:
        for name in ("mean", "std"):
            if name not in present:
                raise InputError(f"{path}: no array {name!r}; it has {', '.join(present) or 'nothing'}")
        return {"mean": "mean", "std": "std"}

    arrays = read_arrays(path, choose)
    for name, array in arrays.items():
        if array.shape != (size,) or array.dtype.kind != "f" or not (abs(array) <= LARGEST).all():
            raise InputError(
                f"{path}: {name!r} is {array.dtype} {list(array.shape)}; {size} finite numbers are needed, one for "
                f"each observation"
            )
    if not (arrays["std"] > SMALLEST_STD).all():
        raise InputError(f"{path}: 'std' is {arrays['std'].min():g} at least; above {SMALLEST_STD:g} is needed")
    return torch.from_numpy(arrays["mean"].astype(np.float32)), torch.from_numpy(arrays["std"].astype(np.float32))


def _write(algorithm: OfflineAlgorithm, spec: DataSpec, arguments: dict[str, Any], target: Path) -> None:
    """Writes the folder, whole or not at all."""
    checkpoint = {
        "pytorch-lightning_version": lightning.__version__,
        "class_path": class_path(type(algorithm)),
        "hyper_parameters": dict(algorithm.hparams),
        "spec": spec.to_dict(),
        "state_dict": algorithm.state_dict(),
        "lengths": [],
        "seed": 0,
        "global_step": 0,
    }
    data = {"class_path": class_path(OnlineDataModule), "init_args": {"environment": spec.environment}}
    model = {"class_path": class_path(type(algorithm)), "init_args": arguments}
    new = beside(target)
    remove(new)  # an earlier process of the same number may have left it
    try:
        with whole(new / "last.ckpt") as file:
            torch.save(checkpoint, file)
        with whole(new / "config.yaml") as file:
            file.write(yaml.safe_dump({"seed_everything": 0, "model": model, "data": data}).encode())
        os.rename(new, target)
    except OSError as error:
        raise InputError(f"{target}: cannot write it ({error.strerror})") from None
    finally:
        remove(new)
