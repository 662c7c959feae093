"""Help says what the classes really are, for each verb its own, and comes without waiting for Lightning."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import oper

from oper_lightning.cli.early import TOP
from oper_lightning.cli.messages import known_types
from oper_lightning.cli.outline import FOLDERS, classes
from oper_lightning.trust import load_all

load_all()


def signature(cls: type) -> dict[str, object]:
    """Arguments and defaults of a class, those that it passes on to its parents included."""
    found: dict[str, object] = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            parents = signature(cls.__mro__[1]).items()
            found = {key: value for key, value in parents if value is not inspect.Parameter.empty} | found
        else:
            found[name] = parameter.default
    return found


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_is_read_from_files_is_what_is_imported(kind: str) -> None:
    real, read = known_types(kind), classes(kind)
    assert sorted(real) == list(read)
    for name, cls in real.items():
        expected = signature(cls)
        # A default that is handed on may be a name of a parent's file.
        names = {key: v for one in reversed(cls.__mro__) for key, v in vars(sys.modules[one.__module__]).items()}
        assert read[name].arguments.keys() == expected.keys(), name
        for argument, (text, default) in read[name].explained().items():
            assert text, f"{name}: {argument} is not explained"
            value = expected[argument]
            if value is inspect.Parameter.empty:
                assert default is None
            else:
                assert default is not None
                assert eval(default, names) == value, f"{name}: {argument}"


def test_every_flag_of_the_parser_is_let_through(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("fit", "predict"):
        assert oper(verb, "--help=all") == 0
        flags = set(re.findall(r"--(\w+)", capsys.readouterr().out))
        assert flags <= {*TOP}
        assert {"model", "trainer", "data", "output"} <= flags


@pytest.mark.parametrize(
    ("verb", "there", "elsewhere"),
    [
        ("fit", ["--model CLASS", "--data.priority CLASS", "--trainer.max_steps"], ["--gap_to"]),
        (
            "validate",
            ["--ckpt_path PATH", "a run's folder", "--data.rollouts.episodes"],
            ["--model CLASS", "max_steps", "batch_size"],
        ),
        ("test", ["--ckpt_path PATH", "a run's folder", "--data.rollouts.seed"], ["--model CLASS", "--data.priority"]),
        ("predict", ["--ckpt_path PATH", "a run's folder", "--data.source CLASS"], ["rollouts", "--data.priority"]),
        ("inspect", ["FILE", "--p_base", "--source CLASS", "Npz"], ["--trainer", "--data."]),
        ("report", ["RUN [RUN ...]", "--gap_to"], ["--trainer", "--source"]),
        ("convert", ["[FILE ...]", "--source CLASS", "--to", "--fraction", "Tianshou"], ["--trainer", "--p_base"]),
    ],
)
def test_each_verb_has_help_of_its_own(
    verb: str, there: list[str], elsewhere: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert oper(verb, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: oper {verb} ")
    assert [word for word in there if word not in text] == []
    assert [word for word in elsewhere if word in text] == []
    assert max(map(len, text.splitlines())) <= 120


def test_help_of_an_algorithm_names_its_paper(capsys: pytest.CaptureFixture[str]) -> None:
    for name in classes("model"):
        assert oper("fit", f"--model.help={name}") == 0
        text = capsys.readouterr().out
        assert "arXiv" in text, name
        assert len(text.split("\n\n")[1].split()) > 5, f"{name}: a sentence is missing"


def test_help_tells_of_the_classes_that_the_command_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert oper("fit", "--model=BREMEN", "--data.priority", "OperR", "--help") == 0
    text = capsys.readouterr().out
    general, model, priority = text.partition("--model=BREMEN\n")[0], "--model.horizon", "--data.priority.p_base"
    assert general.startswith("usage: oper fit ")
    assert model in text
    assert priority in text
    assert model not in general
    assert priority not in general
    assert oper("fit", "--model", "--help") == 0
    assert oper("fit", "--data.priority=null", "--model=mine.Own", "--help") == 0
    capsys.readouterr()
    assert oper("fit", "--model=BREMIN", "--help") == 1
    assert "did you mean 'BREMEN'?" in capsys.readouterr().err


def test_help_and_slips_do_not_wait_for_lightning() -> None:
    commands = [
        ["fit", "--help"], ["inspect", "--help"], ["fit", "--model.help=IQL"], ["--version"], ["run", "--help"],
        ["fitt"], ["fit", "--outptu=x"], ["fit", "--trainer.max_step=3"], ["fit", "--model=TD3CB"],
        ["fit", "--model=IQL", "--model.expectil=0.7"], ["fit", "--data.rollouts.episods=2"],
        ["report", "--otput=x"], ["fit", "--config=missing.yaml"], ["fit", "--data=OnlineDataModul"],
        ["fit", "--data=OnlineDataModule", "--data.enviroment=x"], ["fit", "--data.upsample.row=3"],
        ["fit", "--data.parallel=2"],
    ]  # fmt: skip
    code = (
        "import sys\nfrom oper_lightning.cli import main\n"
        f"print([main(words) for words in {commands}], file=sys.stderr)\n"
        "print([m for m in ('torch', 'lightning', 'numpy', 'jsonargparse') if m in sys.modules], file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *errors, codes, heavy = result.stderr.splitlines()
    assert (codes, heavy) == (str([0] * 5 + [1] * 12), "[]")
    right = ["fit", "output", "max_steps", "TD3BC", "expectile", "episodes", "output"]
    assert all(f"did you mean '{word}'?" in line for word, line in zip(right, errors, strict=False))
    right = ["OnlineDataModule", "environment", "rows"]
    assert all(f"did you mean '{word}'?" in line for word, line in zip(right, errors[8:], strict=False))
    assert errors[11].endswith("data: 'parallel' belongs to another class: give --data=OnlineDataModule too")


def test_a_file_that_is_missing_gets_a_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    Path("iql.yaml").touch()
    assert oper("fit", "--config=iqll.yaml") == 1
    assert "iqll.yaml: no such configuration" in (line := capsys.readouterr().err)
    assert "did you mean 'iql.yaml'?" in line


def test_a_flag_without_its_value_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert oper("fit", "--model=BREMEN", "--model.task", "--trainer.max_steps=3") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "oper: error: --model.task needs a value: --model.task=VALUE"
