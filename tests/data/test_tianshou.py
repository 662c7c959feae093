"""Replay buffers that Tianshou itself wrote, against what the buffer that was saved hands out."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from oper_lightning.data.sources.d4rl import D4RL
from oper_lightning.data.sources.tianshou import Tianshou, is_replay_buffer
from oper_lightning.data.storage import fill
from oper_lightning.data.table import Table
from oper_lightning.errors import InputError

FILES = Path(__file__).parent / "tianshou_files"
# Another folder may hold more of them, made by make.py --all.
SAVED = sorted(Path(os.environ.get("TIANSHOU_FILES", FILES)).glob("*.hdf5"))
LARGEST = 12  # rows of a sub-buffer in a file of several


def read(path: Path | str, **options: object) -> TensorDict:
    """All transitions, images as stacks."""
    source = Tianshou(str(path), **options)  # type: ignore[arg-type]
    table = Table(source, fill(source, torch.device("cpu")))
    flags = {name: table.transitions["next", name] for name in ("reward", "terminated", "truncated")}
    rows = table.rows(torch.arange(len(table)))
    rows["next"].update(flags)
    return rows


def transitions(path: Path, skip_stumps: bool) -> list[dict[str, np.ndarray]]:
    """The file's transitions one by one, out of what Tianshou's buffer gave: a loop in place of whole arrays."""
    given = dict(np.load(path.with_suffix(".npz")))
    with h5py.File(path) as file:
        own_next, several, size = "obs_next" in file["_meta"], "_lengths" in file, int(file.attrs["maxsize"])
    rows = len(given["index"])
    found: list[dict[str, np.ndarray]] = []
    episode: list[dict[str, np.ndarray]] = []
    for i in range(rows):
        ring = given["index"] // (LARGEST if several else size)
        if not episode:
            first_of_its_ring = i == 0 or ring[i] != ring[i - 1]
            stump = first_of_its_ring and given["index"][i] % LARGEST * several + given["index"][i] * (not several) > 0
        one = {name: given[name][i] for name in ("obs", "act", "rew", "terminated", "obs_next")}
        newest = i + 1 == rows or ring[i + 1] != ring[i]
        one["truncated"] = np.asarray((given["done"][i] or newest) and not one["terminated"])
        episode.append(one)
        if given["done"][i] or newest:
            if not own_next and one["truncated"]:
                episode.pop()
                if episode:
                    episode[-1]["truncated"] = np.asarray(True)
            if not (stump and skip_stumps):
                found += episode
            episode = []
    return found


@pytest.mark.parametrize("skip_stumps", [True, False])
@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_rows_flags_order_and_stacks_are_those_of_the_buffer(path: Path, skip_stumps: bool) -> None:
    keys = ["place", "inner/speed"] if "entries" in path.stem else None
    ours = read(path, observation_keys=keys, skip_stumps=skip_stumps)
    theirs = transitions(path, skip_stumps)
    assert len(ours) == len(theirs)
    column = {name: torch.from_numpy(np.stack([row[name] for row in theirs])) for name in theirs[0]}
    assert torch.equal(ours["observation"], column["obs"])
    assert torch.equal(ours["action"], column["act"])
    assert ours["action"].dtype is (torch.int64 if column["act"].dim() == 1 else torch.float32)
    assert torch.equal(ours["next", "reward"], column["rew"].float())
    assert torch.equal(ours["next", "terminated"], column["terminated"])
    assert torch.equal(ours["next", "truncated"], column["truncated"])
    going_on = ~ours["next", "terminated"]
    after, expected = ours["next", "observation"][going_on], column["obs_next"][going_on]
    if "frames-next" in path.stem:  # where a next frame was stored too, Tianshou pads the next stack with itself
        assert torch.equal(after[:, :-1], ours["observation"][going_on][:, 1:])
        after, expected = after[:, -1], expected[:, -1]
    if "from_data" in path.stem and len(after):  # Tianshou takes the first row of such a buffer for an end
        assert torch.equal(after[1:], expected[1:])
    else:
        assert torch.equal(after, expected)


def test_frames_are_views_of_what_was_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    path = next(path for path in SAVED if path.stem.endswith("frames"))
    asked: list[str] = []
    monkeypatch.setattr("oper_lightning.files.LITTLE", 0)
    # Free is what six copies of an episode of seven frames and actions take, and no whole stacks of these.
    monkeypatch.setattr("oper_lightning.files.free_memory", lambda: asked.append("") or 7 * 6 * (6 * 7 + 8))
    monkeypatch.setattr("oper_lightning.data.sources.tianshou.ROW_BYTES", 0)
    for episode in Tianshou(str(path)).episodes():
        seen, after = episode["observation"], episode["next", "observation"]
        assert seen.dtype is torch.uint8
        assert seen.shape[1:] == (4, 6, 7)
        assert after.data_ptr() == seen.data_ptr() + 6 * 7
        assert seen.stride() == (6 * 7, 6 * 7, 7, 1)
    assert asked


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch sprung",)


def changed(tmp_path: Path, kind: str = "frames") -> h5py.File:
    """A copy of one of the files, open to be spoilt."""
    copy = tmp_path / "bad.hdf5"
    copy.write_bytes(next(path for path in SAVED if path.stem.endswith(kind)).read_bytes())
    return h5py.File(copy, "a")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trap = np.frombuffer(pickle.dumps(Trap()), dtype=np.int8)
    with changed(tmp_path) as file:
        for name in ("buffers", "_random_state"):
            if name in file:
                del file[name]
            file[name] = trap
            file[name].attrs["__data_type__"] = "pickled_ndarray"
        file["_meta/policy/hidden"] = trap
    whole = read(tmp_path / "bad.hdf5")
    assert torch.equal(whole["action"], read(next(path for path in SAVED if path.stem.endswith("frames")))["action"])
    with h5py.File(tmp_path / "bad.hdf5", "a") as file:
        del file["_meta/obs"]
        file["_meta/obs"] = trap
        file["_meta/obs"].attrs["__data_type__"] = "pickled_ndarray"
    with pytest.raises(InputError, match=r"bad.hdf5: 'obs' is stored as pickled_ndarray"):
        read(tmp_path / "bad.hdf5")
    assert not Path("sprung").exists()


def attribute(name: str, value: object) -> object:
    return lambda file: file.attrs.__setitem__(name, value)


def array(name: str, place: object, value: object) -> object:
    return lambda file: file[name].__setitem__(place, value)


@pytest.mark.parametrize(
    ("kind", "spoil", "words"),
    [
        ("continuous", attribute("maxsize", 10**12), "maxsize is 1,000,000,000,000 rows"),
        ("continuous", attribute("maxsize", -1), "maxsize is '-1'"),
        ("continuous", attribute("maxsize", 0.5), "maxsize is '0.5'"),
        ("continuous", attribute("_size", 31), "says that it holds 31 rows"),
        ("continuous", attribute("stack_num", 10**9), "stack_num is 1000000000"),
        ("continuous", lambda file: file.attrs.__delitem__("maxsize"), "no attribute 'maxsize'"),
        ("continuous", lambda file: file.__delitem__("_meta/act"), "no column 'act'; it has done"),
        ("continuous", lambda file: file.__delitem__("_meta"), "no group '_meta'"),
        ("continuous", array("_meta/done", 3, 1), ""),
        ("frames", array("_lengths", 0, 99), "says that it holds 99 rows"),
        ("frames", array("_lengths", 1, 3), "the newest at row 20"),
        ("frames", array("_lengths", 1, -3), "the newest at row 20"),
        ("frames", array("last_index", 2, 11), "the newest at row 11"),
        ("frames", array("last_index", 2, 10**15), "the newest at row 1,000,000,000,000,000"),
        ("frames", array("_extend_offset", 1, 30), "does not rise from 0 to maxsize"),
        ("frames", array("_extend_offset", 0, -1), "does not rise from 0 to maxsize"),
        ("frames", attribute("stack_num", 0), "stack_num is 0"),
    ],
)
def test_files_that_lie_are_refused_in_one_line(kind: str, spoil: object, words: str, tmp_path: Path) -> None:
    with changed(tmp_path, kind) as file:
        spoil(file)  # type: ignore[operator]
    path = tmp_path / "bad.hdf5"
    if not words:
        read(path)
        return
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_files_are_not_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.hdf5", "w") as other, changed(tmp_path) as file:
        other["x"] = file["_meta/rew"][()]
        del file["_meta/rew"]
        file["_meta/rew"] = h5py.ExternalLink("other.hdf5", "x")
    with pytest.raises(InputError, match=r"is a link to another file"):
        read(tmp_path / "bad.hdf5")


def test_entries_are_named(tmp_path: Path) -> None:
    with changed(tmp_path, "continuous") as file:
        for name in ("obs", "obs_next"):
            values = file[f"_meta/{name}"][()]
            del file[f"_meta/{name}"]
            file[f"_meta/{name}/place"] = values
            file[f"_meta/{name}/inner/speed"] = values[:, 0]
    path = tmp_path / "bad.hdf5"
    whole = read(path, observation_keys=["inner/speed", "place"])
    plain = read(next(path for path in SAVED if path.stem.endswith("continuous")))
    assert torch.equal(whole["observation"][:, 1:], plain["observation"])
    assert torch.equal(whole["next", "observation"][:, 0], plain["next", "observation"][:, 0])
    with pytest.raises(InputError, match=r"observation_keys, of: place, inner/speed"):
        read(path)
    with pytest.raises(InputError, match=r"no entry 'speed' of 'obs'"):
        read(path, observation_keys=["speed"])


def test_a_replay_buffer_is_known_by_its_content(tmp_path: Path, small_file: Path) -> None:
    assert is_replay_buffer(SAVED[0])
    assert not is_replay_buffer(small_file)
    assert not is_replay_buffer(tmp_path / "missing.hdf5")
    (tmp_path / "text.hdf5").write_text("observations")
    assert not is_replay_buffer(tmp_path / "text.hdf5")


def test_what_the_file_says_of_its_environment(tmp_path: Path) -> None:
    with changed(tmp_path, "continuous") as file:
        file.attrs["env_id"] = "Pendulum-v1"
        file.attrs["ref_min_score"], file.attrs["ref_max_score"] = -10.0, 10.0
    origin = Tianshou(str(tmp_path / "bad.hdf5")).origin()
    assert (origin.environment, origin.reference) == ("Pendulum-v1", (-10.0, 10.0))
    given = Tianshou(str(tmp_path / "bad.hdf5"), reference=(0.0, 1.0)).origin()
    assert (given.reference, given.reference_from) == ((0.0, 1.0), "given as the source's reference")
    assert Tianshou(str(tmp_path / "bad.hdf5"), environment="Mine-v0").origin().environment == "Mine-v0"


def test_stacks_in_a_flat_file_that_knows_no_cuts() -> None:
    """What Tianshou makes of RL Unplugged: five columns, every stack written out, episodes cut without a mark."""
    generator = np.random.default_rng(0)
    shown = [generator.integers(0, 256, (length + 4, 8, 9)).astype(np.uint8) for length in (5, 3, 6)]
    stacks = [np.stack([frames[t : t + 4] for t in range(len(frames) - 3)]) for frames in shown]
    terminals = np.arange(14) == 13
    with h5py.File("flat.hdf5", "w") as file:
        for name, part in (("observations", slice(None, -1)), ("next_observations", slice(1, None))):
            file.create_dataset(name, data=np.concatenate([whole[part] for whole in stacks]), compression="gzip")
        file["actions"], file["rewards"] = np.arange(14) % 3, np.arange(14, dtype=np.float32)
        file["terminals"] = terminals.astype(np.float32)
    flat = Table(D4RL("flat.hdf5"), fill(D4RL("flat.hdf5"), torch.device("cpu")))
    rows = flat.rows(torch.arange(14))
    assert np.array_equal(rows["observation"], np.concatenate([whole[:-1] for whole in stacks]))
    assert np.array_equal(rows["next", "observation"], np.concatenate([whole[1:] for whole in stacks]))
    assert rows["action"].dtype is torch.int64
    assert flat.transitions["next", "truncated"].nonzero().squeeze(1).tolist() == [4, 7]
    assert flat.transitions["next", "terminated"].nonzero().squeeze(1).tolist() == [13]
    assert len(flat.frames.data) == 14 + 3 * 4


def test_the_wrong_source_says_which_is_right() -> None:
    with pytest.raises(InputError, match="a replay buffer of Tianshou; read it with the source Tianshou"):
        len(D4RL(str(SAVED[0])))


def test_frames_with_channels(tmp_path: Path) -> None:
    with changed(tmp_path, "frames") as file:
        frames = file["_meta/obs"][()]
        del file["_meta/obs"]
        file["_meta/obs"] = np.stack([frames, frames // 2, frames // 3], 1)
    plain = next(path for path in SAVED if path.stem.endswith("frames"))
    colours = Tianshou(str(tmp_path / "bad.hdf5")).episodes()
    for grey, three in zip(Tianshou(str(plain)).episodes(), colours, strict=True):
        assert torch.equal(three["observation"][:, ::3], grey["observation"])
        assert torch.equal(three["observation"][:, 1::3], grey["observation"] // 2)


def test_episodes_of_one_step(tmp_path: Path) -> None:
    with changed(tmp_path, "continuous") as file:
        del file["_meta/obs_next"]
        file["_meta/done"][:] = True
        if "terminated" in file["_meta"]:
            file["_meta/truncated"][:] = np.arange(30) % 2 == 0
            file["_meta/terminated"][:] = np.arange(30) % 2
        else:
            file["_meta/info/TimeLimit.truncated"][:] = np.arange(30) % 2 == 0
    rows = read(tmp_path / "bad.hdf5")
    assert len(rows) == 11  # of 23; nobody knows what came after the others
    assert rows["next", "terminated"].all()
    assert not rows["next", "truncated"].any()
