"""RL Unplugged's shards, written here by an encoder of the tests' own and read by the package's."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import oper, served
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from oper_lightning import OfflineDataModule, OperR
from oper_lightning.data.sources import families, pictures, rl_unplugged, shards, tfexample
from oper_lightning.data.sources.crc32c import crc32c as with_numpy
from oper_lightning.data.sources.crc32c import masked
from oper_lightning.data.sources.pictures import HEAD, frame
from oper_lightning.data.sources.rl_unplugged import RLUnplugged
from oper_lightning.data.sources.tfexample import Malformed, example
from oper_lightning.data.sources.tfrecord import crc32c
from oper_lightning.data.transitions import returns_of, squeezed
from oper_lightning.errors import InputError

# Writing -------------------------------------------------------------------------------------------------------------


def castagnoli(data: bytes) -> int:
    """CRC-32C bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF


@functools.cache
def check(data: bytes) -> bytes:
    crc = castagnoli(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def varint(number: int) -> bytes:
    number %= 2**64
    parts = []
    while True:
        number, low = divmod(number, 128)
        parts.append(low + 128 * (number > 0))
        if not number:
            return bytes(parts)


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(values: list[Any], packed: bool = True) -> bytes:
    """A feature of bytes, floats or integers, by the type of the first value."""
    if isinstance(values[0], bytes):
        return field(1, b"".join(field(1, value) for value in values))
    if isinstance(values[0], float):
        numbers, kind, key = [struct.pack("<f", value) for value in values], 2, b"\x0d"
    else:
        numbers, kind, key = [varint(value) for value in values], 3, b"\x08"
    return field(kind, field(1, b"".join(numbers)) if packed else b"".join(key + number for number in numbers))


def message(features: dict[str, list[Any]], packed: bool = True, extra: bytes = b"") -> bytes:
    entries = [
        field(1, extra + field(1, name.encode()) + extra + field(2, extra + feature(values, packed) + extra))
        for name, values in features.items()
    ]
    return extra + field(1, extra + b"".join(entries)) + extra


def framed(data: bytes) -> bytes:
    head = struct.pack("<Q", len(data))
    return head + check(head) + data + check(data)


def write(path: Path, messages: list[bytes]) -> Path:
    path.write_bytes(gzip.compress(b"".join(map(framed, messages)), mtime=0))
    return path


@functools.cache
def png(number: int, size: tuple[int, int] = (84, 84), mode: str = "L") -> bytes:
    """A picture that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    pixels[:60] = number % 251
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "png", compress_level=1)
    return out.getvalue()


def picture(number: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png(number))))


Episode = dict[str, list[Any]]


def episode(first: int, steps: int, over: bool) -> Episode:
    """An episode of single frames, which are the pictures ``first`` and on."""
    rewards = [float(n % 3) * 2 for n in range(steps)]
    return {
        "observations": [png(first + n) for n in range(steps)],
        "actions": [n % 6 for n in range(steps)],
        "unclipped_rewards": rewards,
        "clipped_rewards": [min(reward, 1.0) for reward in rewards],
        "discounts": [1.0] * (steps - 1) + [0.0 if over else 1.0],
        "episode_return": [sum(rewards)],
        "clipped_episode_return": [sum(min(reward, 1.0) for reward in rewards)],
        "episode_idx": [first],
        "checkpoint_idx": [0],
    }


def transition(
    name: int, frames: list[int], following: list[int], discount: float = 1.0, total: float = 5.0
) -> Episode:
    """A single transition of the episode of that name; its action is the newest frame modulo 6."""
    return {
        "o_t": [png(number) for number in frames],
        "a_t": [frames[-1] % 6],
        "r_t": [float(frames[-1] % 2)],
        "d_t": [discount],
        "o_tp1": [png(number) for number in following],
        "a_tp1": [0],
        "episode_id": [name],
        "episode_return": [total],
    }


def step(name: int, newest: int, discount: float = 1.0, total: float = 5.0) -> Episode:
    return transition(name, list(range(newest - 3, newest + 1)), list(range(newest - 2, newest + 2)), discount, total)


def read(path: Path, **options: Any) -> Any:
    """All transitions of a shard, with one number per row for rewards and flags."""
    source = RLUnplugged(str(path), **options)
    source.prepare()
    parts = [squeezed(part) for part in source.episodes()]
    rows = torch.cat(parts)
    assert len(rows) == len(source)
    return rows


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLU_DATASET_DIR", str(tmp_path / "rlu"))


def stack(*numbers: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([picture(number) for number in numbers]))


# Episodes ------------------------------------------------------------------------------------------------------------


def test_episodes_become_stacks_that_repeat_the_first_frame(tmp_path: Path) -> None:
    shard = write(tmp_path / "shard", [message(episode(0, 5, True)), message(episode(10, 4, False))])
    rows = read(shard)
    # An episode that ended keeps its last step; of one that was cut off the outcome of the last step is not known.
    assert rows["next", "terminated"].tolist() == [False] * 4 + [True] + [False] * 3
    assert rows["next", "truncated"].tolist() == [False] * 7 + [True]
    assert rows["action"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert rows["next", "reward"].tolist() == [0, 1, 1, 0, 1, 0, 1, 1]
    assert torch.equal(rows["observation"][0], stack(0, 0, 0, 0))
    assert torch.equal(rows["observation"][2], stack(0, 0, 1, 2))
    assert torch.equal(rows["next", "observation"][3], stack(1, 2, 3, 4))
    assert torch.equal(rows["next", "observation"][4], stack(2, 3, 4, 4))
    assert torch.equal(rows["observation"][5], stack(10, 10, 10, 10))
    assert torch.equal(rows["next", "observation"][7], stack(10, 11, 12, 13))
    assert rows["observation"].dtype is torch.uint8
    assert ("next", "episode_return") not in rows.keys(include_nested=True)
    assert read(shard, reward="unclipped")["next", "reward"].tolist() == [0, 2, 4, 0, 2, 0, 2, 4]


def test_episodes_are_views_of_the_mapped_frames(tmp_path: Path) -> None:
    source = RLUnplugged(str(write(tmp_path / "shard", [message(episode(0, 50, True))])))
    source.prepare()
    (part,) = source.episodes()
    observation, following = part["observation"].numpy(), part["next", "observation"].numpy()
    assert observation.strides == following.strides == (84 * 84, 84 * 84, 84, 1)
    assert following.ctypes.data - observation.ctypes.data == 84 * 84


def test_missing_clipped_rewards_are_clipped_here(tmp_path: Path) -> None:
    one = episode(0, 6, True)
    del one["clipped_rewards"]
    one["unclipped_rewards"] = [-3.0, 0.5, 0.0, 7.0, 1.0, -1.0]
    assert read(write(tmp_path / "shard", [message(one)]))["next", "reward"].tolist() == [-1, 0.5, 0, 1, 1, -1]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=6))
def test_a_shard_gives_exactly_its_rows(
    tmp_path_factory: pytest.TempPathFactory, shape: list[tuple[int, bool]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "shard"
    write(path, [message(episode(20 * n, *kind), packed=n % 2 == 0) for n, kind in enumerate(shape)])
    expected = sum(steps - (not over) for steps, over in shape)
    if expected:
        assert len(read(path)) == expected
    else:
        with pytest.raises(InputError, match="no transitions"):
            read(path)


# Transitions ---------------------------------------------------------------------------------------------------------


def test_transitions_in_no_order_are_episodes_of_their_own(tmp_path: Path) -> None:
    names, newest = [-5, 7, 2**63 - 1], [20, 5, 33]
    records = [message(step(n, k, total=float(k)), packed=k % 2 == 0) for n, k in zip(names, newest, strict=True)]
    rows = read(write(tmp_path / "shard", records))
    assert rows["next", "truncated"].all()
    for row, k in enumerate(newest):
        assert torch.equal(rows["observation"][row], stack(k - 3, k - 2, k - 1, k))
        assert torch.equal(rows["next", "observation"][row], stack(k - 2, k - 1, k, k + 1))
    assert returns_of(rows).tolist() == newest
    (cache,) = (tmp_path / "rlu" / "converted").iterdir()
    assert (cache / "frames.u8").stat().st_size == 3 * 5 * 84 * 84


def test_transitions_that_follow_are_joined(tmp_path: Path) -> None:
    """By both stacks and the episode's id, across the end of one and a stranger in between."""
    steps = [step(1, 10), step(1, 11), step(1, 12, discount=0.0), step(2, 13), step(3, 14), step(3, 15), step(1, 40)]
    shard = write(tmp_path / "shard", [message(one) for one in steps])
    rows = read(shard)
    assert rows["next", "terminated"].tolist() == [False, False, True, False, False, False, False]
    assert rows["next", "truncated"].tolist() == [False, False, False, True, False, True, True]
    for row, k in enumerate([10, 11, 12, 13, 14, 15, 40]):
        assert torch.equal(rows["observation"][row], stack(k - 3, k - 2, k - 1, k))
        assert torch.equal(rows["next", "observation"][row], stack(k - 2, k - 1, k, k + 1))
    (cache,) = (tmp_path / "rlu" / "converted").iterdir()
    assert (cache / "frames.u8").stat().st_size == (7 + 5 + 6 + 5) * 84 * 84


def test_a_next_observation_that_does_not_follow_is_kept_as_it_is(tmp_path: Path) -> None:
    steps = [transition(1, [1, 2, 3, 4], [30, 31, 32, 33]), transition(1, [30, 31, 32, 33], [31, 32, 33, 34])]
    rows = read(write(tmp_path / "shard", [message(one) for one in steps]))
    assert torch.equal(rows["observation"], torch.stack([stack(1, 2, 3, 4), stack(30, 31, 32, 33)]))
    assert torch.equal(rows["next", "observation"], torch.stack([stack(30, 31, 32, 33), stack(31, 32, 33, 34)]))
    assert rows["next", "truncated"].tolist() == [False, True]


def test_returns_come_from_the_records(tmp_path: Path) -> None:
    """OPER-R weighs by what the whole episode returned, of which a shard has single rows."""
    records = [message(step(n, 10 * n + 5, total=float(n))) for n in range(1, 5)]
    shard = write(tmp_path / "shard", records)
    data = OfflineDataModule(RLUnplugged(str(shard)), OperR(), batch_size=2)
    data.setup()
    assert data.weights is not None
    assert torch.allclose(data.weights, torch.tensor([0, 2 / 3, 4 / 3, 2], dtype=torch.float64))
    with pytest.raises(InputError, match="per_step"):
        OfflineDataModule(RLUnplugged(str(shard)), OperR(returns="per_step"), batch_size=2).setup()


def test_converted_transitions_are_said_to_lose_what_their_episodes_returned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = write(tmp_path / "single", [message(step(n, 10 * n + 5)) for n in range(3)])
    whole = write(tmp_path / "whole", [message(episode(0, 6, True))])
    for shard, loses in ((single, True), (whole, False)):
        for to in ("minari", "tianshou", "d4rl"):
            words = ["--source=RLUnplugged", f"--source.path={shard}", f"--to={to}"]
            assert oper("convert", *words, f"--output={tmp_path / to / f'{shard.name}-v0'}") == 0
            assert ("not kept: what whole episodes returned" in capsys.readouterr().out) == loses


def test_transitions_have_no_unclipped_rewards(tmp_path: Path) -> None:
    shard = write(tmp_path / "shard", [message(step(1, 10))])
    with pytest.raises(InputError, match=r"shard.*recorded clipped"):
        read(shard, reward="unclipped")


def test_each_picture_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[bytes] = []
    monkeypatch.setattr(families, "frame", lambda data: (unpacked.append(data), frame(data))[1])
    read(write(tmp_path / "shard", [message(step(1, 10 + n)) for n in range(6)]))
    assert len(unpacked) == len(set(unpacked)) == 10


def unordered(count: int, seed: int = 0) -> list[Episode]:
    """Single steps and runs of a few, with an end here and there; the pictures are never far from each other."""
    generator, steps = np.random.default_rng(seed), []
    while len(steps) < count:
        start = int(generator.integers(4, 60))
        steps += [
            step(start, start + n, discount=float(generator.random() > 0.2)) for n in range(generator.integers(1, 4))
        ]
    return steps


@pytest.mark.parametrize("part", [1, 3, 1000])
@pytest.mark.parametrize("location", ["memory", "memmap"])
def test_what_is_stored_is_what_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, location: Any
) -> None:
    """From the file into the datamodule's storage, however the rows are handed out in parts."""
    monkeypatch.setattr(rl_unplugged, "PART", part)
    steps = unordered(40)
    single = write(tmp_path / "single", [message(one) for one in steps])
    data = OfflineDataModule(RLUnplugged(str(single)), location=location, batch_size=4)
    data.setup()
    rows = data.storage.get(slice(None))
    for key, name in (("observation", "o_t"), (("next", "observation"), "o_tp1")):
        expected = np.stack([[np.asarray(Image.open(io.BytesIO(data))) for data in one[name]] for one in steps])
        assert np.array_equal(rows[key].numpy(), expected)
    assert rows["action"].tolist() == [one["a_t"][0] for one in steps]
    assert rows["next", "reward"].flatten().tolist() == [one["r_t"][0] for one in steps]
    assert rows["next", "terminated"].flatten().tolist() == [one["d_t"][0] == 0 for one in steps]
    whole = write(tmp_path / "whole", [message(episode(30 * n, 3 + n, n % 2 == 0)) for n in range(6)])
    data = OfflineDataModule(RLUnplugged(str(whole)), location=location, batch_size=4)
    data.setup()
    rows, row = data.storage.get(slice(None)), 0
    for n in range(6):
        steps_of_it = 3 + n - n % 2
        for t in range(steps_of_it):
            numbers = [30 * n + max(0, t - k) for k in (3, 2, 1, 0)]
            assert torch.equal(rows["observation"][row], stack(*numbers))
            row += 1
    assert row == len(rows)


# The format ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_checksums(data: bytes) -> None:
    assert with_numpy(data) == crc32c()(data) == castagnoli(data)


def test_the_checksum_of_nothing() -> None:
    assert masked(0) == 0xA282EAD8


NUMBERS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20)
SINGLES = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20)


@settings(max_examples=60)
@given(NUMBERS, SINGLES, st.lists(st.binary(max_size=40), min_size=1), st.booleans(), st.booleans())
def test_messages_round_trip(
    numbers: list[int], singles: list[float], texts: list[bytes], packed: bool, strange: bool
) -> None:
    # Fields that no Example has: a varint, 8 bytes, text, 4 bytes.
    extra = b"\x78\xac\x02" + b"\x79" + bytes(8) + field(15, b"more") + b"\x7d" + bytes(4) if strange else b""
    features = {"i": numbers, "f": singles, "b": texts, "not wanted": [b"x"]}
    found = example(message(features, packed, extra), {b"i": 3, b"f": 2, b"b": 1})
    assert found == {b"i": numbers, b"f": singles, b"b": texts}


def test_lists_that_come_in_parts_are_joined() -> None:
    parts = field(3, field(1, varint(1) + varint(-2)) + b"\x08" + varint(3)) + field(3, b"\x08\x04")
    data = field(1, field(1, field(1, b"x") + field(2, parts)))
    assert example(data, {b"x": 3}) == {b"x": [1, -2, 3, 4]}


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 20,
        b"\x0a\x05ab",
        b"\x0a",
        b"\x0b\x0c",
        field(1, field(1, field(1, b"x") + field(2, field(3, field(1, b"\x80"))))),
        field(1, field(1, field(1, b"x") + field(2, field(3, field(1, b"\x80") + b"\x08\x01")))),
        field(1, field(1, field(1, b"x") + field(2, field(2, field(1, b"abc"))))),
        field(1, field(1, field(1, b"x") + field(2, field(3, b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")))),
    ],
)
def test_malformed_messages(data: bytes) -> None:
    with pytest.raises(Malformed):
        example(data, {b"x": 3})


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        example(field(1, field(1, field(1, b"x") + field(2, data))), {b"x": 3})


def test_a_message_of_too_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfexample, "MOST_VALUES", 50)
    for values, packed in (([1] * 60, True), ([1] * 60, False), ([1.0] * 60, True), ([b""] * 60, True)):
        kind = {int: 3, float: 2, bytes: 1}[type(values[0])]
        with pytest.raises(Malformed, match="more than 50 values"):
            example(message({"x": values}, packed), {b"x": kind})
    with pytest.raises(Malformed, match="more than 50 values"):
        example(b"\x78\x01" * 60, {})


# Frames --------------------------------------------------------------------------------------------------------------


DECODERS = ["pillow", "kornia"]


def frame_by(decoder: str, data: bytes) -> np.ndarray:
    """What one of the two decoders makes of a picture, the other being out of reach."""
    if decoder == "kornia":
        pytest.importorskip("kornia_rs", reason="the extra 'rl-unplugged' is not installed")
    with pytest.MonkeyPatch.context() as patch:
        if decoder == "kornia":
            patch.setattr(pictures, "_by_pillow", None)
        else:
            patch.setattr(pictures, "quick", lambda: None)
        return frame(data)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("kind", ["noise", "slope", "flat"])
def test_frames_are_what_pillow_reads(level: int, kind: str, decoder: str) -> None:
    pixels = {
        "noise": np.random.default_rng(0).integers(0, 256, (84, 84)),
        "slope": np.add.outer(np.arange(84), np.arange(84)),
        "flat": np.full((84, 84), 7),
    }[kind].astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png", compress_level=level)
    assert np.array_equal(frame_by(decoder, out.getvalue()), pixels)


def filtered(pixels: np.ndarray, filters: list[int]) -> bytes:
    """Rows as differences from their neighbours, in one of PNG's five ways each, by their definition."""
    left, above, corner = (
        np.pad(pixels, ((y, 0), (x, 0)))[: len(pixels), : len(pixels[0])].astype(int)
        for y, x in ((0, 1), (1, 0), (1, 1))
    )
    neighbours = np.stack([left, above, corner])
    nearest = np.abs(left + above - corner - neighbours).argmin(0)  # of equal ones the first
    paeth = np.take_along_axis(neighbours, nearest[None], 0)[0]
    guesses = np.stack([0 * left, left, above, (left + above) // 2, paeth])[filters, np.arange(len(pixels))]
    return np.column_stack([filters, (pixels - guesses) % 256]).astype(np.uint8).tobytes()


@pytest.mark.parametrize("decoder", DECODERS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), values=st.integers(1, 256), level=st.integers(0, 9),
    filters=st.lists(st.integers(0, 4), min_size=84, max_size=84),
)  # fmt: skip
def test_frames_of_every_filter(decoder: str, seed: int, values: int, level: int, filters: list[int]) -> None:
    pixels = np.random.default_rng(seed).integers(0, values, (84, 84))
    pixels = pixels * 255 // max(1, values - 1)
    packed = zlib.compress(filtered(pixels, filters), level)
    head = HEAD + struct.pack(">I", zlib.crc32(HEAD[12:]))
    end = chunk(b"IEND", b"")
    assert np.array_equal(frame_by(decoder, head + chunk(b"IDAT", packed) + end), pixels)
    parts = [chunk(b"IDAT", packed[:100]), chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", packed[100:])]
    assert np.array_equal(frame(head + b"".join(parts) + end), pixels)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no PNG"),
        (b"GIF89a" + bytes(100), "no PNG"),
        (png(1, (84, 83)), "84 × 83"),
        (png(1, mode="RGB"), "colour type 2"),
        (png(1, mode="1"), "1 bits"),
        (HEAD[:-1] + b"\1" + png(1)[29:], "type 0, interlaced, in place"),
        (png(1)[:200], "not whole"),
        (png(1)[:45] + b"\xff" * 40 + png(1)[85:], "not whole"),
        (HEAD + bytes(4) + chunk(b"IDAT", zlib.compress(bytes(85) * 83)) + chunk(b"IEND", b""), "not whole"),
        (HEAD + bytes(4) + chunk(b"IDAT", zlib.compress(b"\x05" * 85 * 84)) + chunk(b"IEND", b""), "not whole"),
        (png(1) + bytes(1 << 16), "bytes in place"),
    ],
)
def test_other_pictures_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(Malformed, match=words):
        frame(data)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = struct.pack(">II", 60_000, 60_000)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + bytes([8, 0, 0, 0, 0]))
    bomb = head + chunk(b"IDAT", zlib.compress(bytes(1 << 24))) + chunk(b"IEND", b"")
    monkeypatch.setattr(Image, "frombytes", None)
    one = episode(0, 3, True)
    one["observations"][0] = bomb
    with pytest.raises(InputError, match=r"record 0.*60,000 × 60,000"):
        read(write(tmp_path / "shard", [message(one)]))


# Damage --------------------------------------------------------------------------------------------------------------


def damaged(path: Path, change: Callable[[bytearray, int], Any]) -> tuple[Path, int]:
    """Three episodes of 3 rows each, changed from where the third record begins."""
    messages = [message(episode(10 * n, 3, True)) for n in range(3)]
    place = sum(len(framed(one)) for one in messages[:2])
    data = bytearray(b"".join(map(framed, messages)))
    change(data, place)
    path.write_bytes(gzip.compress(bytes(data), mtime=0))
    return path, place


def _set(offset: int) -> Callable[[bytearray, int], Any]:
    def change(data: bytearray, place: int) -> None:
        data[place + offset] ^= 4

    return change


def _cut(offset: int) -> Callable[[bytearray, int], Any]:
    def change(data: bytearray, place: int) -> None:
        del data[place + offset :]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set(3), "checksum of its length"),
        (_set(9), "checksum of its length"),
        (_set(40), "its checksum"),
        (_set(-1 + 12), "checksum of its length"),
        (_cut(5), "ends within its length"),
        (_cut(12), "ends within its message"),
        (_cut(60), "ends within its message"),
    ],
)
def test_damage_is_named_by_record_and_byte(tmp_path: Path, change: Any, words: str) -> None:
    shard, place = damaged(tmp_path / "shard", change)
    with pytest.raises(InputError, match=rf"shard: record 2, at byte {place:,} .*{words}.*keep_broken") as caught:
        read(shard)
    assert "\n" not in str(caught.value)
    assert len(read(shard, keep_broken=True)) == 6
    # What was kept is not taken for the whole shard later.
    with pytest.raises(InputError, match="record 2"):
        read(shard)


@pytest.mark.parametrize("left", [0.3, 0.7, 0.99])
def test_a_file_that_is_cut_off(tmp_path: Path, left: float) -> None:
    shard, _ = damaged(tmp_path / "shard", lambda data, place: None)
    packed = shard.read_bytes()
    shard.write_bytes(packed[: int(len(packed) * left)])
    with pytest.raises(InputError, match=r"shard: record \d, at byte [\d,]+ of the unpacked file: the file is cut off"):
        read(shard)


def test_damage_within_a_record_takes_the_whole_record_back(tmp_path: Path) -> None:
    """Its frames before the damage are in the file by then."""
    broken = episode(20, 5, True)
    broken["observations"][3] = b"no picture"
    good = [message(episode(10 * n, 3, True)) for n in range(2)]
    shard = write(tmp_path / "shard", [*good, message(broken), good[0]])
    rows = read(shard, keep_broken=True)
    assert len(rows) == 6
    (cache,) = (tmp_path / "rlu" / "converted").iterdir()
    assert (cache / "frames.u8").stat().st_size == 2 * 7 * 84 * 84


def test_a_replaced_file_is_converted_anew(tmp_path: Path) -> None:
    shard, _ = damaged(tmp_path / "shard", _cut(60))
    assert len(read(shard, keep_broken=True)) == 6
    write(shard, [message(episode(0, 4, True))])
    assert len(read(shard)) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"actions": [18] * 3}, "action 18"),
        ({"actions": [-1] * 3}, "action -1"),
        ({"actions": [1.0] * 3}, "'actions' holds floats, not integers"),
        ({"actions": [1] * 2}, "2 actions"),
        ({"unclipped_rewards": [0.0, float("nan"), 0.0]}, "not finite"),
        ({"discounts": None}, "no 'discounts'"),
        ({"observations": None}, "neither 'observations' nor 'o_t'"),
    ],
)
def test_records_that_are_wrong(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    one = {name: values for name, values in {**episode(0, 3, True), **change}.items() if values is not None}
    with pytest.raises(InputError, match=f"shard: record 0.*{words}"):
        read(write(tmp_path / "shard", [message(one)]))


def test_sizes_that_are_announced_are_not_believed(tmp_path: Path) -> None:
    head = struct.pack("<Q", 1 << 40)
    path = tmp_path / "shard"
    path.write_bytes(gzip.compress(framed(message(episode(0, 3, True))) + head + check(head)))
    with pytest.raises(InputError, match=r"record 1.*1,099,511,627,776 bytes announced"):
        read(path)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    for name, data, words in (
        ("plain", framed(message(episode(0, 3, True))), "no gzip file"),
        ("empty", b"", "no gzip file"),
        ("nothing", gzip.compress(b""), "no transitions"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name}: {words}"):
            read(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "gone")


@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 1.0])
def test_gzip_files_of_several_members(tmp_path: Path, place: float) -> None:
    data = b"".join(framed(message(episode(10 * n, 3, True))) for n in range(3))
    cut = int(len(data) * place)
    (tmp_path / "shard").write_bytes(b"".join(gzip.compress(part) for part in (data[:cut], b"", data[cut:])))
    assert len(read(tmp_path / "shard")) == 9


@pytest.mark.parametrize("more", [b"junk", bytes(10)])
def test_what_follows_the_packed_data_is_damage(tmp_path: Path, more: bytes) -> None:
    """As many zeros as fit on a disk may follow; nobody waits for the end of them."""
    shard = write(tmp_path / "shard", [message(episode(0, 3, True))])
    shard.write_bytes(shard.read_bytes() + more)
    os.truncate(shard, shard.stat().st_size + (1 << 32))
    with pytest.raises(InputError, match=r"record 1, .*damaged"):
        read(shard)


def test_a_wrong_checksum_of_gzip(tmp_path: Path) -> None:
    shard = write(tmp_path / "shard", [message(episode(0, 3, True))])
    data = bytearray(shard.read_bytes())
    data[-8] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=r"record \d, .*incorrect data check"):
        read(shard)


@pytest.mark.parametrize("name", ["frames.u8", "rows.bin", "done.json"])
def test_a_damaged_conversion(tmp_path: Path, name: str) -> None:
    shard = write(tmp_path / "shard", [message(episode(0, 3, True))])
    read(shard)
    (cache,) = (tmp_path / "rlu" / "converted").iterdir()
    (cache / name).write_bytes(b"{}" if name == "done.json" else (cache / name).read_bytes()[:-1])
    with pytest.raises(InputError, match="remove"):
        read(shard)


@pytest.mark.skipif(sys.platform != "linux", reason="how memory is accounted for differs between systems")
def test_frames_may_be_larger_than_memory(tmp_path: Path) -> None:
    shard = write(tmp_path / "shard", [message(episode(0, 3, True))])
    read(shard)
    (cache,) = (tmp_path / "rlu" / "converted").iterdir()
    about = json.loads((cache / "done.json").read_text())
    about["frames"] = (2 << 40) // 7056
    (cache / "done.json").write_text(json.dumps(about))
    try:
        os.truncate(cache / "frames.u8", about["frames"] * 7056)  # takes no room on the disk
    except OSError:
        pytest.skip("this file system has no files of 2 TB")
    assert len(read(shard)) == 3


# Being stopped -------------------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from oper_lightning.data.sources import shards
shards.EVERY = 5
kept = shards.Writer.row
def row(*values):
    kept(*values)
    time.sleep(0.02)
shards.Writer.row = row
from oper_lightning.data.sources.rl_unplugged import RLUnplugged
RLUnplugged(sys.argv[1]).prepare()
"""


@pytest.mark.parametrize("family", ["episodes", "transitions"])
def test_a_killed_conversion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    if family == "episodes":
        messages = [message(episode(10 * n, 4, n % 2 == 0)) for n in range(20)]
    else:
        order = [*range(10, 40), *range(60, 80, 3), *range(90, 110)]
        messages = [message(step(n // 50, n)) for n in order]
    shard = write(tmp_path / "shard", messages)
    cache = tmp_path / "stopped"
    undisturbed = {file.name: file.read_bytes() for file in converted(shard, tmp_path / "whole", monkeypatch)}
    monkeypatch.setenv("RLU_DATASET_DIR", str(cache))
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(shard)], stderr=subprocess.DEVNULL)
    while _noted(cache) <= 10:
        time.sleep(0.005)
        assert process.poll() is None, "it was done before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = _noted(cache)
    seen: list[int] = []
    monkeypatch.setattr(shards.Writer, "row", _counted(shards.Writer.row, seen))
    files = {file.name: file.read_bytes() for file in converted(shard, cache, monkeypatch)}
    assert len(seen) == len(RLUnplugged(str(shard))) - begun
    for name in ("frames.u8", "rows.bin"):
        assert files[name] == undisturbed[name]
    assert "progress.json" not in files


def _counted(row: Any, seen: list[int]) -> Any:
    def counted(*values: Any) -> None:
        seen.append(1)
        row(*values)

    return counted


def _noted(cache: Path) -> int:
    """Rows that a conversion has noted so far."""
    files = list(cache.glob("converted/*/progress.json"))
    return shards.read_about(files[0])["rows"] if files else 0


def converted(shard: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Converts a shard into a store and lists what is there."""
    monkeypatch.setenv("RLU_DATASET_DIR", str(cache))
    RLUnplugged(str(shard)).prepare()
    (folder,) = (cache / "converted").iterdir()
    return list(folder.iterdir())


# By name -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served over HTTP as the place of the published files."""
    folder = tmp_path / "served"
    for family, game in (("atari_episodes_ordered", "Pong"), ("atari", "Breakout")):
        (folder / family / game).mkdir(parents=True)
    with served(folder) as address:
        monkeypatch.setattr(rl_unplugged, "ADDRESS", address)
        yield folder


def test_shards_are_downloaded_once(server: Path, tmp_path: Path) -> None:
    games = server / "atari_episodes_ordered" / "Pong"
    for number in (0, 7):
        write(games / f"run_2-0000{number}-of-00050", [message(episode(10 * number, 5 + number, True))])
    source = RLUnplugged(game="Pong", run=2, shard=[0, 7])
    source.prepare()
    assert len(source) == 17
    assert [len(part) for part in source.episodes()] == [5, 12]
    origin = source.origin()
    assert (origin.environment, origin.dataset) == ("oper/Pong-v0", "rl_unplugged/Pong/run_2")
    assert origin.environment_options == {"sticky": 0.25}
    assert (origin.action_low, origin.action_high) == (0, 5)
    # Once converted, neither the published file nor the downloaded one is needed.
    for file in [*games.iterdir(), *(tmp_path / "rlu" / "atari_episodes_ordered" / "Pong").iterdir()]:
        file.unlink()
    again = RLUnplugged(game="Pong", run=2, shard=7)
    again.prepare()
    assert len(again) == 12


def test_transitions_by_name(server: Path) -> None:
    write(server / "atari" / "Breakout" / "run_1-00099-of-00100", [message(step(1, 10))])
    source = RLUnplugged(game="Breakout", shard=99, family="transitions")
    source.prepare()
    assert len(source) == 1
    assert source.origin().action_high == 3


def test_a_broken_download_leaves_nothing(server: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Pong run 1 shard 3: cannot download it .* put it at .*run_1-00003-of-00050"):
        RLUnplugged(game="Pong", shard=3).prepare()
    assert not [file for file in (tmp_path / "rlu").rglob("*") if file.is_file()]


def test_a_file_tells_its_game_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "Freeway").mkdir()
    shard = write(tmp_path / "Freeway" / "run_1-00000-of-00050", [message(episode(0, 3, True))])
    assert RLUnplugged(str(shard)).origin().environment == "oper/Freeway-v0"
    assert RLUnplugged(str(shard), game="Pong").origin().environment == "oper/Pong-v0"
    assert RLUnplugged(str(tmp_path / "shard")).origin().environment is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "path of a shard, or a game"),
        ({"game": "pong"}, "did you mean 'Pong'"),
        ({"game": "Pong", "run": 6}, "runs 1 to 5"),
        ({"game": "Pong", "shard": 50}, "shards 0 to 49"),
        ({"game": "Carnival", "shard": 49}, "shards 0 to 48"),
        ({"game": "Pong", "shard": [1, 1]}, "each once"),
        ({"path": "shard", "shard": [0, 1]}, "leave out run, shard"),
    ],
)
def test_names_that_are_wrong(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        RLUnplugged(**options)


def test_games_have_the_actions_of_the_emulator() -> None:
    ale_py = pytest.importorskip("ale_py", reason="the extra 'atari' is not installed")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    assert len(rl_unplugged.ACTIONS) == 46
    for game in ("Pong", "Breakout", "Freeway", "KungFuMaster", "UpNDown"):
        emulator = ale_py.ALEInterface()
        name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in game).strip("_")
        emulator.loadROM(ale_py.roms.get_rom_path(name))
        assert len(emulator.getMinimalActionSet()) == rl_unplugged.ACTIONS[game]
