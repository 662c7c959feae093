"""HDF5 files that would reach other files, hang, take memory without bound, or stay open."""

from __future__ import annotations

import copy
import fcntl
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers import columns, write_hdf5

from oper_lightning.data.sources.d4rl import D4RL
from oper_lightning.data.sources.hdf5 import opened, values
from oper_lightning.data.storage import fill
from oper_lightning.data.table import Table
from oper_lightning.errors import InputError

ROWS = columns([25] * 4, 10, 2)


def elsewhere(file: h5py.File, name: str) -> None:
    other = write_hdf5(Path("other.hdf5"), ROWS)
    file[name] = h5py.ExternalLink(str(other), name)


def soft(file: h5py.File, name: str) -> None:
    """Out of the file by way of a group that is a link."""
    write_hdf5(Path("other.hdf5"), ROWS)
    file["outside"] = h5py.ExternalLink("other.hdf5", "/")
    file[name] = h5py.SoftLink(f"/outside/{name}")


def fifo(file: h5py.File, name: str) -> None:
    os.mkfifo("pipe")
    file[name] = h5py.ExternalLink("pipe", name)


def raw(file: h5py.File, name: str) -> None:
    ROWS[name].tofile("bytes")
    file.create_dataset(name, ROWS[name].shape, ROWS[name].dtype, external=[("bytes", 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout(ROWS[name].shape, ROWS[name].dtype)
    layout[:] = h5py.VirtualSource("gone.hdf5", name, ROWS[name].shape)
    file.create_virtual_dataset(name, layout, fillvalue=0)


def without(*names: str) -> h5py.File:
    write_hdf5(Path("bad.hdf5"), {key: value for key, value in ROWS.items() if key not in names})
    return h5py.File("bad.hdf5", "a")


@pytest.mark.parametrize("name", ["rewards", "timeouts"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (elsewhere, "is a link to another file ('other.hdf5')"),
        (soft, "is a link to another file ('other.hdf5')"),
        (fifo, "is a link to another file ('pipe')"),
        (raw, "is stored in another file ('bytes')"),
        (virtual, "is a virtual dataset"),
    ],
)
def test_other_files_are_not_read(make: Callable[[h5py.File, str], None], words: str, name: str) -> None:
    with without(name) as file:
        make(file, name)
    with pytest.raises(InputError) as caught:
        len(D4RL("bad.hdf5"))
    assert str(caught.value).startswith("bad.hdf5: ")
    assert words in str(caught.value)
    assert "allow_external" in str(caught.value)


@pytest.mark.parametrize("make", [elsewhere, soft, raw])
def test_other_files_are_read_when_asked_for(make: Callable[[h5py.File, str], None]) -> None:
    with without("rewards") as file:
        make(file, "rewards")
    table = torch.cat(list(D4RL("bad.hdf5", allow_external=True).episodes()))
    np.testing.assert_array_equal(table["next", "reward"].squeeze(-1), ROWS["rewards"])


def test_links_inside_the_file_are_followed() -> None:
    with without("rewards", "actions") as file:
        file["kept/rewards"] = ROWS["rewards"]
        file["rewards"] = h5py.SoftLink("kept/rewards")
        file["kept/a"] = ROWS["actions"]
        file["actions"] = file["kept/a"]
    assert len(D4RL("bad.hdf5")) == 100


def dangling(file: h5py.File) -> None:
    file["rewards"] = h5py.SoftLink("/nowhere")


def circle(file: h5py.File) -> None:
    file["rewards"], file["a"] = h5py.SoftLink("/a"), h5py.SoftLink("/rewards")


def no_space(file: h5py.File) -> None:
    file["rewards"] = h5py.Empty("f4")


def kind(file: h5py.File) -> None:
    file["rewards"] = np.dtype("f4")


def group(file: h5py.File) -> None:
    file.create_group("rewards")


def narrow(file: h5py.File) -> None:
    del file["observations"]
    file["observations"], file["rewards"] = np.zeros((100, 0)), ROWS["rewards"]


def imaginary(file: h5py.File) -> None:
    file["rewards"] = ROWS["rewards"].astype(complex)


@pytest.mark.parametrize("make", [dangling, circle, no_space, kind, group, narrow, imaginary])
def test_what_is_no_column_is_one_line(make: Callable[[h5py.File], None]) -> None:
    with without("rewards") as file:
        make(file)
    with pytest.raises(InputError, match=r"^bad\.hdf5: ") as caught:
        len(D4RL("bad.hdf5"))
    assert "\n" not in str(caught.value)
    assert "observations" in str(caught.value) or "rewards" in str(caught.value)


def test_an_optional_column_that_is_no_array_is_not_passed_over() -> None:
    with without("timeouts") as file:
        file.create_group("timeouts")
    with pytest.raises(InputError, match=r"^bad\.hdf5: 'timeouts' is a group; an array is needed"):
        len(D4RL("bad.hdf5"))


def test_no_regular_file_is_opened() -> None:
    os.mkfifo("pipe.hdf5")
    with pytest.raises(InputError, match=r"pipe\.hdf5: is no regular file"):
        len(D4RL("pipe.hdf5"))


def test_an_archive_of_numpys_is_named_as_such() -> None:
    np.savez("log.npz", **columns([5]))
    with pytest.raises(InputError, match=r"^log\.npz: a zip archive, .* source Npz$"):
        len(D4RL("log.npz"))


def test_rows_that_were_never_written_are_refused() -> None:
    rows = 10**8
    shapes = {"observations": (rows, 3), "actions": (rows, 2), "rewards": (rows,), "terminals": (rows,)}
    with h5py.File("huge.hdf5", "w") as file:
        for name, shape in shapes.items():
            chunk = (1 << 20, *(1 for _ in shape[1:]))
            file.create_dataset(name, shape, "f4", chunks=chunk, compression="gzip")[:10] = 1
    assert Path("huge.hdf5").stat().st_size < 1 << 20
    with pytest.raises(InputError, match=r"huge\.hdf5: 'observations' announces 100,000,000 rows, but not all"):
        len(D4RL("huge.hdf5"))
    write_hdf5(Path("late.hdf5"), {key: value for key, value in ROWS.items() if key != "rewards"})
    with h5py.File("late.hdf5", "a") as file:
        file.create_dataset("rewards", (100,), "f4")
    with pytest.raises(InputError, match="'rewards' announces 100 rows"):
        len(D4RL("late.hdf5"))


def test_rows_packed_as_no_recording_is_are_refused() -> None:
    rows, chunk = 100_000, 10_000
    write_hdf5(Path("bomb.hdf5"), columns([1000] * 100, 1, 2))
    with h5py.File("bomb.hdf5", "a") as file:
        del file["next_observations"]
        made = file.create_dataset("next_observations", (rows, 3000), "f4", chunks=(chunk, 3000), compression="gzip")
        made[:chunk] = 0
        _, packed = made.id.read_direct_chunk((0, 0))
        for start in range(chunk, rows, chunk):
            made.id.write_direct_chunk((start, 0), packed)
        del file["observations"]
        file["observations"] = made
    with pytest.raises(InputError, match=r"bomb\.hdf5: 'observations' unpacks from [\d,]+ bytes to 1,200,000,000"):
        len(D4RL("bomb.hdf5"))


def test_what_does_not_fit_memory_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_hdf5(Path("long.hdf5"), columns([250] * 400, 10, 2))
    monkeypatch.setattr("oper_lightning.files.free_memory", lambda: 6 << 20)
    with pytest.raises(InputError, match=r"long\.hdf5: its 100,000 transitions would take .* are free"):
        fill(D4RL(str(path)), torch.device("cpu"))
    assert len(fill(D4RL(str(path)), torch.device("cpu"), Path("mapped"))) == 100_000
    for free, words in ((4 << 20, "rows 0 to"), (1 << 16, "flags of its 100,000 rows")):
        monkeypatch.setattr("oper_lightning.files.free_memory", lambda free=free: free)
        with pytest.raises(InputError, match=rf"long\.hdf5: {words}.* would take"):
            fill(D4RL(str(path)), torch.device("cpu"), Path("again"))


def test_a_row_that_is_too_wide_is_refused() -> None:
    with h5py.File("wide.hdf5", "w") as file:
        for name, width in {"observations": 1 << 34, "actions": 1}.items():
            file.create_dataset(name, (4, width), "u1", chunks=(4, min(width, 1 << 20)))
        file["rewards"] = file["terminals"] = np.zeros(4)
    with pytest.raises(InputError, match=r"wide\.hdf5: "):
        fill(D4RL("wide.hdf5"), torch.device("cpu"))


def test_the_recorder_goes_on_once_the_rows_are_read() -> None:
    path = write_hdf5(Path("log.hdf5"), ROWS)
    source = D4RL(str(path))
    for _ in range(2):
        fill(source, torch.device("cpu"))
        source.origin()
        with h5py.File(path, "a") as file:  # fails while somebody reads
            file.attrs["env_id"] = "Reacher-v5"
    assert len(pickle.loads(pickle.dumps(source))) == len(copy.deepcopy(source)) == 100


def test_a_file_that_is_being_written_is_named_as_such() -> None:
    path = write_hdf5(Path("log.hdf5"), ROWS)
    with open(path, "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 does it
        with pytest.raises(InputError, match=r"log\.hdf5: another program has it open for writing"):
            len(D4RL(str(path)))


def test_columns_in_groups_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"observations": "data/obs", "actions": "data/act", "rewards": "r", "terminals": "/done"}
    with h5py.File("own.hdf5", "w") as file:
        for ours, theirs in names.items():
            file[theirs] = ROWS[ours]
    table = torch.cat(list(D4RL("own.hdf5", names=names).episodes()))
    np.testing.assert_array_equal(table["action"], ROWS["actions"][[row for row in range(100) if row != 99]])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(D4RL("~/own.hdf5", names=names)) == len(table)
    with pytest.raises(InputError, match=r"no array 'observations'; .*data/act \[100, 2\], data/obs \[100, 10\]"):
        len(D4RL("own.hdf5"))
    with pytest.raises(InputError, match=r"no array 'obs' \(for observations\); did you mean 'data/obs'\?"):
        len(D4RL("own.hdf5", names={**names, "observations": "obs"}))
    with pytest.raises(InputError, match="names has 'reward'; did you mean 'rewards'"):
        len(D4RL("own.hdf5", names={"reward": "r"}))


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"nowhere/a\.hdf5: no such file \(looked for at {tmp_path}/nowhere/a\.hdf5\)"
    ):
        len(D4RL("nowhere/a.hdf5"))


def test_what_a_file_says_of_its_environment_is_checked_first(caplog: pytest.LogCaptureFixture) -> None:
    for low, high in ((1.0, 1.0), (2.0, 1.0), (np.nan, 1.0), ("low", "high"), (0.0, np.inf), ([1.0, 2.0], 3.0)):
        caplog.clear()
        path = write_hdf5(Path("said.hdf5"), ROWS, env_id="Reacher-v5", ref_min_score=low, ref_max_score=high)
        assert D4RL(str(path)).origin().reference is None
        assert "make no score" in caplog.text


def test_a_large_chunk_is_unpacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oper_lightning.data.sources.hdf5.CACHE", 1 << 10)
    stored = columns([250] * 40, 10, 2)
    for path, rows in (("one.hdf5", 10_000), ("many.hdf5", 20)):
        with h5py.File(path, "w") as file:
            for name, column in stored.items():
                file.create_dataset(name, data=column, chunks=(rows, *column.shape[1:]), compression="gzip")
    assert Table(D4RL("one.hdf5"), fill(D4RL("one.hdf5"), torch.device("cpu"))).recorded == (
        Table(D4RL("many.hdf5"), fill(D4RL("many.hdf5"), torch.device("cpu"))).recorded
    )
    for path, kept in (("one.hdf5", 10_000 * 10 * 4), ("many.hdf5", 1 << 10)):
        with opened(path) as file:
            assert file.array("observations").id.get_access_plist().get_chunk_cache()[1] == kept
    # It is not where memory is short.
    monkeypatch.setattr("oper_lightning.data.sources.hdf5.free_memory", lambda: 1 << 20)
    with opened("one.hdf5") as file:
        assert file.array("observations").id.get_access_plist().get_chunk_cache()[1] == 1 << 10


@pytest.mark.parametrize("kind", ["bool", "u1", "<i8", ">i4", "<f2", ">f4", "<f8"])
@pytest.mark.parametrize("shape", [(0, 3), (7,), (7, 3)])
@pytest.mark.parametrize("packed", [False, True])
def test_values_are_those_that_h5py_gives(kind: str, shape: tuple[int, ...], packed: bool) -> None:
    with h5py.File("kinds.hdf5", "w") as file:
        numbers = np.random.default_rng(0).integers(0, 2, shape).astype(kind)
        chunked = {"chunks": (2, *shape[1:]), "maxshape": (None, *shape[1:]), "compression": "gzip"}
        file.create_dataset("x", data=numbers, **(chunked if packed else {}))
    with opened("kinds.hdf5") as file:
        array = file.array("x")
        np.testing.assert_array_equal(values(array), array[()], strict=True)
