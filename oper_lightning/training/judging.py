"""How good a policy's episodes are, and how well held-out rows are fitted."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oper_lightning.errors import InputError
from oper_lightning.nn import ranks
from oper_lightning.spec import Batch

if TYPE_CHECKING:
    from oper_lightning.algorithms.stage import Stage


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


def losses(model: Stage, batches: Iterable[Batch]) -> dict[str, float]:
    """What the numbers that an update returns are on batches ``[B]`` that nothing is learnt from, on average.

    Each batch is an update of a copy, so that every algorithm can be judged by it; the model stays as it is.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    done = model.global_step if model._fits() else model.learnt
    results: dict[str, list[tuple[Tensor, int]]] = {}
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(ranks.stream_seed(model.seed, "holdout", done))
        for number, batch in enumerate(batches, 1):
            copied = untied(model)
            copied._trainer = model._trainer
            if not model._fits():
                copied.configure_optimizers()
            # Consecutive numbers, so that all of the update's branches are seen. What schedules want to know, the
            # length of the run, may not be known where nothing is trained, and does not matter to losses.
            with contextlib.suppress(InputError):
                copied.branch = copied.prepare(max(done - number, 0))
            for name, value in type(copied).update(copied, batch.map(copied._normalise)).items():
                results.setdefault(name, []).append((value.detach().float(), batch.evaluation.shape[0]))
    sums = [torch.stack([value * rows for value, rows in kept]).sum() for kept in results.values()]
    means = torch.stack(
        [total / sum(rows for _, rows in kept) for total, kept in zip(sums, results.values(), strict=True)]
    )
    means = ranks.sum_over_ranks(means) / ranks.world_size()
    return dict(zip(results, means.tolist(), strict=True))


def untied(model: Stage) -> Stage:
    """A copy of a model for updates that are only tried; it has no trainer."""
    # The executor of updates and its graphs cannot be copied and are not needed: False takes their place.
    apart = {id(model.__dict__[name]): False for name in ("_execute", "_hears") if name in model.__dict__}
    return copy.deepcopy(model, apart)
