"""How fast shards of RL Unplugged are converted: synthetic ones, of real frames of Pong, in the published layout.

    python benchmarks/rl_unplugged.py              # measures, writes raw/rl_unplugged.json
    python benchmarks/rl_unplugged.py --table      # what that file holds

One thread; CPU seconds of the process, which include the system's for reading and writing. Every figure is of whole
conversions by the source, checksums and pictures included; each runs five times, in turn with the others, with pictures
unpacked by kornia-rs (the extra rl-unplugged) and by Pillow. OpenCV writes pictures whose rows all are differences from
the left; Pillow chooses for each row, as libpng does by itself.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import gzip
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzzing.shards import framed, message

RAW = Path(__file__).resolve().parent / "raw" / "rl_unplugged.json"
RECORDS = 6000
TIMES = 5
Features = dict[str, list[Any]]


def frames(count: int) -> Iterator[tuple[bytes, int, float, bool]]:
    """Pictures of Pong under random actions, as PNG, with action, reward and end of game."""
    import ale_py
    import cv2
    import gymnasium
    from gymnasium.wrappers import AtariPreprocessing

    gymnasium.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    game = AtariPreprocessing(gymnasium.make("ALE/Pong-v5", frameskip=1), noop_max=0)
    generator = np.random.default_rng(0)
    picture, _ = game.reset(seed=0)
    for _ in range(count):
        action = int(generator.integers(6))
        following, reward, over, _, _ = game.step(action)
        yield cv2.imencode(".png", picture)[1].tobytes(), action, float(reward), over
        picture = game.reset()[0] if over else following


def by_pillow(png: bytes) -> bytes:
    """The same picture as Pillow writes it."""
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(png)).save(out, "png")
    return out.getvalue()


def transitions(play: list[tuple[bytes, int, float, bool]]) -> list[bytes]:
    """Messages of single transitions, in order; lists packed and unpacked by turns, ids of either sign."""
    found = []
    for now in range(3, len(play) - 1):
        window = [play[k][0] for k in range(now - 3, now + 2)]
        features: Features = {
            "o_t": window[:4],
            "a_t": [play[now][1]],
            "r_t": [play[now][2]],
            "d_t": [1.0],
            "o_tp1": window[1:],
            "a_tp1": [play[now + 1][1]],
            "episode_id": [-(2**60)],
            "episode_return": [-3.0],
        }
        found.append(message(features, packed=now % 2 == 0))
    return found


def episodes(play: list[tuple[bytes, int, float, bool]], steps: int = 1000) -> list[bytes]:
    """Messages of whole episodes."""
    found = []
    for start in range(0, len(play), steps):
        part = play[start : start + steps]
        features: Features = {
            "checkpoint_idx": [0],
            "episode_idx": [start],
            "episode_return": [-3.0],
            "clipped_episode_return": [-3.0],
            "observations": [step[0] for step in part],
            "actions": [step[1] for step in part],
            "unclipped_rewards": [step[2] for step in part],
            "clipped_rewards": [step[2] for step in part],
            "discounts": [1.0] * (len(part) - 1) + [0.0],
        }
        found.append(message(features))
    return found


def seconds_of(action: Callable[[], Any]) -> float:
    """CPU seconds, of the process and of the system for it."""
    begun = time.process_time()
    action()
    return time.process_time() - begun


def measure() -> dict[str, Any]:
    """All figures."""
    from oper_lightning.data.sources import pictures
    from oper_lightning.data.sources.rl_unplugged import RLUnplugged
    from oper_lightning.errors import log

    log.setLevel("ERROR")
    play = list(frames(RECORDS + 4))
    ordered = transitions(play)
    mixed = transitions([(by_pillow(png), *rest) for png, *rest in play])
    shards = {
        "episodes": episodes(play),
        "transitions in order": ordered,
        "transitions in no order": Random(0).sample(ordered, len(ordered)),
        "the same, pictures written by Pillow": Random(0).sample(mixed, len(mixed)),
    }
    decoders = {"kornia-rs": pictures.quick, "Pillow": lambda: None}
    if pictures.quick() is None:
        raise SystemExit("pip install kornia-rs")
    results: dict[str, Any] = {name: {"cpu_seconds": {decoder: [] for decoder in decoders}} for name in shards}
    with tempfile.TemporaryDirectory() as folder:
        for name, messages in shards.items():
            data = b"".join(map(framed, messages))
            file = Path(folder) / name
            file.write_bytes(gzip.compress(data, 6))
            results[name].update(unpacked=len(data), packed=file.stat().st_size, records=len(messages))
        store = Path(folder) / "store"
        os.environ["RLU_DATASET_DIR"] = str(store)
        for _ in range(TIMES):
            for name in shards:
                for decoder, quick in decoders.items():
                    pictures.quick = quick
                    source = RLUnplugged(str(Path(folder) / name))
                    results[name]["cpu_seconds"][decoder].append(round(seconds_of(source.prepare), 3))
                    results[name]["rows"] = len(source)
                    results[name]["frames"] = len(source._converted[0].frames)
                    shutil.rmtree(store)  # else the system becomes busy with writing out gigabytes
    return results


def table(results: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = [
        "| shard | rows | frames kept | unpacked, packed, MB | rows per CPU s, five runs | by Pillow |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        sizes = f"{found['unpacked'] / 1e6:.1f}, {found['packed'] / 1e6:.1f}"
        rates = " | ".join(
            f"{found['rows'] / max(spent):,.0f} – {found['rows'] / min(spent):,.0f}"
            for spent in found["cpu_seconds"].values()
        )
        lines.append(f"| {name} | {found['rows']:,} | {found['frames']:,} | {sizes} | {rates} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print what the raw results say")
    if not parser.parse_args().table:
        RAW.write_text(json.dumps(measure(), indent=1) + "\n")
    print(table(json.loads(RAW.read_text())))
