"""D4RL datasets by name: downloaded from a local server here, in the layout of the published files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import columns, served, write_hdf5

from oper_lightning.data.sources import d4rl
from oper_lightning.data.sources.d4rl import D4RL
from oper_lightning.errors import InputError

NAME = "hopper-medium-v2"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served over HTTP as the place of the published files."""
    folder = tmp_path / "served"
    folder.mkdir()
    with served(folder) as address:
        monkeypatch.setattr(d4rl, "_addresses", lambda: {NAME: f"{address}/hopper_medium-v2.hdf5"})
        yield folder


def test_a_name_is_downloaded_once(server: Path, tmp_path: Path) -> None:
    file = write_hdf5(server / "hopper_medium-v2.hdf5", columns([6, 6, 6], 11, 3))
    source = D4RL(NAME)
    source.prepare()
    stored = tmp_path / "d4rl" / "hopper_medium-v2.hdf5"
    assert stored.read_bytes() == file.read_bytes()
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]
    origin = source.origin()
    assert (origin.environment, origin.d4rl) == ("Hopper-v4", True)
    assert origin.reference == (-20.272305, 3234.3)
    file.unlink()
    again = D4RL(NAME)
    again.prepare()
    assert len(again) == 18
    # The stored file by its path is the same D4RL data.
    assert D4RL(str(stored)).origin().d4rl


def test_a_broken_download_leaves_nothing(server: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot download it .* put it at .*hopper_medium-v2\.hdf5"):
        D4RL(NAME).prepare()
    assert not list((tmp_path / "d4rl").iterdir())


def test_without_network_one_line_says_where_to_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d4rl, "_addresses", lambda: {NAME: "http://127.0.0.1:9/hopper_medium-v2.hdf5"})
    with pytest.raises(InputError, match=r"fetch http://127.* yourself and put it at") as caught:
        D4RL(NAME).prepare()
    assert "\n" not in str(caught.value)


def test_published_names_are_known() -> None:
    names = d4rl._addresses()
    assert {"hopper-medium-v2", "halfcheetah-medium-replay-v2", "antmaze-umaze-v0", "kitchen-mixed-v0"} <= set(names)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="hopper-medium-v2"):
        len(D4RL("hopper-mediun-v2"))
