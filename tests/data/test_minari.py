from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer

from oper_lightning.data.matching import action_bounds
from oper_lightning.data.sources.minari import Minari
from oper_lightning.data.sources.reacher import Reacher
from oper_lightning.envs.reacher import LEVELS
from oper_lightning.errors import InputError

BOX = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
GOAL = gymnasium.spaces.Dict(
    {"position": BOX, "goal": gymnasium.spaces.Dict({"x": gymnasium.spaces.Box(-1, 1, (1,)), "y": BOX})}
)
ACTIONS = gymnasium.spaces.Box(-2, 2, (2,))


def make(
    space: gymnasium.Space[Any], form: str = "hdf5", cut: bool = True, seed: int = 0, **options: Any
) -> list[EpisodeBuffer]:
    """Writes the dataset test-v0 with three episodes."""
    generator = np.random.default_rng(seed)
    episodes = []
    for number, steps in enumerate((4, 6, 1)):

        def draw(part: gymnasium.Space[Any], steps: int = steps) -> Any:
            if isinstance(part, gymnasium.spaces.Dict):
                return {key: draw(entry) for key, entry in part.spaces.items()}
            return generator.normal(size=(steps + 1, *part.shape)).astype(np.float32)

        flags = np.zeros(steps, dtype=bool)
        last = flags.copy()
        last[-1] = True
        episodes.append(
            EpisodeBuffer(
                observations=draw(space),
                actions=generator.uniform(-2, 2, (steps, 2)).astype(np.float32),
                rewards=generator.normal(size=steps),
                terminations=last if number == 0 else flags,
                truncations=last if number > 0 and cut else flags,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            "test-v0", episodes, observation_space=space, action_space=ACTIONS, data_format=form, **options
        )
    return episodes


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))


@pytest.mark.parametrize("form", ["hdf5", "arrow"])
def test_both_formats(form: str) -> None:
    episodes = make(BOX, form)
    source = Minari("test-v0")
    parts = list(source.episodes())
    assert len(source) == sum(map(len, parts)) == 11
    for part, episode in zip(parts, episodes, strict=True):
        np.testing.assert_array_equal(part["observation"], episode.observations[:-1])
        np.testing.assert_array_equal(part["next", "observation"], episode.observations[1:])
        np.testing.assert_allclose(part["next", "reward"].squeeze(-1), episode.rewards, rtol=1e-6)
    assert parts[0]["next", "terminated"][-1].item()
    assert parts[1]["next", "truncated"][-1].item()
    origin = source.origin()
    assert origin.environment is None
    np.testing.assert_array_equal(origin.action_high, [2, 2])


def test_a_folder_instead_of_an_id(tmp_path: Path) -> None:
    make(BOX)
    assert len(Minari(str(tmp_path / "store" / "test-v0"))) == 11


def test_dict_observations_are_joined_in_the_declared_order() -> None:
    episodes = make(GOAL)
    source = Minari("test-v0", observation_keys=["goal/y", "position"])
    first = next(source.episodes())
    expected = np.concatenate([episodes[0].observations["goal"]["y"], episodes[0].observations["position"]], axis=1)
    np.testing.assert_array_equal(first["observation"], expected[:-1])
    assert source.origin().observation_keys == ("goal/y", "position")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (None, "name the entries and their order in the source's observation_keys, of: goal/x, goal/y, position"),
        (["goal"], "is a Dict itself"),
        (["positon"], "no observation entry 'positon'; did you mean 'position'"),
    ],
)
def test_dict_observations_without_the_right_order(keys: list[str] | None, message: str) -> None:
    make(GOAL)
    with pytest.raises(InputError, match=message):
        list(Minari("test-v0", observation_keys=keys).episodes())


def test_an_unfinished_episode_is_truncated_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    make(BOX, cut=False)
    parts = list(Minari("test-v0").episodes())
    assert all(part["next", "done"][-1] for part in parts)
    assert "2 unfinished episodes count as truncated" in caplog.text


def test_environment_and_references_come_with_the_dataset() -> None:
    make(BOX, env=gymnasium.spec("Pendulum-v1"), ref_min_score=-1000.0, ref_max_score=-100.0)
    origin = Minari("test-v0").origin()
    assert (origin.environment, origin.reference) == ("Pendulum-v1", (-1000.0, -100.0))


def test_nothing_in_a_dataset_chooses_what_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minari would make an environment of whatever entry point the file names, if spaces are missing."""
    make(BOX, env=gymnasium.spec("Pendulum-v1"))
    file = tmp_path / "store" / "test-v0" / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    spec = json.loads(metadata["env_spec"])
    spec["entry_point"] = "os:abort"
    spec["id"] = "os:abort-v0"
    metadata["env_spec"] = json.dumps(spec)
    file.write_text(json.dumps(metadata))
    assert Minari("test-v0").origin().environment is None
    assert len(list(Minari("test-v0").episodes())) == 3
    del metadata["observation_space"]
    file.write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="no field 'observation_space'"):
        len(Minari("test-v0"))


def test_a_missing_dataset_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no Minari dataset at .*; give the id of a local one"):
        len(Minari("nowhere-v0"))
    monkeypatch.setenv("MINARI_REMOTE", "hf://nobody/nothing")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="cannot download it") as caught:
        Minari("nowhere-v0", download=True).prepare()
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    make(BOX)
    file = tmp_path / "store" / "test-v0" / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"main_data\.hdf5: truncated"):
        list(Minari("test-v0").episodes())


def test_the_embedded_dataset_is_real_minari(reacher_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(reacher_store))
    source = Reacher(episodes=40)
    source.prepare()
    dataset = minari.load_dataset(source.id)
    assert (dataset.total_episodes, dataset.total_steps, len(source)) == (40, 2000, 2000)
    assert dataset.env_spec.id == source.origin().environment == "Reacher-v5"
    low, high = source.origin().reference or (0, 0)
    assert low < -30 < -10 < high < 0
    table = torch.cat(list(source.episodes()))
    assert table["next", "truncated"].sum() == 40
    # The first level's share of the episodes is the best, the last level's the worst.
    returns = table["next", "reward"].reshape(40, 50).sum(1)
    best, worst = round(40 * LEVELS[0].share), round(40 * LEVELS[-1].share)
    assert returns[:best].mean() > -10 > -60 > returns[-worst:].mean()
    levels = [episode["options"]["level"] for episode in dataset.storage.get_episode_metadata(range(40))]
    assert levels == sorted(levels)
    made = (reacher_store / source.id).stat().st_mtime_ns
    Reacher(episodes=40).prepare()
    assert (reacher_store / source.id).stat().st_mtime_ns == made


@pytest.mark.parametrize("form", ["hdf5", "arrow"])
@pytest.mark.parametrize(
    ("space", "bounds"),
    [
        (gymnasium.spaces.Discrete(3, start=-1), (-1, 1)),
        (gymnasium.spaces.Discrete(5), (0, 4)),
        (gymnasium.spaces.Box(-1, 4, (1,), np.int64), None),  # amounts, though whole numbers
    ],
    ids=str,
)
def test_the_space_says_whether_actions_are_discrete(form: str, space: Any, bounds: tuple[int, int] | None) -> None:
    actions = np.array([0, 1, 0, 1]) - (space == gymnasium.spaces.Discrete(3, start=-1))
    last = np.arange(4) == 3
    episode = EpisodeBuffer(
        observations=np.zeros((5, 3), dtype=np.float32),
        actions=actions.reshape(4, *space.shape),
        rewards=np.arange(4.0),
        terminations=last,
        truncations=~last & last,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            "test-v0", [episode], observation_space=BOX, action_space=space, data_format=form
        )
    source = Minari("test-v0")
    recorded = torch.cat(list(source.episodes()))["action"]
    low, high, known = action_bounds(source, recorded, None, source.origin(), ask=False)
    assert recorded.flatten().tolist() == actions.tolist()
    assert known
    if bounds is None:
        assert (recorded.dtype, recorded.shape, low.tolist(), high.tolist()) == (torch.float32, (4, 1), [-1], [4])
    else:
        assert (recorded.dtype, recorded.shape, (int(low), int(high))) == (torch.int64, (4,), bounds)


def test_several_datasets_are_one_in_the_order_given(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        make(BOX, seed=seed)
        folder = tmp_path / "store" / "test-v0"
        metadata = folder / "data" / "metadata.json"
        about = json.loads(metadata.read_text())
        metadata.write_text(json.dumps(about | {"dataset_id": name}))
        folder.rename(tmp_path / name)
    single = [Minari(str(tmp_path / name)) for name in ("two", "one")]
    both = Minari([str(tmp_path / name) for name in ("two", "one")])
    assert len(both) == sum(map(len, single)) == 22
    expected = torch.cat([episode for source in single for episode in source.episodes()])
    found = torch.cat([*both.episodes()])
    assert (found == expected).all()
    assert both.origin().dataset == "two and 1 more"
    assert str(both) == f"{tmp_path}/two + {tmp_path}/one"


@pytest.mark.parametrize(
    ("observations", "actions", "says"),
    [
        (gymnasium.spaces.Box(-np.inf, np.inf, (4,)), ACTIONS, r"observations are numbers \[4\].*numbers \[3\]"),
        (BOX, gymnasium.spaces.Box(-3, 3, (2,)), r"actions are \[2\] from \[-3.0, -3.0\].*\[2\] from \[-2.0, -2.0\]"),
    ],
)
def test_a_dataset_that_differs_is_named(tmp_path: Path, observations: Any, actions: Any, says: str) -> None:
    from minari.serialization import serialize_space

    make(BOX)
    (tmp_path / "store" / "test-v0").rename(tmp_path / "one")
    make(BOX)
    metadata = tmp_path / "store" / "test-v0" / "data" / "metadata.json"
    about = json.loads(metadata.read_text())
    about |= {"observation_space": serialize_space(observations), "action_space": serialize_space(actions)}
    metadata.write_text(json.dumps(about))
    source = Minari([str(tmp_path / "one"), "test-v0"])
    for look in (source.origin, lambda: len(source), lambda: [*source.episodes()]):
        with pytest.raises(InputError, match=f"^test-v0: its {says}.* in .*one; leave it out"):
            look()


def test_no_dataset_at_all_is_an_error() -> None:
    with pytest.raises(InputError, match="no id"):
        Minari([])


def test_a_dataset_that_is_named_twice_is_an_error(tmp_path: Path) -> None:
    make(BOX)
    folder = f"{tmp_path / 'store' / 'test-v0'}/"
    source = Minari(["test-v0", folder])
    for look in (source.origin, lambda: len(source), lambda: [*source.episodes()]):
        with pytest.raises(InputError, match=f"^{folder}: named twice in the source's id"):
            look()
