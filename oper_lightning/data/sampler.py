"""Drawing transitions with fixed probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oper_lightning.data.rl import Sampler
from oper_lightning.errors import InputError
from oper_lightning.priorities.priority import mean_one


class WeightedSampler(Sampler):  # type: ignore[misc]
    """Draws rows with replacement, each with a probability proportional to its weight.

    It makes a float64 cumulative sum once, and does a binary search for each draw. This is exact for more than 2^24
    rows, where ``torch.multinomial`` refuses. A row of weight 0 is never drawn. It is also a sampler for torchrl's
    replay buffers; there must be one weight for each row of the storage.

    Args:
        weights: non-negative, not all zero, ``[N]``; or ``[S, N]`` for S separate sets of weights.
        seed: seed of the sampler's own generator.
    """

    def __init__(self, weights: Tensor, seed: int = 0) -> None:
        # On the CPU: a parallel sum on a GPU differs from run to run, and may rise where a weight is 0.
        self.cumulative = torch.cumsum(mean_one(weights, "WeightedSampler").cpu(), -1)
        self.cumulative = (self.cumulative / self.cumulative[..., -1:]).to(weights.device)
        self.generator = torch.Generator(self.cumulative.device).manual_seed(seed)

    def draw(self, count: int) -> Tensor:
        """Row numbers, int64 ``[count]``; ``[S, count]`` for S sets of weights."""
        shape = (*self.cumulative.shape[:-1], count)
        return self.at(torch.rand(shape, generator=self.generator, dtype=torch.float64, device=self.cumulative.device))

    def at(self, uniform: Tensor) -> Tensor:
        """The rows at float64 places ``[..., count]`` in [0, 1) of all weights laid side by side."""
        # The first row whose cumulative share exceeds the draw; shares do not rise at rows of weight 0.
        return torch.searchsorted(self.cumulative, uniform, right=True)

    def sample(self, storage: Any, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """torchrl's entry point: row numbers ``[batch_size]`` and no further information."""
        if self.cumulative.shape != (len(storage),):
            raise InputError(
                f"WeightedSampler: weights of shape {tuple(self.cumulative.shape)} for {len(storage):,} rows in storage"
            )
        return self.draw(batch_size), {}

    def state_dict(self) -> dict[str, Any]:
        """Cumulative shares and the generator's state."""
        return {"cumulative": self.cumulative, "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.cumulative = state_dict["cumulative"].to(self.cumulative.device)
        self.generator.set_state(state_dict["generator"])

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along; the generator as bytes, as a tensor made here would be gone when a worker starts."""
        state = self.generator.get_state().numpy().tobytes()
        return {**self.__dict__, "generator": (self.generator.device, state)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        device, bits = state.pop("generator")
        self.__dict__.update(state)
        self.generator = torch.Generator(device)
        self.generator.set_state(torch.frombuffer(bytearray(bits), dtype=torch.uint8))

    def dumps(self, path: str | Path) -> None:
        """Writes the state into a folder."""
        Path(path).mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), Path(path) / "weighted_sampler.pt")

    def loads(self, path: str | Path) -> None:
        """Reads the state from a folder that :meth:`dumps` wrote."""
        self.load_state_dict(torch.load(Path(path) / "weighted_sampler.pt", weights_only=True))

    def _empty(self) -> None:
        raise InputError("WeightedSampler: the weights belong to the rows in storage; make a new sampler for others")

    def __repr__(self) -> str:
        return f"WeightedSampler(shape={tuple(self.cumulative.shape)})"
