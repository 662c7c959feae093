"""Lets Tianshou write small replay buffers, and writes down what the same buffers hand out.

    python tests/data/tianshou_files/make.py FOLDER [--all]

Run it with a Python that has one version of Tianshou (0.4 or later; numba, pandas and gymnasium with it). It leaves
FOLDER/<version>-<kind>.hdf5 and, beside each, <version>-<kind>.npz: the rows of the buffer in the order in which it has
them, as its own indexing gives them. The tests read the files without Tianshou. With --all there are more kinds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

if not hasattr(np, "bool8"):
    np.bool8 = np.bool_  # type: ignore[attr-defined]  # older versions ask for it

import tianshou
from tianshou.data import Batch, ReplayBuffer, VectorReplayBuffer

VERSION = tianshou.__version__
FLAGS = tuple(map(int, VERSION.split(".")[:3])) >= (0, 4, 10)  # terminated and truncated beside done
LENGTHS = (5, 7, 3, 6)  # steps of episodes, again and again; every second one is cut by time


def steps(kind: str, seed: int) -> Any:
    """Endless steps of episodes: observation, action, reward, whether it terminated, was cut, next observation."""
    generator = np.random.default_rng(seed)
    number = 0
    while True:
        length = LENGTHS[(number + seed) % len(LENGTHS)]
        frames = generator.integers(0, 256, (length + 1, 6, 7)).astype(np.uint8)
        vectors = generator.normal(size=(length + 1, 3)).astype(np.float32)
        for t in range(length):
            if kind == "frames":
                seen = [np.stack([frames[max(0, t + d - k)] for k in (3, 2, 1, 0)]) for d in (0, 1)]
            elif kind == "entries":
                seen = [{"place": vectors[t + d], "inner": {"speed": vectors[t + d, :2] * 2}} for d in (0, 1)]
            else:
                seen = [vectors[t], vectors[t + 1]]
            discrete = kind in ("frames", "discrete")
            action = generator.integers(4) if discrete else generator.uniform(-1, 1, 2).astype(np.float32)
            last = t == length - 1
            yield (
                seen[0],
                action,
                float(generator.normal()),
                last and number % 2 == 0,
                last and number % 2 == 1,
                seen[1],
            )
        number += 1


def batch(step: Any, many: bool) -> Batch:
    """A step as Tianshou takes it."""
    seen, action, reward, terminated, truncated, after = step
    content = {"obs": seen, "act": action, "rew": reward, "done": terminated or truncated, "obs_next": after}
    if FLAGS:
        content |= {"terminated": terminated, "truncated": truncated, "info": {"env_id": 0}}
    else:
        content["info"] = {"TimeLimit.truncated": truncated}
    return Batch([Batch(content)]) if many else Batch(content)


def filled(kind: str, rows: int | list[int], size: int, envs: int = 1, own_next: bool = True) -> Any:
    """A buffer after ``rows`` steps; with several environments, after those of each."""
    options: dict[str, Any] = {"ignore_obs_next": not own_next}
    if kind == "frames":
        options |= {"stack_num": 4, "save_only_last_obs": True}
    if envs == 1:
        buffer = ReplayBuffer(size, **options)
        run = steps(kind, 0)
        for _ in range(rows):  # type: ignore[arg-type]
            buffer.add(batch(next(run), False))
        return buffer
    buffer = VectorReplayBuffer(size, envs, **options)
    runs = [steps(kind, seed) for seed in range(envs)]
    for turn in range(max(rows)):  # type: ignore[arg-type]
        for env in range(envs):
            if turn < rows[env]:  # type: ignore[index]
                buffer.add(batch(next(runs[env]), True), buffer_ids=[env])
    return buffer


def from_data(rows: int) -> Any:
    """A buffer made of arrays, as Tianshou makes one of D4RL's files; it tells no truncations."""
    taken = [step for step, _ in zip(steps("continuous", 0), range(rows), strict=False)]
    seen, action, reward, terminated, _, after = (np.stack(column) for column in zip(*taken, strict=True))
    ends = [terminated, np.zeros(rows)] if FLAGS else []
    return ReplayBuffer.from_data(seen, action, reward.astype(np.float32), *ends, terminated, after)


def handed_out(buffer: Any) -> dict[str, np.ndarray]:
    """What the buffer gives for all its rows, in its own order."""
    index = buffer.sample_indices(0)
    got = buffer[index]
    found = {name: np.asarray(got[name]) for name in ("act", "rew", "done")}
    if FLAGS:
        found["terminated"] = np.asarray(got.terminated).astype(bool)
    else:
        info = buffer._meta.get("info", Batch())  # by indexing the buffer these would be stacked too
        found["terminated"] = found["done"] & ~info["TimeLimit.truncated"][index] if len(info.keys()) else found["done"]
    for name in ("obs", "obs_next"):
        value = got[name]
        found[name] = np.concatenate([value.place, value.inner.speed], -1) if isinstance(value, Batch) else value
    found["next_index"], found["index"] = buffer.next(index), index
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "continuous": filled("continuous", 23, 30),
        "round": filled("discrete", 47, 20, own_next=False),
        "frames": filled("frames", [31, 9, 20], 36, 3, own_next=False),
        "from_data": from_data(15),
    }
    if "--all" in sys.argv:
        made |= {
            "entries": filled("entries", 23, 30),
            "entries-vector": filled("entries", [23, 5], 24, 2, own_next=False),
            "continuous-round": filled("continuous", 47, 20),
            "continuous-vector": filled("continuous", [31, 9, 20], 36, 3),
            "continuous-vector-without": filled("continuous", [31, 9, 20], 36, 3, own_next=False),
            "discrete-vector": filled("discrete", [12, 12, 24], 36, 3, own_next=False),
            "frames-single": filled("frames", 23, 30, own_next=False),
            "frames-round": filled("frames", 47, 20, own_next=False),
            "frames-next": filled("frames", [31, 9, 20], 36, 3),
            "frames-next-single": filled("frames", 23, 30),
        }
    for name, buffer in made.items():
        buffer.save_hdf5(str(folder / f"{VERSION}-{name}.hdf5"))
        np.savez_compressed(folder / f"{VERSION}-{name}.npz", **handed_out(buffer))


if __name__ == "__main__":
    main()
