"""What passes between the data and an algorithm: the facts a network needs, and the batches of an update."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.errors import InputError

Kind = Literal["continuous", "discrete"]
"""of actions"""
Role = Literal["evaluation", "improvement", "constraint"]
ROLES: tuple[Role, ...] = get_args(Role)
MOST_ACTIONS = 10_000
"""discrete actions; each costs memory in every network, and no environment that we know has as many"""


class Batch(NamedTuple):
    """The transitions of one update, by the role of the loss term that reads them.

    Each role is a TensorDict with one row per transition, shape ``[B]``. Its entries:

    - ``observation`` ``[B, *O]`` and ``action`` ``[B, A]`` (int64 ``[B]`` where actions are discrete), before the step;
    - ``("next", "observation")`` ``[B, *O]``, ``("next", "reward")`` ``[B]`` (scaled and shifted as the datamodule was
      told) and ``("next", "terminated")`` ``[B]``, after it. A step that was only cut off by time is not terminated;
    - ``weight`` ``[B]``: what the transition's share of the role's loss is multiplied by, as
      ``(batch.improvement["weight"] * loss).mean()``. Ones, unless the datamodule reweights by a priority;
    - what the algorithm's ``columns`` made. The algorithms of this package have ``discount`` ``[B]``, the factor of the
      value that a target bootstraps from, 0 where the episode terminated.

    In an algorithm's ``update`` observations are normalised if the algorithm wants it, continuous actions lie in
    [-1, 1], and discrete ones count from 0; in a loop of your own both are as recorded. Roles that were drawn alike are
    the same object, so that ``batch.constraint is batch.improvement`` tells whether one forward pass does for both.

    There is one leading dimension more in a block, which holds K updates (``[K, B]``, from ``OfflineDataModule.draw``;
    :meth:`unbind` makes K batches of it), and one more before B while S seeds train side by side (``[S, B]``, in a
    block ``[K, S, B]``; stage 1 of OPER-A).
    """

    evaluation: TensorDict
    """for critics, values and Bellman errors"""
    improvement: TensorDict
    """for the actor's search for better actions"""
    constraint: TensorDict
    """for what keeps the policy near the data"""

    def map(self, function: Any) -> Batch:
        """Applies ``function`` to each distinct TensorDict once; roles that were the same object stay so."""
        done: dict[int, TensorDict] = {}
        for part in self:
            if id(part) not in done:
                done[id(part)] = function(part)
        return Batch(*(done[id(part)] for part in self))

    def unbind(self) -> list[Batch]:
        """The K batches of a block."""
        parts = self.map(lambda part: part.unbind(0))
        return [Batch(*rows) for rows in zip(*parts, strict=True)]


@dataclass(frozen=True)
class DataSpec:
    """What an algorithm and its checkpoint need to know of the data. Holds numbers, strings, lists and tensors only."""

    observation_shape: tuple[int, ...]
    action_shape: tuple[int, ...]
    action_low: Tensor
    """lowest action in the environment's units, shape ``action_shape``; the first number of discrete ones, int64"""
    action_high: Tensor
    observation_mean: Tensor
    """mean of the observations over all transitions, shape ``observation_shape``; 0, without a shape, for images"""
    observation_std: Tensor
    """their population standard deviation; 1 for images"""
    rows: int
    """number of recorded transitions N; 0 where all were gathered in training"""
    fingerprint: str
    """see :func:`oper_lightning.data.transitions.fingerprint`"""
    dataset: str = "unnamed"
    environment: str | None = None
    """Gymnasium id of the environment to evaluate in"""
    environment_options: dict[str, Any] = field(default_factory=dict)
    observation_keys: tuple[str, ...] = ()
    """order in which the entries of a Dict observation were joined"""
    reference: tuple[float, float] | None = None
    """returns that score 0 and 100"""
    reference_from: str = ""
    """who says so"""
    d4rl: bool = False
    """whether a normalised score on this data may be called a D4RL score"""
    discrete: bool = False
    """whether an action is one of a few, known by its number"""
    pixels: bool = False
    """whether observations are images of bytes, uint8 ``[C, H, W]``, which networks get as they are"""
    reward_range: tuple[float, float] | None = None
    """lowest and highest recorded reward, scaled and shifted; None where nothing was recorded"""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint, readable with ``weights_only=True``."""
        plain = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> DataSpec:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: if an entry is missing, unknown, or not what belongs there.
        """
        names = {entry.name: entry for entry in fields(cls)}
        missing = [name for name, entry in names.items() if name not in plain and _needed(entry)]
        unknown = [str(name) for name in plain if name not in names]
        if missing or unknown:
            raise InputError(
                f"its spec of the data {'lacks' if missing else 'has an unknown entry'} {', '.join(missing or unknown)}"
            )
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in plain.items()}
        for name, value in values.items():
            if not _fits(name, value, values):
                raise InputError(f"its spec of the data has {name} {' '.join(str(value).split())[:60]}")
        spec = cls(**values)
        if spec.discrete and not 1 <= spec.actions <= MOST_ACTIONS:
            raise InputError(f"its spec of the data has discrete actions from {spec.action_low} to {spec.action_high}")
        return spec

    def as_learnt(self, other: DataSpec) -> DataSpec:
        """The same data, with the statistics and bounds of others on which networks were trained."""
        learnt = ("observation_mean", "observation_std", "action_low", "action_high")
        return replace(self, **{name: getattr(other, name) for name in learnt})

    def difference(self, other: DataSpec) -> str | None:
        """The first thing in which networks made for ``self`` would not fit ``other``, in words; None if they fit."""
        for name in ("observation_shape", "action_shape"):
            if getattr(self, name) != getattr(other, name):
                return f"{name.replace('_', ' ')} {getattr(self, name)} against {getattr(other, name)}"
        if self.discrete != other.discrete:
            return f"{self.kind} actions against {other.kind} ones"
        if self.pixels != other.pixels:
            return "images of bytes against numbers" if self.pixels else "numbers against images of bytes"
        if self.discrete and self.actions != other.actions:
            return f"{self.actions} actions against {other.actions}"
        return None

    @property
    def kind(self) -> Kind:
        """What kind of actions there are."""
        return "discrete" if self.discrete else "continuous"

    @property
    def actions(self) -> int:
        """Number of discrete actions."""
        return int(self.action_high) - int(self.action_low) + 1

    @property
    def observation_size(self) -> int:
        """Length D of observations that are vectors.

        Raises:
            InputError: if they are something else.
        """
        return self._size("observation", self.observation_shape)

    @property
    def action_size(self) -> int:
        """Length A of actions that are vectors.

        Raises:
            InputError: if they are something else.
        """
        return self._size("action", self.action_shape)

    def _size(self, name: str, shape: tuple[int, ...]) -> int:
        if len(shape) != 1:
            remedy = "" if shape else f": save {name}s as [rows, 1]"
            raise InputError(f"{self.dataset}: {name}s of shape {shape}; this algorithm needs vectors{remedy}")
        return shape[0]


class Task(ABC):
    """What a step earns and where an episode ends, by formula, so that imagined steps can be judged like real ones.

    Observations are raw ``[B, O]`` and actions ``[B, A]`` in the environment's units, inside its bounds; an imagined
    row may be far from everything that an environment would show.
    """

    observations: int | None = None
    """length O of the observations that it knows; None if any will do"""

    @abstractmethod
    def reward(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """Rewards ``[B]`` of steps."""

    def terminated(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """Whether episodes end with these steps, bool ``[B]``; by default they never do."""
        return torch.zeros(len(observation), dtype=torch.bool, device=observation.device)

    def check(self, observations: int, whose: str) -> None:
        """Compares the length of observations with what the task knows.

        Raises:
            InputError: if it is another; ``whose`` observations they are says the message.
        """
        if self.observations not in (None, observations):
            raise InputError(
                f"the task {type(self).__name__} knows observations of {self.observations} columns; those of {whose} "
                f"have {observations}: it is a task for another robot"
            )


ValueBounds = tuple[float, float] | Literal["data"] | None
"""lowest and highest value that a target bootstraps from, or where to find them"""


def bounds_of_values(given: ValueBounds, spec: DataSpec, discount: float) -> tuple[float, float]:
    """Lowest and highest value that targets may bootstrap from; infinite where there is no bound.

    ``data`` stands for what returns can be if all rewards lie in the range of the recorded ones, and an episode may end
    at once or never: for rewards from -1 to 0 and a discount of 0.99 they are -100 and 0.

    Raises:
        InputError: if bounds are in the wrong order, or cannot be had.
    """
    if given is None:
        return -math.inf, math.inf
    if given != "data":
        low, high = given
        if not low < high:
            raise InputError(f"model.value_bounds [{low}, {high}]: the lowest value must be below the highest")
        return low, high
    if spec.reward_range is None:
        raise InputError("model.value_bounds=data goes by recorded rewards, and there are none; give two numbers")
    if not discount < 1:
        raise InputError(f"model.value_bounds=data has no meaning at a discount of {discount}; give two numbers")
    low, high = spec.reward_range
    return min(low, low / (1 - discount)), max(high, high / (1 - discount))


def _needed(entry: Field[Any]) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


def _fits(name: str, value: Any, values: dict[str, Any]) -> bool:
    """Whether a value of a spec, as read from a file, is what belongs there."""
    if name in ("observation_shape", "action_shape"):
        return isinstance(value, tuple) and all(type(size) is int and size > 0 for size in value)
    if DataSpec.__annotations__[name] == "Tensor":
        # A tensor that is not contiguous can stand for more memory than its file holds.
        dtype = torch.int64 if name.startswith("action") and values.get("discrete") is True else torch.float32
        plain = isinstance(value, Tensor) and value.dtype is dtype and value.is_contiguous()
        shape = values["action_shape" if name.startswith("action") else "observation_shape"]
        if name.startswith("observation") and values.get("pixels") is True:
            shape = ()
        return plain and tuple(value.shape) == shape and bool(value.isfinite().all())
    if name == "rows":
        return type(value) is int and value >= 0
    if name == "environment_options":
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if name == "observation_keys":
        return isinstance(value, tuple) and all(isinstance(key, str) for key in value)
    if name == "reference":
        numbers = isinstance(value, tuple) and len(value) == 2 and all(type(v) in (int, float) for v in value)
        return value is None or (numbers and value[0] != value[1])
    if name == "reward_range":
        numbers = isinstance(value, tuple) and len(value) == 2 and all(type(v) is float for v in value)
        return value is None or (numbers and -math.inf < value[0] <= value[1] < math.inf)
    if name == "discrete":
        return isinstance(value, bool) and (not value or values["action_shape"] == ())
    if name in ("d4rl", "pixels"):
        return isinstance(value, bool)
    return isinstance(value, str) or (name == "environment" and value is None)
