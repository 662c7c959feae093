from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import columns, oper, write_hdf5

from oper_lightning import D4RL, InputError, Minari, Npz, RLUnplugged, Tianshou
from oper_lightning.data.matching import reference_of
from oper_lightning.data.sources.d4rl import _file_of
from oper_lightning.envs.scores import environment_of, family, family_of_environment, normalised


@pytest.mark.parametrize(
    ("name", "value", "score"),
    [
        ("halfcheetah-medium-v2", 11355.31, 93.72),
        ("walker2d-expert-v2", 5068.15, 110.37),
        ("halfcheetah-expert-v2", 2864.37, 25.33),
    ],
)
def test_published_scores(name: str, value: float, score: float) -> None:
    known = family(name)
    assert known is not None
    assert normalised(value, (known.low, known.high)) == pytest.approx(score, abs=0.005)


def test_the_longest_family_counts() -> None:
    assert family("antmaze-umaze-diverse-v0").steps == 700  # type: ignore[union-attr]
    assert family("antmaze-large-play-v0").steps == 1000  # type: ignore[union-attr]
    assert family("ant-medium-v2").high == 3879.7  # type: ignore[union-attr]
    assert family("maze2d-umaze-dense-v1").low == 68.537689  # type: ignore[union-attr]
    assert family("antmaze-eval-umaze-diverse-v0").steps == 700  # type: ignore[union-attr]
    assert family("my-own-data") is None
    assert family("hopperlike") is None


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("maze2d-open-v0", (0.01, 20.66, 150)),
        ("maze2d-open-dense-v0", (11.17817, 27.166538620695782, 150)),
        ("maze2d-umaze-v0", (0.94, 62.6, 150)),
        ("maze2d-umaze-dense-v0", (23.249793, 81.78995240126592, 150)),
        ("maze2d-medium-v0", (5.77, 85.14, 250)),
        ("maze2d-medium-dense-v0", (19.477620, 96.03474232952358, 250)),
        ("maze2d-large-v0", (4.83, 191.99, 600)),
        ("maze2d-large-dense-v0", (27.388310, 215.09965671563742, 600)),
        ("maze2d-umaze-v1", (23.85, 161.86, 300)),
        ("maze2d-large-dense-v1", (30.569041, 303.4857382709002, 800)),
        ("maze2d-eval-large-dense-v1", (56.95455, 326.09647655082637, 800)),
    ],
)
def test_versions_of_the_mazes_are_told_apart(name: str, known: tuple[float, float, int]) -> None:
    assert family(name) == known


def test_robots_of_gymnasium() -> None:
    assert family_of_environment("Hopper-v5") == family("hopper-medium-v2")
    assert family_of_environment("AdroitHandPen-v1") == family("pen-human-v1")
    assert family_of_environment("FrankaKitchen-v1") == family("kitchen-mixed-v0")
    assert family_of_environment("CartPole-v1") is None


def test_environments_of_d4rl_names() -> None:
    assert environment_of("walker2d-medium-replay-v2") == ("Walker2d-v4", {"max_episode_steps": 1000})
    assert environment_of("ant-medium-v2") == ("Ant-v4", {"use_contact_forces": True, "max_episode_steps": 1000})
    # D4RL's limits, not gymnasium-robotics'.
    assert environment_of("pen-human-v1") == ("AdroitHandPen-v1", {"max_episode_steps": 100})
    assert environment_of("door-human-longhorizon-v1") == ("AdroitHandDoor-v1", {"max_episode_steps": 300})
    assert environment_of("flow-ring-random-v0") is None


# Who says what scores 0 and 100 --------------------------------------------------------------------------------------


def resolved(source: Any) -> tuple[tuple[float, float] | None, str]:
    origin = source.origin()
    return reference_of(origin, origin.environment)


def test_a_person_then_the_dataset_then_d4rl_then_nobody(tmp_path: Path) -> None:
    plain, with_scores = (str(tmp_path / name) for name in ("plain.hdf5", "scores.hdf5"))
    write_hdf5(Path(plain), columns([5]))
    write_hdf5(Path(with_scores), columns([5]), env_id="Hopper-v5", ref_min_score=-1.0, ref_max_score=7.0)
    given = (2.0, 3.0)
    assert resolved(D4RL(with_scores, reference=given)) == (given, "given as the source's reference")
    assert resolved(D4RL(with_scores)) == ((-1, 7), "stored in the dataset")
    robot = ((-20.272305, 3234.3), "D4RL's for the robot of Hopper-v5")
    assert resolved(D4RL(plain, environment="Hopper-v5")) == robot
    assert resolved(D4RL(plain)) == (None, "")
    assert resolved(D4RL(plain, environment="CartPole-v1")) == (None, "")
    np.savez(tmp_path / "a.npz", **columns([5]))
    assert resolved(Npz(str(tmp_path / "a.npz"), reference=given)) == (given, "given as the source's reference")
    assert resolved(Npz(str(tmp_path / "a.npz"), environment="Hopper-v5")) == robot
    assert resolved(RLUnplugged(game="Pong", reference=given)) == (given, "given as the source's reference")
    assert resolved(RLUnplugged(game="Pong")) == (None, "")


@pytest.mark.parametrize("reference", [(1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_references_that_make_no_score_are_refused(reference: tuple[float, float]) -> None:
    for source in (D4RL, Npz, Minari, Tianshou, RLUnplugged):
        with pytest.raises(InputError, match=r"a: reference .* must be below that of 100"):
            source("a", reference=reference)


@pytest.mark.parametrize(
    ("options", "d4rl"),
    [
        ({}, True),
        ({"environment": "Hopper-v5"}, False),  # other physics
        ({"environment": "Hopper-v4"}, True),
        ({"reference": (0.0, 1.0)}, False),
    ],
)
def test_a_d4rl_score_is_of_d4rls_data_world_and_references(
    options: dict[str, Any], d4rl: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    write_hdf5(_file_of("hopper-medium-v2"), columns([5], 11, 3))
    origin = D4RL("hopper-medium-v2", **options).origin()
    assert origin.d4rl is d4rl
    assert origin.reference_from == ("given as the source's reference" if "reference" in options else "D4RL's own")


def test_a_run_says_whose_references_it_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_hdf5(tmp_path / "a.hdf5", columns([25] * 8, 11, 3), env_id="Hopper-v5")
    words = [f"--data.source.path={file}", "--data.source=D4RL", "--data.batch_size=16", "--data.updates_per_epoch=5"]
    fit = ["fit", "--model=BC", "--model.hidden_sizes=[8]", "--trainer.max_steps=5", "--data.rollouts.episodes=1"]
    assert oper(*fit, words[1], words[0], *words[2:], "--output=run") == 0
    assert "normalised from -20.2723 to 3234.3 (D4RL's for the robot of Hopper-v5)" in capsys.readouterr().err
    assert oper("validate", "--ckpt_path=run/last.ckpt") == 0
    out = capsys.readouterr().out
    assert "(references: D4RL's for the robot of Hopper-v5)" in out
    assert "D4RL score" not in out
    assert oper("inspect", file, "--output=out") == 0
    assert "D4RL score" not in capsys.readouterr().out
