"""Images that are gathered step by step: every frame is kept once, in memory and in the log, and all come out again."""

from __future__ import annotations

import json
import pickle
import random
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Arrays, columns, image_columns
from tensordict import TensorDict

from oper_lightning.data import log
from oper_lightning.data.frames import held
from oper_lightning.data.gathered import Gathered
from oper_lightning.data.sources.online_log import OnlineLog
from oper_lightning.data.storage import fill, load_mapped, map_new
from oper_lightning.data.table import Table
from oper_lightning.data.transitions import n_step
from oper_lightning.errors import InputError

CPU = torch.device("cpu")
LENGTHS = ([7, 1, 20, 9], [15, 15, 2, 5])
STEPS = 37
SIDE = 6


def made(transitions: TensorDict) -> TensorDict:
    return n_step(transitions, 3, 0.9)


def played(lengths: list[int], kind: str, seed: int) -> dict[str, np.ndarray]:
    """Columns of episodes of images: stacks of grey frames, of frames in colour, stills, or pictures without order."""
    rows, generator = columns(lengths, seed=seed, action=3, discrete=True), np.random.default_rng(seed)
    now, after = [], []
    for length in lengths:
        channels, stack = {"grey": (1, 4), "colour": (3, 2), "stills": (3, 1), "unordered": (1, 4)}[kind]
        frames = generator.integers(0, 256, (length + 1, channels, SIDE, SIDE), dtype=np.uint8)
        padded = np.concatenate([np.repeat(frames[:1], stack - 1, 0), frames])
        stacks = np.stack([padded[t : t + stack].reshape(-1, SIDE, SIDE) for t in range(length + 1)])
        if kind == "unordered":  # on every fifth step the whole picture is a new one
            stacks[::5] = generator.integers(0, 256, stacks[::5].shape, dtype=np.uint8)
        now.append(stacks[:-1])
        after.append(stacks[1:])
    return {**rows, "observations": np.concatenate(now), "next_observations": np.concatenate(after)}


class Example(Arrays):
    """Of no rows, but an example of what they would be."""

    def __len__(self) -> int:
        return 0

    def episodes(self) -> Any:
        yield next(super().episodes())


def gathered(kind: str, recorded: bool, folder: Path | None) -> Gathered:
    source = (Arrays if recorded else Example)(played([30, 12], kind, seed=9))
    if folder is not None:
        map_new(source, folder, lambda episodes: None, 2 * STEPS)
        storage = load_mapped(folder)
    else:
        storage = fill(source, CPU, room=2 * STEPS)
    table = Table(source, storage, len(source))
    table.add(made, table.arrange(1.0, 0.0))
    return Gathered(table, 2, made, "step")


def steps_of(copies: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    names = {"observation": "observations", "action": "actions", "next_observation": "next_observations"}
    names |= {"reward": "rewards", "terminated": "terminals", "truncated": "timeouts"}
    return {key: torch.from_numpy(np.stack([copy[name] for copy in copies])) for key, name in names.items()}


def put(online: Gathered, steps: dict[str, torch.Tensor], sizes: list[int]) -> None:
    at = online.steps
    for size in sizes:
        online.put({key: column[:, at : at + size] for key, column in steps.items()})
        at += size


def assert_all_there(online: Gathered, copies: list[dict[str, np.ndarray]]) -> None:
    for copy, arrays in enumerate(copies):
        source = Arrays(arrays)
        expected = Table(source, fill(source, CPU))
        expected.add(made, expected.arrange(1.0, 0.0))
        rows = torch.arange(STEPS)
        got, want = online.table.rows(rows + online.starts[copy]), expected.rows(rows)
        assert set(got.keys(True, True)) == set(want.keys(True, True))
        for key in want.keys(True, True):
            torch.testing.assert_close(got[key], want[key], rtol=0, atol=1e-6, msg=str(key))


@pytest.mark.parametrize("kind", ["grey", "colour", "stills", "unordered"])
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("block", [1, 6, 1024])
def test_rows_are_those_of_recorded_images(
    kind: str, recorded: bool, mapped: bool, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = [played(lengths, kind, seed) for seed, lengths in enumerate(LENGTHS)]
    for sizes in ([1] * STEPS, [5, 1, 7, 20, 4], [STEPS]):
        online = gathered(kind, recorded, tmp_path / "map" if mapped else None)
        assert online.blocks is not None
        online.blocks.block = block
        put(online, steps_of(copies), sizes)
        assert_all_there(online, copies)
        if recorded:
            source = Arrays(played([30, 12], kind, seed=9))
            assert online.table.rows(slice(0, 42))["observation"].equal(
                Table(source, fill(source, CPU)).rows(slice(None))["observation"]
            )
        assert online.last().tolist() == [arrays["next_observations"][-1].tolist() for arrays in copies]


def test_every_frame_is_kept_once() -> None:
    """A stack for each episode and for each block, and a frame for each step."""
    copies = [played(lengths, "grey", seed) for seed, lengths in enumerate(LENGTHS)]
    online = gathered("grey", True, None)
    assert online.table.frames is not None
    before = online.table.frames.count
    assert before == 42 + 2 * 4
    put(online, steps_of(copies), [1] * STEPS)
    used = torch.cat([online.part(copy, 0, STEPS)["next", "first"] for copy in range(2)]) + 3
    assert len(used.unique()) == 2 * STEPS, "the newest frame of each next observation is one of its own"
    whole = gathered("grey", True, None)
    whole.blocks.block = 200  # type: ignore[union-attr]
    put(whole, steps_of(copies), [1] * STEPS)
    for blocks, episodes in zip(whole.blocks.left, LENGTHS, strict=True):  # type: ignore[union-attr]
        assert 200 - blocks == STEPS + 4 * len(episodes)


@pytest.mark.parametrize("mapped", [True, False])
def test_where_episodes_are_short_more_room_is_made(mapped: bool, tmp_path: Path) -> None:
    copies = [played([1] * STEPS, "grey", seed) for seed in range(2)]
    online = gathered("grey", True, tmp_path / "map" if mapped else None)
    frames = online.table.frames
    assert frames is not None
    room = len(frames.data)
    put(online, steps_of(copies), [1] * STEPS)
    assert len(frames.data) > room
    assert_all_there(online, copies)
    assert pickle.loads(pickle.dumps(frames)).data[: frames.count].equal(frames.data[: frames.count])


def memory() -> int:
    """Bytes of anonymous memory that this process holds."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="asks Linux how much memory it holds")
def test_room_is_not_taken_before_frames_come() -> None:
    room, before = 500_000, memory()
    frames = held(fill(Example(image_columns([30], side=84)), CPU, room=room))[1]
    assert frames is not None
    assert frames.data.nbytes > room * 84 * 84
    assert memory() - before < 200_000_000, "of four gigabytes"


def test_a_copy_takes_no_room_along() -> None:
    online = gathered("grey", True, None)
    frames = online.table.frames
    assert frames is not None
    assert len(frames.data) > frames.count
    assert len(pickle.loads(pickle.dumps(frames)).data) == frames.count


@pytest.mark.parametrize("kind", ["grey", "colour", "unordered"])
def test_the_log_gives_back_what_was_put(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = [played(lengths, kind, seed) for seed, lengths in enumerate(LENGTHS)]
    online, steps = gathered(kind, True, None), steps_of(copies)
    for first, last in ((0, 5), (5, 26), (26, STEPS)):
        put(online, steps, [last - first])
        log.write(tmp_path / "replay", first, online.log(first, last), {})
    monkeypatch.setattr(log, "PART", 10 * 2 * copies[0]["observations"][0].size)
    parts = list(log.up_to(tmp_path / "replay", 30, online.log(0, 0)))
    assert [part["reward"].shape[1] for part in parts] == [5, 5, 5, 5, 5, 1, 4]
    for key, column in steps.items():
        got = torch.cat([part[key] for part in parts], 1)
        assert got.equal(column[:, :30].to(got.dtype)), key
    source = OnlineLog(str(tmp_path))
    table = Table(source, fill(source, CPU))
    assert len(table) == 2 * STEPS
    # Whole episodes in the order of their ends.
    found = {}
    for copy, lengths in enumerate(LENGTHS):
        for start, end in zip(np.cumsum([0, *lengths[:-1]]), np.cumsum(lengths), strict=True):
            found[int(end), copy] = slice(int(start), int(end))
    order = [(copies[copy], rows) for (_, copy), rows in sorted(found.items())]
    rows = table.rows(slice(None))
    for key, name in (("observation", "observations"), (("next", "observation"), "next_observations")):
        expected = np.concatenate([arrays[name][part] for arrays, part in order])
        assert np.array_equal(rows[key].numpy(), expected), key


def test_the_log_holds_every_frame_once(tmp_path: Path) -> None:
    online = gathered("grey", True, None)
    online.blocks.block = 200  # type: ignore[union-attr]
    put(online, steps_of([played([STEPS], "grey", seed) for seed in range(2)]), [STEPS])
    assert online.log(0, STEPS)["frames"].shape == (2 * (STEPS + 4), 1, SIDE, SIDE)
    assert online.log(10, 20)["frames"].shape == (2 * (10 + 4), 1, SIDE, SIDE)


@pytest.mark.parametrize(
    "broken",
    [
        {"first": torch.full((2, STEPS), 10_000)},
        {"first": torch.full((2, STEPS), -1)},
        {"next_first": torch.zeros(2, STEPS)},
        {"stack": torch.tensor(1_000_000)},
        {"stack": torch.tensor(0)},
        {"stack": torch.tensor([4])},
        {"frames": torch.zeros(100, 1, SIDE, SIDE)},
        {"frames": torch.zeros(100, dtype=torch.uint8)},
        {"first": torch.zeros(2, 3, dtype=torch.long)},
    ],
)
def test_files_with_wrong_frames_are_refused_in_a_line(broken: dict[str, torch.Tensor], tmp_path: Path) -> None:
    online = gathered("grey", True, None)
    put(online, steps_of([played(lengths, "grey", seed) for seed, lengths in enumerate(LENGTHS)]), [STEPS])
    log.write(tmp_path / "replay", 0, {**online.log(0, STEPS), **broken}, {})
    with pytest.raises(InputError, match=r"000000000-000000037.safetensors: "):
        list(OnlineLog(str(tmp_path)).episodes())
    with pytest.raises(InputError, match=r"000000000-000000037.safetensors: "):
        list(log.up_to(tmp_path / "replay", STEPS, online.log(0, 0)))


def test_a_damaged_file_is_read_or_refused_in_a_line(tmp_path: Path) -> None:
    """Bytes changed anywhere, ends cut off, numbers of frames that are wild: nothing else happens."""
    online, generator = gathered("grey", True, None), random.Random(0)
    put(online, steps_of([played(lengths, "grey", seed) for seed, lengths in enumerate(LENGTHS)]), [STEPS])
    log.write(tmp_path / "replay", 0, online.log(0, STEPS), {"action_low": 0, "action_high": 2})
    (file,) = (tmp_path / "replay").iterdir()
    whole = file.read_bytes()
    size = 8 + struct.unpack("<Q", whole[:8])[0]
    head = json.loads(whole[8:size])
    outcomes = set()
    for number in range(120):
        damaged = bytearray(whole)
        if number % 3 == 0:
            for _ in range(generator.choice([1, 5, 50])):
                damaged[generator.randrange(generator.choice([size, len(whole)]))] = generator.randrange(256)
        elif number % 3 == 1:
            begin, end = head[generator.choice(["first", "next_first", "stack"])]["data_offsets"]
            at = size + begin + 8 * generator.randrange((end - begin) // 8)
            damaged[at : at + 8] = struct.pack("<q", generator.choice([-(2**63), 2**63 - 1, -1, 0, 1, 40, 1000]))
        else:
            del damaged[generator.randrange(len(whole)) :]
        file.write_bytes(damaged)
        for goes_on in (False, True):
            try:
                if goes_on:
                    list(log.up_to(file.parent, STEPS, online.log(0, 0)))
                else:
                    _ = fill(OnlineLog(str(tmp_path)), CPU)[:]
                outcomes.add("read")
            except InputError:
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}
