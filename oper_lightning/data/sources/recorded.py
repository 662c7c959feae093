"""What a recording says of itself and its environment, checked while the data are loaded: not hours later.

What cannot be used is left out with a note. Nothing here imports what a file names.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from oper_lightning.errors import InputError, note

if TYPE_CHECKING:
    from oper_lightning.data.sources.hdf5 import Hdf5

DEEPEST = 256  # frames of a stack; a larger number cannot be meant
LONGEST = 100_000  # steps of an episode; a larger limit cannot be meant
# Gymnasium's own wrappers that World can put around an environment again; without a state of their own.
APPLIED = (
    "ClipAction",
    "ClipReward",
    "DtypeObservation",
    "FilterObservation",
    "FlattenObservation",
    "RescaleAction",
    "RescaleObservation",
    "TimeAwareObservation",
)
# Wrappers that change neither actions, rewards nor observations.
IDLE = (
    "Autoreset",
    "HumanRendering",
    "OrderEnforcing",
    "PassiveEnvChecker",
    "RecordEpisodeStatistics",
    "RecordVideo",
    "RenderCollection",
)
SHOWING = ("render_mode", "render_fps", "human_rendering", "screen", "window")
RESERVED = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "disable_env_checker")


def environment_named_by_data(name: object) -> str | None:
    """A Gymnasium id found in a file; None, with a note, if it names a module: a file must not choose our imports."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    if re.fullmatch(r"[\w./-]{1,200}", text):
        return text
    note(f"environment {text[:200]!r} named by the data is not a plain Gymnasium id; ignored")
    return None


def reference_named_by_data(low: Any, high: Any, origin: object) -> tuple[float, float] | None:
    """Returns that score 0 and 100; None, with a note, where the two make no score."""
    if low is None and high is None:
        return None
    try:
        pair = float(low), float(high)
    except (TypeError, ValueError):
        pair = (math.nan, math.nan)
    if all(map(math.isfinite, pair)) and pair[0] < pair[1] and math.isfinite(pair[1] - pair[0]):
        return pair
    note(f"{origin}: ref_min_score {_short(low)} and ref_max_score {_short(high)} make no score; left out")
    return None


def attributes_of(file: Hdf5, origin: object) -> tuple[str | None, tuple[float, float] | None]:
    """The environment's id and the returns that score 0 and 100, as an open file's attributes have them."""
    name, low, high = (file.attribute(key) for key in ("env_id", "ref_min_score", "ref_max_score"))
    environment = None if name is None else environment_named_by_data(name)
    return environment, reference_named_by_data(low, high, origin)


def frames_of_a_stack(count: object, origin: object, name: str) -> int:
    """How many frames an observation is made of, as the field ``name`` of a file says.

    Raises:
        InputError: if that is no such number.
    """
    count = count.item() if isinstance(count, np.generic) else count
    if isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= DEEPEST:
        return count
    raise InputError(f"{origin}: {name} is {_short(count)}; a number of frames from 1 to {DEEPEST} is needed")


def environment_of_spec(spec: Any, origin: object) -> tuple[str | None, dict[str, Any]]:
    """Id and options of the environment that a Gymnasium spec, read from JSON, describes.

    ``options["wrappers"]`` lists those of Gymnasium's own wrappers that are to be put around it, as plain data.
    Without an environment, or with one that cannot be made again as it was, the id is None, and a note says why.
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("id"), str):
        note(f"{origin}: its environment's spec is {_short(spec)}, without an id; ignored")
        return None, {}
    environment = environment_named_by_data(spec["id"])
    if environment is None:
        return None, {}
    options: dict[str, Any] = {}
    given = spec.get("kwargs")
    for name, value in (given if isinstance(given, dict) else {}).items():
        if name in SHOWING or name in RESERVED:
            note(f"{origin}: {name}={_short(value)} of the recorded environment is left out")
        elif any(map(_names_a_file, _leaves(value))):
            note(f"{origin}: recorded with {name}={_short(value)}, which names a file; training without evaluation")
            return None, {}
        elif name == "max_episode_steps":
            options |= _limit(value, origin)
        else:
            options[name] = value
    options |= _limit(spec.get("max_episode_steps"), origin)
    wrappers = spec.get("additional_wrappers") or []
    kept = []
    for wrapper in wrappers if isinstance(wrappers, list) else [wrappers]:
        name, module, arguments = _wrapper(wrapper)
        own = module == "gymnasium.wrappers" or module.startswith("gymnasium.wrappers.")
        if own and name in IDLE:
            continue
        if not own or name not in APPLIED or not isinstance(arguments, dict):
            note(
                f"{origin}: recorded through the wrapper {_short(name)}, which cannot be put around an environment "
                f"again here; {environment} without it is another environment: training without evaluation"
            )
            return None, {}
        kept.append({"name": name, "kwargs": arguments})
    if kept:
        options["wrappers"] = kept
    return environment, options


def _wrapper(wrapper: Any) -> tuple[str, str, Any]:
    """Name, module and arguments of a wrapper's spec."""
    if not isinstance(wrapper, dict):
        return str(wrapper), "", None
    module, _, name = str(wrapper.get("entry_point", "")).partition(":")
    return name or str(wrapper.get("name")), module, wrapper.get("kwargs")


def _limit(steps: Any, origin: object) -> dict[str, int]:
    if steps is None:
        return {}
    if isinstance(steps, int) and not isinstance(steps, bool) and 1 <= steps <= LONGEST:
        return {"max_episode_steps": steps}
    note(f"{origin}: max_episode_steps {_short(steps)} of the recorded environment is no number of steps; left out")
    return {}


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for part in value for leaf in _leaves(part)] if isinstance(value, list) else [value]


def _names_a_file(value: Any) -> bool:
    """Whether an option's value is text that may stand for a file, which an environment would then read."""
    return isinstance(value, str) and bool(re.search(r"[/\\]|^~|\.\w{1,5}$", value))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
