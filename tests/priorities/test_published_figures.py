"""The spread of weights on D4RL's own data, as in the notebook of OPER's authors.

Looks for the data where `oper` puts them ($D4RL_DATASET_DIR, by default ~/.d4rl/datasets) and for stage 1's weights of
three seeds beside them, named `<dataset>-oper_a.safetensors`. Skips what is not there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from oper_lightning import D4RL, OperR
from oper_lightning.data.sources.d4rl import _file_of
from oper_lightning.data.transitions import fingerprint, squeezed
from oper_lightning.priorities.file import load_weights
from oper_lightning.priorities.priority import statistics

FOLDER = Path(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")).expanduser()
TOLERANCE = 0.2
HALF_A_DIGIT = 0.005  # the figures have two decimals
# Dataset: standard deviation of OPER-R's weights, then of OPER-A's iterations 1 to 5 (mean of three seeds).
STD = {
    "walker2d-medium-v2": (0.31, 0.03, 0.06, 0.08, 0.11, 0.12),
    "walker2d-medium-replay-v2": (0.78, 0.08, 0.13, 0.17, 0.20, 0.23),
    "walker2d-medium-expert-v2": (0.29, 0.03, 0.06, 0.07, 0.09, 0.10),
    "hopper-medium-v2": (0.28, 0.03, 0.06, 0.08, 0.10, 0.12),
    "hopper-medium-replay-v2": (0.80, 0.02, 0.04, 0.06, 0.07, 0.09),
    "hopper-medium-expert-v2": (0.48, 0.01, 0.01, 0.02, 0.02, 0.02),
    "halfcheetah-medium-v2": (0.07, 0.03, 0.04, 0.06, 0.08, 0.09),
    "halfcheetah-medium-replay-v2": (0.45, 0.05, 0.07, 0.09, 0.11, 0.13),
    "halfcheetah-medium-expert-v2": (0.37, 0.01, 0.02, 0.03, 0.04, 0.05),
    "antmaze-umaze-v0": (0.99, 0.05, 0.08, 0.11, 0.14, 0.16),
    "antmaze-umaze-diverse-v0": (0.37, 0.03, 0.04, 0.07, 0.10, 0.14),
    "antmaze-medium-play-v0": (1.01, 0.01, 0.02, 0.03, 0.05, 0.07),
    "antmaze-medium-diverse-v0": (0.92, 0.01, 0.02, 0.02, 0.03, 0.04),
    "antmaze-large-play-v0": (0.95, 0.02, 0.04, 0.05, 0.06, 0.07),
    "antmaze-large-diverse-v0": (0.94, 0.01, 0.03, 0.04, 0.05, 0.06),
    "kitchen-partial-v0": (0.41, 0.07, 0.13, 0.18, 0.22, 0.26),
    "kitchen-mixed-v0": (0.20, 0.07, 0.11, 0.13, 0.16, 0.18),
    "kitchen-complete-v0": (0.66, 0.17, 0.22, 0.25, 0.26, 0.28),
    "pen-human-v0": (0.79, 0.12, 0.14, 0.16, 0.17, 0.18),
    "pen-cloned-v0": (1.09, 0.10, 0.13, 0.15, 0.16, 0.17),
}


@pytest.fixture(params=STD)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(FOLDER))
    if not _file_of(request.param).is_file():
        pytest.skip(f"{request.param} not at hand (D4RL_DATASET_DIR)")
    return request.param


@pytest.fixture
def transitions(name: str) -> TensorDict:
    """The rows of D4RL's qlearning_dataset, on which the figures were taken."""
    return squeezed(torch.cat(list(D4RL(name, qlearning_rows=True).episodes())))


def agrees(std: float, published: float) -> bool:
    return abs(std - published) <= TOLERANCE * published + HALF_A_DIGIT


def test_oper_r_spreads_as_published(name: str, transitions: TensorDict) -> None:
    if name == "hopper-medium-replay-v2":
        assert len(transitions) == 401_598
    weights = OperR(p_base=0.2 if "antmaze" in name else 0.0)(transitions)
    assert agrees(statistics(weights)["std"], STD[name][0])


def test_oper_a_spreads_as_published(name: str, transitions: TensorDict) -> None:
    file = FOLDER / f"{name}-oper_a.safetensors"
    if not file.is_file():
        pytest.skip(f"no weights of three seeds at {file}")
    tensors, metadata = load_weights(file)
    assert metadata["fingerprint"] == fingerprint(transitions)
    weights = tensors["weights"].double().mean(1)
    assert weights.mean(1).tolist() == pytest.approx([1.0] * len(weights), abs=1e-4)
    for std, published in zip(weights.std(1, correction=0).tolist(), STD[name][1:], strict=True):
        assert agrees(std, published)
