from __future__ import annotations

import pytest

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
    assert family("my-own-data") is None
    assert family("hopperlike") is None


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
