"""Finished runs: what they were, what they logged, and which of them are seeds of the same thing."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oper_lightning import renamed
from oper_lightning.envs.rollouts import Rollouts
from oper_lightning.errors import InputError
from oper_lightning.files import existing as there
from oper_lightning.files import read_yaml
from oper_lightning.report.curves import Curve, final, first_bad, read_logged
from oper_lightning.trust import existing, kind_at, load_all

# Priorities by their names in the papers.
NAMES = {
    "OperR": "OPER-R",
    "WeightsFile": "OPER-A",
    "BanditAdvantages": "OPER-A",
    "TopFraction": "top x %",
    "AdvantageWeighting": "AW",
    "ReturnWeighting": "RW",
}
COUPLING = {("constraint", "evaluation", "improvement"): "coupled", ("constraint", "improvement"): "decoupled"}
STAGE_ONE = "OperA"
SOURCE = "data.source"
STEPS = "online/steps"
WEIGHTS = "data.priority.path"
# Keys in which runs of one method may differ: seed and place, the dataset (it has a column of its own), and how the
# run is carried out.
NOT_COMPARED = (
    "seed_everything",
    "output",
    "ckpt_path",
    "start",
    "trainer.",
    SOURCE,
    WEIGHTS,
    "data.rollouts.episodes",
    "data.rollouts.parallel",
    "data.rollouts.seed",
    "data.seed",
    "data.location",
    "data.memmap_folder",
    "data.patience",
    "data.dataset",
    "data.updates_per_",
    "model.compile",
)
COMPARED = ("trainer.max_steps", "trainer.precision")
# These do not make another method, but are shown if they differ.
JUDGED = ("data.rollouts.episodes", "data.rollouts.seed")


class Run(NamedTuple):
    """One run of `oper fit`."""

    folder: str
    config: dict[str, Any]
    """arguments by dotted names, as they are given on the command line"""
    curves: dict[str, Curve]
    ended: float | None = None
    """when it last logged something, in seconds since 1970; None where that is not recorded"""
    versions: str = ""
    """of the packages that it ran with, as in "oper-lightning 0.1.0, torch 2.13.0"; empty where not recorded"""

    @property
    def source(self) -> dict[str, Any]:
        """The dataset: its class and arguments; of a run without one, the environment that it gathers in."""
        if self.config.get(SOURCE) is None:
            return {SOURCE: None, "id": self.config.get("data.environment")}
        return _source_of(self.config)

    @property
    def updates(self) -> int:
        """Gradient updates done when it last logged something."""
        return max((curve.updates[-1] for curve in self.curves.values()), default=0)

    @property
    def planned(self) -> int:
        """Gradient updates of the whole run; -1 where something else ended it."""
        return int(self.config["trainer.max_steps"] or -1)

    @property
    def judging(self) -> str:
        """How many episodes each evaluation had, and where."""
        episodes = self.config.get("data.rollouts.episodes")
        if episodes is None:
            return "none"
        where = self.config.get("data.rollouts.environment")
        return f"{episodes}" + (f" in {where}" if where else "")


def over_steps(run: Run) -> Run:
    """The run with its curves over steps of environments in place of gradient updates.

    Raises:
        InputError: if it did not log them.
    """
    if STEPS not in run.curves:
        raise InputError(
            f"{run.folder}: {STEPS} is not among what it logged; only runs that interact have an x of steps"
        )
    known, ratio = run.curves[STEPS], float(run.config["data.updates_per_step"])

    def at(updates: list[int]) -> list[int]:
        within = np.clip(updates, known.updates[0], known.updates[-1])
        beyond = (np.array(updates) - within) / ratio  # steps are paid for by updates
        return np.round(np.interp(within, *known) + beyond).astype(int).tolist()

    return run._replace(curves={name: Curve(at(curve.updates), curve.values) for name, curve in run.curves.items()})


class Group(NamedTuple):
    """Runs that differ in their seeds only."""

    data: str
    method: str
    runs: list[Run]

    def finals(self, name: str) -> np.ndarray:
        """Mean of each run's last evaluations, ``[runs]``."""
        return np.array([final(run.curves[name].values) for run in self.runs])

    def bests(self, name: str) -> np.ndarray:
        """Each run's best evaluation, ``[runs]``; NaN if none was finite."""
        finite = [[value for value in run.curves[name].values if math.isfinite(value)] for run in self.runs]
        return np.array([max(values, default=math.nan) for values in finite])

    def values_along(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The runs' values ``[runs, points]`` at all updates ``[points]`` at which one logged and none was over.

        Values between two logged ones are interpolated linearly.
        """
        curves = [run.curves[name] for run in self.runs]
        first, last = max(curve.updates[0] for curve in curves), min(curve.updates[-1] for curve in curves)
        points = sorted({update for curve in curves for update in curve.updates if first <= update <= last})
        return np.array(points), np.array([np.interp(points, curve.updates, curve.values) for curve in curves])


def read_config(run: str | Path) -> dict[str, Any]:
    """A run's configuration.

    Raises:
        InputError: if there is none.
    """
    file = there(Path(run) / "config.yaml", "file; the folder of a run of `oper fit` is needed")
    tree = read_yaml(file)
    try:
        config = renamed.config(tree)
        data = config["data"]["init_args"]
        parts = config["model"], data["source"], data.get("priority"), data.get("bonus")
        names = [part["class_path"] for part in parts if part]
        known = all(isinstance(name, str) for name in names) and isinstance(config["trainer"]["max_steps"], int)
    except (TypeError, KeyError, ValueError, AttributeError):
        known = False
    if not known:
        raise InputError(f"{file}: not the configuration of a run of `oper fit`")
    return config


def read_run(folder: str) -> Run:
    """Reads what a run left.

    Raises:
        InputError: if the folder holds no run.
    """
    load_all()  # whose classes' defaults are asked for
    config = flat(completed(read_config(folder)))
    logged = read_logged(folder, _logger(config))
    return Run(folder, without_seed(config), logged.curves, logged.ended, _versions(folder))


def without_seed(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a chain's run without the seed that chains put at the end of folders' names, in what lies beside
    it: the clone that the run began with, the dataset that was collected for it. Other runs' stay as they are.
    """
    seed, output = config.get("seed_everything"), str(config.get("output"))
    beside, _, own = output.rpartition("/")
    if not beside or not own.endswith(f"_{seed}"):
        return config

    def plain(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(f"{beside}/"):
            return beside + re.sub(rf"_{seed}(?=/|-v\d+$|$)", "_#", value.removeprefix(beside))
        if isinstance(value, list):
            return [plain(part) for part in value]
        return {key: plain(part) for key, part in value.items()} if isinstance(value, dict) else value

    return {key: plain(value) for key, value in config.items()}


def _logger(config: dict[str, Any]) -> str:
    """Where what a run logged must be if it is not in its folder."""
    logger, place = config.get("trainer.logger"), config.get("trainer.logger.save_dir")
    if logger is False:
        return "it ran with trainer.logger=false, so that nothing was logged"
    where = f" and save_dir={place}: move what lies there into the run's folder" if place else ""
    return f"it ran with trainer.logger={'TensorBoard, the default' if logger in (None, True) else logger}{where}"


def _versions(folder: str) -> str:
    """What the first line of a run's configuration says it ran with."""
    with open(Path(folder) / "config.yaml", encoding="utf-8") as file:
        line = file.readline(1000).strip()
    return line.removeprefix("# ") if line.startswith("# oper-lightning ") else ""


def completed(tree: Any, key: str = "") -> Any:
    """A configuration with the defaults of what its classes take today and an older run's config.yaml does not have.

    Args:
        tree: the configuration or a part of it.
        key: where the part stands.
    """
    if not isinstance(tree, dict):
        return tree
    cls = Rollouts if key == "rollouts" else existing(renamed.class_path(tree.get("class_path")), kind_at(key))
    if cls is None:  # none of ours, or no class at all
        return {name: completed(value, str(name)) for name, value in tree.items()}
    given = (tree.get("init_args") or {}) if "class_path" in tree else tree
    known = {**defaults(cls), **given}
    arguments = {name: completed(value, name) for name, value in known.items()}
    return {**tree, "init_args": arguments} if "class_path" in tree else arguments


def defaults(cls: type) -> dict[str, Any]:
    """The arguments of a class and of the parents that it passes others on to, in one order, as a yaml has them."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found = {**found, **{key: value for key, value in defaults(cls.__mro__[1]).items() if key not in found}}
        elif parameter.default is not parameter.empty:
            value = parameter.default
            found[name] = (
                asdict(value) if isinstance(value, Rollouts) else [*value] if isinstance(value, tuple) else value
            )
        else:
            found[name] = None
    return found


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Arguments by dotted names; a class stands under its own name, in short."""
    if isinstance(config, dict) and "class_path" in config:
        return {prefix: config["class_path"].rsplit(".", 1)[-1]} | flat(config.get("init_args") or {}, prefix)
    if not isinstance(config, dict) or (prefix and not config):
        return {prefix: config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def grouped(runs: list[Run]) -> list[Group]:
    """Runs by dataset and method, in the order in which they were given."""
    names = _names_of_data(runs)
    parts: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        parts.setdefault((names[str(run.source)], str(sorted(_compared(run).items()))), []).append(run)
    groups = []
    for (data, _), same in parts.items():
        mine = _compared(same[0])
        alike = [_compared(run) for run in runs if names[str(run.source)] == data and kind(run) == kind(same[0])]
        differing = [key for key in mine if any(_differ(key, mine, other) for other in alike)]
        details = [_setting(key, mine[key]) for key in differing]
        groups.append(Group(data, ", ".join([*kind(same[0]), *details]), same))
    return groups


def settings(groups: list[Group]) -> tuple[list[str], list[list[str]]]:
    """Shared arguments in which methods differ: head and rows of a table, with one column for each method."""
    methods: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        methods.setdefault(group.method, []).append(group.runs[0].config)
    rows = []
    for key in dict.fromkeys(key for configs in methods.values() for config in configs for key in config):
        if key.startswith(NOT_COMPARED) and key not in (*COMPARED, *JUDGED):
            continue
        # A method may have been run on several datasets, with other values on each.
        words = [
            list(dict.fromkeys(_word(config[key]) for config in configs if key in config))
            for configs in methods.values()
        ]
        if len({word for cell in words for word in cell}) > 1:
            rows.append([key, *(" or ".join(cell) for cell in words)])
    return ["argument", *methods], rows


def _word(value: Any) -> str:
    """A value as a person would write it on the command line."""
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def oddities(group: Group) -> list[str]:
    """Reasons to doubt that the group's runs are sound, or are seeds of one method."""
    found = []
    for run in group.runs:
        for name, curve in run.curves.items():
            if (update := first_bad(curve)) is not None:
                found.append(f"{run.folder}: {name} is no finite number at update {update:,}, the first such")
                break
    names = group.runs[0].folder + (f" and {len(group.runs) - 1} more" if len(group.runs) > 1 else "")
    seeds = [run.config.get("seed_everything") for run in group.runs]
    if len(set(seeds)) < len(seeds):
        found.append(f"{names}: some have the same seed: they count as so many runs all the same")
    # Runs of several seeds often have weights of their own, whose paths differ in a number.
    if len({re.sub(r"\d+", "#", str(run.config.get(WEIGHTS))) for run in group.runs}) > 1:
        found.append(f"{names}: they read weights from different files, and count as one method")
    return found


def _names_of_data(runs: list[Run]) -> dict[str, str]:
    """A short name for every dataset. If two were equal, the file's ending or the arguments that differ are added."""
    sources = {str(run.source): run.source for run in runs}
    short = {key: _short(source) for key, source in sources.items()}
    names = {}
    for key, source in sources.items():
        file = Path(short[key])
        alike = {place: Path(short[place]).name for place in sources if Path(short[place]).stem == file.stem}
        name = file.stem if set(alike.values()) == {file.name} else file.name
        others = [sources[place] for place, other in alike.items() if other == file.name]
        # An argument that another class of source does not have says nothing: the class itself is among them.
        differing = [
            part
            for part in source
            for other in others
            if other.get(part) != source[part] and (part in other or other[SOURCE] == source[SOURCE])
        ]
        names[key] = ", ".join([name, *(f"{part}={source[part]}" for part in dict.fromkeys(differing))])
    return names


def _short(source: dict[str, Any]) -> str:
    """A file, a folder or an id; those of all parts, where there are several."""
    if parts := source.get("sources"):
        return " + ".join(Path(_short(_source_of(flat(part, SOURCE)))).stem for part in parts)
    found = [source.get(key) for key in ("path", "id", "source.path", "source.id")]
    name = next((name for name in found if name), source[SOURCE])
    return " + ".join(Path(part).name for part in name) if isinstance(name, list) else str(name)


def _source_of(config: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(f"{SOURCE}."): value for key, value in config.items() if key.startswith(SOURCE)}


def kind(run: Run) -> tuple[str, ...]:
    """Algorithm and priority."""
    priority = run.config.get("data.priority")
    if run.config["model"] == STAGE_ONE:
        return ("OPER-A, stage 1",)
    return run.config["model"], "uniform" if priority is None else NAMES.get(str(priority), str(priority))


def _differ(key: str, mine: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether an argument tells two runs apart. One that only one of two classes has says nothing: the classes do."""
    if key in other:
        return bool(other[key] != mine[key])
    parts = key.split(".")
    above = [".".join(parts[:length]) for length in range(1, len(parts))]
    return not any(name in mine and name in other and mine[name] != other[name] for name in above)


def _setting(key: str, value: Any) -> str:
    """An argument in few words."""
    if key == "data":
        return {"OnlineDataModule": "online", "OfflineDataModule": "offline"}.get(value, str(value))
    if key == "data.bonus":
        return "no bonus" if value is None else str(value)
    if key == "data.prioritise" and isinstance(value, list) and (word := COUPLING.get(tuple(sorted(value)))):
        return word
    return f"{key.split('.', 1)[-1]}={value}"


def _compared(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key in COMPARED or not key.startswith(NOT_COMPARED)}
