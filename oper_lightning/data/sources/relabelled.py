"""A dataset whose steps a task judges anew: the same robot, paid for something else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from tensordict import TensorDict

from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.transitions import RETURN
from oper_lightning.errors import InputError
from oper_lightning.spec import Task


class Relabelled(Source):
    """A dataset with the rewards, and the ends, of a task: recordings of HalfCheetah become CheetahRun's.

    An episode that the task ends within the recording is cut in two. What was recorded as terminated, and is not for
    the task, counts as truncated.

    Args:
        source: the dataset, whose observations are those that the task knows.
        task: what steps earn and where episodes end; the class of a :class:`oper_lightning.spec.Task`.
        environment: Gymnasium id of an environment with that task, such as bremen/CheetahRun-v0, in which policies are
            judged; by default none: in the dataset's own one they would be paid as before.
    """

    def __init__(self, source: Source, task: Task, environment: str | None = None) -> None:
        self.source = source
        self.task = task
        self.environment = environment

    def __str__(self) -> str:
        return str(self.source)

    def prepare(self) -> None:
        self.source.prepare()

    def origin(self) -> Origin:
        known = self.source.origin()
        name = f"{known.dataset}, for {type(self.task).__name__}"
        return replace(
            known, dataset=name, environment=self.environment, environment_options={}, reference=None, d4rl=False
        )

    def __len__(self) -> int:
        return len(self.source)

    def episodes(self) -> Iterator[TensorDict]:
        known = self.source.origin()
        bounds = [bound for bound in (known.action_low, known.action_high) if bound is not None]
        for episodes in self.source.episodes():
            judged = episodes.clone()
            judged.pop(RETURN, None)  # of what was paid before
            self.task.check(judged["observation"].shape[-1], str(self.source))
            following, action = judged["next"], judged["action"]
            if bounds and action.is_floating_point():
                action = action.clamp(*(torch.as_tensor(bound).to(action) for bound in bounds))
            seen = judged["observation"], action, following["observation"]
            reward, terminated = self.task.reward(*seen), self.task.terminated(*seen)
            if {reward.shape, terminated.shape} != {torch.Size([len(judged)])} or terminated.dtype != torch.bool:
                raise InputError(
                    f"{type(self.task).__name__}: rewards {list(reward.shape)} and ends {list(terminated.shape)} "
                    f"({terminated.dtype}) of {len(judged):,} steps; one number and one bool for each are needed"
                )
            following["reward"] = reward.to(torch.float32)[:, None]
            following["done"] |= terminated[:, None]
            following["terminated"] = terminated[:, None]
            following["truncated"] = following["done"] & ~terminated[:, None]
            yield judged
