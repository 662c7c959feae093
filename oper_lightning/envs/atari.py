"""Atari games as deep Q-learning sees them, under Gymnasium ids of our own such as ``oper/Pong-v0``.

Mnih et al. 2015 (Nature 518): an action is held for four frames, the last two of which are merged, because the console
draws some things only on every second one; the picture is made grey and small, and four of them lie on top of each
other.
"""

from __future__ import annotations

from typing import Any

import ale_py
import cv2
import gymnasium
import numpy as np
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TransformReward

from oper_lightning.errors import InputError

FRAMES = 108_000  # of an episode, half an hour of play, after which the game is cut
SIDE = 84  # pixels of an observation
Wrapper = gymnasium.Wrapper[Any, Any, Any, Any]


def register() -> None:
    """Registers ``oper/<Game>-v0`` for every game that ale-py has."""
    gymnasium.register_envs(ale_py)
    for known in [spec for spec in gymnasium.registry.values() if spec.namespace == "ALE"]:
        if (name := f"oper/{known.name}-v0") not in gymnasium.registry:
            # The entry point is text: an id with a callable cannot be written into a recording.
            gymnasium.register(name, f"{__name__}:make", kwargs={"game": known.kwargs["game"]})


def make(
    game: str,
    stack: int = 4,
    noop_max: int = 30,
    training: bool = False,
    sticky: float = 0.0,
    render_mode: str | None = None,
) -> Wrapper:
    """One game; observations are uint8 ``[stack, 84, 84]``, the newest picture last, and actions those that it uses.

    The maximum of two frames is taken in colour, before they are made grey. Gymnasium's own order is the other one; the
    pictures are the same for Pong and Breakout, and differ by up to 38 of 255 grey levels for Ms. Pac-Man.

    Args:
        game: as ale-py calls it.
        stack: pictures of an observation; at a reset the first one is repeated.
        noop_max: a reset lets 1 to this many frames go by, so that games with different seeds differ.
        training: whether an episode ends with each life (the game itself goes on), and rewards are reduced to their
            sign. Policies are judged without it.
        sticky: chance at each frame that the action before is repeated instead.
        render_mode: human opens a window; rgb_array lets ``render`` return the screen.

    Raises:
        InputError: if a number is out of bounds.
    """
    # A file that somebody gave us may have chosen the numbers.
    if not (1 <= stack <= 64 and 0 <= noop_max <= 1000 and 0 <= sticky < 1):
        raise InputError(f"stack {stack} (1 to 64), noop_max {noop_max} (0 to 1,000), sticky {sticky} (0 to below 1)")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # else each process begins with a banner
    env: Any = ale_py.AtariEnv(
        game=game,
        frameskip=1,
        repeat_action_probability=sticky,
        max_num_frames_per_episode=FRAMES,
        render_mode=render_mode,
    )
    height, width, _ = env.observation_space.shape
    env = AtariPreprocessing(env, noop_max=noop_max, screen_size=(width, height), grayscale_obs=False)
    if training:
        env = LifeLoss(env)
    if "FIRE" in env.unwrapped.get_action_meanings():
        env = FireReset(env)
    env = SmallAndGrey(env)
    if training:
        env = TransformReward(env, lambda reward: float(np.sign(float(reward))))
    return Whole(FrameStackObservation(env, stack))


class LifeLoss(Wrapper):
    """Ends an episode with each life. The next reset goes on with the same game, unless it is given a seed."""

    goes_on = False
    """whether the episode was ended by a lost life alone"""
    lives = 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        lives = info["lives"]
        self.goes_on = 0 < lives < self.lives and not (terminated or truncated)
        self.lives = lives
        return observation, reward, terminated or self.goes_on, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        over = not self.goes_on or seed is not None
        if not over:
            observation, _, terminated, truncated, info = self.env.step(0)
            over = terminated or truncated
        if over:
            observation, info = self.env.reset(seed=seed, options=options)
        self.lives, self.goes_on = info["lives"], False
        return observation, info


class FireReset(Wrapper):
    """Presses FIRE once after a reset; some games do not begin without it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.env.reset(seed=seed, options=options)
        fire = self.unwrapped.get_action_meanings().index("FIRE")  # type: ignore[attr-defined]
        observation, _, terminated, truncated, info = self.env.step(fire)
        return self.env.reset(options=options) if terminated or truncated else (observation, info)


class SmallAndGrey(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Screens in colour as small grey pictures."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(0, 255, (SIDE, SIDE), np.uint8)

    def observation(self, observation: Any) -> Any:
        grey = cv2.cvtColor(observation, cv2.COLOR_RGB2GRAY)
        return cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


class Whole(Wrapper):
    """Hides the wrappers within from Gymnasium's spec: id and options alone make all of them again."""

    @property
    def spec(self) -> Any:  # type: ignore[override]
        return self.unwrapped.spec
