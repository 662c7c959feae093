"""What runs of BREMEN read of earlier ones: an ensemble, a clone, a policy; and a policy that holds an ensemble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from fuzzing.case import ACCEPT, EITHER, NASTY, REFUSE, Kind, Mutation, Told, spoil
from fuzzing.checkpoints import TENSORS
from fuzzing.hdf5 import DATA

ENSEMBLE, CLONE, POLICY = (f"runs/{name}/last.ckpt" for name in ("DynamicsEnsemble", "BC", "BREMEN"))
SIZES = "--data.rollouts=null --data.batch_size=8 --data.updates_per_epoch=4 --trainer.max_steps=4"
MODEL = f"--model=BREMEN --model.horizon=3 --model.hidden_sizes=[8] --model.dynamics={ENSEMBLE}"
FRESH = f"fit {MODEL} {DATA} {SIZES} --output=fresh"
COMMANDS = {
    ENSEMBLE: [FRESH],
    CLONE: [f"{FRESH} --model.clone={CLONE}", f"{FRESH} --model.clone={CLONE} --model.alpha=0.1"],
    POLICY: [
        f"{FRESH} --model.start={POLICY}",  # does not look at the ensemble in it
        f"fit --ckpt_path={POLICY} --trainer.max_steps=8 --trainer.max_epochs=-1",
        f"predict --ckpt_path={POLICY}",
        f"validate --ckpt_path={POLICY} --data.rollouts.environment=Pendulum-v1 --data.rollouts.episodes=1",
    ],
}
"""what reads each"""


def _changed(path: str, change: Callable[[dict[str, Any], Random], Told]) -> Mutation:
    """A change of a checkpoint; of a policy's, one that concerns the ensemble in it."""

    def mutate(rng: Random) -> Told:
        content = torch.load(path, weights_only=True)
        told = change(content, rng)
        torch.save(content, path)
        return Told(
            told.must, command=rng.choice(COMMANDS[path][path == POLICY :]), names=(path.split("/")[1], "last.ckpt")
        )

    return mutate


def _within(path: str, *section: str) -> Mutation:
    """Something else in place of an entry somewhere below a section."""
    return _changed(path, lambda content, rng: (spoil(content, rng, TENSORS, section), EITHER)[1])


def _sizes(value: Any, told: Told = REFUSE) -> Mutation:
    """Something else in place of what the ensemble of a policy is made by; or, of a dict, in place of its entries."""

    def change(content: dict[str, Any], rng: Random) -> Told:
        content["dynamics"] = {**content["dynamics"], **value} if isinstance(value, dict) else value
        return told

    return _changed(POLICY, change)


def _hyper(path: str, told: Told = REFUSE, **values: Any) -> Mutation:
    return _changed(path, lambda content, rng: (content["hyper_parameters"].update(values), told)[1])


def _tensor(path: str, prefix: str, change: Callable[[torch.Tensor], Any]) -> Mutation:
    """One tensor below a prefix changed so that it must be refused."""

    def mutate(content: dict[str, Any], rng: Random) -> Told:
        name = rng.choice([key for key in content["state_dict"] if key.startswith(prefix)])
        content["state_dict"][name] = change(content["state_dict"][name])
        return REFUSE

    return _changed(path, mutate)


def _without(path: str, prefix: str) -> Mutation:
    def mutate(content: dict[str, Any], rng: Random) -> Told:
        del content["state_dict"][rng.choice([key for key in content["state_dict"] if key.startswith(prefix)])]
        return REFUSE

    return _changed(path, mutate)


def _as_they_were(rng: Random) -> Told:
    return Told(ACCEPT.must, command=rng.choice(rng.choice(list(COMMANDS.values()))))


def _swapped(rng: Random) -> Told:
    """One kind of checkpoint in the place of another."""
    first, second = rng.sample(list(COMMANDS), 2)
    Path(first).write_bytes(Path(second).read_bytes())
    return Told(command=rng.choice(COMMANDS[first]))


EARLIER = Kind(
    lambda rng: rng.choice([ENSEMBLE, CLONE]),
    ("DynamicsEnsemble", "BC", "last.ckpt"),
    lambda rng: COMMANDS[CLONE][0],
    {
        "structure: as they were": _as_they_were,
        "structure: swapped": _swapped,
        **{f"structure: an ensemble's anything {n}": _within(ENSEMBLE) for n in (1, 2)},
        **{f"structure: a clone's anything {n}": _within(CLONE) for n in (1, 2)},
        "structure: an ensemble with a tensor less": _without(ENSEMBLE, "best."),
        "structure: a clone with a tensor less": _without(CLONE, "policy."),
        "structure: a policy without its ensemble's tensors": _without(POLICY, "model."),
        "structure: a policy whose ensemble is a list": _sizes([2, 1, 1]),
        "structure: a policy whose ensemble is text": _sizes("two"),
        "structure: a policy whose ensemble is nothing": _sizes(None),
        **{
            f"meaning: an ensemble's {part}": _within(ENSEMBLE, part)
            for part in ("spec", "hyper_parameters", "state_dict")
        },
        **{f"meaning: a clone's {part}": _within(CLONE, part) for part in ("hyper_parameters", "state_dict")},
        **{f"meaning: a policy's ensemble {n}": _within(POLICY, "dynamics") for n in (1, 2, 3)},
        "meaning: an ensemble of a trillion": _hyper(ENSEMBLE, members=10**12),
        "meaning: an ensemble of none": _hyper(ENSEMBLE, members=0),
        "meaning: an ensemble of three": _hyper(ENSEMBLE, members=3),
        "meaning: an ensemble of wide layers": _hyper(ENSEMBLE, hidden_sizes=[10**9]),
        "meaning: an ensemble of layers of text": _hyper(ENSEMBLE, hidden_sizes="8"),
        "meaning: an ensemble without a reward": _hyper(ENSEMBLE, reward=False),
        "meaning: an ensemble of spreads": _hyper(ENSEMBLE, kind="gaussian"),
        "meaning: an ensemble of an odd kind": _hyper(ENSEMBLE, EITHER, kind=NASTY[0]),
        "meaning: a policy with an ensemble of a trillion": _sizes({"members": 10**12}),
        "meaning: a policy with an ensemble of none": _sizes({"members": 0}),
        "meaning: a policy with an ensemble of wide layers": _sizes({"hidden_sizes": [10**9]}),
        "meaning: a policy with an ensemble of odd layers": _sizes({"hidden_sizes": [8, -1]}),
        "meaning: a policy with an ensemble of other observations": _sizes({"observations": 10**7}),
        "meaning: a policy with an ensemble of spreads": _sizes({"gaussian": True}),
        "meaning: a policy with an ensemble of more": _sizes({"more": 1}),
        "meaning: an ensemble of nan": _tensor(ENSEMBLE, "best.", lambda t: torch.full_like(t, float("nan"))),
        "meaning: an ensemble of another shape": _tensor(ENSEMBLE, "best.networks", lambda t: t[..., :1, :1]),
        "meaning: a clone of inf": _tensor(CLONE, "policy.", lambda t: torch.full_like(t, float("inf"))),
        "meaning: a clone of another shape": _tensor(CLONE, "policy.", lambda t: torch.zeros(7)),
        "meaning: a clone whose statistics are of another shape": _tensor(
            CLONE, "observation_", lambda t: torch.zeros(9)
        ),
        "meaning: a clone whose statistics are nan": _tensor(CLONE, "observation_", lambda t: t * float("nan")),
        "meaning: a policy whose ensemble is nan": _tensor(POLICY, "model.", lambda t: t * float("nan")),
    },
)
