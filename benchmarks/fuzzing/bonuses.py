"""What a bonus has learnt, in the checkpoint of a run: read by the run that goes on, or by another one."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch

from fuzzing.case import ACCEPT, EITHER, NASTY, REFUSE, Kind, Mutation, Told
from fuzzing.logs import QUICK

RUN = "runs/Curious"
CHECKPOINT = f"{RUN}/last.ckpt"
SIZES = "--data.bonus.hidden_sizes=[8] --data.bonus.features=4"
ONLINE = "--data=OnlineDataModule --data.environment=Pendulum-v1 --data.warmup=30 --data.parallel=2"
OTHER = f"fit --model=TD3BC --model.normalise_observations=false {ONLINE} {QUICK} --output=out --data.bonus=RND {SIZES}"


def _command(rng: Random) -> str:
    return rng.choice(
        [
            f"fit --ckpt_path={CHECKPOINT} --trainer.max_steps=8 --trainer.max_epochs=-1",
            f"{OTHER} --start={CHECKPOINT}",
            f"{OTHER} --data.bonus.path={CHECKPOINT}",
            f"{OTHER} --data.bonus.path={CHECKPOINT} --data.bonus.learn=false",
        ]
    )


def _bonus(change: Callable[[dict[str, Any], Random], Any], told: Told = REFUSE) -> Mutation:
    """Changes the section of the bonus, or puts what is returned in its place."""

    def mutate(rng: Random) -> Told:
        content = torch.load(CHECKPOINT, weights_only=True)
        data = content["OnlineDataModule"]
        other = change(data["bonus"], rng)
        if other is not None:
            data["bonus"] = other
        torch.save(content, CHECKPOINT)
        return told

    return mutate


def _tensor(change: Callable[[torch.Tensor], Any], told: Told = REFUSE, ending: str = "") -> Mutation:
    def mutate(state: dict[str, Any], rng: Random) -> None:
        name = rng.choice([key for key in state if key.endswith(ending)])
        state[name] = change(state[name])

    return _bonus(mutate, told)


BONUSES = Kind(
    lambda rng: CHECKPOINT,
    (RUN, "last.ckpt"),
    _command,
    {
        "structure: as it was": lambda rng: ACCEPT,
        "structure: anything": _bonus(lambda state, rng: rng.choice([value for value in NASTY if value is not None])),
        "structure: empty": _bonus(lambda state, rng: {}, EITHER),
        "structure: a part less": _bonus(lambda state, rng: state.pop(rng.choice(list(state))) is None or None),
        "structure: a part more": _bonus(lambda state, rng: state.update(more=torch.zeros(3))),
        "structure: numbers for names": _bonus(lambda state, rng: state.update({1: torch.zeros(3)})),
        "meaning: nan": _tensor(lambda t: t * float("nan")),
        "meaning: inf": _tensor(lambda t: t + float("inf")),
        "meaning: huge": _tensor(lambda t: torch.full_like(t, 3e38), EITHER),
        "meaning: negative variance": _tensor(lambda t: -t - 1, REFUSE, ".variance"),
        "meaning: negative moment": _tensor(lambda t: -t - 1, REFUSE, ".exp_avg_sq"),
        "meaning: negative count": _tensor(lambda t: -t - 1, REFUSE, ".count"),
        "meaning: another shape": _tensor(lambda t: t[None]),
        "meaning: no shape": _tensor(lambda t: torch.zeros(0)),
        "meaning: another type": _tensor(lambda t: t.to(torch.complex64)),
        "meaning: integers": _tensor(lambda t: t.long()),
        "meaning: a trillion": _tensor(lambda t: torch.ones(1).expand(10**12)),
        "meaning: sparse": _tensor(lambda t: t.to_sparse(), REFUSE, ".weight"),
        "meaning: on no device": _tensor(lambda t: t.to("meta")),
        "meaning: anything": _bonus(
            lambda state, rng: state.update({rng.choice(list(state)): rng.choice(NASTY)}), REFUSE
        ),
    },
)
