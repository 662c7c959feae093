"""What all algorithms share beyond their training: a policy that acts, and that episodes judge."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.algorithms.stage import Stage, class_path
from oper_lightning.envs.scores import normalised
from oper_lightning.errors import InputError
from oper_lightning.spec import Batch
from oper_lightning.training import judging

__all__ = ["OfflineAlgorithm", "class_path"]

ACTED = 256  # images that a policy looks at together when it predicts


class OfflineAlgorithm(Stage):
    """One paper's algorithm. A subclass says what to build, what to ask of the data, how to update and how to act.

    What observations and actions are inside an update, and the arguments, are those of
    :class:`oper_lightning.algorithms.stage.Stage`.
    """

    @abstractmethod
    def act(self, observation: Tensor) -> Tensor:
        """Best actions ``[..., A]`` in the environment's units, or numbers ``[...]`` of discrete ones, for raw
        observations ``[..., *O]``.
        """

    def explore(self, observation: Tensor) -> Tensor:
        """Actions ``[E, A]`` or ``[E]``, as from :meth:`act`, of a policy that gathers transitions to learn from.

        Noise comes from torch's global generator. Gradients are off.

        Raises:
            InputError: if the algorithm has no such policy.
        """
        raise InputError(f"{type(self).__name__} only learns from recorded data: it has no policy that explores")

    def to_environment(self, action: Tensor) -> Tensor:
        """Actions in [-1, 1], or discrete ones counted from 0, in the environment's units."""
        return action * self.action_scale + self.action_centre

    @staticmethod
    def one_policy_batch(batch: Batch) -> TensorDict:
        """The batch of algorithms whose policy loss has a single data term.

        Raises:
            InputError: if improvement and constraint were to see different transitions or weights.
        """
        if batch.improvement is not batch.constraint:
            raise InputError(
                "data.prioritise splits improvement from constraint, but this algorithm has one policy loss for both; "
                "name both or neither"
            )
        return batch.improvement

    # Judging and predicting --------------------------------------------------------------------------------------

    def validation_step(self, judged: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Plays this rank's episodes and logs what all ranks' episodes earned as eval/…, or looks at held-out rows.

        Args:
            judged: this rank's episodes, or its held-out rows.
            batch_idx: not used.
            dataloader_idx: not used.
        """
        if callable(judged):
            self._judge(judged, "eval")
        else:
            super().validation_step(judged, batch_idx)

    def test_step(self, episodes: Any, batch_idx: int) -> None:
        """Plays the test's episodes; logs what they earned as test/…."""
        self._judge(episodes, "test")

    def _judge(self, episodes: Any, stage: str) -> None:
        assert self.spec is not None
        returns, lengths = episodes(self.act)
        numbers = judging.summary(returns, lengths, self.device)
        if self.spec.reference is not None:
            numbers["score"] = normalised(numbers["return"], self.spec.reference)
        self.log_judgement(stage, numbers)

    def predict_step(self, batch: TensorDict, batch_idx: int) -> dict[str, Tensor]:
        """Actions ``[M, A]``, or ``[M]`` where they are discrete, for M transitions."""
        observation = batch["observation"]
        parts = observation.split(ACTED) if self.spec is not None and self.spec.pixels else [observation]
        return {"action": torch.cat([self.act(part) for part in parts])}
