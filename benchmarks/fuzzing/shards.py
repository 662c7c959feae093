"""Shards of RL Unplugged: gzip, the framing of records, the messages in them, and the pictures in those."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzzing.case import ACCEPT, EITHER, REFUSE, Kind, Mutation, Told, spoil
from fuzzing.hdf5 import QUICK
from oper_lightning.data.sources.crc32c import masked
from oper_lightning.data.sources.tfrecord import crc32c

FILE = "case.shard"
Features = dict[str, list[Any]]

# Writing -------------------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    """A number of 64 bits, seven to a byte; negative ones by their complement."""
    number &= (1 << 64) - 1
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, data: bytes) -> bytes:
    """A field with a length."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(values: list[Any], packed: bool = True) -> bytes:
    """A feature that holds bytes, floats or integers."""
    if isinstance(values[0], bytes):
        return field(1, b"".join(field(1, value) for value in values))
    if isinstance(values[0], float):
        numbers, kind, key = [struct.pack("<f", value) for value in values], 2, b"\x0d"
    else:
        numbers, kind, key = [varint(value) for value in values], 3, b"\x08"
    return field(kind, field(1, b"".join(numbers)) if packed else b"".join(key + number for number in numbers))


def message(features: Features, packed: bool = True) -> bytes:
    """An Example."""
    entries = [field(1, field(1, name.encode()) + field(2, feature(v, packed))) for name, v in features.items() if v]
    return field(1, b"".join(entries))


def framed(data: bytes) -> bytes:
    """A record."""
    head, crc = struct.pack("<Q", len(data)), crc32c()
    return head + struct.pack("<I", masked(crc(head))) + data + struct.pack("<I", masked(crc(data)))


def png(pixels: np.ndarray) -> bytes:
    """A picture of any size and kind."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


# What is good --------------------------------------------------------------------------------------------------------

EPISODES, STEPS = 6, 8


def pictures() -> list[bytes]:
    """Frames of all steps."""
    drawn = np.random.default_rng(0).integers(0, 255, (EPISODES * STEPS + 4, 84, 84), dtype=np.uint8)
    drawn[:, 10:] = drawn[:, 10:, :1]
    return [png(pixels) for pixels in drawn]


def episodes() -> list[Features]:
    """Whole episodes; every second one is cut off."""
    frames, found = pictures(), []
    for number in range(EPISODES):
        rewards = [float(number)] * STEPS
        found.append(
            {
                "checkpoint_idx": [0],
                "episode_idx": [number],
                "episode_return": [sum(rewards)],
                "clipped_episode_return": [min(1.0, rewards[0]) * STEPS],
                "observations": frames[number * STEPS : (number + 1) * STEPS],
                "actions": [step % 4 for step in range(STEPS)],
                "unclipped_rewards": rewards,
                "clipped_rewards": [min(1.0, reward) for reward in rewards],
                "discounts": [1.0] * (STEPS - 1) + [float(number % 2)],
            }
        )
    return found


def transitions() -> list[Features]:
    """Single transitions; those of an episode follow from each other."""
    frames = pictures()
    return [
        {
            "o_t": frames[now : now + 4],
            "a_t": [now % 4],
            "r_t": [1.0],
            "d_t": [float(now % STEPS != STEPS - 1)],
            "o_tp1": frames[now + 1 : now + 5],
            "a_tp1": [0],
            "episode_id": [now // STEPS - 3],
            "episode_return": [float(now // STEPS)],
        }
        for now in range(EPISODES * STEPS)
    ]


def family(rng: Random) -> list[Features]:
    """One of the two."""
    return rng.choice([episodes, transitions])()


def save(messages: list[bytes], level: int = 1) -> None:
    """Writes a shard."""
    Path(FILE).write_bytes(gzip.compress(b"".join(map(framed, messages)), level))


def _lay(rng: Random) -> str:
    save([message(features, rng.random() < 0.5) for features in family(rng)])
    return FILE


def _command(rng: Random) -> str:
    data = f"--data.source=RLUnplugged --data.source.path={FILE} --data.rollouts=null"
    more = [
        "",
        "--data.priority=OperR",
        "--data.priority=TopFraction --data.location=memmap",
        "--data.source.keep_broken=true",
        "--data.source.game=Breakout --data.source.keep_broken=true",
    ]
    return f"fit --model=DiscreteBC {QUICK} {data} {rng.choice(more)}"


# What may be wrong with it -------------------------------------------------------------------------------------------


def _stream(change: Callable[[bytearray, Random], Any]) -> Mutation:
    """Other bytes within the gzip."""

    def mutate(rng: Random) -> Told:
        data = bytearray(b"".join(framed(message(features)) for features in family(rng)))
        change(data, rng)
        Path(FILE).write_bytes(gzip.compress(bytes(data), 1))
        return EITHER

    return mutate


def _flip(data: bytearray, rng: Random) -> None:
    for _ in range(rng.choice([1, 5, 50])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: Random) -> None:
    del data[rng.choice([rng.randrange(len(data)), 5, 12, len(data) - 1, len(data) - 4]) :]


def _insert(data: bytearray, rng: Random) -> None:
    place = rng.randrange(len(data))
    data[place:place] = rng.randbytes(rng.choice([1, 16, 700]))


def _message(change: Callable[[bytearray, Random], Any]) -> Mutation:
    """Other bytes in one message, whose checksums are right all the same."""

    def mutate(rng: Random) -> Told:
        messages = [message(features) for features in family(rng)]
        place = rng.choice([0, rng.randrange(len(messages))])
        data = bytearray(messages[place])
        change(data, rng)
        messages[place] = bytes(data)
        save(messages)
        return EITHER

    return mutate


def _early(data: bytearray, rng: Random) -> None:
    """Where keys and lengths stand."""
    for _ in range(rng.choice([1, 3])):
        data[rng.randrange(min(60, len(data)))] = rng.choice([0, 0x7F, 0x80, 0xFF, rng.randrange(256)])


def _feature(change: Callable[[Features, Random], Told]) -> Mutation:
    """Other values in one record of many."""

    def mutate(rng: Random) -> Told:
        records = family(rng)
        told = change(rng.choice([records[0], rng.choice(records)]), rng)
        save([message(features, rng.random() < 0.5) for features in records])
        return told

    return mutate


NEEDED = (
    "observations",
    "actions",
    "unclipped_rewards",
    "discounts",
    "o_t",
    "a_t",
    "r_t",
    "d_t",
    "o_tp1",
    "episode_id",
)


def _any(features: Features, rng: Random) -> str:
    return rng.choice([name for name in NEEDED if name in features])


def _drop(features: Features, rng: Random) -> Told:
    del features[_any(features, rng)]
    return EITHER


def _other(values: list[Any]) -> Callable[[Features, Random], Told]:
    def change(features: Features, rng: Random) -> Told:
        name = _any(features, rng)
        features[name] = [rng.choice(values)] * len(features[name])
        return EITHER

    return change


def _longer(features: Features, rng: Random) -> Told:
    name = _any(features, rng)
    features[name] = features[name] * rng.choice([2, 3, 1000]) if rng.random() < 0.5 else features[name][:-1]
    return EITHER


def _renamed(features: Features, rng: Random) -> Told:
    name = _any(features, rng)
    features[rng.choice([name + "\0", name.upper(), "x" * 70_000, "\u202e"])] = features.pop(name)
    return EITHER


def _picture(make: Callable[[Random], bytes]) -> Mutation:
    """Another picture in place of one; a refusal, unless a damaged record may be left out."""

    def change(features: Features, rng: Random) -> Told:
        name = next(name for name in ("observations", "o_t") if name in features)
        features[name][rng.randrange(len(features[name]))] = make(rng)
        return EITHER

    return _feature(change)


def _bomb(rng: Random) -> bytes:
    size = rng.choice([(60_000, 60_000), (2**31 - 1, 2**31 - 1), (84, 2**31 - 1), (84, 84)])
    parts = [(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(50 << 20)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*parts, (b"IEND", b"")]
    )


def _spoilt(rng: Random) -> bytes:
    data = bytearray(png(np.zeros((84, 84), np.uint8)))
    for _ in range(rng.choice([1, 10])):
        data[rng.randrange(28, len(data))] = rng.randrange(256)
    return bytes(data)


def _announced(size: int) -> Mutation:
    def mutate(rng: Random) -> Told:
        head = struct.pack("<Q", size)
        data = head + struct.pack("<I", masked(crc32c()(head))) + bytes(100)
        before = b"".join(framed(message(features)) for features in family(rng)[: rng.choice([0, 3])])
        Path(FILE).write_bytes(gzip.compress(before + data, 1))
        return EITHER

    return mutate


def _one_message(make: Callable[[Random], bytes], told: Told = REFUSE) -> Mutation:
    def mutate(rng: Random) -> Told:
        save([make(rng)])
        return told

    return mutate


def _members(rng: Random) -> Told:
    """Records in a gzip file of several members, cut where the first one may end within a record."""
    data = b"".join(framed(message(features)) for features in family(rng))
    place = rng.randrange(len(data))
    Path(FILE).write_bytes(gzip.compress(data[:place]) + gzip.compress(data[place:]))
    return ACCEPT


def _converted(change: Callable[[Path, Random], Any]) -> Mutation:
    """A damaged conversion in the store."""

    def mutate(rng: Random) -> Told:
        from oper_lightning.data.sources.rl_unplugged import RLUnplugged
        from oper_lightning.errors import log

        _lay(rng)
        log.disabled = True
        RLUnplugged(FILE).prepare()
        log.disabled = False
        (folder,) = Path("~/.rl_unplugged/datasets/converted").expanduser().iterdir()
        change(folder, rng)
        return Told("either", names=(FILE, str(folder.parent)))

    return mutate


def _about(name: str) -> Callable[[Path, Random], Any]:
    def change(folder: Path, rng: Random) -> None:
        about = json.loads((folder / "done.json").read_text())
        spoil(about, rng)
        (folder / "done.json").unlink()
        (folder / name).write_text(json.dumps(about))

    return change


def _bytes_of(name: str) -> Callable[[Path, Random], Any]:
    def change(folder: Path, rng: Random) -> None:
        data = bytearray((folder / name).read_bytes())
        rng.choice([_flip, _cut, _insert])(data, rng)
        (folder / name).write_bytes(data)

    return change


STRANGE: list[Any] = [-1, 18, 2**63 - 1, -(2**63), 1.0, float("nan"), float("inf"), -3e38, b"", b"text", 3]

SHARD = Kind(
    _lay,
    (FILE, "rl_unplugged/datasets"),
    _command,
    {
        "structure: as it was": lambda rng: (_lay(rng), ACCEPT)[1],
        "structure: several members": _members,
        "structure: no gzip": lambda rng: (
            Path(FILE).write_bytes(b"".join(framed(message(features)) for features in family(rng))),
            REFUSE,
        )[1],
        "structure: an empty gzip": lambda rng: (Path(FILE).write_bytes(gzip.compress(b"")), REFUSE)[1],
        "structure: gzip in gzip": lambda rng: (
            _lay(rng),
            Path(FILE).write_bytes(gzip.compress(Path(FILE).read_bytes())),
            REFUSE,
        )[2],
        "structure: gigabytes of zeros": lambda rng: (
            Path(FILE).write_bytes(gzip.compress(bytes(1 << 28), 1) * 8),
            REFUSE,
        )[1],
        **{f"stream: flips {n}": _stream(_flip) for n in range(3)},
        **{f"stream: cut {n}": _stream(_cut) for n in range(3)},
        **{f"stream: inserted {n}": _stream(_insert) for n in range(2)},
        **{f"stream: {size:,} announced": _announced(size) for size in (0, 50, 1 << 28, 1 << 40, (1 << 64) - 1)},
        **{f"message: flips {n}": _message(_flip) for n in range(4)},
        **{f"message: cut {n}": _message(_cut) for n in range(3)},
        **{f"message: inserted {n}": _message(_insert) for n in range(3)},
        **{f"message: early bytes {n}": _message(_early) for n in range(6)},
        "message: nothing": _one_message(lambda rng: b""),
        "message: noise": _one_message(lambda rng: rng.randbytes(5000)),
        "message: zeros": _one_message(lambda rng: bytes(200 << 20)),
        "message: a large unknown field": _one_message(lambda rng: field(9, bytes(200 << 20))),
        "message: a large feature of no use": _one_message(
            lambda rng: field(1, field(1, field(1, b"x") + field(2, bytes(100 << 20)))) + message(episodes()[0]), EITHER
        ),
        "message: very many numbers": _one_message(lambda rng: message({**episodes()[0], "actions": [1] * (3 << 20)})),
        "message: very many empty strings": _one_message(
            lambda rng: field(1, field(1, field(1, b"observations") + field(2, field(1, b"\x0a\x00" * (20 << 20)))))
        ),
        "message: very many features": _one_message(
            lambda rng: field(1, field(1, field(1, b"x") + field(2, b"")) * (4 << 20))
        ),
        "message: an entry within itself": _one_message(
            lambda rng: b"".join(field(1, b"\x0a" * n) for n in range(3000)), REFUSE
        ),
        **{f"feature: dropped {n}": _feature(_drop) for n in range(3)},
        **{f"feature: other values {n}": _feature(_other(STRANGE)) for n in range(12)},
        **{f"feature: of another length {n}": _feature(_longer) for n in range(6)},
        **{f"feature: renamed {n}": _feature(_renamed) for n in range(3)},
        "picture: none": _picture(lambda rng: b""),
        "picture: text": _picture(lambda rng: b"picture" * 20),
        "picture: noise": _picture(lambda rng: rng.randbytes(700)),
        "picture: of another size": _picture(
            lambda rng: png(np.zeros(rng.choice([(84, 83), (1, 1), (4000, 4000)]), "u1"))
        ),
        "picture: in colour": _picture(lambda rng: png(np.zeros((84, 84, 3), np.uint8))),
        "picture: of 16 bits": _picture(lambda rng: png(np.zeros((84, 84), np.uint16))),
        **{f"picture: a bomb {n}": _picture(_bomb) for n in range(4)},
        **{f"picture: spoilt {n}": _picture(_spoilt) for n in range(6)},
        **{f"store: done.json {n}": _converted(_about("done.json")) for n in range(6)},
        **{f"store: progress.json {n}": _converted(_about("progress.json")) for n in range(6)},
        **{f"store: rows {n}": _converted(_bytes_of("rows.bin")) for n in range(4)},
        **{f"store: frames {n}": _converted(_bytes_of("frames.u8")) for n in range(2)},
        "store: a file in its place": _converted(lambda folder, rng: (_away(folder), folder.touch())),
        "store: a link out": _converted(
            lambda folder, rng: (_away(folder), folder.symlink_to("../../../../../outside"))
        ),
        "store: no frames": _converted(lambda folder, rng: (folder / "frames.u8").unlink()),
        "store: endless rows": _converted(
            lambda folder, rng: ((folder / "rows.bin").unlink(), (folder / "rows.bin").symlink_to("/dev/zero"))
        ),
    },
)


def _away(folder: Path) -> None:
    folder.rename(folder.with_name("away"))
