"""Recordings are taken again in the environment that they name: true ones fit, others are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from helpers import columns, oper, transitions, write_hdf5
from tensordict import TensorDict

from oper_lightning.data.sources.d4rl import D4RL
from oper_lightning.data.sources.minari import Minari
from oper_lightning.data.sources.source import Origin
from oper_lightning.data.storage import fill
from oper_lightning.data.transitions import squeezed, transitions_from
from oper_lightning.report.recording import Verdict, judge


def recorded(environment: str, steps: int = 400, **options: Any) -> TensorDict:
    """Random steps."""
    env = gymnasium.make(environment, **options)
    env.action_space.seed(1)
    observation, _ = env.reset(seed=1)
    rows = []
    for _ in range(steps):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, reward, following, terminated, truncated))
        observation = env.reset()[0] if terminated or truncated else following
    env.close()
    parts = [np.array(part) for part in zip(*rows, strict=True)]
    parts[5][-1] = True
    return squeezed(transitions_from(*parts))


def linear(rows: int = 2000) -> dict[str, np.ndarray]:
    """Random linear dynamics in Hopper's shapes."""
    arrays = columns([rows // 10] * 10, 11, 3)
    generator = np.random.default_rng(0)
    mixing, push = generator.normal(size=(11, 11)) / 4, generator.normal(size=(3, 11)) / 2
    for row in range(rows):
        arrays["next_observations"][row] = arrays["observations"][row] @ mixing + arrays["actions"][row] @ push
        if row % (rows // 10) != rows // 10 - 1:
            arrays["observations"][row + 1] = arrays["next_observations"][row]
    return arrays


def against(data: TensorDict, environment: str, **options: Any) -> Verdict:
    return judge(data, Origin(environment=environment, environment_options=options))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ("Hopper-v5", {}),
        ("HalfCheetah-v5", {"exclude_current_positions_from_observation": False}),
        ("Walker2d-v5", {}),  # velocities are clipped in most rows
        ("Ant-v5", {}),
        ("Swimmer-v5", {}),
        ("Reacher-v4", {}),
        ("Reacher-v5", {}),
        ("InvertedDoublePendulum-v5", {}),
        ("Pendulum-v1", {}),
        ("MountainCarContinuous-v0", {}),
    ],
)
def test_true_recordings_fit_and_false_ones_do_not(environment: str, options: dict[str, Any]) -> None:
    data = recorded(environment, **options)
    verdict = against(data, environment, **options)
    assert verdict.fits
    assert not verdict.warnings
    assert "steps taken again" in verdict.line
    # The next observation of another row is as likely a value, but no consequence of this row's action.
    data["next", "observation"] = data["next", "observation"].roll(7, 0)
    verdict = against(data, environment, **options)
    assert verdict.fits is False
    assert f"differ from {environment}'s by" in verdict.warnings[0]


def test_rewards_made_anew_are_named() -> None:
    data = recorded("Hopper-v5")
    data["next", "reward"] = data["next", "reward"] * 0.01
    verdict = against(data, "Hopper-v5")
    assert verdict.fits is False
    assert "rewards differ from Hopper-v5's" in verdict.warnings[0]


def test_other_shapes_and_bounds_are_named() -> None:
    data = recorded("Reacher-v4")
    assert "observations of shape (11,), but Reacher-v5 has (10,)" in against(data, "Reacher-v5").warnings[0]
    pendulum = recorded("Pendulum-v1")
    origin = Origin(environment="Pendulum-v1", action_low=-np.ones(1), action_high=np.ones(1))
    verdict = judge(pendulum, origin)
    assert verdict.fits is False
    assert "the data declare -1 as lowest action, Pendulum-v1 has -2" in verdict.warnings[0]


def test_where_states_cannot_be_set_ranges_are_compared() -> None:
    data = recorded("Pusher-v5")
    verdict = against(data, "Pusher-v5")
    assert verdict.fits
    assert "random steps (states cannot be set)" in verdict.line
    degrees = data.clone()
    degrees["observation"] = degrees["observation"] * 1000 + 100
    assert "lie far from where Pusher-v5 goes" in against(degrees, "Pusher-v5").warnings[0]
    paid = data.clone()
    paid["next", "reward"] = paid["next", "reward"] * 1000
    assert "the first reward of an episode is" in against(paid, "Pusher-v5").warnings[0]


class Broken(gymnasium.Env):  # type: ignore[type-arg]
    """An environment that fails in its first step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(3, np.float32), {}

    def step(self, _: Any) -> Any:
        raise OSError("no such device")


def test_what_cannot_be_compared_is_no_fault_of_the_data() -> None:
    data = transitions(columns([5] * 4))
    assert judge(data, Origin()) == Verdict(None, "no environment is named", [])
    assert "not registered" in against(data, "Nowhere-v0").line
    gymnasium.register("Broken-v0", Broken)
    verdict = against(data, "Broken-v0")
    assert verdict.fits is None
    assert "Broken-v0 fails: no such device" in verdict.line


def test_one_row() -> None:
    data = recorded("Hopper-v5")[:1]
    data["next", "done"][:] = True
    assert against(data, "Hopper-v5").fits


def test_real_recordings_fit(shared: Path) -> None:
    for name in ("halfcheetah-replay.hdf5", "reacher-five-levels.hdf5", "hopper-replay.hdf5"):
        source = D4RL(str(shared / name))
        verdict = judge(squeezed(fill(source, torch.device("cpu"))[:]), source.origin())
        assert verdict.fits, (name, verdict)
        assert "steps taken again" in verdict.line


def test_human_demonstrations_fit(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium_robotics")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared / "minari"))
    source = Minari("D4RL/door/human-v2")
    verdict = judge(squeezed(fill(source, torch.device("cpu"))[:]), source.origin())
    assert verdict.fits, verdict


def test_a_file_under_the_name_of_another_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d4rl").mkdir()
    true = recorded("Hopper-v4", 600)
    arrays = {
        "observations": true["observation"].numpy(),
        "actions": true["action"].numpy(),
        "rewards": true["next", "reward"].numpy(),
        "terminals": true["next", "terminated"].numpy(),
        "timeouts": true["next", "truncated"].numpy(),
        "next_observations": true["next", "observation"].numpy(),
    }
    place = tmp_path / "d4rl" / "hopper_medium_replay-v2.hdf5"
    write_hdf5(place, arrays)
    assert oper("inspect", "hopper-medium-replay-v2", "--output=true") == 0
    out = capsys.readouterr().out
    assert "fits: of 100 steps" in out
    assert "D4RL score" in out
    write_hdf5(place, linear())
    assert oper("inspect", "hopper-medium-replay-v2", "--output=false") == 0
    out = capsys.readouterr().out
    assert "recorded next observations differ from Hopper-v4's by" in out
    assert "D4RL score" not in out
    assert "none: the references are Hopper-v4's, the data are not" in out
