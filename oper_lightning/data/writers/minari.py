"""A Minari dataset: a folder with the episodes, and metadata with which Minari's own loader opens it."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oper_lightning.data.writers.recording import Recording
from oper_lightning.errors import InputError

if TYPE_CHECKING:
    from minari.data_collector import EpisodeBuffer


def write(recording: Recording, folder: Path, data_format: str, dataset_id: str) -> list[str]:
    """Writes a dataset; gives sentences on what it has no place for.

    Stacks that single frames make are stored as these frames, with ``frame_stack`` in the metadata; images are never
    made JPEG, which would change them.

    Args:
        recording: the episodes.
        folder: folder of the dataset, which is made.
        data_format: arrow or hdf5.
        dataset_id: its id in the metadata.
    """
    environment, lost = recording.environment(with_options=True)
    spec = None if environment is None else env_spec(environment, recording.origin.environment_options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = new_storage(folder, _observation_space(recording), _action_space(recording), spec, data_format)
        storage.update_metadata(_metadata(recording, dataset_id))
        storage.update_episodes(_episodes(recording))
        storage.update_metadata({"dataset_size": type(storage).get_size(storage)})
    return [lost] if lost else []


def new_storage(folder: Path, observations: Any, actions: Any, spec: Any | None, data_format: str) -> Any:
    """Minari's storage in the folder of a dataset, which is made; it does not add up sizes by itself.

    Args:
        folder: of the dataset.
        observations: Gymnasium space of an observation.
        actions: Gymnasium space of an action.
        spec: Gymnasium's spec of the environment, if it may be written.
        data_format: arrow or hdf5.

    Raises:
        InputError: if this version of Minari would change images.
    """
    from minari.dataset.minari_storage import MinariStorage

    options: dict[str, Any] = {}
    if "jpeg_encoding" in inspect.signature(MinariStorage.new).parameters:
        options["jpeg_encoding"] = False
    elif observations.dtype == np.uint8:
        raise InputError("this version of Minari would make JPEG of images and so change them; install minari>=0.5.4")
    place = (folder / "data").absolute()
    place.mkdir(parents=True, exist_ok=True)
    storage = MinariStorage.new(place, observations, actions, spec, data_format, **options)
    # Minari adds up the sizes of all files after each episode, which takes longer and longer.
    storage.get_size = lambda: 0.0
    return storage


def _episodes(recording: Recording) -> Iterator[EpisodeBuffer]:
    from minari.data_collector import EpisodeBuffer

    for (row, _), episode in zip(recording.spans, recording, strict=True):
        observed = episode.frames if recording.stack > 1 else episode.observed
        if observed is None:
            raise recording.gaps(row, "a Minari dataset")
        last = np.arange(len(episode.rewards)) == len(episode.rewards) - 1
        yield EpisodeBuffer(
            observations=observed,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=last & episode.terminated,
            truncations=last & (not episode.terminated),
        )


def _metadata(recording: Recording, dataset_id: str) -> dict[str, Any]:
    origin = recording.origin
    about = f"{len(recording.spans):,} of {recording.total:,} episodes of {origin.dataset}"
    return metadata(dataset_id, "", about, recording.stack, origin.reference)


def metadata(
    dataset_id: str, algorithm: str, description: str, stack: int, reference: tuple[float, float] | None
) -> dict[str, Any]:
    """What a dataset says of itself.

    Args:
        dataset_id: its id.
        algorithm: what played, if that is known.
        description: a sentence.
        stack: how many of the frames that it holds make an observation.
        reference: returns that score 0 and 100.
    """
    import minari

    known: dict[str, Any] = {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "author": set(),
        "author_email": set(),
        "algorithm_name": algorithm,
        "code_permalink": "",
        "description": description,
        "requirements": [],
    }
    if stack > 1:
        known["frame_stack"] = stack
    if reference is not None:
        known |= dict(zip(("ref_min_score", "ref_max_score"), map(float, reference), strict=True))
    return known


def _observation_space(recording: Recording) -> Any:
    from gymnasium import spaces

    shape = recording.table.observation_shape
    if recording.table.frames is None:
        return spaces.Box(-np.inf, np.inf, shape, np.float32)
    return spaces.Box(0, 255, shape[1:] if recording.stack > 1 else shape, np.uint8)


def _action_space(recording: Recording) -> Any:
    """The space of actions; a Box without bounds where they are not known."""
    from gymnasium import spaces

    low, high, known = recording.bounds()
    if recording.discrete:
        return spaces.Discrete(int(high - low) + 1, start=int(low))
    if not known:
        return spaces.Box(-np.inf, np.inf, tuple(low.shape), np.float32)
    return spaces.Box(low.numpy(), high.numpy(), dtype=np.float32)


def env_spec(environment: str, options: dict[str, Any]) -> Any:
    """Gymnasium's spec of an environment with options as :class:`oper_lightning.data.sources.source.Origin` has them.

    An environment that is not known here gets a spec with its id alone.
    """
    import gymnasium
    from gymnasium.envs.registration import EnvSpec, WrapperSpec

    given = {name: value for name, value in options.items() if name not in ("wrappers", "max_episode_steps")}
    try:
        spec = gymnasium.spec(environment)
        spec.to_json()
    except (gymnasium.error.Error, ValueError, TypeError):  # not registered, or made by a function of this process
        spec = EnvSpec(environment)
    spec = EnvSpec.from_json(spec.to_json())  # a copy of our own
    spec.kwargs = {**spec.kwargs, **json.loads(json.dumps(given))}
    spec.max_episode_steps = options.get("max_episode_steps", spec.max_episode_steps)
    spec.additional_wrappers = tuple(
        WrapperSpec(wrapper["name"], f"gymnasium.wrappers:{wrapper['name']}", wrapper["kwargs"])
        for wrapper in options.get("wrappers", ())
    )
    return spec
