"""Every yaml in configs/ trains: found by discovery, its source exchanged for a small one."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
import yaml
from helpers import oper

from oper_lightning.algorithms import load_all
from oper_lightning.cli.chain import load
from oper_lightning.cli.messages import known_types
from oper_lightning.spec import Kind

load_all()

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
CHAINS = [path for path in FILES if "links" in yaml.safe_load(path.read_text())]


def given(path: Path) -> list[str]:
    """The --config arguments for a file: one in a folder lies over the yaml that the folder is named after."""
    below = [path.parent.with_suffix(".yaml")] if path.parent != CONFIGS else []
    return [f"--config={file}" for file in [*below, path]]


def top(path: Path) -> Path:
    """The yaml that a file lies over, or the file itself."""
    return path if path.parent == CONFIGS else path.parent.with_suffix(".yaml")


def kind(path: Path) -> Kind:
    """Of the actions that a configuration's algorithm is for."""
    model = yaml.safe_load(top(path).read_text())["model"]
    return known_types("model")[model if isinstance(model, str) else model["class_path"]].kinds[0]


def before_bremen(source: list[str]) -> list[str]:
    """Makes the runs that BREMEN goes by, and tells it of them; the reward is learnt, as no task has such rows."""
    short = [*source, "--data.rollouts=null", "--data.updates_per_epoch=10", "--trainer.max_steps=10"]
    small = ["--model.members=2", "--model.hidden_sizes=[8]", "--data.holdout=0.2", "--data.batch_size=32"]
    assert oper("fit", "--model=DynamicsEnsemble", *small, *short, "--output=model") == 0
    assert oper("fit", "--model=BC", "--model.hidden_sizes=[200,200]", *short, "--output=clone") == 0
    runs = ["--model.dynamics=model/last.ckpt", "--model.clone=clone/last.ckpt"]
    return [*runs, "--model.horizon=3", "--model.task=null"]


@pytest.mark.parametrize(
    "path", [path for path in FILES if path not in CHAINS], ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_every_configuration_trains(path: Path, small_file: Path, small_discrete_file: Path) -> None:
    file = small_discrete_file if kind(path) == "discrete" else small_file
    text, source = path.read_text() + top(path).read_text(), ["--data.source=D4RL", f"--data.source.path={file}"]
    if "OnlineDataModule" in text:
        environment = "CartPole-v1" if kind(path) == "discrete" else "Reacher-v5"
        source = [*(source if "source:" in text else []), f"--data.environment={environment}"]
        source += ["--data.parallel=1", "--data.warmup=10", "--data.updates_per_step=1", "--data.updates_per_block=2"]
    words = [
        *given(path),
        *(before_bremen(source) if "model: BREMEN" in text else []),
        *source,
        "--data.updates_per_epoch=2",
        "--data.batch_size=32",
        "--data.rollouts=null",
        "--trainer.max_steps=30",
        "--output=run",
    ]
    assert oper("fit", *words) == 0
    checkpoint = torch.load("run/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 30
    for comment in [line for line in path.read_text().splitlines() if line.startswith("#   oper fit")]:
        named = [word for word in shlex.split(comment[1:]) if word.startswith("configs/")]
        assert [f"--config={CONFIGS.parent / name}" for name in named] == given(path), comment


@pytest.mark.parametrize("path", CHAINS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_link_of_a_chain_is_understood(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    commands = [shlex.split(line[1:]) for line in path.read_text().splitlines() if line.startswith("#   oper run")]
    assert commands
    for command in commands:
        assert command[2] == str(path.relative_to(CONFIGS.parent))
        # Of links that are repeated, such as once for each seed, the first says as much as all.
        lists = {
            key: value for key, value in yaml.safe_load(path.read_text())["set"].items() if isinstance(value, list)
        }
        given = dict(zip([word[2:] for word in command[3::2]], command[4::2], strict=True))
        rounds = {"deployments": "2"} if "deployments" in yaml.safe_load(path.read_text())["set"] else {}
        links = load(command[2], {key: str(value[0]) for key, value in lists.items()} | given | rounds)["links"]
        for words in links.values():
            if words[0] == "fit":
                words = [word for word in words if not word.startswith(("--ckpt_path", "--start", "--output"))]
                assert oper(*words, "--print_config") == 0
                assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_steps"] > 0
