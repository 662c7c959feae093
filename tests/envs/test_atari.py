"""The Atari environments against the chain of their parts, written out frame by frame on the emulator itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from oper_lightning.data.sources.recorded import environment_of_spec
from oper_lightning.envs.rollouts import World, atari_id
from oper_lightning.errors import InputError

ale_py = pytest.importorskip("ale_py", reason="the extra 'atari' is not installed (ale-py)")
pytest.importorskip("cv2", reason="the extra 'atari' is not installed (opencv-python-headless)")

Step = tuple[np.ndarray, float, bool, bool]


def area(size: int) -> np.ndarray:
    """Shares of ``size`` pixels in each of 84 that cover the same length, ``[84, size]``."""
    edges = np.linspace(0, size, 85)
    pixels = np.arange(size)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return covered.clip(0) / (size / 84)


class Literal:
    """A game as the specification of the chain words it, step after step, without any wrapper."""

    def __init__(self, game: str, training: bool = False, noop_max: int = 30) -> None:
        self.game, self.training, self.noop_max = game, training, noop_max
        self.ale = ale_py.ALEInterface()
        self.ale.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale.setFloat("repeat_action_probability", 0.0)

    def small(self, screen: np.ndarray) -> np.ndarray:
        grey = np.round(screen @ np.array([0.299, 0.587, 0.114]))
        height, width = grey.shape
        return area(height) @ grey @ area(width).T

    def stacked(self, screen: np.ndarray | None, begin: bool = False) -> np.ndarray:
        # A game that ends within an action leaves no two frames to merge: the picture before is shown again.
        picture = self.pictures[-1] if screen is None else self.small(screen)
        self.pictures = [picture] * 4 if begin else [*self.pictures[1:], picture]
        return np.array(self.pictures)

    def hold(self, action: int) -> tuple[np.ndarray | None, float]:
        """Four frames of an action: the brightest of the last two of each colour, and the sum of rewards."""
        screens, reward = [], 0.0
        for _ in range(4):
            reward += self.ale.act(self.actions[action])
            screens.append(self.ale.getScreenRGB())
            if self.ale.game_over():
                return None, reward
        return np.maximum(screens[-2], screens[-1]), reward

    def begin(self, seed: int) -> np.ndarray:
        first, second = np.random.SeedSequence(seed).generate_state(2)
        self.ale.setInt("random_seed", np.int32(second))
        self.ale.loadROM(ale_py.roms.get_rom_path(self.game))
        self.actions = self.ale.getMinimalActionSet()
        self.ale.reset_game()
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(int(first))))
        self.waited = generator.integers(1, self.noop_max + 1) if self.noop_max else 0
        for _ in range(self.waited):
            self.ale.act(ale_py.Action.NOOP)
        self.lives = self.ale.lives()
        return self.fire(self.ale.getScreenRGB())

    def fire(self, screen: np.ndarray | None) -> np.ndarray:
        if ale_py.Action.FIRE in self.actions:
            screen, _ = self.hold(self.actions.index(ale_py.Action.FIRE))
        self.lives = self.ale.lives()
        return self.stacked(screen, begin=True)

    def go_on(self) -> np.ndarray:
        """After a lost life: one action of doing nothing, then FIRE."""
        screen, _ = self.hold(0)
        return self.fire(screen)

    def step(self, action: int) -> Step:
        screen, reward = self.hold(action)
        lost, self.lives = 0 < self.ale.lives() < self.lives, self.ale.lives()
        over = self.ale.game_over()
        if self.training:
            return self.stacked(screen), float(np.sign(reward)), over or lost, False
        return self.stacked(screen), reward, over, False


def made(game: str, **options: Any) -> Any:
    return World(f"oper/{game}-v0", options).copies[0]


def deviation(first: np.ndarray, second: np.ndarray) -> float:
    assert first.shape == (4, 84, 84)
    return float(np.abs(first - second.astype(float)).max())


def actions(number: int, steps: int, seed: int = 0) -> Iterator[int]:
    """Random actions, each for a while, so that something happens."""
    generator = np.random.default_rng(seed)
    for _ in range(steps // 5):
        yield from [int(generator.integers(number))] * 5


@pytest.mark.parametrize(
    ("game", "rom", "steps"),
    [("Pong", "pong", 100), ("Breakout", "breakout", 250), ("MsPacman", "ms_pacman", 150)],
)
def test_every_frame_is_that_of_the_chain_written_out(game: str, rom: str, steps: int) -> None:
    """Ms. Pac-Man has no FIRE and looks different if frames were made grey before the maximum; Breakout ends."""
    env, literal = made(game), Literal(rom)
    observation, _ = env.reset(seed=5)
    assert observation.dtype == np.uint8
    assert deviation(literal.begin(5), observation) <= 1
    rewards = 0.0
    for action in actions(env.action_space.n, steps):
        expected, reward, over, _ = literal.step(action)
        observation, *rest, _ = env.step(action)
        assert rest == [reward, over, False]
        assert deviation(expected, observation) <= 1
        rewards += abs(reward)
        if over:
            break
    assert rewards > 1


def test_training_ends_with_a_life_and_goes_on_with_the_game() -> None:
    env, literal = made("Breakout", training=True), Literal("breakout", training=True)
    observation, info = env.reset(seed=2)
    assert deviation(literal.begin(2), observation) <= 1
    lives, begun = [info["lives"]], info["episode_frame_number"]
    while lives[-1]:
        for action in actions(4, 300, seed=len(lives)):
            expected, reward, over, _ = literal.step(action)
            observation, *rest, info = env.step(action)
            assert rest == [reward, over, False]
            assert reward in (0.0, 1.0)
            assert deviation(expected, observation) <= 1
            if over:
                break
        lives.append(info["lives"])
        if lives[-1]:
            observation, info = env.reset()
            assert deviation(literal.go_on(), observation) <= 1
            assert info["episode_frame_number"] > begun
    assert lives == [5, 4, 3, 2, 1, 0]
    _, info = env.reset()  # the game is over: another one
    assert info["lives"] == 5
    assert info["episode_frame_number"] < begun + 200


def test_a_reset_without_a_lost_life_or_with_a_seed_begins_another_game() -> None:
    env = made("Breakout", training=True, max_episode_steps=20)
    observation, info = env.reset(seed=2)
    frame = info["episode_frame_number"]
    for _ in range(20):
        *_, truncated, info = env.step(0)
    assert truncated
    assert env.reset()[1]["episode_frame_number"] < info["episode_frame_number"]
    env = made("Breakout", training=True)
    env.reset(seed=2)
    while not env.step(0)[2]:
        pass
    again, info = env.reset(seed=2)
    assert (again == observation).all()
    assert info["episode_frame_number"] == frame


def test_rewards_are_reduced_to_their_sign_in_training_only() -> None:
    """A pellet of Ms. Pac-Man is worth 10."""
    for training, expected in ((False, {0.0, 10.0}), (True, {0.0, 1.0})):
        env = made("MsPacman", training=training)
        env.reset(seed=0)
        assert {env.step(action)[1] for action in actions(9, 100)} == expected


def test_a_judged_episode_ends_with_the_game_not_with_a_life() -> None:
    """FIRE brings every ball into play."""
    returns, lengths = World("oper/Breakout-v0", {}).rollouts(lambda rows: torch.ones(len(rows)).long(), [0])
    env = made("Breakout")
    env.reset(seed=0)
    over, steps, earned, lives = False, 0, 0.0, set()
    while not over:
        _, reward, over, _, info = env.step(1)
        steps, earned = steps + 1, earned + reward
        lives.add(info["lives"])
    assert lives == {5, 4, 3, 2, 1, 0}
    assert lengths.tolist() == [steps]
    assert returns.tolist() == [earned]


def test_waiting_differs_by_seed_and_a_seed_reproduces() -> None:
    """Without FIRE nothing but what was waited lies between the start of a game and the first observation."""
    env, waited = made("MsPacman"), set()
    for seed in range(6):
        literal = Literal("ms_pacman")
        literal.begin(seed)
        _, info = env.reset(seed=seed)
        waited.add(info["episode_frame_number"])
        assert info["episode_frame_number"] == literal.waited
    assert len(waited) > 3
    assert waited <= {*range(1, 31)}
    assert made("MsPacman", noop_max=0).reset(seed=3)[1]["episode_frame_number"] == 0

    def played(seed: int) -> list[Any]:
        env = made("MsPacman", sticky=0.25)
        return [env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions(9, 40))]

    assert all((a == b).all() for a, b in zip(played(1), played(1), strict=True))
    assert not all((a == b).all() for a, b in zip(played(1), played(2), strict=True))


def test_sticky_actions_repeat_the_one_before() -> None:
    def last(**options: Any) -> np.ndarray:
        env = made("Pong", **options)
        env.reset(seed=0)
        return np.array([env.step(action)[0][-1] for action in actions(6, 50)])

    assert (last() == last(sticky=0.0)).all()
    assert (last() != last(sticky=0.5)).any()


def test_a_game_is_cut_after_108_000_frames_without_having_ended() -> None:
    env = made("Pong", noop_max=0)
    ale = env.unwrapped.ale
    assert ale.getInt("max_num_frames_per_episode") == 108_000
    ale.setInt("max_num_frames_per_episode", 202)
    env.reset(seed=0)  # with the 4 frames of FIRE
    flags = [env.step(0)[2:4] for _ in range(50)]
    assert flags == [(False, False)] * 49 + [(False, True)]


def test_number_of_pictures_and_the_screen() -> None:
    env = made("Pong", stack=2, render_mode="rgb_array")
    assert env.reset(seed=0)[0].shape == env.observation_space.shape == (2, 84, 84)
    assert env.render().shape == (210, 160, 3)


def test_copies_side_by_side_play_as_one_alone_and_are_seen_as_bytes() -> None:
    def act(seen: torch.Tensor) -> torch.Tensor:
        assert seen.dtype == torch.uint8
        return seen[:, -1].float().mean((1, 2)).mul(1000).long() % 6

    options = {"max_episode_steps": 150}
    alone = World("oper/Pong-v0", options).rollouts(act, [1, 2, 3])
    beside = World("oper/Pong-v0", options, parallel=3).rollouts(act, [1, 2, 3])
    assert alone[0].equal(beside[0])
    assert alone[1].tolist() == beside[1].tolist() == [150, 150, 150]


def test_a_recording_names_the_environment_and_it_is_made_again() -> None:
    options = {"noop_max": 3, "sticky": 0.25, "training": True}
    env = made("Pong", **options)
    name, recorded = environment_of_spec(json.loads(env.spec.to_json()), "recording")
    assert name == "oper/Pong-v0"
    assert recorded == {"game": "pong", **options}
    again = World(name, recorded).copies[0]
    assert (env.reset(seed=4)[0] == again.reset(seed=4)[0]).all()
    for action in actions(6, 40):
        first, second = env.step(action), again.step(action)
        assert (first[0] == second[0]).all()
        assert first[1:4] == second[1:4]


def test_what_cannot_be_made_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Pong-v0", "PongNoFrameskip-v4", "Pong-ramDeterministic-v4", "ALE/Pong-v5"):
        assert atari_id(name) == "oper/Pong-v0"
    assert [atari_id(name) for name in ("oper/Pong-v0", "CartPole-v1", "ALE/Pnog-v5")] == [None] * 3
    with pytest.raises(InputError, match=r"'PongNoFrameskip-v9' is not registered .*; did you mean 'oper/Pong-v0'"):
        World("PongNoFrameskip-v9", {})
    with pytest.raises(InputError, match=r"'oper/Pnog-v0' is not registered .*; did you mean 'oper/Pong-v0'"):
        World("oper/Pnog-v0", {})
    for options in ({"stack": 10**9}, {"noop_max": 10**12}, {"sticky": 1.0}):
        with pytest.raises(InputError, match=r"cannot be made: stack \d+ \(1 to 64\), noop_max"):
            World("oper/Pong-v0", options)
    for game in ("../pong", "os:pong", "pnog"):
        with pytest.raises(InputError, match="cannot be made"):
            World("oper/Pong-v0", {"game": game})
    import gymnasium

    for package in ("ale_py", "cv2"):  # as if it were not installed
        with monkeypatch.context() as without:
            for name in [name for name in gymnasium.registry if name.startswith(("oper/", "ALE/"))]:
                without.delitem(gymnasium.registry, name)
            without.delitem(sys.modules, "oper_lightning.envs.atari")
            without.setitem(sys.modules, package, None)
            with pytest.raises(InputError, match=r"'oper/Pong-v0' is not .*; pip install 'oper-lightning\[atari\]'"):
                World("oper/Pong-v0", {})


def test_a_game_begins_without_the_banner_of_its_emulator(capfd: pytest.CaptureFixture[str]) -> None:
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Info)
    World("oper/Pong-v0", {})
    assert "Stella" not in "".join(capfd.readouterr())
