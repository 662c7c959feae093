from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import columns

from oper_lightning.data.sources.columns import NEORL2
from oper_lightning.data.sources.npz import Npz
from oper_lightning.errors import InputError


def test_neorl2_names(tmp_path: Path) -> None:
    arrays = columns([5, 4])
    np.savez(tmp_path / "a.npz", **{NEORL2[key]: value for key, value in arrays.items()})
    source = Npz(str(tmp_path / "a.npz"), environment="Reacher-v5", reference=(0.0, 1.0))
    table = torch.cat(list(source.episodes()))
    np.testing.assert_array_equal(table["next", "observation"], arrays["next_observations"])
    np.testing.assert_array_equal(table["next", "truncated"].squeeze(-1), arrays["timeouts"])
    assert source.origin().environment == "Reacher-v5"
    assert source.origin().reference == (0.0, 1.0)


def test_d4rl_names_and_own_names(tmp_path: Path) -> None:
    arrays = columns([5, 4])
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "b.npz", **{f"log/{key}": value for key, value in arrays.items()})
    plain = torch.cat(list(Npz(str(tmp_path / "a.npz")).episodes()))
    named = torch.cat(list(Npz(str(tmp_path / "b.npz"), names={key: f"log/{key}" for key in arrays}).episodes()))
    assert (plain == named).all()


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **columns([5, 4]))
    with pytest.raises(InputError, match=r"no array 'reward' .*did you mean 'rewards'"):
        len(Npz(str(tmp_path / "a.npz"), names={"rewards": "reward"}))
    with pytest.raises(InputError, match="names has 'reward'; did you mean 'rewards'"):
        len(Npz(str(tmp_path / "a.npz"), names={"reward": "rewards"}))


def test_the_shared_files(shared: Path) -> None:
    source = Npz(str(shared / "neorl2-DMSD-train.npz"))
    table = torch.cat(list(source.episodes()))
    assert len(source) == len(table) == 100_000
    assert table["next", "truncated"].sum() == 1000
    assert not table["next", "terminated"].any()
    assert len(Npz(str(shared / "neorl2-SafetyHalfCheetah-train.npz"))) == 18_000
