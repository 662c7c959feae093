from __future__ import annotations

import os

# Before torch is imported: as the command does, and so that tests side by side do not wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from helpers import SHARED, columns, write_hdf5


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test stands in an empty folder and has dataset stores of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    """A file that Reacher-v5 fits: 40 episodes of 25 steps."""
    return write_hdf5(tmp_path / "small.hdf5", columns([25] * 40, 10, 2), env_id="Reacher-v5")


@pytest.fixture
def small_discrete_file(tmp_path: Path) -> Path:
    """A file that CartPole-v1 fits: 40 episodes of 25 steps."""
    return write_hdf5(tmp_path / "discrete.hdf5", columns([25] * 40, 4, 2, discrete=True), env_id="CartPole-v1")


@pytest.fixture
def shared() -> Path:
    """The folder of real data; the test skips where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not at hand ({SHARED.parent.name}/{SHARED.name} beside the project)")
    return SHARED


@pytest.fixture(scope="session")
def reacher_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Minari store for the embedded dataset, kept for the session."""
    return tmp_path_factory.mktemp("minari")
