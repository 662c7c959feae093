"""torchrl transforms for sampled transitions."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from oper_lightning.data.rl import Transform


class LossWeight(Transform):  # type: ignore[misc]
    """Adds ``weight``, one number per transition, to what a replay buffer samples uniformly (reweighting).

    Use it as ``(sample["weight"] * loss).mean()``: the weights have mean 1 over the data, so dividing by their sum in
    a batch would undo part of the priority.

    Args:
        weights: ``[N]``, one for each row of the storage.
    """

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights.float())

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Looks the weights up by the sample's stored ``index``, which ``TensorDictReplayBuffer.extend`` writes."""
        return tensordict.set("weight", self.weights[tensordict["index"]])
