"""The weights file that OPER-A's stage 1 writes, and the priority that reads it.

A safetensors file: ``weights``, ``advantage`` and ``value``, float32 ``[I, S, N]`` for I iterations, S seeds and N
transitions, and as metadata the dataset's fingerprint, row count and id, the hyper-parameters and statistics.
"""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.transitions import fingerprint, has_frames
from oper_lightning.errors import InputError, note, reading
from oper_lightning.files import existing, fits_memory, whole
from oper_lightning.priorities.priority import Priority, mean_one, rescale_std
from oper_lightning.spec import Role

FORMAT = "oper-lightning weights 1"


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes a safetensors file whole or not at all; metadata values are stored as JSON."""
    from safetensors.torch import save

    data = save(
        {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
        {key: json.dumps(value) for key, value in metadata.items()},
    )
    with whole(path) as file:
        file.write(data)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a safetensors file with JSON metadata, as written by :func:`save_tensors`.

    Raises:
        InputError: if the file is missing, or not such a file.
    """
    from safetensors import SafetensorError, safe_open

    place = existing(path)
    try:
        opened = safe_open(place, framework="pt")
    except SafetensorError:
        raise InputError(
            f"{path}: cannot read it as a whole safetensors file: cut off, or of another kind (stage 1 writes "
            f"weights.safetensors)"
        ) from None
    with reading(path, "a whole safetensors file"), opened as file:
        fits_memory(place.stat().st_size, path, "reading it")
        metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
        return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118 (not a dict)


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a weights file: its tensors and metadata.

    Raises:
        InputError: if it is missing, broken or of another kind.
    """
    if Path(path).suffix == ".npy":
        raise InputError(f"{path}: not a weights file; `oper convert` makes one of published .npy weights")
    tensors, metadata = load_tensors(path)
    weights = tensors.get("weights", torch.empty(0))
    if metadata.get("format") != FORMAT or weights.dim() != 3:
        raise InputError(f"{path}: not a weights file (stage 1 writes weights.safetensors)")
    if weights.is_complex() or not weights.numel():
        raise InputError(f"{path}: its weights are {list(weights.shape)} {weights.dtype}; [I, S, N] numbers are needed")
    return tensors, metadata


def weights_for(path: str | Path, rows: int, data: str) -> Tensor:
    """The weights ``[I, S, N]`` of a weights file that was made for ``rows`` transitions with the fingerprint ``data``.

    Raises:
        InputError: if it is no such file, or was made for other transitions.
    """
    tensors, metadata = load_weights(path)
    weights = tensors["weights"]
    if weights.shape[2] != rows:
        raise InputError(f"{path}: weights for {weights.shape[2]:,} transitions, but the dataset has {rows:,}")
    if metadata.get("fingerprint") != data:
        raise InputError(
            f"{path}: made for other data ({metadata.get('dataset')}): rows, order or values differ from this "
            f"dataset; run stage 1 on it"
        )
    return weights


def rescale_linear(weights: Tensor, std: float | None, floor: float, ceiling: float | None) -> Tensor:
    """``max(1 + std * z, floor)`` with the z-scores of weights ``[N]``, brought back to mean 1; float64.

    The realised standard deviation is thus below ``std`` and the floor below ``floor``. Without ``std`` the result is
    the weights less their minimum, with the same floor and ceiling.

    Raises:
        InputError: if a weight is not finite.
    """
    shifted = weights.double() - weights.double().min()
    if not shifted.any():
        note("weights file: all weights are equal: every transition weighs the same")
        return torch.ones_like(shifted)
    scaled = mean_one(shifted, "linear rescaling")
    if std is not None:
        scaled = rescale_std(scaled, std)
    return mean_one(scaled.clamp(min=floor, max=ceiling), "linear rescaling")


def rescale_exp(weights: Tensor, inverse_temperature: float) -> Tensor:
    """Proportional to ``exp(inverse_temperature * w / mean |w|)`` of weights ``[N]``, mean 1; float64."""
    weights = weights.double()
    return mean_one(torch.softmax(inverse_temperature * weights / weights.abs().mean(), 0), "exp rescaling")


def median(seeds: Tensor) -> Tensor:
    """Median over the first dimension; of an even number the mean of the middle two."""
    ordered = seeds.sort(0).values
    return (ordered[(len(seeds) - 1) // 2] + ordered[len(seeds) // 2]) / 2


class WeightsFile(Priority):
    """OPER-A: weights from one or more files that stage 1 wrote, averaged over seeds and rescaled.

    Args:
        path: a weights file, a list of them, or a template in which ``{seed}`` stands for a number.
        seeds: the numbers to put for ``{seed}``; without them every file that fits the template is taken.
        iteration: which of stage 1's iterations to take, counted from 1; the last by default. Paper: 5 for TD3+BC, 4
            for BC.
        average: how the weights of several seeds become one: mean or median.
        rescale: linear (by std and floor) or exp.
        std: standard deviation of the weights before the floor; null does not stretch them. Paper: 2, antmaze 5,
            kitchen 0.5.
        floor: lowest weight relative to the mean before the weights are brought back to mean 1. Paper: 0.1.
        ceiling: highest weight, in the same way; null for none. Paper: none.
        inverse_temperature: factor in the exponent of the exp rescaling. Paper: none.
    """

    roles: tuple[Role, ...] = ("improvement", "constraint")

    def __init__(
        self,
        path: str | list[str],
        seeds: list[int] | None = None,
        iteration: int | None = None,
        average: Literal["mean", "median"] = "mean",
        rescale: Literal["linear", "exp"] = "linear",
        std: float | None = 2.0,
        floor: float = 0.1,
        ceiling: float | None = None,
        inverse_temperature: float = 1.0,
    ) -> None:
        if (std is not None and std <= 0) or not 0 <= floor < 1 or (ceiling is not None and ceiling <= 1):
            given = f"std {std}, floor {floor}, ceiling {ceiling}"
            raise InputError(f"WeightsFile: {given}; std > 0, 0 <= floor < 1 and ceiling > 1 are needed")
        self.path = path
        self.seeds = seeds
        self.iteration = iteration
        self.average = average
        self.how: Literal["linear", "exp"] = rescale
        self.std = std
        self.floor = floor
        self.ceiling = ceiling
        self.inverse_temperature = inverse_temperature

    def paths(self) -> list[str]:
        """The files meant by ``path`` and ``seeds``."""
        if self.path in ([], "") or self.seeds == []:
            raise InputError("WeightsFile: no file: path and seeds must not be empty")
        if not isinstance(self.path, str):
            return list(self.path)
        if self.seeds is not None:
            if "{seed}" not in self.path:
                raise InputError(f"WeightsFile: seeds {self.seeds} but no {{seed}} in path {self.path!r} to put them")
            return [self.path.replace("{seed}", str(seed)) for seed in self.seeds]
        if "{seed}" not in self.path:
            if "{" in self.path and not Path(self.path).is_file():
                raise InputError(f"{self.path}: a template needs {{seed}} where the number of the seed stands")
            return [self.path]
        before, after = self.path.split("{seed}", 1)
        pattern = glob.escape(before) + "*" + glob.escape(after)
        found = [name for name in glob.glob(pattern) if name[len(before) : len(name) - len(after)].isdigit()]
        if not found:
            raise InputError(f"{self.path}: no file fits this template with a number for {{seed}}")
        return sorted(found)

    def __call__(self, transitions: TensorDict) -> Tensor:
        if has_frames(transitions):
            raise InputError(f"{self.path}: weights of stage 1, which takes no images; OperR, TopFraction and RW do")
        data = fingerprint(transitions)
        seeds = torch.cat([self._read(path, len(transitions), data) for path in self.paths()])
        joined = seeds.mean(0) if self.average == "mean" else median(seeds)
        if self.how == "exp":
            return rescale_exp(joined, self.inverse_temperature)
        return rescale_linear(joined, self.std, self.floor, self.ceiling)

    def _read(self, path: str, rows: int, data: str) -> Tensor:
        """Weights ``[S, N]`` of the wanted iteration, checked against the dataset."""
        weights = weights_for(path, rows, data)
        iteration = len(weights) if self.iteration is None else self.iteration
        if not 1 <= iteration <= len(weights):
            raise InputError(f"{path}: no iteration {iteration}; the file has 1 to {len(weights)}")
        return mean_one(weights[iteration - 1], path)
