"""What a bonus has learnt, out of a checkpoint that may come from anybody."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oper_lightning.errors import InputError
from oper_lightning.files import read_torch

NEVER_NEGATIVE = ("variance", "count", "exp_avg_sq", "step")


def section(path: str) -> dict[str, Any]:
    """The bonus's section of a run's checkpoint.

    Raises:
        InputError: if there is none.
    """
    checkpoint = read_torch(path)
    sections = checkpoint.values() if isinstance(checkpoint, dict) else []
    found = [part["bonus"] for part in sections if isinstance(part, dict) and isinstance(part.get("bonus"), dict)]
    if not found or not found[0]:
        raise InputError(f"{path}: no checkpoint of a run whose data.bonus learnt")
    return dict(found[0])


def load(live: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Gives tensors the values that a checkpoint has for them.

    Args:
        live: the tensors by name.
        state: the checkpoint's.

    Raises:
        InputError: if they are others, not finite, or negative where that cannot be; then nothing was changed.
    """
    if odd := sorted(map(str, live.keys() ^ state.keys())):
        raise InputError(f"its bonus has other parts than this one, such as {odd[0]:.60}")
    for name, tensor in live.items():
        value = state[name]
        plain = (
            isinstance(value, Tensor) and value.layout is torch.strided and not (value.is_meta or value.is_quantized)
        )
        if not plain or value.shape != tensor.shape or value.dtype != tensor.dtype:
            shape = [*value.shape] if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"{name} of its bonus is {shape}, not {[*tensor.shape]}: keep the sizes of data.bonus")
        low = 0 if name.endswith(NEVER_NEGATIVE) else -torch.inf
        if not (value.isfinite() & (value >= low)).all():
            raise InputError(f"{name} of its bonus holds numbers that cannot be")
    for name, tensor in live.items():
        tensor.copy_(state[name])
