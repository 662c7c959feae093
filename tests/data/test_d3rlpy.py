"""Files that d3rlpy 2 dumps."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers import columns, transitions

from oper_lightning import D4RL, D3rlpy, InputError
from oper_lightning.data.storage import fill
from oper_lightning.data.transitions import squeezed
from oper_lightning.report.inspect import open_source

LENGTHS = [5, 7, 1, 6]


def dump(path: Path, arrays: dict[str, np.ndarray], lengths: list[int] = LENGTHS) -> Path:
    """Writes episodes as d3rlpy 2.8 does: rows of a number each for rewards and discrete actions."""
    starts = np.cumsum([0, *lengths])
    with h5py.File(path, "w") as file:
        file["columns"] = ["observations", "actions", "rewards", "terminated"]
        file["num_episodes"] = len(lengths)
        for number, (start, stop) in enumerate(pairwise(starts)):
            file[f"observations_{number}"] = arrays["observations"][start:stop]
            file[f"actions_{number}"] = arrays["actions"][start:stop].reshape(stop - start, -1)
            file[f"rewards_{number}"] = arrays["rewards"][start:stop, None]
            file[f"terminated_{number}"] = bool(arrays["terminals"][stop - 1])
        file["version"] = "2.1"
    return path


@pytest.mark.parametrize("discrete", [True, False])
def test_episodes_come_as_recorded(discrete: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All rows but the last ones of episodes that were cut; columns terminates the first, third, … by default."""
    arrays = columns(LENGTHS, 3, 2, discrete=discrete)
    source = D3rlpy(str(dump(tmp_path / "a.h5", arrays)))
    table = squeezed(fill(source, torch.device("cpu"))[:])
    whole = transitions(arrays)
    cut = whole["next", "done"] & ~whole["next", "terminated"]
    kept = ~cut
    assert len(source) == len(table) == int(kept.sum())
    for key in ("observation", "action", ("next", "reward"), ("next", "terminated")):
        assert table[key].equal(whole[key][kept]), key
    assert table["next", "truncated"].equal(cut.roll(-1)[kept] & ~whole["next", "terminated"][kept])
    inside = ~table["next", "done"]
    assert table["next", "observation"][inside].equal(table["observation"].roll(-1, 0)[inside])
    last = table["next", "truncated"]
    assert table["next", "observation"][last].equal(whole["observation"][cut])
    assert f"the last rows of {int(cut.sum())} episodes" in caplog.text
    assert isinstance(open_source(str(tmp_path / "a.h5")), D3rlpy)
    with pytest.raises(InputError, match="read it with D3rlpy"):
        len(D4RL(str(tmp_path / "a.h5")))


def test_a_cut_episode_of_one_row_has_no_transition(tmp_path: Path) -> None:
    arrays = columns([4, 1], terminal=False)
    source = D3rlpy(str(dump(tmp_path / "a.h5", arrays, [4, 1])))
    assert len(fill(source, torch.device("cpu"))) == len(source) == 3


def _set(name: str, value: Any) -> Any:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_set("num_episodes", None), "no num_episodes"),
        (_set("num_episodes", 10**12), "no array 'observations_4'"),
        (_set("num_episodes", -3), "empty dataset"),
        (_set("num_episodes", np.nan), "a.h5: "),
        (_set("num_episodes", np.inf), "a.h5: "),
        (_set("num_episodes", 0), "empty dataset"),
        (_set("actions_1", None), "no array 'actions_1'"),
        (_set("actions_1", np.zeros((3, 1))), "episode 1 has observations, actions and rewards of shapes"),
        (_set("rewards_1", np.zeros((7, 2))), "one reward a row"),
        (_set("rewards_1", np.full(7, b"text")), "rows of numbers needed"),
        (_set("rewards_1", h5py.ExternalLink("elsewhere.h5", "x")), "a link to another file"),
        (_set("observations_1", np.full((7, 3), np.nan)), "observation.* is nan at row 5"),
        (_set("observations_1", np.zeros((7, 9))), "observation of shape"),
        (_set("actions_1", np.zeros((7, 1), dtype=np.int64)), "action"),
        (_set("terminated_1", 2), "'terminated_1' is 2.0; a flag"),
        (_set("terminated_1", None), "'terminated_1' is None"),
    ],
    ids=range(16),
)
def test_what_is_wrong_is_said_in_a_line(change: Any, expected: str, tmp_path: Path) -> None:
    path = dump(tmp_path / "a.h5", columns(LENGTHS))
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=expected) as caught:
        fill(D3rlpy(str(path)), torch.device("cpu"))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_parts_of_observations_are_named(tmp_path: Path) -> None:
    path = dump(tmp_path / "a.h5", columns(LENGTHS))
    with h5py.File(path, "r+") as file:
        file.move("observations_1", "observations_1_0")
    with pytest.raises(InputError, match="observations of several parts"):
        len(D3rlpy(str(path)))
