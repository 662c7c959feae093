"""Frames against the stacks that were recorded: whatever the lengths, stacks, paddings, order and place."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Arrays, columns, image_columns, write_hdf5
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from oper_lightning import (
    D4RL,
    AdvantageWeighting,
    InputError,
    Npz,
    OfflineDataModule,
    OperR,
    ReturnWeighting,
    TopFraction,
    WeightsFile,
)
from oper_lightning.algorithms.oper_a import OperA
from oper_lightning.data import frame_writer
from oper_lightning.data.frames import FILE, Frames, held, moved, stacked
from oper_lightning.data.sources.flat import FlatEpisodes
from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.storage import fill, load_mapped, map_new, transitions_in
from oper_lightning.data.table import Table
from oper_lightning.data.transitions import n_step, transitions_from

CPU = torch.device("cpu")


class Played(Source):
    """Episodes of single frames, handed out as views of their frames."""

    def __init__(self, episodes: list[np.ndarray], stack: int) -> None:
        self.played, self.stack = episodes, stack

    def origin(self) -> Origin:
        return Origin(dataset="played")

    def __len__(self) -> int:
        return sum(len(frames) - 1 for frames in self.played)

    def episodes(self) -> Iterator[TensorDict]:
        for number, frames in enumerate(self.played):
            observation, following = stacked(frames, self.stack)
            yield as_episode(observation, following, number)


def as_episode(observation: np.ndarray, following: np.ndarray, number: int) -> TensorDict:
    steps = len(observation)
    last = np.arange(steps) == steps - 1
    rewards = np.arange(steps) % 3 - 1.0 + number
    return transitions_from(observation, np.arange(steps) % 3, rewards, following, last & (number % 2 == 0), last)


class Given(Source):
    """Episodes as they are given, whole stacks in memory of their own."""

    def __init__(self, episodes: list[TensorDict], at_a_time: int = 1) -> None:
        self.parts = [torch.cat(episodes[k : k + at_a_time]) for k in range(0, len(episodes), at_a_time)]

    def origin(self) -> Origin:
        return Origin(dataset="given")

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def episodes(self) -> Iterator[TensorDict]:
        yield from self.parts


def recorded(lengths: list[int], stack: int, channels: int = 1, padding: str = "repeat", seed: int = 0) -> Given:
    """Noise played through a stack of frames, each stack copied; by a loop that knows nothing of views."""
    generator, episodes = np.random.default_rng(seed), []
    for number, length in enumerate(lengths):
        frames = generator.integers(0, 256, (length + 1, channels, 4, 3), dtype=np.uint8)
        before = [frames[0] if padding == "repeat" else np.zeros_like(frames[0])] * (stack - 1)
        line = [*before, *frames]
        stacks = np.stack([np.concatenate(line[t : t + stack]) for t in range(length + 1)])
        episodes.append(as_episode(stacks[:-1].copy(), stacks[1:].copy(), number))
    return Given(episodes)


def shuffled(source: Given, seed: int) -> Given:
    """The same rows in another order, each an episode of its own."""
    rows = torch.cat(source.parts)
    rows = rows[torch.from_numpy(np.random.default_rng(seed).permutation(len(rows)))]
    rows["next", "truncated"][:] = ~rows["next", "terminated"]
    rows["next", "done"][:] = True
    return Given([*rows.split(1)], 5)


def explicit(source: Source) -> TensorDict:
    return torch.cat(list(source.episodes())).contiguous()


def filled(source: Source, folder: Path | None) -> Table:
    if folder is None:
        return Table(source, fill(source, CPU))
    map_new(source, folder, lambda episodes: None)
    return Table(source, load_mapped(folder))


def same_observations(rows: TensorDict, expected: TensorDict) -> bool:
    keys = ("observation", ("next", "observation"))
    return all(rows[key].equal(expected[key]) and rows[key].dtype is torch.uint8 for key in keys)


lengths = st.lists(st.integers(1, 12), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths,
    stack=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
    padding=st.sampled_from(["repeat", "zeros"]),
    order=st.sampled_from(["as played", "shuffled", "last lost"]),
    mapped=st.booleans(),
    part=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_what_comes_out_is_what_went_in(
    lengths: list[int], stack: int, channels: int, padding: str, order: str, mapped: bool, part: int, seed: int
) -> None:
    source = recorded(lengths, stack, channels, padding, seed)
    if order == "shuffled":
        source = shuffled(source, seed)
    elif order == "last lost":  # what a flat file without next observations says of the last one
        for rows in source.parts:
            rows["next", "observation"][-1] = rows["observation"][-1]
    expected = explicit(source)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame_writer, "PART", part * expected["observation"][0].numel())
        table = filled(source, Path(folder) / "map" if mapped else None)
        assert same_observations(table.rows(slice(0, len(expected))), expected)
        index = torch.from_numpy(np.random.default_rng(seed).integers(0, len(expected), (3, 4)))
        assert same_observations(table.rows(index), expected[index])
        stored = table.storage[index.flatten()]
        assert same_observations(stored, expected[index.flatten()])
        assert stored["action"].equal(expected["action"][index.flatten()])
        assert table.observation_shape == expected["observation"].shape[1:]


@settings(max_examples=30, deadline=None)
@given(lengths=lengths, stack=st.integers(1, 4), seed=st.integers(0, 99))
def test_each_frame_is_stored_once(lengths: list[int], stack: int, seed: int) -> None:
    source = recorded([60, *lengths], stack, seed=seed)
    table = filled(source, None)
    assert table.frames is not None
    assert table.frames.stack == stack
    assert len(table.frames.data) == sum([60, *lengths]) + stack * (1 + len(lengths))


def test_stills_and_images_of_other_shapes() -> None:
    generator = np.random.default_rng(0)
    for shape in ((3, 6, 5), (6, 5), (6, 5, 3), (4, 6, 5)):
        frames = generator.integers(0, 256, (31, *shape), dtype=np.uint8)
        source = Given([as_episode(frames[:-1].copy(), frames[1:].copy(), 0)])
        table = filled(source, None)
        assert table.frames is not None
        assert table.frames.data.numel() == frames.size
        assert same_observations(table.rows(slice(0, 30)), explicit(source))


def test_frames_that_never_change_are_kept_all_the_same() -> None:
    """An episode of black stills looks like any stack; what comes later tells otherwise."""
    generator = np.random.default_rng(0)
    black = np.zeros((20, 3, 5, 5), dtype=np.uint8)
    later = generator.integers(0, 256, (21, 3, 5, 5), dtype=np.uint8)
    source = Given([as_episode(black[:-1], black[1:], 0), as_episode(later[:-1].copy(), later[1:].copy(), 1)])
    assert same_observations(filled(source, None).rows(slice(0, 39)), explicit(source))


@pytest.mark.parametrize("frame", [(5, 4), (1, 5, 4), (3, 5, 4)])
def test_views_of_frames_are_stacks(frame: tuple[int, ...]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, *frame), dtype=np.uint8)
    now, after = stacked(frames, 4)
    single = frames if len(frame) == 3 else frames[:, None]
    for t in range(8):
        expected = [np.concatenate([single[max(s - k, 0)] for k in (3, 2, 1, 0)]) for s in (t, t + 1)]
        np.testing.assert_array_equal(now[t], expected[0])
        np.testing.assert_array_equal(after[t], expected[1])
    assert now.base is not None
    assert after.ctypes.data - now.ctypes.data == frames[0].nbytes


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_steps_ahead_end_where_the_stacks_end(n: int, mapped: bool, tmp_path: Path) -> None:
    source = recorded([7, 1, 12, 4], 4)
    expected, table = explicit(source), filled(source, tmp_path / "map" if mapped else None)
    scaled = table.arrange(1.0, 0.0)
    table.entries.update(n_step(scaled, n, 0.9))
    rows, done = table.rows(slice(0, len(expected))), expected["next", "done"].squeeze(-1).tolist()
    for row in range(len(expected)):
        end = row
        while end < row + n - 1 and not done[end]:
            end += 1
        assert rows["next", "observation"][row].equal(expected["next", "observation"][end])
        assert rows["observation"][row].equal(expected["observation"][row])


def test_fingerprints_do_not_depend_on_the_source(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    play = [generator.integers(0, 256, (length + 1, 5, 4), dtype=np.uint8) for length in (9, 30, 2, 14)]
    views = Played(play, 4)
    episodes = [episode.contiguous().clone() for episode in views.episodes()]
    rows = torch.cat(episodes)
    arrays = {
        "observations": rows["observation"].numpy(),
        "actions": rows["action"].numpy(),
        "rewards": rows["next", "reward"].squeeze(-1).numpy(),
        "next_observations": rows["next", "observation"].numpy(),
        "terminals": rows["next", "terminated"].squeeze(-1).numpy(),
        "timeouts": rows["next", "truncated"].squeeze(-1).numpy(),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    file = write_hdf5(tmp_path / "a.hdf5", arrays)
    sources = [views, Given(episodes), Given(episodes, 3), Npz(str(tmp_path / "a.npz")), D4RL(str(file))]
    found = [filled(source, place).recorded for source in sources for place in (None, tmp_path / "map")]
    assert len(set(found)) == 1
    changed = copy.deepcopy(episodes)
    changed[1]["observation"][4, -1, 2, 2] += 1
    assert filled(Given(changed), None).recorded not in found
    assert filled(Given(episodes[::-1]), None).recorded not in found


def test_the_same_frames_in_other_rows_are_other_data() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (8, 4, 3), dtype=np.uint8)

    def rows(begins: list[int]) -> Table:
        stacks = np.stack([frames[begin : begin + 2] for begin in begins])
        return filled(Given([as_episode(stacks[:-1].copy(), stacks[1:].copy(), 0)]), None)

    # A step after which nothing of the stack is left comes last, or last but one.
    first, second = rows([0, 1, 2, 3, 4, 6]), rows([0, 1, 2, 3, 5, 6])
    assert first.frames is not None
    assert second.frames is not None
    assert first.frames.digest == second.frames.digest
    assert first.recorded != second.recorded


@pytest.mark.parametrize("stack", [1, 4])
def test_ends_that_are_not_marked_are_found(stack: int, caplog: pytest.LogCaptureFixture) -> None:
    source = recorded([6, 8, 5], stack)
    rows = torch.cat(source.parts)
    for key in ("terminated", "truncated", "done"):
        rows["next", key][[5, 13]] = False
    with caplog.at_level(logging.INFO):
        table = filled(Given([rows]), None)
    assert "ends of 2 episodes seem to be unmarked: after rows 5, 13 an observation" in caplog.text
    assert same_observations(table.rows(slice(0, 19)), rows)


def test_images_that_differ_in_shape_or_kind_are_refused() -> None:
    first, other = recorded([5], 4).parts[0], recorded([5], 3).parts[0]
    with pytest.raises(InputError, match=r"Given: observation of shape \(3, 4, 3\) from row 5, \(4, 4, 3\) before"):
        filled(Given([first, other]), None)
    floats = first.clone()
    floats["observation"] = floats["observation"].float()
    with pytest.raises(InputError, match=r"observation of torch.float32 from row 5, torch.uint8 before"):
        filled(Given([first, floats]), None)
    short = Given([first])
    short.__class__ = type("Short", (Given,), {"__len__": lambda self: 6})
    with pytest.raises(InputError, match="5 transitions came, but the source announced 6"):
        filled(short, None)


def test_memory_of_a_draw_is_used_again_once_nobody_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oper_lightning.data.frames.LARGE", 1)
    source = recorded([40], 4)
    expected, table = explicit(source), filled(source, None)
    index = torch.arange(20)
    kept = table.rows(index)
    image = kept["observation"][3]  # a view of a view
    places = {kept["observation"].data_ptr()}
    del kept
    for _ in range(5):
        rows = table.rows(index + 20)
        assert image.equal(expected["observation"][3])
        assert same_observations(rows, expected[20:])
        places.add(rows["observation"].data_ptr())
    assert 1 < len(places) <= 3
    held_by_hand = [table.rows(index + k)["observation"] for k in range(8)]
    assert all(rows.equal(expected["observation"][k : k + 20]) for k, rows in enumerate(held_by_hand))


# Places --------------------------------------------------------------------------------------------------------------


def test_what_is_mapped_is_written_beside_and_replaced(tmp_path: Path) -> None:
    source, other = recorded([20, 20], 4), recorded([30], 4, seed=1)
    before = filled(source, tmp_path / "map")
    after = filled(other, tmp_path / "map")
    assert same_observations(before.rows(slice(0, 40)), explicit(source))  # who has mapped the old rows keeps them
    assert same_observations(after.rows(slice(0, 30)), explicit(other))
    assert [path.name for path in tmp_path.iterdir()] == ["map"]
    file = tmp_path / "map" / FILE
    assert file.stat().st_size == 34 * 12
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"frames.u8: not the 408 bytes of frames"):
        load_mapped(tmp_path / "map")


def test_a_disk_that_is_full_is_one_line(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    source = recorded([3000], 4)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write there \(.*\); name another data.memmap_folder"):
            filled(source, tmp_path / "map")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_device_is_asked_first_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    with pytest.raises(InputError, match=r"Given: its frames take 0.0 GiB, and 0.0 GiB are free on cuda: set data.loc"):
        fill(recorded([50], 4), torch.device("cuda"))


def test_frames_travel_once(tmp_path: Path) -> None:
    """What shares memory goes to another device as one window; here to the device without memory."""
    source = recorded([20, 9], 4)
    part = filled(source, None).rows(torch.arange(29).reshape(1, 29))
    meta = moved(part, torch.device("meta"))
    now, after = meta["observation"], meta["next", "observation"]
    assert now.untyped_storage().nbytes() == after.untyped_storage().nbytes() == 29 * 5 * 12
    assert now._base is not None or now.storage_offset() != after.storage_offset()
    assert now.shape == after.shape == (1, 29, 4, 4, 3)
    assert moved(part, CPU)["observation"].equal(part["observation"])
    apart = filled(shuffled(source, 0), None).rows(torch.arange(29))
    assert moved(apart, torch.device("meta")).batch_size == torch.Size([29])


# The datamodule ------------------------------------------------------------------------------------------------------

IMAGES = image_columns([25] * 8)


def ready(location: str = "memory", **options: Any) -> OfflineDataModule:
    data = OfflineDataModule(Arrays(IMAGES), **{"batch_size": 10, "rollouts": None, "location": location, **options})
    data.setup()
    return data


def same(first: Any, second: Any) -> bool:
    parts = zip(first, second, strict=True)
    return all(same_observations(one, other) and one["action"].equal(other["action"]) for one, other in parts)


@pytest.mark.parametrize("location", ["memory", "memmap"])
@pytest.mark.parametrize("way", [lambda data: pickle.loads(pickle.dumps(data)), copy.deepcopy])
def test_copies_draw_alike(location: str, way: Any) -> None:
    data = ready(location, priority=OperR(), seed=0)
    other = way(data)
    assert same(data.draw(2), other.draw(2))
    assert same(ready(priority=OperR(), seed=0).draw(2), ready("memmap", priority=OperR(), seed=0).draw(2))
    for name, priority in (("best", TopFraction()), ("softmax", ReturnWeighting()), ("none", None)):
        other.priority = priority
        other.setup()
        assert (other.weights is None) == (name == "none")
    frames = held(ready("memmap").storage)[1]
    assert len(pickle.dumps(frames)) < 2000


class Rows(Dataset):  # type: ignore[type-arg]
    def __init__(self, data: OfflineDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> Tensor:
        observation: Tensor = self.data.rows(slice(25 * number, 25 * number + 25))["observation"]
        return observation.clone()


@pytest.mark.parametrize(("method", "location"), [("fork", "memory"), ("fork", "memmap"), ("spawn", "memmap")])
def test_workers_see_the_same_images(method: str, location: str) -> None:
    loader = DataLoader(Rows(ready(location)), batch_size=None, num_workers=1, multiprocessing_context=method)
    assert torch.cat(list(loader)).equal(torch.from_numpy(IMAGES["observations"]))


def rows_of(images: Tensor) -> Tensor:
    """Row numbers of drawn observations."""
    known = torch.from_numpy(IMAGES["observations"]).flatten(1)
    return torch.stack(
        [(known == image).all(1).nonzero()[0, 0] for image in images.flatten(-3).reshape(-1, known[0].numel())]
    )


@pytest.mark.parametrize("mode", ["resample", "reweight"])
def test_a_buffer_for_other_loops(mode: Any) -> None:
    data = ready(priority=TopFraction(0.5), mode=mode)
    sample = data.replay_buffer(64).sample()
    assert sample["observation"].shape == sample["next", "observation"].shape == (64, 4, 36, 36)
    assert sample["observation"].dtype is torch.uint8
    assert sample["next", "reward"].shape == (64, 1)
    rows = rows_of(sample["observation"])
    assert sample["next", "observation"].equal(torch.from_numpy(IMAGES["next_observations"])[rows])
    assert sample["action"].equal(torch.from_numpy(IMAGES["actions"])[rows])
    assert data.weights is not None
    if mode == "reweight":
        torch.testing.assert_close(sample["weight"], data.weights.float()[rows])
    else:
        assert (data.weights[rows] > 0).all()
    assert held(data.storage)[1] is not None
    assert data.storage[:3]["observation"].shape == (3, 4, 36, 36)


def test_all_images_at_once_must_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge(Frames):
        observation_shape = (4, 1 << 20, 1 << 20)

    data = ready()
    data.storage.frames.__class__ = Huge
    with pytest.raises(InputError, match="the images of 200 transitions would take"):
        data.storage[:]


def test_a_draw_that_does_not_fit_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ready()
    monkeypatch.setattr("oper_lightning.data.frames.LARGE", 1)
    monkeypatch.setattr("oper_lightning.files.free_memory", lambda: 1 << 17)
    data.draw(1)
    line = r"^set data.updates_per_block or data.batch_size lower: "
    with pytest.raises(InputError, match=line + "the images of a draw would take .* free$"):
        data.draw(1000)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nMore about it.")

    part = data.rows(slice(0, 4))
    monkeypatch.setattr(TensorDict, "to", full)
    with pytest.raises(InputError, match=line + r"what is drawn at once does not fit \(CUDA out .* 3 GiB.\)$"):
        moved(part, torch.device("meta"))


def test_rewards_by_their_sign() -> None:
    raw, signs = ready(priority=OperR()), ready(priority=OperR(), reward_scale="sign", reward_shift=0.5)
    assert signs.table["next", "reward"].equal(torch.from_numpy(np.sign(IMAGES["rewards"])) + 0.5)
    assert raw.weights is not None
    assert signs.weights is not None
    assert raw.weights.equal(signs.weights)  # priorities see rewards as recorded


def test_what_does_not_take_images_says_so() -> None:
    with pytest.raises(InputError, match="AdvantageWeighting: a linear fit to images") as caught:
        ready(priority=AdvantageWeighting())
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="weights of stage 1, which takes no images"):
        ready(priority=WeightsFile("weights.safetensors"))
    with pytest.raises(InputError, match=r"images, which OPER-A's stage 1 does not take; OperR"):
        OperA.check_data("discrete", True, "pong")
    spec = ready().spec
    assert spec.pixels
    assert spec.observation_mean.shape == ()
    assert spec.observation_shape == (4, 36, 36)


def test_in_order_and_prediction_go_by_episodes() -> None:
    data = ready()
    parts = list(data.in_order(30))
    assert all(len(part) % 25 == 0 for part in parts)
    assert len(parts) > 3
    assert torch.cat([part["observation"] for part in parts]).equal(torch.from_numpy(IMAGES["observations"]))
    assert len(data.predict_dataloader()) == len(list(data.predict_dataloader())) == 1
    whole = [data.rows(slice(None)) for _ in range(2)]  # what is asked for is not taken away
    assert whole[0]["observation"].equal(whole[1]["observation"])


def test_flat_images_are_read_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end where the next row is another image; found without a copy in floating point."""
    arrays = {key: value for key, value in IMAGES.items() if key != "timeouts"}
    arrays["terminals"] = np.zeros_like(IMAGES["terminals"])
    monkeypatch.setattr("oper_lightning.data.sources.flat.BYTES_AT_A_TIME", 30 * 4 * 36 * 36)
    flat = FlatEpisodes(arrays, "flat")
    parts = list(flat.episodes(arrays))
    assert [len(part) for part in parts] == [50, 50, 50, 50]
    assert torch.cat(parts)["next", "done"].squeeze(-1).nonzero().squeeze(-1).tolist() == [
        25 * k + 24 for k in range(8)
    ]
    assert all(part["observation"].dtype is torch.uint8 for part in parts)


def test_a_flat_file_of_single_observations(tmp_path: Path) -> None:
    """Without next observations the following row's is taken; the last frame of an episode is not there."""
    arrays = {key: value for key, value in IMAGES.items() if key != "next_observations"}
    file = write_hdf5(tmp_path / "a.hdf5", arrays)
    table = filled(D4RL(str(file)), None)
    expected = explicit(D4RL(str(file)))
    assert same_observations(table.rows(slice(0, len(expected))), expected)
    assert json.dumps(table.frames.observation_shape if table.frames else None) == "[4, 36, 36]"
    assert transitions_in(table.storage)["first"].dtype is torch.int64


def test_vectors_of_bytes_are_no_images() -> None:
    arrays = columns([20] * 5)
    arrays |= {key: (arrays[key] * 10).astype(np.uint8) for key in ("observations", "next_observations")}
    table = filled(Arrays(arrays), None)
    assert table.frames is None
    assert table.transitions["observation"].dtype is torch.float32
