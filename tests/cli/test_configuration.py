"""What the parser objects to is said in words, and yamls that a command names are read with care."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from helpers import oper

from oper_lightning.cli.chain import load, run
from oper_lightning.cli.messages import explain
from oper_lightning.errors import InputError

QUICK = ["--data.updates_per_epoch=20", "--data.rollouts=null", "--output=run"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--data.updates_per_block=x"], "data.updates_per_block: 'x' is not a whole number or null"),
        (["--data.reward_scale=x"], "data.reward_scale: 'x' is none of a number, return_range, sign"),
        (["--data.memmap_folder=[1]"], "data.memmap_folder: '[1]' is not text or null"),
        (["--data.clip_actions=maybe"], "data.clip_actions: 'maybe' is not true or false"),
        (["--data.batch_size=null"], "data.batch_size is null, but needs a value; leave it out for its default"),
        (
            ["--data.source=[1]"],
            "data.source: no class '[1]' of that kind; "
            "known: BRAC, Bandit, D3rlpy, D4RL, Ending, Filtered, Joined, Minari, Npz, OGBench, OnlineLog, "
            "PointMassWall, …",
        ),
        (["--model.hidden_sizes=8"], "model.hidden_sizes: '8' is not a list"),
        (["--seed_everything=-1"], "seed_everything is -1; from 0 to 4,294,967,295 is possible"),
        (["--trainer=5"], "trainer: '5' is no configuration; names with values are needed"),
        (["--trainer.log_every_n_steps=x"], "trainer.log_every_n_steps: 'x' is not a whole number or null"),
        (["--trainer.log_every_n_steps=-3"], "trainer.log_every_n_steps is -3; at least 0 is needed"),
        (["--trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch is 0; at least 1 is needed"),
        (["--trainer.max_steps=0"], "trainer.max_steps is 0: this run would do no update; give a positive number"),
        (["--trainer.callbacks=5"], "trainer.callbacks: '5' is not a list, a Callback or null"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_objections_in_words(words: list[str], line: str, small_file: Path, refused: Callable[..., str]) -> None:
    base = ["fit", "--model=BC", "--data.source=D4RL", f"--data.source.path={small_file}", "--trainer.max_steps=20"]
    assert refused(*base, *QUICK, *words) == line


def test_null_reaches_arguments_of_nested_classes(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data.source.max_episode_steps=null", "--data.priority=WeightsFile", "--data.priority.path=w"]
    words += ["--data.priority.std", "null", "--data.rollouts.steps=null", "--trainer.max_steps=20", "--print_config"]
    assert oper("fit", "--model=BC", "--data.source=D4RL", f"--data.source.path={small_file}", *words) == 0
    data = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    assert data["source"]["init_args"]["max_episode_steps"] is None
    assert data["priority"]["init_args"]["std"] is None
    assert data["rollouts"]["steps"] is None


def test_objections_that_are_not_known() -> None:
    message = 'Parser key "a.b":\n  - some\n  - other'
    assert explain(message, "b", None) == "some; other"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xff\xfe", "cannot read it as text in UTF-8"),
        (b"5\n", "names with values"),
        (b"- model\n", "names with values"),
        (b"model: [BC\n", "not valid yaml"),
        (b"trainer: {max_stesp: 3}\n", "did you mean 'trainer.max_steps'?"),
        (b"model: {class_path: BC, init_args: {hidden: 3}}\n", "model: no argument 'hidden'"),
        (b"data: {batch_size: x}\n", "data.batch_size: 'x' is not a whole number"),
        (b"modle: BC\n", "no argument 'modle'"),
        (b"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
            b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(6)
        ), "more than 100,000 entries"),
    ],
    ids=["no text", "a number", "a list", "no yaml", "unknown", "unknown of a class", "a value", "a key", "a bomb"],
)  # fmt: skip
def test_yamls_that_a_command_names(text: bytes, words: str, small_file: Path, refused: Callable[..., str]) -> None:
    Path("good.yaml").write_text("model: BC\n")
    Path("bad.yaml").write_bytes(text)
    data = ["--data.source=D4RL", f"--data.source.path={small_file}", "--trainer.max_steps=20"]
    line = refused("fit", "--config=good.yaml", "--config", "bad.yaml", *data, *QUICK)
    assert line.startswith("bad.yaml: "), line
    assert words in line


def test_yamls_with_old_names(small_file: Path) -> None:
    Path("old.yaml").write_text(
        f"model: AdvantageWeights\ntrainer: {{max_steps: 2_0}}\n"
        f"data: {{source: {{class_path: D4RL, init_args: {{path: {small_file}}}}}, evaluation: null,\n"
        f"  storage: memory}}\n"
    )
    Path("rate.yaml").write_text("model: {init_args: {learning_rate: 1e-3, iterations: 1}}\n")
    words = ["--data.updates_per_epoch=20", "--output=run"]
    assert oper("fit", "--config=old.yaml", "--config=rate.yaml", *words) == 0
    kept = torch.load("run/last.ckpt", weights_only=True)
    assert kept["class_path"].endswith(".OperA")
    assert kept["hyper_parameters"]["learning_rate"] == 1e-3


# Chains --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", ".", "..", "a b", "chain.json", ".hidden"])
def test_links_stay_in_the_folder_of_their_chain(name: str, refused: Callable[..., str]) -> None:
    Path("chain.yaml").write_text(json.dumps({"links": {name: "inspect x"}}))
    line = refused("run", "chain.yaml")
    assert line.startswith("chain.yaml: link ")
    assert name in line
    Path("chain.yaml").write_text(json.dumps({"set": {"seed": [name]}, "links": {"one": "fit {seed}"}}))
    if "/" in name:
        assert name in refused("run", "chain.yaml")


@pytest.mark.parametrize(
    "text",
    ["5", "[1]", "{", "null", '{"one": 5}', '{"one": {"command": 5, "done": true}}', '{"one": {"command": "oper"}}',
     '{"one": {"command": "oper", "done": 1}}', '{"one": {"command": "oper", "done": true, "read": 5}}',
     '{"one": {"command": "oper \'fit", "done": true}}'],
)  # fmt: skip
def test_ledgers_that_are_none(text: str, refused: Callable[..., str]) -> None:
    Path("chain.yaml").write_text("folder: chain\nlinks: {one: fit}")
    Path("chain").mkdir()
    Path("chain/chain.json").write_text(text)
    assert "chain.json" in refused("run", "chain.yaml")


@pytest.mark.parametrize(
    "text",
    [b"\xff\xfe", b"5", b": [", b"links: 5", b"links: {}", b"links: {one: 5}", b"links: {one: [fit]}",
     b"folder: [1]\nlinks: {one: fit}", b"set: {a: {b: c}}\nlinks: {one: 'fit {a}'}",
     b"set: {a: [[1]]}\nlinks: {one: 'fit {a}'}", b'folder: "a\\0b"\nlinks: {one: fit}',
     b'links: {one: "fit \\0"}'],
)  # fmt: skip
def test_chains_that_are_none(text: bytes) -> None:
    Path("chain.yaml").write_bytes(text)
    with pytest.raises(InputError, match=r"^chain\.yaml: "):
        load("chain.yaml", {})


def test_a_link_whose_yaml_was_edited_is_not_done_already(
    small_file: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = f"source: {{class_path: D4RL, init_args: {{path: {small_file}}}}}"
    Path("train.yaml").write_text(f"data: {{batch_size: 32, {source}}}\n")
    Path("look.yaml").write_text(f"data: {{batch_size: 32, rollouts: null, {source}}}\n")
    Path("chain.yaml").write_text(
        "folder: chain\nlinks:\n"
        "  one: fit --config=train.yaml --model=BC --data.updates_per_epoch=20 --trainer.max_steps=20 "
        "--data.rollouts=null\n"
        "  two: predict --config look.yaml --ckpt_path={one}/last.ckpt\n"
    )
    assert run(["chain.yaml"]) == 0
    Path("train.yaml").write_text(f"# a comment\ndata: {{batch_size: 32, {source}}}\n")
    Path("look.yaml").write_text(f"data: {{batch_size: 16, rollouts: null, {source}}}\n")
    capfd.readouterr()
    assert run(["chain.yaml"]) == 0  # what only looks at others is done again
    out = capfd.readouterr().out
    assert "# one: done already" in out
    assert "$ oper predict" in out
    assert "look.yaml was edited since link 'two' read it: two is done again" in caplog.text
    assert run(["chain.yaml"]) == 0
    assert "# two: done already" in capfd.readouterr().out
    Path("train.yaml").write_text(f"data: {{batch_size: 16, {source}}}\n")
    with pytest.raises(InputError, match=r"train\.yaml was edited since link 'one' read it; name another --folder"):
        run(["chain.yaml"])
    # A ledger from before such yamls were kept in it is still read.
    ledger = Path("chain/chain.json")
    links = json.loads(ledger.read_text())
    ledger.write_text(json.dumps({name: {k: v for k, v in e.items() if k != "read"} for name, e in links.items()}))
    assert run(["chain.yaml"]) == 0
