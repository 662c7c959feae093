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
