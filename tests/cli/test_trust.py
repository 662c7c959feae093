"""Nothing that a file says runs: it names classes of our kinds that exist already, and no more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import oper
from runs import changed, trained

from oper_lightning.data.sources.d4rl import D4RL
from oper_lightning.errors import InputError
from oper_lightning.trust import trusted

MINE = """
from pathlib import Path
from oper_lightning.algorithms.bc import BC
from oper_lightning.data.sources.d4rl import D4RL

Path("sprung").touch()

class Mine(BC):
    pass

class Other(D4RL):
    pass

def call(*arguments, **options):
    Path("sprung").touch()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return trained(tmp_path_factory.mktemp("trust"), "BC")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder that leaves a trace when it is imported, under a name that no test had before."""
    name = f"mine{len(sys.modules)}"
    Path(f"{name}.py").write_text(MINE)
    monkeypatch.syspath_prepend(Path.cwd())
    return name


def configured(run: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a run in the current folder with another config.yaml."""
    shutil.copytree(run, "run")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    change(config)
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    return Path("run")


def test_the_class_of_a_checkpoint(run: Path, module: str, refused: Callable[..., str]) -> None:
    file = changed(run, lambda checkpoint: checkpoint.update(class_path=f"{module}.Mine"))
    for verb in ("predict", "fit"):
        line = refused(verb, f"--ckpt_path={file}")
        assert f"{file}: model names '{module}.Mine'" in line
        assert f"--model={module}.Mine" in line
    assert not Path("sprung").exists()
    assert oper("predict", f"--ckpt_path={file}", f"--model={module}.Mine") == 0
    assert Path("sprung").exists()


@pytest.mark.parametrize("entry", ["callbacks", "logger", "plugins", "strategy", "profiler"])
def test_the_trainer_in_config_yaml_is_not_taken(entry: str, run: Path, module: str) -> None:
    name = f"{module}.call"
    value = [{"class_path": name}] if entry in ("callbacks", "plugins") else {"class_path": name}
    folder = configured(run, lambda config: config["trainer"].update({entry: value, "max_time": "00:00:00:00"}))
    assert oper("fit", f"--ckpt_path={folder}", "--trainer.max_steps=40") == 0
    assert not Path("sprung").exists()


def source(value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config["data"]["init_args"].update(source=value)


def other(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config["data"]["init_args"].update({key: value})


def small(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "oper_lightning.D4RL", "init_args": {"path": "small.hdf5", **arguments}}


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("data.source", lambda name: source(f"{name}.Other")),
        ("data.source", lambda name: source({"class_path": f"{name}.Other", "init_args": {"path": "small.hdf5"}})),
        ("data.source", lambda name: source({"class_path": "oper_lightning.OperR"})),
        ("data.priority", lambda name: other("priority", {"class_path": f"{name}.call"})),
        ("data.bonus", lambda name: other("bonus", {"class_path": f"{name}.call"})),
        ("data.rollouts", lambda name: other("rollouts", {"class_path": f"{name}.call"})),
        ("data.rollouts.environment", lambda name: other("rollouts", {"environment": f"{name}:Some-v0"})),
        ("data.source.environment", lambda name: source(small(environment=f"{name}:Some-v0"))),
        ("data.source.allow_external", lambda name: source(small(allow_external=True))),
        ("data.prioritise", lambda name: other("prioritise", [{"class_path": f"{name}.call"}])),
        ("data", lambda name: lambda config: config.update(data=f"{name}.call")),
        ("data", lambda name: lambda config: config.update(data={"class_path": f"{name}.call"})),
    ],
)
def test_classes_in_config_yaml(
    key: str, change: Callable[[str], Any], run: Path, module: str, refused: Callable[..., str]
) -> None:
    folder = configured(run, change(module))
    line = refused("validate", f"--ckpt_path={folder}/last.ckpt")
    assert line.startswith(f"run/config.yaml: {key} "), line
    assert not Path("sprung").exists()


def test_what_the_command_names_stands_for_what_the_file_names(run: Path, module: str) -> None:
    folder = configured(run, source({"class_path": "nowhere.Source"}))
    data = str(run.with_name("small.hdf5"))
    assert oper("predict", f"--ckpt_path={folder}", "--data.source=D4RL", f"--data.source.path={data}") == 0
    assert oper("predict", f"--ckpt_path={folder}", f"--data.source={module}.Other", f"--data.source.path={data}") == 0
    assert Path("sprung").exists()


def test_what_a_file_must_not_say_is_the_commands_to_say(run: Path, module: str) -> None:
    data = str(run.with_name("small.hdf5"))
    arguments = {"path": data, "environment": f"{module}:Some-v0", "allow_external": True}
    folder = configured(run, source({"class_path": "oper_lightning.D4RL", "init_args": arguments}))
    words = ["--data.source.environment=null", "--data.source.allow_external=true"]
    assert oper("predict", f"--ckpt_path={folder}", *words) == 0
    assert not Path("sprung").exists()


@pytest.mark.parametrize("how", ["nested", "in a list", "as an argument of its class"])
def test_so_is_what_lies_deeper_in_a_file(how: str, run: Path, module: str, refused: Callable[..., str]) -> None:
    inner = small(path=str(run.with_name("small.hdf5")), environment=f"{module}:Some-v0")
    harmless = small(path=str(run.with_name("small.hdf5")))
    if how == "nested":
        file, key = (
            {"class_path": "Filtered", "init_args": {"source": inner, "first": 100}},
            "source.source.environment",
        )
        words = ["--data.source.source.environment=null"]
    elif how == "in a list":
        file, key = {"class_path": "Joined", "init_args": {"sources": [inner]}}, "source.sources.environment"
        whole = {"class_path": "Joined", "init_args": {"sources": [harmless]}}
        words = [f"--data.source={json.dumps(whole)}"]
    else:
        file, key, words = inner, "source.environment", ["--data.source.init_args.environment=null"]
    folder = configured(run, source(file))
    for kept in ([], ["--data=OfflineDataModule"]):  # which says nothing of it
        line = refused("predict", f"--ckpt_path={folder}", *kept)
        assert line.startswith(f"run/config.yaml: data.{key} is "), line
        assert how != "in a list" or line.endswith("give --data.source as a whole, or a yaml")
    assert oper("predict", f"--ckpt_path={folder}", *words) == 0
    assert not Path("sprung").exists()


def test_inspect_imports_nothing_for_a_runs_configuration(run: Path, module: str, refused: Callable[..., str]) -> None:
    folder = configured(run, source(small(environment=f"{module}:Some-v0")))
    assert refused("inspect", folder).startswith("run/config.yaml: source.environment ")
    assert not Path("sprung").exists()


def test_inspect_makes_no_class_of_a_runs_configuration(run: Path, module: str, refused: Callable[..., str]) -> None:
    folder = configured(run, source({"class_path": f"{module}.Other", "init_args": {"path": "small.hdf5"}}))
    line = refused("inspect", folder)
    assert f"--source={module}.Other" in line
    assert not Path("sprung").exists()


def test_a_class_of_ones_own_in_another_process(run: Path, module: str) -> None:
    """As a person does it: train, then judge, each in a process of its own."""
    data = run.with_name("small.hdf5")
    words = [f"--model={module}.Mine", "--data.source=D4RL", f"--data.source.path={data}", "--data.rollouts=null"]
    words += ["--data.updates_per_epoch=20", "--trainer.max_steps=20", "--output=own"]
    assert oper("fit", *words) == 0
    command = [sys.executable, "-m", "oper_lightning", "predict", "--ckpt_path=own"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"--model={module}.Mine" in result.stderr
    result = subprocess.run([*command, f"--model={module}.Mine"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_names_of_classes() -> None:
    for name in ("D4RL", "oper_lightning.D4RL", "oper_lightning.data.sources.d4rl.D4RL"):
        assert trusted({"class_path": name}, "file", "source")["class_path"].rpartition(".")[2] == D4RL.__name__
    for name in ("oper.D4RL", "d4rl.D4RL", "sources.d4rl.D4RL", "D4R", "", 5, None, ["D4RL"]):
        with pytest.raises(InputError, match="file: source names"):
            trusted({"class_path": name}, "file", "source")
