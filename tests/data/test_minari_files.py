"""Minari datasets as they are found: entries of all kinds, wrappers, faults in metadata and in single episodes."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from helpers import oper
from minari.data_collector import EpisodeBuffer

from oper_lightning.data.sources.minari import Minari
from oper_lightning.data.storage import fill
from oper_lightning.envs.observations import join
from oper_lightning.envs.rollouts import World
from oper_lightning.errors import InputError

BOX = Box(-np.inf, np.inf, (3,))
MIXED = Dict(
    {
        "place": Box(-9, 9, (2,)),
        "mode": Discrete(3, start=5),
        "lamps": MultiBinary(2),
        "keys": MultiDiscrete([2, 3]),
        "word": Text(5),
    }
)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    return tmp_path / "store" / "test-v0" / "data"


def samples(space: Any, count: int) -> Any:
    """What Minari takes for ``count`` observations."""
    space.seed(count)
    if isinstance(space, Dict):
        return {key: samples(part, count) for key, part in space.spaces.items()}
    if isinstance(space, Tuple):
        return tuple(samples(part, count) for part in space.spaces)
    drawn = [space.sample() for _ in range(count)]
    return drawn if isinstance(space, Text) else np.array(drawn)


def make(space: Any = BOX, form: str = "hdf5", infos: Any = None, **options: Any) -> list[EpisodeBuffer]:
    """Writes the dataset test-v0: three episodes of 4, 6 and 5 steps, the first terminated."""
    episodes = []
    for number, steps in enumerate((4, 6, 5)):
        flags = np.arange(steps) == steps - 1
        episodes.append(
            EpisodeBuffer(
                observations=samples(space, steps + 1),
                actions=np.zeros((steps, 2), dtype=np.float32),
                rewards=np.arange(steps, dtype=np.float64),
                terminations=flags & (number == 0),
                truncations=flags & (number > 0),
                infos=infos(steps + 1) if infos else None,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            "test-v0",
            episodes,
            observation_space=space,
            action_space=Box(-2, 2, (2,)),
            data_format=form,
            **options,
        )
    return episodes


def edit(file: Path, **fields: Any) -> None:
    """Changes fields of a JSON file; those that become ``...`` are taken out."""
    found = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))


def read() -> Any:
    return torch.cat(list(Minari("test-v0").episodes()))


@pytest.mark.parametrize("form", ["hdf5", "arrow", "parquet"])
def test_entries_of_all_kinds_become_columns(form: str) -> None:
    episodes = make(MIXED, form)
    keys = ["mode", "place", "lamps", "keys"]
    first = next(Minari("test-v0", observation_keys=keys).episodes())
    observed = episodes[0].observations
    assert first["observation"].shape == (4, 3 + 2 + 2 + 5)
    np.testing.assert_array_equal(first["observation"][:, :3], np.eye(3)[observed["mode"][:-1] - 5])
    np.testing.assert_array_equal(first["observation"][:, 3:5], observed["place"][:-1])
    np.testing.assert_array_equal(first["observation"][:, 5:7], observed["lamps"][:-1])
    for row, (left, right) in zip(first["next", "observation"][:, 7:], observed["keys"][1:], strict=True):
        assert row.nonzero().squeeze(-1).tolist() == [left, 2 + right]
    # An environment joins them alike, one observation or several.
    one = {key: value[0] for key, value in observed.items()}
    np.testing.assert_array_equal(join(one, MIXED, keys, "test"), first["observation"][0])
    with pytest.raises(InputError, match=r"observation entry 'word': Text.*; only Box"):
        list(Minari("test-v0", observation_keys=["word"]).episodes())


@pytest.mark.parametrize("form", ["hdf5", "arrow"])
def test_entries_of_a_tuple_are_called_by_number(form: str) -> None:
    space = Tuple((BOX, Dict({"on": Discrete(2)})))
    episodes = make(space, form)
    with pytest.raises(InputError, match=r"Tuple observations; name .* of: 0, 1/on"):
        read()
    first = next(Minari("test-v0", observation_keys=["1/on", "0"]).episodes())
    np.testing.assert_array_equal(first["observation"][:, 2:], episodes[0].observations[0][:-1])
    np.testing.assert_array_equal(first["observation"][:, 1], episodes[0].observations[1]["on"][:-1])


def test_one_number_of_a_discrete_space_is_one_hot_too() -> None:
    episodes = make(Discrete(4))
    np.testing.assert_array_equal(
        next(Minari("test-v0").episodes())["observation"], np.eye(4)[episodes[0].observations[:-1]]
    )


def test_environments_join_as_datasets_do() -> None:
    class Two(gymnasium.Env[Any, Any]):
        observation_space = Tuple((Box(-1, 1, (2,)), Discrete(3)))
        action_space = Box(-1, 1, (1,))

        def reset(self, **_: Any) -> Any:
            return (np.ones(2, dtype=np.float32), 2), {}

        def step(self, _: Any) -> Any:
            return (np.ones(2, dtype=np.float32), 1), 1.0, True, False, {}

    gymnasium.register("oper/Two-v0", Two)
    world = World("oper/Two-v0", {}, ["1", "0"], parallel=2)
    assert world.observation_shape == (5,)
    seen = []

    def act(observation: torch.Tensor) -> torch.Tensor:
        seen.append(observation)
        return torch.zeros(len(observation), 1)

    world.rollouts(act, [1, 2])
    assert seen[0].tolist() == [[0, 0, 1, 1, 1]] * 2
    world.close()


def test_infos_are_not_read(store: Path) -> None:
    make(form="arrow", infos=lambda steps: {"time": list(range(steps)), "text": ["a"] * steps})
    assert len(read()) == 15
    shutil.rmtree(store.parent)
    make(form="hdf5", infos=lambda steps: {"time": np.arange(steps)})
    with h5py.File(store / "main_data.hdf5", "a") as file:
        file["episode_1/infos/gone"] = h5py.ExternalLink("nowhere.hdf5", "/")
    assert len(read()) == 15


def test_older_metadata_without_ids(store: Path) -> None:
    make()
    edit(store / "metadata.json", dataset_id=..., minari_version=..., total_steps=..., env_spec=...)
    assert len(read()) == 15
    assert Minari("test-v0").origin().dataset == "test-v0"


@pytest.mark.parametrize("form", ["hdf5", "arrow"])
def test_files_are_closed_once_they_are_read(store: Path, form: str) -> None:
    make(form=form)
    source = Minari("test-v0")
    fill(source, torch.device("cpu"))
    more = EpisodeBuffer(
        observations=np.zeros((2, 3), dtype=np.float32),
        actions=np.zeros((1, 2), dtype=np.float32),
        rewards=np.zeros(1),
        terminations=np.ones(1, dtype=bool),
        truncations=np.zeros(1, dtype=bool),
    )
    minari.load_dataset("test-v0").update_dataset_from_buffer([more])
    assert len(Minari("test-v0")) == 16


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "more steps": ({"total_steps": 10**12}, r"total_steps is 1,000,000,000,000, but the episodes have 15"),
    "fewer steps": ({"total_steps": 3}, "total_steps is 3, but"),
    "text for steps": ({"total_steps": "many"}, "total_steps is 'many'; a number of steps"),
    "more episodes": ({"total_episodes": 10**9}, "episode 3: no 'rewards'|total_episodes is 1,000,000,000"),
    "fewer episodes": ({"total_episodes": 2}, "total_episodes is 2, but the data hold 3"),
    "a list of episodes": ({"total_episodes": [3]}, "total_episodes is"),
    "no format": ({"data_format": None}, "no field 'data_format'"),
    "another format": ({"data_format": ["hdf5"]}, "data_format is"),
    "no space": ({"action_space": "null"}, "field 'action_space'"),
    "a number for a space": ({"observation_space": 3}, "field 'observation_space'"),
    "half a space": ({"observation_space": '{"type": "Box", "shape": [3]}'}, "field 'observation_space'"),
    "a space without end": (
        {"observation_space": '{"type": "Box", "dtype": "float32", "shape": [1000000000000], "low": 0, "high": 1}'},
        "field 'observation_space'",
    ),
    "another kind of actions": (
        {"action_space": '{"type": "MultiDiscrete", "dtype": "int64", "nvec": [3, 3], "start": [0, 0]}'},
        "only Box and Discrete",
    ),
}


@pytest.mark.parametrize("case", FIELDS)
def test_metadata_that_are_wrong_name_file_and_field(case: str, store: Path) -> None:
    fields, message = FIELDS[case]
    make()
    edit(store / "metadata.json", **fields)
    with pytest.raises(InputError, match=message) as caught:
        fill(Minari("test-v0"), torch.device("cpu"))
    assert str(store) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["null", "[]", "3", "{", '"a"', "\xff", "[" * 100_000])
def test_metadata_that_are_none(text: str, store: Path) -> None:
    make()
    (store / "metadata.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"metadata\.json: ") as caught:
        fill(Minari("test-v0"), torch.device("cpu"))
    assert "\n" not in str(caught.value)


def dangle(file: h5py.File) -> None:
    del file["episode_1"]
    file["episode_1"] = h5py.SoftLink("/nowhere")


def unlink(file: h5py.File) -> None:
    del file["episode_1"]


def leave(file: h5py.File) -> None:
    del file["episode_1/rewards"]
    file["episode_1/rewards"] = h5py.ExternalLink("/etc/passwd", "/rewards")


def change(name: str, values: Any) -> Callable[[h5py.File], None]:
    def changed(file: h5py.File) -> None:
        del file[f"episode_1/{name}"]
        file[f"episode_1/{name}"] = values

    return changed


FAULTS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "dangling": (dangle, "nowhere"),
    "unlinked": (unlink, "episode 1: no 'rewards'"),
    "elsewhere": (leave, "is a link to another file"),
    "wide": (change("observations", np.zeros((7, 4))), r"episode 1: observations have shape \(7, 4\), but the space"),
    "wide actions": (change("actions", np.zeros((6, 1))), r"episode 1: actions have shape \(6, 1\)"),
    "short": (change("observations", np.zeros((6, 3))), "episode 1: 6 observations for 6 rewards"),
    "flag": (change("terminations", np.arange(6)), "'terminations' is 2 at step 2; a flag is 0 or 1"),
    "complex": (change("rewards", np.zeros(6, dtype=complex)), "'rewards' holds complex128"),
    "text": (change("rewards", [b"one"] * 6), "'rewards' holds"),
    "nan": (change("rewards", np.full(6, np.nan)), "'rewards' is not finite at step 0"),
    "none": (change("rewards", h5py.Empty("f4")), "rewards"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_one_bad_episode_is_named_or_left_out(case: str, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    fault, message = FAULTS[case]
    make()
    with h5py.File(store / "main_data.hdf5", "a") as file:
        fault(file)
    with pytest.raises(InputError, match=message) as caught:
        fill(Minari("test-v0"), torch.device("cpu"))
    assert "episode" in str(caught.value)
    assert "main_data.hdf5" in str(caught.value)
    storage = fill(Minari("test-v0", skip_broken=True), torch.device("cpu"))
    assert len(storage) == 9
    assert "1 of 3 episodes left out (1): " in caplog.text


def test_one_bad_episode_of_arrow(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(form="arrow")
    (part,) = (store / "1").glob("*.arrow")
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(InputError, match=r"data/1: episode 1: "):
        fill(Minari("test-v0"), torch.device("cpu"))
    assert len(fill(Minari("test-v0", skip_broken=True), torch.device("cpu"))) == 9
    assert "left out (1)" in caplog.text


@pytest.mark.parametrize("form", ["hdf5", "arrow"])
def test_an_episode_that_does_not_fit_memory(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(form=form)
    monkeypatch.setattr("oper_lightning.files.free_memory", lambda: 10)
    monkeypatch.setattr("oper_lightning.files.LITTLE", 0)
    with pytest.raises(InputError, match=r"data.* would take .* are free"):
        fill(Minari("test-v0"), torch.device("cpu"))


def spec(**fields: Any) -> str:
    return json.dumps({**json.loads(gymnasium.spec("Pendulum-v1").to_json()), **fields})


SPECS: dict[str, tuple[Any, str | None, dict[str, Any], str]] = {
    "plain": (spec(), "Pendulum-v1", {"max_episode_steps": 200}, ""),
    "window": (spec(kwargs={"render_mode": "human", "g": 9.0}), "Pendulum-v1", {"g": 9.0}, "render_mode='human'"),
    "no end": (spec(max_episode_steps=None), "Pendulum-v1", {}, ""),
    "late end": (spec(max_episode_steps=10**12), "Pendulum-v1", {}, "is no number of steps"),
    "negative end": (spec(max_episode_steps=-1), "Pendulum-v1", {}, "is no number of steps"),
    "end in words": (spec(kwargs={"max_episode_steps": "x"}), "Pendulum-v1", {}, "is no number of steps"),
    "a file": (spec(kwargs={"xml_file": "/etc/passwd"}), None, {}, "xml_file='/etc/passwd', which names a file"),
    "reserved": (spec(kwargs={"wrappers": [1]}), "Pendulum-v1", {}, "wrappers=[1]"),
    "a module": (spec(id="antigravity:A-v0"), None, {}, "not a plain Gymnasium id"),
    "no id": ('{"entry_point": "os:abort"}', None, {}, "without an id"),
    "no JSON": ("{", None, {}, "without an id"),
    "a number": (3, None, {}, "without an id"),
    "wrappers in words": (spec(additional_wrappers="RescaleAction"), None, {}, "the wrapper 'RescaleAction'"),
}


@pytest.mark.parametrize("case", SPECS)
def test_the_recorded_environment_is_checked(case: str, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    text, environment, options, words = SPECS[case]
    make()
    edit(store / "metadata.json", env_spec=text)
    origin = Minari("test-v0").origin()
    assert origin.environment == environment
    assert options.items() <= origin.environment_options.items()
    assert not set(origin.environment_options) - {*options, "max_episode_steps"}
    assert words in caplog.text
    assert bool(caplog.text) == bool(words)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (float("nan"), 1.0), ("a", "b"), ([1], 2), (3, None)])
def test_references_that_are_no_score(low: Any, high: Any, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    make()
    edit(store / "metadata.json", ref_min_score=low, ref_max_score=high)
    assert Minari("test-v0").origin().reference is None
    assert "make no score" in caplog.text


def record(environment: gymnasium.Env[Any, Any], steps: int = 25) -> None:
    """Writes the dataset test-v0: two episodes of random actions in an environment with its wrappers."""
    episodes = []
    for seed in range(2):
        observations, actions, rewards = [environment.reset(seed=seed)[0]], [], []
        for _ in range(steps):
            actions.append(environment.action_space.sample())
            observation, reward, *_ = environment.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
        cut = np.arange(steps) == steps - 1
        episodes.append(
            EpisodeBuffer(
                observations=np.array(observations),
                actions=np.array(actions),
                rewards=rewards,
                terminations=cut & False,
                truncations=cut,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers("test-v0", episodes, env=environment)


def test_gymnasiums_own_wrappers_are_applied_again() -> None:
    record(gymnasium.wrappers.RescaleAction(gymnasium.make("Pendulum-v1"), -0.5, 0.25))
    origin = Minari("test-v0").origin()
    assert (origin.action_low, origin.action_high) == (-0.5, 0.25)
    assert origin.environment == "Pendulum-v1"
    world = World(origin.environment, origin.environment_options, parallel=2)
    plain = World("Pendulum-v1", {})
    assert (world.action_space.low, world.action_space.high) == (-0.5, 0.25)
    highest, _ = world.rollouts(lambda observation: torch.full((len(observation), 1), 0.25), [1])
    expected, _ = plain.rollouts(lambda observation: torch.full((len(observation), 1), 2.0), [1])
    assert highest.item() == pytest.approx(expected.item())
    words = ["fit", "--model=BC", "--data.source=Minari", "--data.source.id=test-v0", "--model.hidden_sizes=[8]"]
    sizes = ["--data.batch_size=8", "--data.updates_per_epoch=5", "--trainer.max_steps=5", "--output=run"]
    assert oper(*words, *sizes, "--data.rollouts.episodes=1") == 0
    # The checkpoint carries them, as plain data.
    assert oper("validate", "--ckpt_path=run/last.ckpt", "--data.rollouts.episodes=1") == 0


def test_other_wrappers_leave_the_data_without_an_environment(caplog: pytest.LogCaptureFixture) -> None:
    record(gymnasium.wrappers.NormalizeReward(gymnasium.make("Pendulum-v1")))
    origin = Minari("test-v0").origin()
    assert origin.environment is None
    assert (origin.action_low, origin.action_high) == (-2, 2)
    assert "recorded through the wrapper 'NormalizeReward'" in caplog.text
