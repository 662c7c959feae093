"""A scripted player of Pong, at several qualities: recordings to try algorithms on images with, without any training.

    python benchmarks/pong.py --output pong.npz --steps 5000
    python benchmarks/pong.py --output pong.npz --steps 1000 --speed

With --speed some updates of each algorithm are timed. Figures go to benchmarks/raw/pong.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GAME = "oper/Pong-v0"
PADDLE, BALL_X, BALL_Y = 51, 49, 54  # where the game's memory holds them; the paddle by its upper end
ABOVE, BELOW = 44, 207  # the walls
CONTACT = 188  # where the ball meets the paddle
STAY, UP, DOWN = 0, 2, 3
NOISES = (0.05, 0.3, 0.6, 1.0)
"""chances of a random action, one for each quality"""
ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "benchmarks" / "raw" / "pong.json"
ALGORITHMS = ("discrete_bc", "discrete_bcq", "discrete_cql", "crr")


class Player:
    """Moves to where the ball will arrive, reflections at the walls included."""

    def __init__(self) -> None:
        self.before: tuple[int, int, int] | None = None

    def act(self, memory: np.ndarray) -> int:
        """The action for the game's memory, uint8 ``[128]``; calls follow each other through an episode."""
        paddle, x, y = (int(memory[place]) for place in (PADDLE, BALL_X, BALL_Y))
        target, speed = 120.0, 0
        if self.before is not None:
            speed = paddle - self.before[0]
            right, down = x - self.before[1], y - self.before[2]
            if y and self.before[2] and right > 0:
                height = BELOW - ABOVE
                far = abs(y + down * (CONTACT - x) / right - ABOVE) % (2 * height)
                target = min(far, 2 * height - far) + ABOVE - 4
        self.before = paddle, x, y
        # A paddle that moves does not stop at once.
        distance = target - paddle - speed
        return DOWN if distance > 6 else UP if distance < -6 else STAY


def episodes(
    steps: int, noises: Sequence[float] = NOISES, longest: int = 1500, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Plays each quality for its share of the steps; yields one dict per episode.

    Its entries: ``noise``, ``frames`` uint8 ``[T + 1, 84, 84]`` (the newest of each observation), ``actions``,
    ``rewards``, ``terminations`` and ``truncations`` ``[T]``.

    Args:
        steps: of all episodes together; the last one of each quality is cut.
        noises: chances of a random action.
        longest: number of steps after which an episode is cut.
        seed: of the games and the noise.
    """
    from oper_lightning.envs.rollouts import World

    env = World(GAME, {}).copies[0]
    generator = np.random.default_rng(seed)
    number = 0
    for noise in noises:
        left = steps // len(noises)
        while left:
            player, (observation, _) = Player(), env.reset(seed=seed + number)
            frames, rows, over = [observation[-1]], [], False
            limit = min(left, longest)
            while not over:
                action = player.act(env.unwrapped.ale.getRAM())
                if generator.random() < noise:
                    action = int(generator.integers(env.action_space.n))
                observation, reward, terminated, _, _ = env.step(action)
                frames.append(observation[-1])
                over = terminated or len(rows) + 1 == limit
                rows.append((action, reward, terminated, over and not terminated))
            columns = zip(*rows, strict=True)
            names = ("actions", "rewards", "terminations", "truncations")
            yield {"noise": noise, "frames": np.array(frames), **dict(zip(names, map(np.array, columns), strict=True))}
            left -= len(rows)
            number += 1
    env.close()


def record(path: str | Path, steps: int, **options: Any) -> list[float]:
    """Writes :func:`episodes` with these options as a flat .npz archive of stacks of four; returns their returns."""
    columns: dict[str, list[np.ndarray]] = {}
    for episode in episodes(steps, **options):
        padded = np.concatenate([np.repeat(episode["frames"][:1], 3, 0), episode["frames"]])
        stacks = np.lib.stride_tricks.sliding_window_view(padded, 4, 0).transpose(0, 3, 1, 2)
        rows = {
            "observations": stacks[:-1],
            "next_observations": stacks[1:],
            "actions": episode["actions"],
            "rewards": episode["rewards"].astype(np.float32),
            "terminals": episode["terminations"],
            "timeouts": episode["truncations"],
        }
        for name, values in rows.items():
            columns.setdefault(name, []).append(values)
    np.savez(path, **{name: np.concatenate(values) for name, values in columns.items()})
    return [float(rewards.sum()) for rewards in columns["rewards"]]


def speed(name: str, data: list[str]) -> float:
    """CPU milliseconds of an update with the settings of configs/atari, drawing included: what 100 more take."""
    seconds = []
    for updates in (50, 150):
        with tempfile.TemporaryDirectory() as folder:
            words = ["fit", "--config=configs/atari.yaml", f"--config=configs/atari/{name}.yaml", *data]
            words += [f"--data.updates_per_epoch={updates}", f"--trainer.max_steps={updates}", "--data.rollouts=null"]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [sys.executable, "-m", "oper_lightning", *words, f"--output={folder}/run"]
            subprocess.run(command, cwd=ROOT, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return round(10 * (seconds[1] - seconds[0]), 1)


def stepping(steps: int) -> float:
    """Steps of the game, the player's included, for each CPU second."""
    begun = time.process_time()
    played = sum(len(episode["actions"]) for episode in episodes(steps))
    return round(played / (time.process_time() - begun))


def main() -> None:
    """Records; times updates, if told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("pong.npz"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", action="store_true")
    words = parser.parse_args()
    print("returns:", record(words.output, words.steps, seed=words.seed))
    if words.speed:
        data = ["--data.source=Npz", f"--data.source.path={words.output.resolve()}"]
        data.append(f"--data.source.environment={GAME}")
        results = {
            "CPU milliseconds of an update": {name: speed(name, data) for name in ALGORITHMS},
            "steps in a CPU second": stepping(words.steps),
        }
        RAW.write_text(json.dumps(results, indent=1) + "\n")
        print(results)


if __name__ == "__main__":
    main()
