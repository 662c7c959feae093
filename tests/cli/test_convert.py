"""Datasets from one format into another: what is read back is what was there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from helpers import columns, oper, write_hdf5

from oper_lightning import D4RL, InputError, Minari, Source
from oper_lightning.data.sources.tianshou import Tianshou
from oper_lightning.data.storage import fill
from oper_lightning.data.table import Table
from oper_lightning.data.writers import d4rl
from oper_lightning.data.writers.minari import env_spec
from oper_lightning.data.writers.recording import Recording
from oper_lightning.report.inspect import open_source

LENGTHS = [9, 4, 12, 7, 1, 5]


def table(source: Source) -> Table:
    return Table(source, fill(source, torch.device("cpu")))


def recorded(name: str, discrete: bool = False) -> Path:
    known = {"env_id": "CartPole-v1" if discrete else "Reacher-v5", "ref_min_score": -9.0, "ref_max_score": 5.0}
    return write_hdf5(Path(name), columns(LENGTHS, 10, 2, discrete=discrete), **known)


def frames(name: str, stack: int = 4, zeros: bool = False, truncated: bool = True) -> Path:
    """A flat file of stacked frames, which begin with the first one repeated, or with zeros."""
    generator = np.random.default_rng(0)
    seen, after = [], []
    for length in LENGTHS:
        shown = generator.integers(0, 256, (length + 1, 36, 40)).astype(np.uint8)
        before = np.zeros_like(shown[:1]) if zeros else shown[:1]
        shown = np.concatenate([*[before] * (stack - 1), shown])
        whole = np.stack([shown[t : t + stack] for t in range(length + 1)])
        seen.append(whole[:-1])
        after.append(whole[1:])
    content = columns(LENGTHS, 3, 4, discrete=True, terminal=truncated)
    if not truncated:
        content["terminals"], content["timeouts"] = content["timeouts"], content["terminals"]
    return write_hdf5(
        Path(name), content | {"observations": np.concatenate(seen), "next_observations": np.concatenate(after)}
    )


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    found = re.search(r"fingerprint ([0-9a-f]{64})", capsys.readouterr().out)
    assert found
    return found[1]


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("data_format", ["arrow", "hdf5"])
def test_from_d4rl_to_minari_and_back(data_format: str, discrete: bool, capsys: pytest.CaptureFixture[str]) -> None:
    before = table(D4RL(str(recorded("log.hdf5", discrete=discrete))))
    assert oper("convert", "log.hdf5", "--to=minari", "--output=mine/log-v0", f"--data_format={data_format}") == 0
    assert shown(capsys) == before.recorded
    made = Minari("mine/log-v0")
    between = table(made)
    assert between.recorded == before.recorded
    assert torch.equal(between.transitions["next", "observation"], before.transitions["next", "observation"])
    assert made.origin().environment == ("CartPole-v1" if discrete else "Reacher-v5")
    assert made.origin().reference == (-9.0, 5.0)
    assert oper("convert", "mine/log-v0", "--to=d4rl", "--output=again.hdf5") == 0
    again = D4RL("again.hdf5")
    assert table(again).recorded == before.recorded
    assert torch.equal(table(again).transitions["next", "observation"], before.transitions["next", "observation"])
    assert again.origin().reference == (-9.0, 5.0)


@pytest.mark.parametrize("discrete", [False, True])
def test_minaris_own_loader_opens_what_was_written(discrete: bool) -> None:
    before = columns(LENGTHS, 10, 2, discrete=discrete)
    recorded("log.hdf5", discrete=discrete)
    assert oper("convert", "log.hdf5", "--to=minari", "--output=store/mine/log-v0") == 0
    dataset = minari.MinariDataset(Path("store/mine/log-v0/data").absolute())
    assert (dataset.total_episodes, dataset.total_steps) == (len(LENGTHS), sum(LENGTHS))
    assert dataset.spec.env_spec.id == ("CartPole-v1" if discrete else "Reacher-v5")
    assert np.array_equal(np.concatenate([e.actions for e in dataset.iterate_episodes()]), before["actions"])
    episode = next(iter(dataset.iterate_episodes()))
    assert np.array_equal(episode.observations[:-1], before["observations"][: LENGTHS[0]])
    assert np.array_equal(episode.terminations, before["terminals"][: LENGTHS[0]])
    if discrete:
        assert dataset.action_space == gymnasium.spaces.Discrete(2)
    else:  # Reacher knows its bounds
        assert np.array_equal(dataset.action_space.high, [1, 1])
    assert minari.get_normalized_score(dataset, np.array([5.0])) == 1


def test_what_the_name_of_an_environment_says_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert oper("collect", "--environment=bremen/HalfCheetah-v0", "--steps=9", "--parallel=1", "--output=log-v0") == 0
    assert Minari("log-v0").origin().environment_options == {"robot": "HalfCheetah", "max_episode_steps": 1000}
    assert oper("convert", "log-v0", "--to=d4rl", "--output=plain.hdf5") == 0
    assert "not kept" not in capsys.readouterr().out
    assert D4RL("plain.hdf5").origin().environment == "bremen/HalfCheetah-v0"


def test_the_environment_comes_back_with_its_options_and_wrappers(tmp_path: Path) -> None:
    options = {"reward_dist_weight": 0.5, "max_episode_steps": 7}
    options["wrappers"] = [{"name": "RescaleAction", "kwargs": {"min_action": -2.0, "max_action": 2.0}}]
    recorded("log.hdf5")
    assert oper("convert", "log.hdf5", "--to=minari", "--output=log-v0") == 0
    file = Path("log-v0/data/metadata.json")
    content = json.loads(file.read_text())
    content["env_spec"] = env_spec("Reacher-v5", options).to_json()
    file.write_text(json.dumps(content))
    first = Minari("log-v0").origin()
    assert first.environment_options == options
    assert oper("convert", "log-v0", "--to=minari", "--output=again-v0") == 0
    assert Minari("again-v0").origin().environment_options == options
    assert oper("convert", "log-v0", "--to=d4rl", "--output=plain.hdf5") == 0
    assert D4RL("plain.hdf5").origin().environment is None  # without its options it would be another one
    env = gymnasium.make(minari.MinariDataset(Path("again-v0/data").absolute()).env_spec)
    assert env.action_space.high[0] == 2
    assert env_spec("Nobody/Knows-v3", {}).id == "Nobody/Knows-v3"


@pytest.mark.parametrize("discrete", [False, True])
def test_from_minari_to_tianshou(discrete: bool, capsys: pytest.CaptureFixture[str]) -> None:
    before = table(D4RL(str(recorded("log.hdf5", discrete=discrete))))
    assert oper("convert", "log.hdf5", "--to=minari", "--output=log-v0") == 0
    capsys.readouterr()
    assert oper("convert", "log-v0", "--to=tianshou", "--output=replay.hdf5") == 0
    assert "not kept: the environment " not in (said := capsys.readouterr().out)  # its limit of steps is its own
    assert before.recorded in said
    made = open_source("replay.hdf5")
    assert isinstance(made, Tianshou)
    assert table(made).recorded == before.recorded


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("data_format", ["arrow", "hdf5"])
def test_frames_to_minari_and_back(zeros: bool, data_format: str) -> None:
    before = table(D4RL(str(frames("log.hdf5", zeros=zeros))))
    assert oper("convert", "log.hdf5", "--to=minari", "--output=log-v0", f"--data_format={data_format}") == 0
    metadata = json.loads(Path("log-v0/data/metadata.json").read_text())
    assert metadata.get("frame_stack") == (None if zeros else 4)  # zeros cannot come of a first frame that is repeated
    between = table(Minari("log-v0"))
    assert between.recorded == before.recorded
    first = next(iter(minari.MinariDataset(Path("log-v0/data").absolute()).iterate_episodes()))
    assert first.observations.shape == ((10, 4, 36, 40) if zeros else (10, 36, 40))
    assert oper("convert", "log-v0", "--to=d4rl", "--output=again.hdf5") == 0
    assert table(D4RL("again.hdf5")).recorded == before.recorded


def test_frames_to_tianshou_lose_what_it_has_no_place_for(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = table(D4RL(str(frames("log.hdf5"))))
    assert oper("convert", "log.hdf5", "--to=tianshou", "--output=replay.hdf5") == 0
    said = capsys.readouterr().out
    assert "not kept: the last steps of 3 truncated episodes" in said
    assert "3 of 38 transitions are not kept" in said
    assert any(message.startswith("replay.hdf5: 3 rows have no next observation") for message in caplog.messages)
    assert not any(f".{os.getpid()}" in message for message in caplog.messages)
    with h5py.File("replay.hdf5") as file:
        assert file["_meta/obs"].shape == (38, 36, 40)
    after = table(Tianshou("replay.hdf5"))
    ends = before.transitions["next", "truncated"]
    assert torch.equal(after.rows(torch.arange(35))["observation"], before.rows(torch.arange(38))["observation"][~ends])
    assert torch.equal(after.transitions["action"], before.transitions["action"][~ends])
    going_on = ~after.transitions["next", "terminated"]
    assert torch.equal(
        after.rows(torch.arange(35))["next", "observation"][going_on],
        before.rows(torch.arange(38))["next", "observation"][~ends][going_on],
    )


def test_a_share_of_the_episodes(capsys: pytest.CaptureFixture[str]) -> None:
    content = columns([3] * 200)
    content["rewards"] = np.repeat(np.arange(200), 3).astype(np.float32)
    write_hdf5(Path("log.hdf5"), content)
    taken = []
    for fraction, seed in ((0.1, 0), (0.01, 0), (0.1, 1), (0.1, 0)):
        name = f"part{len(taken)}.hdf5"
        words = [f"--fraction={fraction}", f"--seed={seed}", f"--output={name}"]
        assert oper("convert", "log.hdf5", "--to=d4rl", *words) == 0
        assert f"{round(200 * fraction)} of 200 episodes" in capsys.readouterr().out
        made = table(D4RL(name)).transitions
        assert torch.equal(made["next", "done"].nonzero().squeeze(1) % 3, torch.full((round(200 * fraction),), 2))
        taken.append(made["next", "reward"][::3].tolist())
    assert taken[0] == sorted(taken[0])
    assert taken[0] == taken[3]
    assert set(taken[1]) < set(taken[0])
    assert taken[2] != taken[0]


def test_nothing_is_left_of_what_could_not_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    content = columns(LENGTHS)
    content["next_observations"][4] += 1
    write_hdf5(Path("gap.hdf5"), content)
    recorded("log.hdf5")
    refused = {
        ("gap.hdf5", "--to=minari", "--output=gap-v0"): "in the episode from row 0 a step does not begin where",
        ("log.hdf5", "--to=minari", "--output=out"): "named like name-v0",
        ("log.hdf5", "--to=d4rl"): "output must be given",
        ("log.hdf5", "--to=d4rl", "--output=log.hdf5"): "log.hdf5: exists already",
        ("log.hdf5", "--to=d4rl", "--output=/proc/x.hdf5"): "/proc/x.hdf5: cannot write it",
        ("log.hdf5", "--to=d4rl", "--output=x.hdf5", "--fraction=0"): "fraction is 0",
        ("log.hdf5", "--to=d4rl", "--output=x.hdf5", "--fraction=nan"): "fraction",
        ("missing.hdf5", "--to=d4rl", "--output=x.hdf5"): "missing.hdf5",
        ("--to=d4rl", "--output=x.hdf5"): "0 datasets named",
        ("log.hdf5", "gap.hdf5", "--to=d4rl", "--output=x.hdf5"): "2 datasets named",
        ("log.hdf5", "--to=rlds", "--output=x"): "'rlds' is none of null, minari, tianshou, d4rl",
        ("log.hdf5", "--output=x"): "log.hdf5: no published weights (.npy); to turn a dataset into another format",
        ("log.hdf5", "gap.hdf5"): "give --to=minari",
        (): "name a dataset, and with --to the format",
        ("log.hdf5", "x.hdf5", "--to=d4rl"): "output must be given: the file to write, or the folder of a Minari "
        "dataset; --output=x.hdf5?",
        ("log.hdf5", "--to=d4rl", "--output="): "output must be given",
        ("log.hdf5", "--to=d4rl", "--output=folder"): "folder: a folder; name the file to write, such as folder/",
        ("log.hdf5", "--to=tianshou", "--output=new/"): "new/: a folder; name the file to write",
        ("log.hdf5", "--to=minari", "--output=old-v0"): "old-v0: exists already",
        ("log.hdf5", "--to=d4rl", "--output=gap.hdf5/x.hdf5"): "gap.hdf5/x.hdf5: cannot write it, as gap.hdf5 is no",
        ("log.hdf5", "--to=d4rl", "--output=x.hdf5", "--data_format=hdf5"): "only a Minari dataset has one",
        ("weights.npy", "--source=Bandit", "--fraction=0.5"): "fraction",
        ("folder", "--to=d4rl", "--output=x.hdf5"): "folder: no Minari dataset in this folder, nor at ",
    }
    for folder in ("folder", "old-v0"):
        Path(folder).mkdir()
    before = sorted(Path().iterdir())
    for words, expected in refused.items():
        assert oper("convert", *words) == 1
        errors = capsys.readouterr().err.strip().splitlines()
        assert expected in errors[-1], (words, errors)
        assert sum(line.startswith("oper: error: ") for line in errors) == 1
    assert sorted(Path().iterdir()) == before
    assert oper("convert", "gap.hdf5", "--to=d4rl", "--output=same.hdf5") == 0
    assert table(D4RL("same.hdf5")).recorded == table(D4RL("gap.hdf5")).recorded


def test_a_source_with_arguments() -> None:
    content = columns(LENGTHS)
    np.savez("log.npz", **{f"my_{name}": values for name, values in content.items()})
    names = "{" + ", ".join(f"{name}: my_{name}" for name in content) + "}"
    words = ["--source=Npz", "--source.path=log.npz", f"--source.names={names}"]
    assert oper("convert", *words, "--to=tianshou", "--output=replay.hdf5") == 0
    write_hdf5(Path("log.hdf5"), content)
    assert table(Tianshou("replay.hdf5")).recorded == table(D4RL("log.hdf5")).recorded


@pytest.mark.parametrize("images", [False, True])
def test_tianshou_reads_our_files(images: bool) -> None:
    pytest.importorskip("tianshou", reason="the extra 'tianshou' is not installed")
    from tianshou.data import ReplayBuffer

    (frames if images else recorded)("log.hdf5")
    assert oper("convert", "log.hdf5", "--to=tianshou", "--output=replay.hdf5") == 0
    before = table(D4RL("log.hdf5"))
    rows = before.rows(torch.arange(38))
    buffer = ReplayBuffer.load_hdf5("replay.hdf5")
    assert len(buffer) == sum(LENGTHS)
    got = buffer[np.arange(sum(LENGTHS))]
    assert np.array_equal(got.obs, rows["observation"].numpy())
    assert np.array_equal(got.act, rows["action"].numpy())
    done = before.transitions["next", "done"].numpy()
    assert np.array_equal(got.done, done)
    assert np.array_equal(got.obs_next[~done], rows["next", "observation"].numpy()[~done])
    starts = np.cumsum([0, *LENGTHS[:-1]])
    assert np.array_equal(buffer.prev(starts), starts)
    assert np.array_equal(buffer.next(starts + np.array(LENGTHS) - 1), starts + np.array(LENGTHS) - 1)
    batch, index = buffer.sample(64)
    assert np.array_equal(batch.obs, rows["observation"].numpy()[index])


@pytest.mark.parametrize("stack", [0, 10**9, "4", [4]])
def test_numbers_of_frames_that_cannot_be(stack: object) -> None:
    frames("log.hdf5")
    recorded("vectors.hdf5")
    for name in ("log", "vectors"):
        assert oper("convert", f"{name}.hdf5", "--to=minari", f"--output={name}-v0") == 0
        file = Path(f"{name}-v0/data/metadata.json")
        content = json.loads(file.read_text())
        file.write_text(json.dumps({**content, "frame_stack": stack if name == "log" else 4}))
        with pytest.raises(InputError) as caught:
            table(Minari(f"{name}-v0"))
        assert str(caught.value).startswith(f"{file}: frame_stack is ")


def test_the_environment_survives_minari_and_back(
    small_discrete_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert oper("convert", str(small_discrete_file), "--to=minari", "--output=there-v0") == 0
    assert oper("convert", "there-v0", "--to=d4rl", "--output=back.hdf5") == 0
    assert "the environment" not in capsys.readouterr().out  # Minari repeats the limit of steps that it has by itself
    assert D4RL("back.hdf5").origin().environment == "CartPole-v1"


def test_what_is_read_back_is_called_by_the_name_that_was_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded("log.hdf5")
    write = d4rl.write

    def broken(recording: Recording, path: Path) -> list[str]:
        losses = write(recording, path)
        with h5py.File(path, "a") as file:
            file["rewards"][3] = np.nan
        return losses

    monkeypatch.setattr(d4rl, "write", broken)
    assert oper("convert", "log.hdf5", "--to=d4rl", "--output=made.hdf5") == 1
    assert capsys.readouterr().err.startswith("oper: error: made.hdf5: 'rewards' is nan at row 3")
    assert [path.name for path in Path().iterdir()] == ["log.hdf5"]


def test_published_weights_are_not_for_images(capsys: pytest.CaptureFixture[str]) -> None:
    frames("log.hdf5")
    np.save("published.npy", np.ones(3))
    words = ["--source=D4RL", "--source.path=log.hdf5", "--source.qlearning_rows=true", "--output=w.safetensors"]
    assert oper("convert", "published.npy", *words) == 1
    assert "oper: error: log.hdf5: images; OPER-A's weights are for vectors" in capsys.readouterr().err
