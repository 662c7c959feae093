from __future__ import annotations

import os
import zipfile
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


def lying(path: str, **shapes: tuple[int, ...]) -> None:
    """An archive whose arrays announce other shapes than they have data for."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in columns([5, 4]).items():
            head = {"descr": array.dtype.str, "fortran_order": False, "shape": shapes.get(name, array.shape)}
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array_header_1_0(member, head)
                member.write(array.tobytes())


def test_arrays_that_announce_more_than_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    lying("whole.npz")
    assert len(Npz("whole.npz")) == 9
    lying("long.npz", rewards=(10**12,))
    with pytest.raises(InputError, match=r"long\.npz: array 'rewards' announces 4,000,000,000,000 bytes, but .* 36"):
        len(Npz("long.npz"))
    lying("short.npz", actions=(9, 1))
    with pytest.raises(InputError, match=r"short\.npz: array 'actions' announces 36 bytes, but .* 72"):
        len(Npz("short.npz"))
    lying("negative.npz", rewards=(-3, -3))
    with pytest.raises(InputError, match=r"negative\.npz: array 'rewards' announces the shape \(-3, -3\); no extent"):
        len(Npz("negative.npz"))
    np.savez_compressed("bomb.npz", **{**columns([5, 4]), "observations": np.zeros((1 << 20, 3))})
    monkeypatch.setattr("oper_lightning.files.free_memory", lambda: 1 << 20)
    with pytest.raises(InputError, match=r"bomb\.npz: its arrays would take .* are free"):
        len(Npz("bomb.npz"))


@pytest.mark.parametrize("text", ["{'descr': [1]}", "(", "'''", "-" * 5000 + "1", "  1\n 2", "{1: 2}"])
def test_headers_that_cannot_be_read(text: str) -> None:
    header = text.encode() + b"\n"
    with zipfile.ZipFile("odd.npz", "w") as archive:
        for name in NEORL2.values():
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(InputError, match=r"odd\.npz: array '.*' has a header that cannot be read"):
        len(Npz("odd.npz"))
    assert Npz("odd.npz").origin().environment is None


def test_an_lzma_archive_that_is_damaged() -> None:
    arrays = {NEORL2.get(name, name): column for name, column in columns([25] * 4).items()}
    np.savez("whole.npz", **arrays)
    with zipfile.ZipFile("whole.npz") as whole, zipfile.ZipFile("packed.npz", "w", zipfile.ZIP_LZMA) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert len(Npz("packed.npz")) == 100
    content = bytearray(Path("packed.npz").read_bytes())
    content[200:260] = bytes(60)
    Path("packed.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"packed\.npz: not a whole \.npz archive"):
        len(Npz("packed.npz"))


def test_arrays_packed_as_no_recording_is_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed("bomb.npz", **{**columns([5, 4]), "observations": np.zeros((1 << 20, 3))})
    with pytest.raises(InputError, match="'actions' has 9 rows"):
        len(Npz("bomb.npz"))
    monkeypatch.setattr("oper_lightning.files.MUCH", 1 << 20)
    with pytest.raises(InputError, match=r"bomb\.npz: array 'observations' unpacks from [\d,]+ bytes to 25,165,824"):
        len(Npz("bomb.npz"))


def test_what_is_no_archive_of_arrays_is_one_line() -> None:
    np.savez("whole.npz", **columns([5, 4]))
    whole = Path("whole.npz").read_bytes()
    Path("cut.npz").write_bytes(whole[:300])
    np.save("one.npy", np.zeros(3))
    Path("empty.npz").touch()
    os.mkfifo("pipe.npz")
    # The directory says of the first array that it is encrypted, or packed in a way that does not exist.
    directory = whole.index(b"PK\x01\x02")
    Path("secret.npz").write_bytes(whole[: directory + 8] + b"\x01" + whole[directory + 9 :])
    Path("packed.npz").write_bytes(whole[: directory + 10] + b"\x63" + whole[directory + 11 :])
    for name in ("cut.npz", "one.npy", "empty.npz", "pipe.npz", "secret.npz", "packed.npz"):
        with pytest.raises(InputError, match=rf"^{name}: ") as caught:
            len(Npz(name))
        assert "\n" not in str(caught.value)


def test_numbers_that_are_not_real() -> None:
    arrays = columns([5, 4])
    np.savez("a.npz", **{**arrays, "rewards": arrays["rewards"] + 1j})
    with pytest.raises(InputError, match=r"a\.npz: column 'rewards' holds complex64; real numbers"):
        len(Npz("a.npz"))
