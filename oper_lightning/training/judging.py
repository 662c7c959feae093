"""Mean and spread of the returns of a policy's episodes."""

from __future__ import annotations

import torch
from torch import Tensor

from oper_lightning.nn import ranks


def summary(returns: Tensor, lengths: Tensor, device: torch.device) -> dict[str, float]:
    """Mean and spread of the returns of all ranks' episodes, their mean length, and their number.

    Args:
        returns: of this rank's episodes, float64 ``[n]``.
        lengths: their steps, float64 ``[n]``.
        device: where ranks exchange numbers.
    """
    sums = torch.stack(
        [torch.tensor(float(len(returns))).double(), returns.sum(), returns.square().sum(), lengths.sum()]
    )
    count, total, squares, steps = ranks.sum_over_ranks(sums.to(device)).tolist()
    mean = total / count
    numbers = {
        "return": mean,
        "return_std": max(squares / count - mean**2, 0.0) ** 0.5,
        "length": steps / count,
        "episodes": count,
    }
    return numbers
