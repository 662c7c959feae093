"""The embedded dataset: Reacher driven by a scripted controller at five qualities, as a local Minari dataset."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import numpy as np

from oper_lightning.data.sources.minari import Minari
from oper_lightning.envs.reacher import ENVIRONMENT, LEVELS, random_return, record
from oper_lightning.errors import InputError, note
from oper_lightning.files import beside


class Reacher(Minari):
    """The quickstart's data: a scripted controller reaches for a target at five qualities, most of them bad.

    Episodes have 50 transitions. The dataset is recorded once (about 15 s), and then read from the local store.

    Args:
        episodes: number of episodes to record, a multiple of 20.
    """

    def __init__(self, episodes: int = 1000) -> None:
        if episodes < 20 or episodes % 20:
            raise InputError(f"Reacher: episodes {episodes} is no multiple of 20, which the levels' shares need")
        super().__init__(f"oper/reacher/five-levels-{episodes}-v0")
        self.count = episodes

    def prepare(self) -> None:
        if not self._folder.is_dir():
            note(f"recording {self.count:,} episodes of {ENVIRONMENT} for the dataset {self.id}")
            try:
                _make(self.id, self.count, self._folder.parent)
            except OSError as error:
                raise InputError(f"{self._folder}: cannot write the dataset there: {error.strerror}") from None


def _make(dataset_id: str, count: int, folder: Path) -> None:
    """Records the dataset beside its place, then moves it there, unless another process was faster."""
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    new = beside(folder)
    (new / "data").mkdir(parents=True)
    episodes = list(record(count))
    best = [episode["rewards"].sum() for episode in episodes if episode["level"] == 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = MinariStorage.new(new / "data", env_spec=gymnasium.spec(ENVIRONMENT))
        storage.update_metadata(
            {
                "dataset_id": dataset_id,
                "minari_version": minari.__version__,
                "author": {"oper-lightning"},
                "author_email": {""},
                "algorithm_name": "Jacobian-transpose controller at five qualities",
                "code_permalink": "",
                "description": "episodes in the order of the levels: "
                + "; ".join(f"{level.share:.0%} turned by {level.turn}°, noise {level.noise}" for level in LEVELS),
                "ref_min_score": random_return(),
                "ref_max_score": float(np.mean(best)),
                "num_episodes_average_score": len(best),
            }
        )
        storage.update_episodes(
            EpisodeBuffer(
                seed=episode["seed"],
                options={"level": episode["level"]},
                observations=episode["observations"],
                actions=episode["actions"],
                rewards=episode["rewards"],
                terminations=episode["terminations"],
                truncations=episode["truncations"],
            )
            for episode in episodes
        )
    try:
        os.rename(new, folder)
    except OSError:
        shutil.rmtree(new)
        if not folder.is_dir():
            raise
