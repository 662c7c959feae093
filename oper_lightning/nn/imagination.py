"""Rollouts that a model imagines, side by side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

Act = Callable[[Tensor], Tensor]
"""actions ``[B, A]`` for raw observations ``[B, O]``"""
World = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""of observations ``[B, O]`` and actions ``[B, A]`` the next observations ``[B, O]``, the rewards ``[B]``, and whether
episodes terminate with the step and whether the model is lost after it, bool ``[B]`` each"""


@torch.no_grad()
def imagine(start: Tensor, horizon: int, act: Act, world: World) -> TensorDict:
    """B rollouts of H steps, a TensorDict ``[H, B]`` without gaps: one that ends begins again where it began.

    A rollout is cut where the model is lost, or says what is no number; and so are all after H steps. That ends nothing
    in the world: such steps are ``done`` but not ``terminated``, and the value of what would follow still counts. Where
    the model is lost that is the value of where the step began, as no baseline is ever fitted to where it leads.

    Args:
        start: first observations, raw, ``[B, O]``.
        horizon: number of steps H.
        act: the policy, with its noise.
        world: the model, with rewards and terminations.

    Returns:
        observation ``[H, B, O]`` and next_observation, raw; action ``[H, B, A]``; reward ``[H, B]``; terminated and
        done ``[H, B]``; time, the number of steps since the rollout began, ``[H, B]``. All numbers but those of the
        policy are finite.
    """
    observation, time = start, torch.zeros(len(start), device=start.device)
    steps = []
    for _ in range(horizon):
        action = act(observation)
        following, reward, terminated, lost = world(observation, action)
        odd = ~(following.isfinite().all(-1) & reward.isfinite())
        lost = lost | odd
        following = torch.where(lost.unsqueeze(-1), observation, following)
        terminated = terminated & ~lost
        done = terminated | lost
        steps.append(
            {
                "observation": observation,
                "action": action,
                "next_observation": following,
                "reward": reward.masked_fill(odd, 0),
                "terminated": terminated,
                "done": done,
                "time": time,
            }
        )
        observation = torch.where(done.unsqueeze(-1), start, following)
        time = (time + 1).masked_fill(done, 0)
    steps[-1]["done"] = torch.ones_like(done)
    columns = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}
    return TensorDict(columns, batch_size=[horizon, len(start)])
