"""Cal-QL: Nakamoto et al. 2023, "Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online Fine-Tuning", arXiv
2303.05479.

CQL whose penalty never pushes the value of a sampled action below the return of the recorded behaviour (equation 5.1).
Values then keep the scale of returns, so that an agent that goes on learning online does not begin by unlearning.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.algorithms.cql import CQL
from oper_lightning.data.transitions import episode_of, return_to_go
from oper_lightning.errors import InputError


class CalQL(CQL):
    """Cal-QL: CQL that pushes no value of the policy's actions below what was earned; to be fine-tuned online.

    The return of the recorded behaviour is counted without a bonus. A bonus is never negative, so that it stays a lower
    bound of the values with one.

    Args:
        calibrate_uniform: whether uniform actions are bounded as well as the policy's. Paper: not; OOO, arXiv
            2310.08558: they are.
        failure_reward: in a task that pays for its goal only, the reward (scaled and shifted) of a step that does not
            reach it; an episode without any other reward then counts as one that fails for ever. Antmaze with rewards
            -5 and 5: -5. Null for other tasks.
        endless: whether the task goes on where an episode was cut off: its last reward then counts for ever. Kitchen.
        max_target_backup: whether the target takes the best of the sampled actions instead of one of them.
        orthogonal_init: whether layers are initialised orthogonally (gain sqrt 2, the last 0.01).
        policy_learning_rate: learning rate of policy and entropy temperature (Adam).
        options: those of CQL.
    """

    def __init__(
        self,
        calibrate_uniform: bool = False,
        failure_reward: float | None = None,
        endless: bool = False,
        max_target_backup: bool = True,
        orthogonal_init: bool = True,
        policy_learning_rate: float = 1e-4,
        **options: Any,
    ) -> None:
        super().__init__(
            max_target_backup=max_target_backup,
            orthogonal_init=orthogonal_init,
            policy_learning_rate=policy_learning_rate,
            **options,
        )
        self.calibrate_uniform = calibrate_uniform
        self.failure_reward = failure_reward
        self.endless = endless
        if (endless or failure_reward is not None) and not self.discount < 1:
            raise InputError(f"CalQL: endless and failure_reward need a discount below 1, not {self.discount}")

    def on_fit_start(self) -> None:
        """Refuses rows of episodes that still run: their returns are not known."""
        if getattr(self.trainer.datamodule, "visible", "episode") != "episode":  # type: ignore[attr-defined]
            raise InputError("CalQL needs the returns of whole episodes: set data.visible to episode")
        super().on_fit_start()

    def columns(self, transitions: TensorDict) -> TensorDict:
        return super().columns(transitions).set("return_to_go", self.returns(transitions).float())

    def returns(self, transitions: TensorDict) -> Tensor:
        """What the recorded behaviour earned from each transition on, discounted, float64 ``[N]``."""
        reward, done = transitions["next", "reward"].double(), transitions["next", "done"]
        if self.endless:
            cut, for_ever = transitions["next", "truncated"], reward / (1 - self.discount)
            reward = torch.where(cut, for_ever, reward)
        earned = return_to_go(reward, done, self.discount)
        if self.failure_reward is None:
            return earned
        paid = ~torch.isclose(reward, torch.full_like(reward, self.failure_reward))  # up to rounding
        episode = episode_of(done)
        paying = torch.zeros_like(earned).index_add(0, episode, paid.double())[episode]
        return torch.where(paying > 0, earned, self.failure_reward / (1 - self.discount))

    def candidates(self, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """As CQL's, but no value lies below the row's return; uniform actions' only if they are to be bounded."""
        values, log_density = super().candidates(batch)
        free = 0 if self.calibrate_uniform else self.sampled_actions
        bounded = torch.maximum(values[..., free:], batch["return_to_go"].unsqueeze(-1))
        return torch.cat([values[..., :free], bounded], -1), log_density
