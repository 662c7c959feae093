"""Reference returns and episode limits of the D4RL families, references of NeoRL-2, and the normalised score.

Fu et al. 2020, arXiv 2004.07219: score = 100 * (return - lowest) / (highest - lowest), lowest and highest being the
returns of a random and of an expert policy.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class Family(NamedTuple):
    """Reference returns that score 0 and 100, and the steps after which an episode is cut."""

    low: float
    high: float
    steps: int | None


# Keys are prefixes of D4RL's dataset names; the longest that fits counts.
FAMILIES: dict[str, Family] = {
    "halfcheetah": Family(-280.178953, 12135.0, 1000),
    "hopper": Family(-20.272305, 3234.3, 1000),
    "walker2d": Family(1.629008, 4592.3, 1000),
    "ant": Family(-325.6, 3879.7, 1000),
    "antmaze": Family(0.0, 1.0, 1000),
    "antmaze-umaze": Family(0.0, 1.0, 700),
    "antmaze-eval-umaze": Family(0.0, 1.0, 700),
    "kitchen": Family(0.0, 4.0, 280),
    "pen": Family(96.262799, 3076.8331017826877, 100),
    "pen-human-longhorizon": Family(96.262799, 3076.8331017826877, 200),
    "hammer": Family(-274.856578, 12794.134825156867, 200),
    "hammer-human-longhorizon": Family(-274.856578, 12794.134825156867, 600),
    "relocate": Family(-6.425911, 4233.877797728884, 200),
    "relocate-human-longhorizon": Family(-6.425911, 4233.877797728884, 500),
    "door": Family(-56.512833, 2880.5693087298737, 200),
    "door-human-longhorizon": Family(-56.512833, 2880.5693087298737, 300),
    "maze2d-open": Family(0.01, 20.66, 150),
    "maze2d-open-dense": Family(11.17817, 27.166538620695782, 150),
    "maze2d-umaze-v0": Family(0.94, 62.6, 150),  # version 0 had shorter episodes and other mazes
    "maze2d-umaze-dense-v0": Family(23.249793, 81.78995240126592, 150),
    "maze2d-medium-v0": Family(5.77, 85.14, 250),
    "maze2d-medium-dense-v0": Family(19.477620, 96.03474232952358, 250),
    "maze2d-large-v0": Family(4.83, 191.99, 600),
    "maze2d-large-dense-v0": Family(27.388310, 215.09965671563742, 600),
    "maze2d-umaze": Family(23.85, 161.86, 300),
    "maze2d-umaze-dense": Family(68.537689, 193.66285642381482, 300),
    "maze2d-medium": Family(13.13, 277.39, 600),
    "maze2d-medium-dense": Family(44.264742, 297.4552547777125, 600),
    "maze2d-large": Family(6.7, 273.99, 800),
    "maze2d-large-dense": Family(30.569041, 303.4857382709002, 800),
    "maze2d-eval-umaze": Family(36.63, 141.4, 300),
    "maze2d-eval-umaze-dense": Family(56.95455, 178.21373133248397, 300),
    "maze2d-eval-medium": Family(13.07, 204.93, 600),
    "maze2d-eval-medium-dense": Family(42.28578, 235.5658957482388, 600),
    "maze2d-eval-large": Family(16.4, 302.22, 800),
    "maze2d-eval-large-dense": Family(56.95455, 326.09647655082637, 800),
    "minigrid-fourrooms": Family(0.01442, 2.89685, 50),
    "flow-ring": Family(-165.22, 24.42, None),
    "flow-merge": Family(118.67993, 330.03179, None),
    "carla-lane": Family(-0.8503839912088142, 1023.5784385429523, None),
    "carla-town": Family(-114.81579500772153, 2440.1772022247314, None),
    "bullet-halfcheetah": Family(-1275.766996, 2381.6725, 1000),
    "bullet-hopper": Family(20.058972, 1441.8059623430963, 1000),
    "bullet-ant": Family(373.705955, 2650.495, 1000),
    "bullet-walker2d": Family(16.523877, 1623.6476303317536, 1000),
    "bullet-maze2d-open": Family(8.75, 64.15, None),
    "bullet-maze2d-umaze": Family(32.46, 153.99, None),
    "bullet-maze2d-medium": Family(14.87, 238.05, None),
    "bullet-maze2d-large": Family(1.82, 285.92, None),
}

# Where a D4RL dataset is evaluated. Walker2d-v5 changed a foot's friction, so version 4 throughout.
ENVIRONMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "halfcheetah": ("HalfCheetah-v4", {}),
    "hopper": ("Hopper-v4", {}),
    "walker2d": ("Walker2d-v4", {}),
    "ant": ("Ant-v4", {"use_contact_forces": True}),
    "pen": ("AdroitHandPen-v1", {}),
    "hammer": ("AdroitHandHammer-v1", {}),
    "relocate": ("AdroitHandRelocate-v1", {}),
    "door": ("AdroitHandDoor-v1", {}),
}

# Of NeoRL-2 (arXiv 2503.19267), by this package's ids of its environments.
NEORL2: dict[str, tuple[float, float]] = {
    "oper/DMSD-v0": (30.60, 849.51),
    "oper/SafetyHalfCheetah-v0": (-283.0, 2507.0),
}


def _longest(name: str, table: dict[str, Any]) -> str | None:
    matching = [key for key in table if name == key or name.startswith(key + "-")]
    return max(matching, key=len, default=None)


def family(name: str) -> Family | None:
    """Reference returns for a D4RL dataset name (``hopper-medium-v2``), None for other names."""
    key = _longest(name.lower(), FAMILIES)
    return FAMILIES[key] if key else None


def family_of_environment(environment: str) -> Family | None:
    """Reference returns that D4RL has for the robot of a Gymnasium environment (``Hopper-v5``), None for others.

    An id with a namespace (``bremen/Hopper-v0``) is of a task of its own, whatever its robot.
    """
    robot = re.sub(r"-v\d+$", "", environment).lower()
    robot = re.sub(r"^adroithand(?=(pen|hammer|relocate|door)$)|^franka(?=kitchen$)", "", robot)
    return FAMILIES.get(robot)


def environment_of(name: str) -> tuple[str, dict[str, Any]] | None:
    """Gymnasium id and options of the environment that belongs to a D4RL dataset name, None if not known.

    Episodes are cut where D4RL cut them: gymnasium-robotics' Adroit goes on for twice as long.
    """
    key, known = _longest(name.lower(), ENVIRONMENTS), family(name)
    if key is None or known is None:
        return None
    environment, options = ENVIRONMENTS[key]
    return environment, {**options, "max_episode_steps": known.steps}


def normalised(value: float, reference: tuple[float, float]) -> float:
    """Score of a return: 0 at the first reference, 100 at the second."""
    low, high = reference
    return 100 * (value - low) / (high - low)
