"""Discrete actions from files to networks and back into environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from helpers import SHARED, Arrays, columns, transitions, write_hdf5
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from oper_lightning import D4RL, InputError, Npz, OfflineDataModule
from oper_lightning.algorithms.bc import BC
from oper_lightning.algorithms.discrete_bc import DiscreteBC
from oper_lightning.data import matching
from oper_lightning.data.sources.rl_unplugged import RLUnplugged
from oper_lightning.data.sources.source import Origin
from oper_lightning.data.storage import fill
from oper_lightning.data.transitions import squeezed
from oper_lightning.envs.rollouts import Rollouts, World
from oper_lightning.priorities.returns import AdvantageWeighting
from oper_lightning.spec import MOST_ACTIONS, DataSpec

FIRST, COUNT = -1, 3
LENGTHS = [25] * 8


class Echo(gymnasium.Env[np.ndarray, np.int64]):
    """Shows a number and pays 1 for the action of that number; the first action is -1."""

    observation_space = gymnasium.spaces.Box(-2, 2, (1,))
    action_space = gymnasium.spaces.Discrete(COUNT, start=FIRST)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._show(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        right = int(action) == self.shown
        return self._show(), float(right), False, False, {}

    def _show(self) -> np.ndarray:
        self.shown = int(self.np_random.integers(FIRST, FIRST + COUNT))
        return np.array([self.shown], dtype=np.float32)


class Several(Echo):
    action_space: ClassVar[Any] = gymnasium.spaces.MultiDiscrete([3, 3])


for name, cls in (("Echo-v0", Echo), ("Several-v0", Several)):
    gymnasium.register(name, cls, max_episode_steps=20)


def echoes(lengths: list[int] = LENGTHS) -> dict[str, np.ndarray]:
    """Steps of a policy that does what is shown."""
    arrays = columns(lengths, 1, COUNT, discrete=True)
    shown = np.random.default_rng(0).integers(FIRST, FIRST + COUNT, sum(lengths))
    return {**arrays, "observations": shown[:, None].astype(np.float32), "actions": shown}


def module(arrays: dict[str, np.ndarray], origin: Origin | None = None, **options: Any) -> OfflineDataModule:
    return OfflineDataModule(Arrays(arrays, origin), batch_size=32, updates_per_epoch=50, **options)


def trained(data: OfflineDataModule, folder: Path) -> DiscreteBC:
    model = DiscreteBC(hidden_sizes=[32], learning_rate=1e-2)
    trainer = Trainer(
        max_steps=150, logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(model, data)
    return model


def test_actions_that_do_not_begin_at_0_are_played_as_recorded(tmp_path: Path) -> None:
    data = module(echoes(), Origin(environment="Echo-v0"), rollouts=Rollouts(episodes=3))
    model = trained(data, tmp_path)
    spec = data.spec
    assert (spec.discrete, spec.actions, int(spec.action_low), int(spec.action_high)) == (True, 3, -1, 1)
    world = World("Echo-v0", {}, parallel=2)
    returns, _ = world.rollouts(model.act, [1, 2, 3])
    assert returns.tolist() == [20, 20, 20]
    world.close()


@pytest.mark.parametrize("location", ["memory", "memmap"])
@pytest.mark.parametrize("stage", ["fit", "validate", "predict"])
def test_the_wrong_kind_is_refused_after_the_first_episode(location: Any, stage: str, tmp_path: Path) -> None:
    """Not after a file of gigabytes was read."""
    read = []

    class Slow(Arrays):
        def episodes(self) -> Any:
            for episode in super().episodes():
                read.append(len(episode))
                yield episode

    source = Slow(echoes(), Origin(environment="Echo-v0"))
    data = OfflineDataModule(source, batch_size=32, updates_per_epoch=50, location=location)
    trainer = Trainer(
        max_steps=50, logger=False, enable_progress_bar=False, default_root_dir=tmp_path, accelerator="cpu"
    )
    with pytest.raises(InputError, match=r"Slow: discrete actions .*, which BC is not for; take one of .*DiscreteBC"):
        getattr(trainer, stage)(BC(), datamodule=data)
    assert read == [LENGTHS[0]]
    if location == "memmap":
        assert not [*tmp_path.rglob("*.memmap")]


def test_continuous_actions_are_refused_by_an_algorithm_for_discrete_ones(tmp_path: Path) -> None:
    data = OfflineDataModule(Arrays(columns(LENGTHS)), batch_size=32, updates_per_epoch=50, rollouts=None)
    trainer = Trainer(max_steps=50, logger=False, default_root_dir=tmp_path, accelerator="cpu")
    with pytest.raises(
        InputError,
        match=r"continuous actions .*integer type.*, which DiscreteBC is not for; take one of BC, BCQ, BREMEN, CQL",
    ) as caught:
        trainer.fit(DiscreteBC(), data)
    assert "OperA" not in str(caught.value)


# What the environment takes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (Origin(environment="Pendulum-v1"), "discrete actions, but environment Pendulum-v1 has continuous ones"),
        (Origin(environment="Several-v0"), "only Box and Discrete work"),
        (
            Origin(environment="Echo-v0", action_low=np.asarray(-1), action_high=np.asarray(2)),
            "discrete actions -1 to 2, but environment Echo-v0 takes -1 to 1",
        ),
        (Origin(environment="CartPole-v1"), r"but environment CartPole-v1 has \(4,\)"),
    ],
    ids=["kind", "other spaces", "more", "shapes"],
)
def test_what_an_environment_does_not_take_is_refused(origin: Origin, expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        trained(module(echoes(), origin), tmp_path)
    assert "data.rollouts" in str(caught.value)


def test_floats_are_not_taken_for_numbers_of_actions(tmp_path: Path) -> None:
    arrays = {**echoes(), "actions": echoes()["actions"].astype(np.float32)[:, None]}
    origin = Origin(environment="Echo-v0")
    trainer = Trainer(max_steps=50, logger=False, default_root_dir=tmp_path, accelerator="cpu")
    with pytest.raises(InputError, match="save them as whole numbers of an integer type"):
        trainer.fit(BC(), module(arrays, origin))
    file = write_hdf5(tmp_path / "flat.hdf5", {**arrays, "actions": arrays["actions"].reshape(-1)})
    with pytest.raises(
        InputError, match=r"save amounts as actions\[:, None\], and with an integer type for discrete ones"
    ):
        len(D4RL(str(file)))


# How many there are --------------------------------------------------------------------------------------------------


def bounds(actions: list[int], origin: Origin, world: World | None = None, ask: bool = False) -> tuple[int, int, bool]:
    low, high, known = matching.action_bounds(Arrays({}), torch.tensor(actions), world, origin, ask)
    assert low.dtype is high.dtype is torch.int64
    return int(low), int(high), known


def test_one_hot_actions_are_told(caplog: pytest.LogCaptureFixture) -> None:
    arrays = echoes()
    one_hot = {**arrays, "actions": np.eye(3, dtype=np.int64)[arrays["actions"] - FIRST]}
    module(one_hot, rollouts=None).setup()
    assert "save actions.argmax(1), whole numbers of an integer type" in caplog.text
    caplog.clear()
    one_hot["actions"][-1] = [1, 1, 0]  # several switches at once: no number of one action
    module(one_hot, rollouts=None).setup()
    assert "argmax" not in caplog.text


def test_actions_without_a_dimension_are_refused_with_a_remedy() -> None:
    class Plain(Arrays):
        def episodes(self) -> Any:
            for episode in super().episodes():
                yield episode.set("action", episode["action"].squeeze(1))

    data = OfflineDataModule(Plain(columns(LENGTHS, 1, 1)), batch_size=32, rollouts=None)
    data.setup()
    with pytest.raises(InputError, match=r"of shape \(\); this algorithm needs vectors: save actions as \[rows, 1\]"):
        _ = data.spec.action_size


def test_a_source_is_asked_for_what_it_takes(caplog: pytest.LogCaptureFixture) -> None:
    assert bounds([0, 5], RLUnplugged(path="run_1-00000-of-00050").origin()) == (0, 5, False)
    assert "give the source's game" in caplog.text
    assert "action_low" not in caplog.text


def test_the_source_then_the_environment_then_the_data_know(caplog: pytest.LogCaptureFixture) -> None:
    named = {"action_low": np.asarray(-1.0), "action_high": np.asarray(0.0)}
    world = World("Echo-v0", {})
    assert bounds([0, -1], Origin(**named), world) == (-1, 0, True)
    assert bounds([0, 1], Origin(), world) == (-1, 1, True)
    assert bounds([0, 1], Origin(environment="Echo-v0"), ask=True) == (-1, 1, True)
    assert bounds([0, 7], Origin(environment="Pendulum-v1"), ask=True) == (0, 7, False)
    assert not [line for line in caplog.messages if "count as discrete" in line and "8" not in line]
    caplog.clear()
    assert bounds([3, 5], Origin()) == (0, 5, False)
    assert "actions are whole numbers, one to a row, and count as discrete" in caplog.text
    assert "6 (0 to 5) are taken" in caplog.text
    assert bounds([-4, 2], Origin()) == (-4, 2, False)
    world.close()


@pytest.mark.parametrize(
    ("actions", "origin", "expected"),
    [
        ([0, MOST_ACTIONS], Origin(), "discrete actions from 0 to 10,000"),
        ([0, 10**12], Origin(), "from 0 to 1,000,000,000,000"),
        ([-(2**63), 2**63 - 1], Origin(), "from -9,223,372,036,854,775,808 to 9,223"),
        ([0], Origin(action_low=np.asarray(0), action_high=np.asarray(10**30)), "1 to 10,000 of them work"),
        ([0], Origin(action_low=np.asarray(0), action_high=np.asarray(np.inf)), "are whole numbers"),
        ([0], Origin(action_low=np.asarray(0), action_high=np.asarray(1.5)), "are whole numbers"),
        ([0], Origin(action_low=np.asarray(3), action_high=np.asarray(1)), "from 3 to 1"),
        ([0], Origin(action_low=np.zeros(1), action_high=np.ones(1)), r"action bounds of shape \[1\]"),
    ],
)
def test_numbers_that_no_network_is_made_for(actions: list[int], origin: Origin, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        bounds(actions, origin)


@settings(deadline=None)
@given(st.integers(-(2**62), 2**62), st.integers(0, MOST_ACTIONS - 1), st.lists(st.integers(-3, 12_000), min_size=1))
def test_an_action_outside_is_found_at_any_size(first: int, more: int, distances: list[int]) -> None:
    """Float32 has no place for numbers as large as these."""
    low, high = torch.tensor(first), torch.tensor(first + more)
    actions = torch.tensor([first + distance for distance in distances])
    assert matching.outside(actions, low, high).tolist() == [not 0 <= distance <= more for distance in distances]


def test_an_action_that_is_not_there_is_named_and_nothing_is_clipped(tmp_path: Path) -> None:
    origin = Origin(action_low=np.asarray(0), action_high=np.asarray(1))
    with pytest.raises(InputError, match=r"lie outside the action space \[0, 1\] \(first at row \d+: -1\)") as caught:
        module(echoes(), origin, rollouts=None).setup()
    assert "action_low and action_high" in str(caught.value)
    with pytest.raises(InputError, match=r"cannot be clipped; set data\.clip_actions to false"):
        module(echoes(), origin, rollouts=None, clip_actions=True).setup()


# Checkpoints ---------------------------------------------------------------------------------------------------------


def spec() -> DataSpec:
    data = module(echoes(), rollouts=None)
    data.setup()
    return data.spec


def test_a_spec_passes_through_a_checkpoint(tmp_path: Path) -> None:
    torch.save(spec().to_dict(), tmp_path / "spec")
    again = DataSpec.from_dict(torch.load(tmp_path / "spec", weights_only=True))
    assert again.discrete
    assert again.difference(spec()) is None
    for mine, theirs in zip(again.to_dict().values(), spec().to_dict().values(), strict=True):
        assert mine.equal(theirs) if isinstance(mine, torch.Tensor) else mine == theirs


def test_a_spec_from_before_there_were_discrete_actions_loads() -> None:
    data = OfflineDataModule(Arrays(columns(LENGTHS)), batch_size=32, rollouts=None)
    data.setup()
    plain = data.spec.to_dict()
    for name in ("discrete", "pixels", "reference_from"):
        del plain[name]
    old = DataSpec.from_dict(plain)
    assert (old.kind, old.pixels) == ("continuous", False)
    assert old.difference(data.spec) is None


@pytest.mark.parametrize(
    "change",
    [
        {"action_high": torch.tensor(10**12)},
        {"action_high": torch.tensor(2**63 - 1), "action_low": torch.tensor(-(2**63))},
        {"action_high": torch.tensor(-2)},
        {"action_high": torch.tensor(1.0)},
        {"action_high": torch.ones(1, dtype=torch.int64)},
        {"action_high": 3},
        {"action_shape": [1]},
        {"action_shape": [1], "action_low": torch.tensor([0]), "action_high": torch.tensor([1])},
        {"discrete": 1},
        {"discrete": False},
    ],
    ids=str,
)
def test_a_spec_with_odd_actions_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="its spec of the data has"):
        DataSpec.from_dict({**spec().to_dict(), **change})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"action_high": torch.tensor(4)}, "3 actions against 6"),
        (
            {"discrete": False, "action_low": torch.tensor(-1.0), "action_high": torch.tensor(1.0)},
            "discrete actions against continuous ones",
        ),
        ({"action_low": torch.tensor(0), "action_high": torch.tensor(2)}, None),  # the same number of them
    ],
)
def test_what_differs_is_said(change: dict[str, Any], expected: str | None) -> None:
    assert spec().difference(DataSpec.from_dict({**spec().to_dict(), **change})) == expected


# Formats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("wide", [False, True])
def test_flat_files_agree(dtype: Any, wide: bool, tmp_path: Path) -> None:
    """By HDF5 and by npz, as a column or without one, the same rows come."""
    arrays = columns(LENGTHS, 4, 5, discrete=True)
    stored = {**arrays, "actions": arrays["actions"].astype(dtype).reshape((-1, 1) if wide else (-1,))}
    file = write_hdf5(tmp_path / "a.hdf5", stored)
    np.savez(tmp_path / "a.npz", **stored)
    expected = transitions(arrays)
    for source in (D4RL(str(file)), Npz(str(tmp_path / "a.npz"))):
        table = squeezed(fill(source, torch.device("cpu"))[:])
        assert table["action"].dtype is torch.int64
        assert table["action"].equal(expected["action"])
        assert table["observation"].equal(expected["observation"])


def replay(name: str) -> Any:
    if not (SHARED / name).is_file():
        pytest.skip(f"{SHARED / name} is missing")
    return squeezed(fill(D4RL(str(SHARED / name)), torch.device("cpu"))[:])


def test_d3rlpys_replay_of_cartpole() -> None:
    """Every row is a step that CartPole would take, and ends are where CartPole ends."""
    table = replay("cartpole-replay.h5")
    ends = table["next", "done"]
    assert int(ends.sum()) == 1582
    assert int(table["next", "terminated"].sum()) == 1448
    assert table["action"].unique().tolist() == [0, 1]
    env = gymnasium.make("CartPole-v1").unwrapped
    for row in range(0, 99_000, 997):
        if table["next", "terminated"][row]:
            continue  # what it led to is not recorded
        env.reset(seed=0)
        env.state = table["observation"][row].double().numpy()
        following, reward, *_ = env.step(int(table["action"][row]))
        np.testing.assert_allclose(following, table["next", "observation"][row], atol=1e-5)
        assert reward == table["next", "reward"][row]


def test_d3rlpys_replay_of_pendulum_is_continuous() -> None:
    table = replay("pendulum-replay.h5")
    assert table["action"].dtype is torch.float32
    assert table["action"].shape[1:] == (1,)
    assert int(table["next", "done"].sum()) == 500


def test_advantage_weighting_asks_observations_only() -> None:
    """The return that is expected of a trajectory is a linear fit to where it began; actions do not enter."""
    arrays = columns(LENGTHS, 1, 3, discrete=True)
    starts = np.arange(len(LENGTHS)) * 25
    table = transitions(arrays)
    weights = AdvantageWeighting(temperature=0.5)(table)
    returns = np.add.reduceat(arrays["rewards"].astype(float), starts)
    begun = arrays["observations"][starts, 0].astype(float)
    slope, offset = np.polyfit(begun, returns, 1)
    advantage = returns - (slope * begun + offset)
    scaled = (advantage - advantage.min()) / (advantage.max() - advantage.min())
    expected = np.exp(scaled / 0.5)
    expected /= expected.mean()
    np.testing.assert_allclose(weights[starts], expected, rtol=1e-4)
