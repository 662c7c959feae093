"""What several processes (ranks) of one training run share. Alone, each function does nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

_alike = False


@contextmanager
def alike() -> Iterator[None]:
    """Inside, each rank does by itself what one process would do: noise is not shared out, nothing is exchanged."""
    global _alike
    _alike = True
    try:
        yield
    finally:
        _alike = False


def world_size() -> int:
    """Number of processes that train together."""
    if _alike:
        return 1
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of ``value`` over the ranks."""
    if world_size() > 1:
        value = value.clone()
        distributed.all_reduce(value)
    return value


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of ``value`` over the ranks, which is what one process with all their rows finds if ``value`` is a mean
    over a rank's rows: all ranks have equally many.
    """
    return sum_over_ranks(value) / world_size() if world_size() > 1 else value


def extremes(value: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest number in ``value`` on any rank, 0-d each."""
    ends = torch.stack([-value.amin(), value.amax()])
    if world_size() > 1:
        distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    return -ends[0], ends[1]


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Replaces the gradients by their mean over the ranks, in one message."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(grad) for part, grad in zip(parts, gradients, strict=True)])


def randn_like(value: Tensor) -> Tensor:
    """Standard normal noise like ``value`` ``[B, ...]``: this rank's share of a draw of all ranks' R * B rows.

    All ranks stand at the same state of the generator, so R ranks with B rows see what one process with R * B sees.
    """
    return _share(torch.randn, value)


def rand_like(value: Tensor) -> Tensor:
    """Noise uniform on [0, 1) like ``value`` ``[B, ...]``, shared out among ranks as in :func:`randn_like`."""
    return _share(torch.rand, value)


def _share(draw: Callable[..., Tensor], value: Tensor) -> Tensor:
    rows = len(value)
    noise = draw(rows * world_size(), *value.shape[1:], dtype=value.dtype, device=value.device)
    return noise[rank() * rows : (rank() + 1) * rows]


def stream_seed(seed: int, stream: str, update: int) -> int:
    """Seed of a random stream at a gradient update: randomness needs no state beyond the number of the update."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{update}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def batch_mean(value: Tensor) -> Tensor:
    """Mean of ``value`` ``[B]`` over the batches of all ranks, for statistics that enter a loss non-linearly."""
    return mean_over_ranks(value.mean())
