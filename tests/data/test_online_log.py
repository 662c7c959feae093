"""The log of an online run as a source, against the steps as they were taken, one by one."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Arrays, columns, oper
from tensordict import TensorDict

from oper_lightning.data import log
from oper_lightning.data.datamodule import OfflineDataModule
from oper_lightning.data.mixture import Upsample
from oper_lightning.data.sources.joined import Joined
from oper_lightning.data.sources.online_log import OnlineLog
from oper_lightning.data.storage import fill, transitions_in
from oper_lightning.data.transitions import RETURN, fingerprint, is_discrete
from oper_lightning.errors import InputError
from oper_lightning.report.inspect import open_source

ABOUT = {"environment": "Pendulum-v1", "action_low": [-2.0], "action_high": [2.0], "observation_keys": [], "seed": 0}


def steps_of(copies: int, steps: int, discrete: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """Columns of copies that take steps; their episodes have uneven lengths, and end in either way."""
    generator = np.random.default_rng(seed)
    done = generator.random((copies, steps)) < 0.15
    terminated = done & (generator.random((copies, steps)) < 0.5)
    following = generator.normal(size=(copies, steps, 3)).astype(np.float32)
    observation = np.concatenate([generator.normal(size=(copies, 1, 3)), following[:, :-1]], 1).astype(np.float32)
    action = generator.uniform(-2, 2, (copies, steps, 1)).astype(np.float32)
    numbers = {
        "observation": observation,
        "action": generator.integers(0, 2, (copies, steps)) if discrete else action,
        "next_observation": following,
        "reward": np.arange(copies * steps, dtype=np.float32).reshape(steps, copies).T.copy(),  # tells steps apart
        "terminated": terminated,
        "truncated": done & ~terminated,
    }
    return {key: torch.from_numpy(value) for key, value in numbers.items()}


def written(run: Path, rows: dict[str, torch.Tensor], ends: list[int], **about: Any) -> Path:
    """A run's folder with the steps in files that end at the given ones."""
    for first, last in zip([0, *ends[:-1]], ends, strict=True):
        part = {key: value[:, first:last] for key, value in rows.items()}
        log.write(run / log.FOLDER, first, part, {**ABOUT, **about})
    return run


def read(source: Any) -> TensorDict:
    return transitions_in(fill(source, torch.device("cpu")))


def literally(rows: dict[str, torch.Tensor], budget: int) -> list[dict[str, Any]]:
    """The transitions of the first environment steps, all copies in turn; whole episodes in the order of their ends."""
    copies, steps = rows["reward"].shape
    taken: list[tuple[int, int]] = [(step, copy) for step in range(steps) for copy in range(copies)][:budget]
    running: list[list[dict[str, Any]]] = [[] for _ in range(copies)]
    found: list[dict[str, Any]] = []
    for step, copy in taken:
        running[copy].append({key: value[copy, step] for key, value in rows.items()})
        if rows["terminated"][copy, step] or rows["truncated"][copy, step]:
            found += running[copy]
            running[copy] = []
    for rest in running:
        if rest:
            rest[-1] = {**rest[-1], "truncated": torch.tensor(True)}
            found += rest
    return found


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("budget", [1, 2, 7, 20, 59, None])
def test_a_prefix_is_the_first_steps(tmp_path: Path, copies: int, discrete: bool, budget: int | None) -> None:
    rows = steps_of(copies, 60, discrete)
    run = written(tmp_path / "run", rows, [7, 8, 40, 60])
    source = OnlineLog(str(run), budget)
    table, expected = read(source), literally(rows, budget or copies * 60)
    assert len(source) == len(table) == len(expected) == (budget or copies * 60)
    assert is_discrete(table["action"]) is discrete
    place = {"next_observation": ("next", "observation"), "reward": ("next", "reward")}
    for key in log.COLUMNS:
        ours = table[place.get(key, ("next", key) if key in log.FLAGS else key)]
        assert torch.equal(ours, torch.stack([row[key] for row in expected])), key
    assert {*table["next", "reward"].tolist()} == {*map(float, range(budget or copies * 60))}
    assert len(list(source.episodes())) == int(table["next", "done"].sum())
    assert fingerprint(read(OnlineLog(str(run / log.FOLDER), budget))) == fingerprint(table)


def test_how_steps_lie_in_files_does_not_matter(tmp_path: Path) -> None:
    rows = steps_of(2, 60)
    one, many = (written(tmp_path / str(len(ends)), rows, ends) for ends in ([60], [*range(1, 61)]))
    assert fingerprint(read(OnlineLog(str(one), 77))) == fingerprint(read(OnlineLog(str(many), 77)))


def test_what_is_known_of_it(tmp_path: Path) -> None:
    options = {"g": 9.0, "max_episode_steps": 30, "wrappers": [{"name": "ClipReward", "kwargs": {"min_reward": -1}}]}
    run = written(tmp_path / "explore", steps_of(1, 9), [9], environment_options=options, observation_keys=["a", "b"])
    origin = OnlineLog(str(run)).origin()
    assert (origin.dataset, origin.environment, origin.environment_options) == ("explore", "Pendulum-v1", options)
    assert origin.observation_keys == ("a", "b")
    assert (origin.action_low, origin.action_high) == (np.float32(-2), np.float32(2))
    assert OnlineLog(str(run), 4).origin().dataset == "explore, 4 steps"
    discrete = written(tmp_path / "discrete", steps_of(1, 9, True), [9], action_low=0, action_high=1)
    origin = OnlineLog(str(discrete)).origin()
    assert (origin.action_low, origin.action_high) == (0, 1)
    assert len(pickle.loads(pickle.dumps(OnlineLog(str(run), 4)))) == 4


def test_a_file_chooses_no_import(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "trap.py").write_text("open('sprung', 'w').close()\n")
    run = written(tmp_path / "run", steps_of(1, 9), [9], environment="trap:Env-v0")
    assert OnlineLog(str(run)).origin().environment is None
    assert "gathered in trap:Env-v0, whose module would be imported; if you trust it" in caplog.text
    assert OnlineLog(str(run), environment="trap:Env-v0").origin().environment == "trap:Env-v0"
    assert not Path("sprung").exists()


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    rows = steps_of(2, 60)
    run = written(tmp_path / "run", rows, [20, 40])
    source = OnlineLog(str(run))
    assert len(source) == 80
    log.write(run / log.FOLDER, 40, {key: value[:, 40:] for key, value in rows.items()}, ABOUT)
    (run / log.FOLDER / "000000060-000000070.safetensors.part").write_bytes(b"half")
    assert len(source) == len(read(source)) == 80  # what lay there at the first look
    assert len(OnlineLog(str(run))) == 120
    log.forget(run / log.FOLDER, 20)
    with pytest.raises(InputError, match=r"000000020-000000040\.safetensors: gone since the folder was read"):
        read(source)
    assert len(OnlineLog(str(run))) == 40


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing: no online run has gathered anything there"):
        len(OnlineLog("nothing"))
    with pytest.raises(InputError, match=r"run: steps 0; at least 1"):
        OnlineLog("run", 0)
    run = written(tmp_path / "run", steps_of(2, 20), [10, 20])
    with pytest.raises(InputError, match=r"run: steps 41, but the run has gathered 40"):
        len(OnlineLog(str(run), 41))
    folder = run / log.FOLDER
    (folder / "000000000-000000010.safetensors").rename(folder / "kept")
    with pytest.raises(InputError, match=r"000000010-000000020\.safetensors: steps 0 to 10 of the log are missing"):
        len(OnlineLog(str(run)))
    (folder / "kept").rename(folder / "000000000-000000010.safetensors")
    log.write(folder, 20, steps_of(3, 5), ABOUT)
    with pytest.raises(InputError, match=r"000000020-000000025\.safetensors: other copies, types or shapes"):
        len(OnlineLog(str(run)))
    assert len(OnlineLog(str(run), 40)) == 40  # which needs no file behind


def test_more_is_announced_than_there_is(tmp_path: Path) -> None:
    """The head of a file, and its name, are checked before memory is taken."""
    run = written(tmp_path / "run", steps_of(1, 20), [10, 20])
    file = run / log.FOLDER / "000000010-000000020.safetensors"
    file.rename(file.with_name("000000010-100000000000.safetensors"))
    with pytest.raises(InputError, match=r"000000010-100000000000\.safetensors: no file of an online run's log"):
        len(OnlineLog(str(run)))
    raw = file.with_name("000000010-100000000000.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    head = json.loads(raw[8 : 8 + size])
    for key in log.COLUMNS:
        head[key]["shape"][1] = 10**11 - 10
    text = json.dumps(head).encode()
    file.with_name("000000010-100000000000.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + raw[8 + size :]
    )
    with pytest.raises(InputError, match=r"000000010-100000000000\.safetensors: cannot read it as a file of an online"):
        len(OnlineLog(str(run)))


def joined(run: Path, budget: int | None, lengths: list[int], **options: Any) -> OfflineDataModule:
    source = Joined([Arrays(columns(lengths, 3, 1)), OnlineLog(str(run), budget)])
    data = OfflineDataModule(source, rollouts=None, seed=3, **options)
    data.setup()
    return data


@pytest.mark.parametrize(("rows", "mode", "batch"), [(8, "replace", 256), (32, "append", 288)])
def test_shares_of_what_was_good(tmp_path: Path, rows: int, mode: Any, batch: int) -> None:
    """The first budget steps count, and no reward behind them: the best reward comes last in the log."""
    run = written(tmp_path / "run", steps_of(2, 60), [25, 60])
    data = joined(run, 90, [200, 100], upsample=Upsample(rows, "best", mode=mode, among="gathered"))
    assert len(data.transitions) == 390
    block = data.draw(50).evaluation
    assert block.shape == (50, batch)
    good = block["next", "reward"] == 89.0  # of the last step of the prefix
    assert bool(good[:, -rows:].all())
    rest = good[:, :-rows].float().mean().item()
    assert abs(rest - 1 / 390) < 4 * (1 / 390 / (50 * (batch - rows))) ** 0.5
    assert block["next", "reward"].max() == 89.0
    by_value = joined(run, 90, [200, 100], upsample=Upsample(rows, "reward", 90.0, mode, "gathered")).draw(2)
    assert by_value.evaluation.shape == (2, 256)  # nothing in the prefix is that good: full batches


def test_joined_with_recorded_rows(tmp_path: Path) -> None:
    run = written(tmp_path / "run", steps_of(2, 20), [20])
    arrays = Arrays(columns([20, 30], 3, 1))
    source = Joined([arrays, OnlineLog(str(run), 25)])
    assert (len(source), source.lengths()) == (75, [50, 25])
    assert source.origin() is arrays.known
    table = read(source)
    assert torch.equal(table[50:]["next", "reward"], read(OnlineLog(str(run), 25))["next", "reward"])
    wide = written(tmp_path / "wide", steps_of(1, 9, True), [9])
    with pytest.raises(InputError, match=r"wide: actions are int64 \[\], but float32 \[1\] in Arrays: these cannot be"):
        read(Joined([arrays, OnlineLog(str(wide))]))
    with pytest.raises(InputError, match=r"run: observations are float32 \[3\], but float32 \[4\] in Arrays"):
        read(Joined([Arrays(columns([20], 4, 1)), OnlineLog(str(run))]))


class Parts(Arrays):
    """Rows that are not whole episodes, with what these returned."""

    def episodes(self) -> Any:
        for episode in super().episodes():
            episode[RETURN] = torch.full((len(episode), 1), 7.0)
            yield episode


def test_returns_of_whole_episodes_stay(tmp_path: Path) -> None:
    run = written(tmp_path / "run", steps_of(1, 20), [20])
    parts, mine = Parts(columns([20], 3, 1)), OnlineLog(str(run))
    table = read(Joined([parts, mine]))
    done = table["next", "done"][20:].nonzero().squeeze(1) + 1
    sums = [part.sum() for part in torch.arange(20.0).tensor_split(done[:-1])]
    expected = torch.cat(
        [part.expand(length) for part, length in zip(sums, done.diff(prepend=torch.zeros(1).long()), strict=True)]
    )
    assert torch.equal(table[RETURN][20:], expected)
    assert (table[RETURN][:20] == 7).all()
    with pytest.raises(InputError, match=r"Parts: it says what whole episodes returned, and .*run does not: name it"):
        read(Joined([mine, parts]))


RUN = ["--model=TD3BC", "--model.hidden_sizes=[8]", "--model.normalise_observations=false", "--trainer.max_steps=80"]
ONLINE = ["--data=OnlineDataModule", "--data.environment=Pendulum-v1", "--data.warmup=30", "--data.batch_size=16"]
ONLINE += ["--data.updates_per_epoch=40", "--data.rollouts=null"]


def test_from_a_run_to_other_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert oper("fit", *RUN, *ONLINE, "--data.parallel=2", "--output=run") == 0
    source = open_source("run")
    assert (type(source), len(source)) == (OnlineLog, 90)
    assert type(open_source("run/replay")) is OnlineLog
    recorded = fingerprint(read(source))
    assert oper("inspect", "run", "--output=page") == 0
    assert oper("convert", "run", "--to=minari", "--output=mine-v0") == 0
    assert recorded in capsys.readouterr().out
    offline = ["--data.source=OnlineLog", "--data.source.path=run", "--data.source.steps=60", "--data.batch_size=16"]
    rest = ["--data.updates_per_epoch=10", "--data.rollouts.episodes=1", "--data.rollouts.steps=3"]
    words = [*RUN[:-1], "--trainer.max_steps=20", *offline, *rest]
    assert oper("fit", *words, "--output=offline") == 0
    assert "read run: 60 transitions" in capsys.readouterr().err
    assert oper("validate", "--ckpt_path=offline/last.ckpt") == 0
    Path("joined.yaml").write_text(
        "data: {source: {class_path: Joined, init_args: {sources: [{class_path: OnlineLog, init_args: {path: run, "
        "steps: 60}}, {class_path: OnlineLog, init_args: {path: run}}]}}, offline_share: 0.25}"
    )
    assert (
        oper(
            "fit",
            *RUN[:-1],
            "--config=joined.yaml",
            "--data.batch_size=16",
            *rest,
            "--trainer.max_steps=20",
            "--output=both",
        )
        == 0
    )
    assert oper("inspect", "both", "--output=page") == 0
