from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import columns, oper, write_hdf5
from hypothesis import given, settings
from hypothesis import strategies as st

from oper_lightning.data.sources.d4rl import D4RL
from oper_lightning.data.sources.flat import FlatEpisodes
from oper_lightning.data.sources.npz import Npz
from oper_lightning.data.storage import fill
from oper_lightning.data.transitions import missed_ends, squeezed
from oper_lightning.errors import InputError

LENGTHS = st.lists(st.integers(1, 7), min_size=2, max_size=8)


def read(arrays: dict[str, np.ndarray], **options: Any) -> Any:
    return torch.cat(list(FlatEpisodes(arrays, "test", **options).episodes(arrays)))


def without(arrays: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in arrays.items() if key not in names}


def qlearning_dataset(arrays: dict[str, np.ndarray], max_episode_steps: int | None) -> list[tuple[Any, ...]]:
    """D4RL's rule, row by row: what follows is the next row; timeout steps and the last row are left out."""
    rows = []
    step = 0
    for i in range(len(arrays["rewards"]) - 1):
        final = bool(arrays["timeouts"][i]) if "timeouts" in arrays else step + 1 == max_episode_steps
        if final:
            step = 0
            continue
        rows.append((arrays["observations"][i], arrays["actions"][i], arrays["rewards"][i], arrays["terminals"][i]))
        step = (0 if arrays["terminals"][i] else step) + 1  # the first row after a terminal counts as the second
    return rows


@settings(deadline=None)
@given(LENGTHS, st.booleans(), st.booleans(), st.integers(0, 99))
def test_qlearning_rows_are_exactly_d4rls(lengths: list[int], flagged: bool, with_next: bool, seed: int) -> None:
    arrays = columns(lengths, seed=seed)
    if not flagged:
        arrays = without(arrays, "timeouts")
    if not with_next:
        arrays = without(arrays, "next_observations")
    expected = qlearning_dataset(arrays, 5)
    if not expected:
        with pytest.raises(InputError, match="no transition left"):
            FlatEpisodes(arrays, "test", 5, qlearning_rows=True)
        return
    found = read(arrays, max_episode_steps=5, qlearning_rows=True)
    assert len(found) == len(expected)
    for row, (observation, action, reward, terminal) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(row["observation"], observation)
        np.testing.assert_array_equal(row["action"], action)
        assert row["next", "reward"].item() == reward
        assert row["next", "terminated"].item() == terminal


def test_next_observations_of_the_file_are_kept_to_the_last_step() -> None:
    arrays = columns([4, 5, 3])
    found = read(arrays)
    np.testing.assert_array_equal(found["next", "observation"], arrays["next_observations"])
    np.testing.assert_array_equal(found["next", "truncated"].squeeze(-1), arrays["timeouts"])
    np.testing.assert_array_equal(found["next", "terminated"].squeeze(-1), arrays["terminals"])


def test_without_next_observations_nothing_leaks_across_episodes() -> None:
    arrays = columns([4, 5, 3])  # terminal, timeout, terminal
    found = read(without(arrays, "next_observations"))
    # The timeout step has no next observation of its own; the step before it becomes the cut.
    kept = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11]
    np.testing.assert_array_equal(found["observation"], arrays["observations"][kept])
    assert found["next", "done"].squeeze(-1).nonzero().squeeze(-1).tolist() == [3, 7, 10]
    assert found["next", "truncated"].squeeze(-1).nonzero().squeeze(-1).tolist() == [7]
    np.testing.assert_array_equal(found["next", "observation"][7], arrays["observations"][8])
    for terminal in (3, 10):
        np.testing.assert_array_equal(found["next", "observation"][terminal], found["observation"][terminal])


def test_a_terminal_at_the_time_limit_is_a_terminal() -> None:
    arrays = columns([4, 4])
    arrays["timeouts"][3] = True
    found = read(arrays)
    assert found["next", "terminated"][3].item()
    assert not found["next", "truncated"][3].item()


def test_without_timeouts_episodes_end_where_the_next_observation_is_not_the_next_row() -> None:
    arrays = columns([4, 5, 3], terminal=False)
    found = read(without(arrays, "timeouts"))
    assert found["next", "truncated"].squeeze(-1).nonzero().squeeze(-1).tolist() == [3, 8, 11]
    assert not found["next", "terminated"].any()


def test_without_timeouts_and_next_observations_the_step_limit_cuts(caplog: pytest.LogCaptureFixture) -> None:
    arrays = without(columns([10], terminal=False), "timeouts", "next_observations")
    found = read(arrays, max_episode_steps=4)
    assert found["next", "done"].squeeze(-1).tolist() == [False, False, True] * 2 + [True]
    whole = read(arrays)
    assert whole["next", "done"].squeeze(-1).nonzero().squeeze(-1).tolist() == [8]
    assert "count as one episode" in caplog.text


def test_an_unfinished_last_episode_is_truncated_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    arrays = columns([4, 4])
    arrays["timeouts"][-1] = False
    found = read(arrays)
    assert found["next", "truncated"][-1].item()
    assert "the last episode is unfinished" in caplog.text


def test_columns_of_rewards_and_flags_may_have_a_second_dimension() -> None:
    arrays = columns([4, 4])
    for name in ("rewards", "terminals", "timeouts"):
        arrays[name] = arrays[name][:, None]
    found = read(arrays)
    assert found["next", "reward"].shape == (8, 1)
    np.testing.assert_array_equal(found["next", "reward"], arrays["rewards"])


def test_long_data_comes_in_parts_of_whole_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oper_lightning.data.sources.flat.ROWS_AT_A_TIME", 10)
    arrays = columns([4] * 9 + [25])
    for options in ({}, {"qlearning_rows": True}):
        parts = list(FlatEpisodes(arrays, "test", **options).episodes(arrays))
        assert len(parts) > 3
        assert all(part["next", "done"][-1] for part in parts)
        monkeypatch.setattr("oper_lightning.data.sources.flat.ROWS_AT_A_TIME", 10**6)
        whole = read(arrays, **options)
        monkeypatch.setattr("oper_lightning.data.sources.flat.ROWS_AT_A_TIME", 10)
        assert (torch.cat(parts) == whole).all()


@pytest.mark.parametrize("name", ["terminals", "timeouts"])
@pytest.mark.parametrize("value", [2, -1, 0.5])
def test_a_flag_is_0_or_1(name: str, value: float) -> None:
    arrays = columns([4, 4])
    arrays[name] = arrays[name].astype(float)
    arrays[name][5] = value
    with pytest.raises(InputError, match=rf"test: '{name}' is {value}.* at row 5; a flag is 0 or 1"):
        read(arrays)


def test_with_episode_terminals_a_terminal_counts_where_an_episode_ends(caplog: pytest.LogCaptureFixture) -> None:
    """d3rlpy's layout, in which terminals are also set one row too early."""
    arrays = columns([4, 5, 3])  # terminal, timeout, terminal
    arrays["episode_terminals"] = arrays["terminals"] | arrays["timeouts"]
    expected = read(without(arrays, "episode_terminals", "next_observations"))
    arrays["terminals"] = arrays["terminals"] | np.roll(arrays["terminals"], -1)
    found = read(without(arrays, "timeouts", "next_observations"))
    assert (found == expected).all()
    assert "2 terminals lie where no episode ends" in caplog.text


def test_with_masks_terminals_are_ends_of_trajectories() -> None:
    """OGBench's layout."""
    arrays = columns([4, 5, 3])
    expected = read(without(arrays, "next_observations"))
    arrays["masks"] = (~arrays["terminals"]).astype(np.float32)
    arrays["terminals"] = arrays["terminals"] | arrays["timeouts"]
    found = read(without(arrays, "timeouts", "next_observations"))
    assert (found == expected).all()
    # Masks of another meaning are none of our business.
    arrays["masks"] = np.ones((12, 2))
    assert read(without(arrays, "timeouts"))["next", "terminated"].sum() == 3


def test_flags_that_are_never_set(caplog: pytest.LogCaptureFixture) -> None:
    arrays = columns([4, 5, 3], terminal=False)
    arrays["timeouts"][:] = False
    found = read(arrays)
    assert found["next", "truncated"].squeeze(-1).nonzero().squeeze(-1).tolist() == [3, 8, 11]
    assert "'timeouts' is never set; 2 episodes are cut" in caplog.text
    whole = read(without(arrays, "next_observations"))
    assert whole["next", "done"].squeeze(-1).nonzero().squeeze(-1).tolist() == [10]
    assert "no flag marks the end of an episode: all 12 rows count as one" in caplog.text


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool])
@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_whole_numbers_one_to_a_row_are_discrete_actions(dtype: Any, shape: tuple[int, ...]) -> None:
    arrays = columns([4, 4])
    numbers = np.array([0, 1, 1, 0, 1, 0, 0, 1])
    table = read({**arrays, "actions": numbers.astype(dtype).reshape(shape)})
    assert table["action"].dtype is torch.int64
    assert table["action"].tolist() == numbers.tolist()
    several = read({**arrays, "actions": np.ones((8, 2), dtype=np.int32)})
    assert several["action"].dtype is torch.float32


def drift(lengths: list[int], with_next: bool) -> dict[str, np.ndarray]:
    """Episodes that begin anywhere and then change slowly."""
    arrays = columns(lengths, terminal=False)
    generator = np.random.default_rng(0)
    starts = np.repeat(generator.normal(size=(len(lengths), 3)), lengths, 0)
    step = np.concatenate([np.arange(length) for length in lengths])[:, None]
    arrays["observations"] = starts + 1e-4 * (step + 0.1 * generator.normal(size=(len(starts), 3)))
    if with_next:
        ends = np.cumsum(lengths) - 1
        following = np.roll(arrays["observations"], -1, 0)
        following[ends] = arrays["observations"][ends] + 1e-4
        return {**arrays, "next_observations": following}
    return without(arrays, "next_observations")


@pytest.mark.parametrize("with_next", [False, True])
def test_flags_that_miss_cuts_are_named_with_their_rows(with_next: bool, caplog: pytest.LogCaptureFixture) -> None:
    arrays = drift([50] * 40, with_next)
    file = write_hdf5(Path("log.hdf5"), arrays)
    table = squeezed(fill(D4RL(str(file)), torch.device("cpu"))[:])
    assert len(missed_ends(table)) == 0
    assert "unmarked" not in caplog.text
    arrays["timeouts"][[99, 1049, 1499]] = False
    file = write_hdf5(Path("log.hdf5"), arrays)
    table = squeezed(fill(D4RL(str(file)), torch.device("cpu"))[:])
    first = int(missed_ends(table)[0])
    assert first == (99 if with_next else 98)  # a cut row without a next observation was left out before it
    assert f"log.hdf5: ends of 3 episodes seem to be unmarked: after rows {first}, " in caplog.text
    assert ("left out, and not counted where rows are numbered below" in caplog.text) is not with_next


def test_real_recordings_have_no_unmarked_ends(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("hopper-replay.hdf5", "halfcheetah-replay.hdf5", "reacher-five-levels.hdf5", "pendulum-replay.h5"):
        fill(D4RL(str(shared / name)), torch.device("cpu"))
    for name in ("neorl2-DMSD-val.npz", "neorl2-SafetyHalfCheetah-val.npz"):
        fill(Npz(str(shared / name)), torch.device("cpu"))
    assert "unmarked" not in caplog.text


def test_a_file_of_d3rlpy(shared: Path) -> None:
    table = squeezed(fill(D4RL(str(shared / "pendulum-replay.h5")), torch.device("cpu"))[:])
    # Of each episode the last row goes: it has no next observation.
    assert (len(table), int(table["next", "done"].sum())) == (99_500 - 500, 500)
    assert not table["next", "terminated"].any()
    assert table["action"].abs().max() <= 2
    words = ["--model=BC", "--data.source=D4RL", f"--data.source.path={shared / 'pendulum-replay.h5'}"]
    sizes = ["--data.updates_per_epoch=20", "--trainer.max_steps=20", "--model.hidden_sizes=[8]"]
    assert oper("fit", *words, *sizes, "--output=pendulum") == 0


def test_attributes_of_the_file_are_heeded(tmp_path: Path) -> None:
    file = write_hdf5(
        tmp_path / "a.hdf5", columns([5, 5]), env_id="Hopper-v5", ref_min_score=-20.0, ref_max_score=3000.0
    )
    origin = D4RL(str(file)).origin()
    assert (origin.environment, origin.reference, origin.dataset) == ("Hopper-v5", (-20.0, 3000.0), "a")
    assert not origin.d4rl
    assert D4RL(str(file), environment="Hopper-v4").origin().environment == "Hopper-v4"


def test_a_file_cannot_name_a_module_to_import(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_hdf5(tmp_path / "a.hdf5", columns([5, 5]), env_id="antigravity:Evil-v0")
    assert D4RL(str(file)).origin().environment is None
    assert "not a plain Gymnasium id" in caplog.text


def test_the_shared_files_are_read_whole(shared: Path) -> None:
    source = D4RL(str(shared / "hopper-replay.hdf5"))
    table = torch.cat(list(source.episodes()))
    assert len(source) == len(table) == 200_963
    assert table["next", "terminated"].sum() == 2_201
    assert table["next", "truncated"].sum() == 88
    assert source.origin().reference == (-20.272305, 3234.3)


def test_a_truncated_file_is_one_line(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (shared / "reacher-five-levels.hdf5").read_bytes()
    broken = tmp_path / "broken.hdf5"
    broken.write_bytes(whole[: len(whole) // 2])
    words = ["--model=BC", "--data.source=D4RL", f"--data.source.path={broken}", "--trainer.max_steps=5000"]
    assert oper("fit", *words) == 1
    error = capsys.readouterr().err
    assert "broken.hdf5: truncated" in error
    assert error.count("\n") == 1
