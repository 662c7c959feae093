"""What the batches of an update are made of: which rows each role sees, and with what weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.sampler import WeightedSampler
from oper_lightning.errors import InputError, note
from oper_lightning.nn import ranks
from oper_lightning.priorities.priority import Priority, checked, statistics
from oper_lightning.priorities.returns import doubts
from oper_lightning.spec import ROLES, Batch, Role

Mode = Literal["resample", "reweight"]


def weigh(priority: Priority, transitions: TensorDict) -> Tensor:
    """Asks a priority for the weights ``[N]`` of transitions, and says what is doubtful about them; mean 1, float64.

    Raises:
        InputError: if the weights cannot be used, or the priority changes the transitions.
    """
    name = type(priority).__name__
    leaves = [*transitions.values(True, True)]
    versions = [leaf._version for leaf in leaves]  # operations in place count them up
    weights = checked(priority(transitions.clone(recurse=False)), len(transitions), name)
    if versions != [leaf._version for leaf in leaves]:
        raise InputError(f"{name}: changes the transitions that it weighs; let it work on transitions.clone()")
    for doubt in doubts(priority, transitions, weights):
        note(doubt)
    return weights


class Mixture:
    """Draws blocks of batches from N rows: uniformly, in proportion to weights, or uniformly with weights beside.

    What is drawn is a function of the seed and of the number of the block's first update, and of nothing else. All
    ranks draw the row numbers of all ranks, and each keeps its own, so that R ranks see what one process would see.

    Args:
        rows: number N of rows.
        weights: float64 ``[N]``, mean 1; ``[S, N]`` for S seeds that train together; None for uniform.
        device: where row numbers are drawn.
    """

    def __init__(self, rows: int, weights: Tensor | None, device: torch.device) -> None:
        self.rows = rows
        self.device = device
        self.seeds = torch.Size() if weights is None else weights.shape[:-1]
        self.weights = weights
        self.sampler: WeightedSampler | None = None
        # Equal weights are no priority: the run is then the uniform one, draw for draw.
        if weights is not None and bool((weights != weights[..., :1]).any()):
            self.sampler = WeightedSampler(weights)
            self.loss_weights = weights.float()

    def draw(
        self,
        take: Callable[[Tensor], TensorDict],
        mode: Mode,
        roles: Sequence[Role],
        seed: int,
        number: int,
        updates: int,
        batch_size: int,
    ) -> Batch:
        """A block ``[K, B]``, or ``[K, S, B]`` for S seeds.

        Args:
            take: gives the transitions ``[...]`` with row numbers ``[...]``.
            mode: resample draws the prioritised roles by weight; reweight draws all roles uniformly.
            roles: the roles that see the priority.
            seed: seed of the run.
            number: number of the block's first update.
            updates: number K of updates.
            batch_size: number B of rows for each update.
        """
        prioritised = {*roles} if self.sampler is not None else set()

        def drawn(stream: str) -> tuple[Tensor, TensorDict]:
            index = self._index(stream, ranks.stream_seed(seed, stream, number), updates, batch_size)
            part = take(index)
            part["weight"] = torch.ones(index.shape, device=index.device)
            return index, part

        parts: dict[bool, TensorDict] = {}
        if mode == "reweight" or len(prioritised) < len(ROLES):
            index, parts[False] = drawn("uniform")
        if prioritised and mode == "resample":
            _, parts[True] = drawn("priority")
        elif prioritised:
            # The same transitions, sharing everything but their weight.
            parts[True] = parts[False].clone(recurse=False).set("weight", self.loss_weights[index])
        return Batch(*(parts[role in prioritised] for role in ROLES))

    def summary(self, name: str) -> str:
        """The weights in a few words: their name, and how much of the data they leave."""
        if self.weights is None or self.weights.dim() > 1:
            return name
        return f"{name}, effective share {statistics(self.weights)['ess']:.0%}"

    def _index(self, stream: str, seed: int, updates: int, batch_size: int) -> Tensor:
        """Row numbers ``[K, B]`` or ``[K, S, B]`` of this rank."""
        batch = batch_size * ranks.world_size()
        if stream == "priority":
            assert self.sampler is not None
            self.sampler.generator.manual_seed(seed)
            index = self.sampler.draw(updates * batch)
        else:
            generator = torch.Generator(self.device).manual_seed(seed)
            shape = (*self.seeds, updates * batch)
            index = torch.randint(self.rows, shape, generator=generator, device=self.device)
        index = index.reshape(*self.seeds, updates, batch).movedim(-2, 0)
        return index[..., ranks.rank() * batch_size :][..., :batch_size]
