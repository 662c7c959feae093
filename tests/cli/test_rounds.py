"""Chains of rounds: what is written out, how it is resumed, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import oper

from oper_lightning.cli.chain import load
from oper_lightning.errors import InputError

CHAIN = """
folder: runs/x
set: {rounds: 3, std: 0.1, seed: 0}
rounds: "{rounds}"
links:
  data: collect {policy.before}/last.ckpt --output=d/{round}-v0 --seed={seed}{round}
  model: fit --config=m.yaml --model.start={model.before}/last.ckpt --data.source.id=[{data.all}]
  policy: fit --model.model={model}/last.ckpt --literal={{model}} --std={std}
  look: report {policy.all}
after:
  table: report {policy} {model.all} --output=runs/x
"""


def links(folder: Path, text: str = CHAIN, **overrides: str) -> dict[str, list[str]]:
    (folder / "chain.yaml").write_text(text)
    return load(str(folder / "chain.yaml"), overrides)["links"]


def test_rounds_are_written_out(tmp_path: Path) -> None:
    found = links(tmp_path)
    assert [*found] == [f"{name}_{r}" for r in range(3) for name in ("data", "model", "policy", "look")] + ["table"]
    assert found["data_0"] == ["collect", "--output=d/0-v0", "--seed=00"]
    assert found["data_2"] == ["collect", "runs/x/policy_1/last.ckpt", "--output=d/2-v0", "--seed=02"]
    last = ["--ckpt_path=last"]
    assert found["model_0"] == [
        "fit",
        "--config=m.yaml",
        "--data.source.id=[runs/x/data_0]",
        "--output=runs/x/model_0",
        *last,
    ]
    assert found["model_1"][2:4] == [
        "--model.start=runs/x/model_0/last.ckpt",
        "--data.source.id=[runs/x/data_0,runs/x/data_1]",
    ]
    assert found["policy_1"][1:4] == ["--model.model=runs/x/model_1/last.ckpt", "--literal={model}", "--std=0.1"]
    assert found["look_1"] == ["report", "runs/x/policy_0", "runs/x/policy_1"]
    assert found["table"] == ["report", "runs/x/policy_2", *[f"runs/x/model_{r}" for r in range(3)], "--output=runs/x"]
    assert [*links(tmp_path, rounds="1")] == ["data_0", "model_0", "policy_0", "look_0", "table"]


def test_a_link_may_have_more_words_in_round_0(tmp_path: Path) -> None:
    text = f"{CHAIN}\nfirst:\n  data: --output=d/begin-{{round}}-v0 --seed=7\n"
    found, plain = links(tmp_path, text), links(tmp_path)
    assert found["data_0"] == [*plain["data_0"], "--output=d/begin-0-v0", "--seed=7"]
    assert [*found] == [*plain]
    assert {name: words for name, words in found.items() if name != "data_0"} == {
        name: words for name, words in plain.items() if name != "data_0"
    }
    for wrong, says in (
        ("first: {dta: collect}", "did you mean 'data'?"),
        ("first: 3", "`first:` needs links"),
        ("first: {data: [--steps=3]}", "words are needed, as one text"),
    ):
        with pytest.raises(InputError, match=says):
            links(tmp_path, f"{CHAIN}\n{wrong}\n")


def test_what_judges_an_earlier_round_begins_with_the_second(tmp_path: Path) -> None:
    text = CHAIN.replace("look: report {policy.all}", "look: validate --ckpt_path={model.before}/last.ckpt")
    found = links(tmp_path, text, rounds="2")
    assert "look_0" not in found
    assert found["look_1"] == ["validate", "--ckpt_path=runs/x/model_0/last.ckpt"]


def test_collections_have_a_folder_of_their_own(tmp_path: Path) -> None:
    found = links(tmp_path, CHAIN.replace(" --output=d/{round}-v0", ""), rounds="2")
    assert found["data_0"] == ["collect", "--seed=00", "--output=runs/x/data_0-v0"]
    assert "--data.source.id=[runs/x/data_0-v0,runs/x/data_1-v0]" in found["model_1"]


def test_a_list_multiplies_rounds(tmp_path: Path) -> None:
    found = links(tmp_path, CHAIN.replace("seed: 0", "seed: [4, 7]"), rounds="2")
    assert found["data_1_7"] == ["collect", "runs/x/policy_0_7/last.ckpt", "--output=d/1-v0", "--seed=71"]
    assert "--data.source.id=[runs/x/data_0_4,runs/x/data_1_4]" in found["model_1_4"]
    assert found["table"][1:3] == ["runs/x/policy_1_4", "runs/x/policy_1_7"]
    assert found["look_1"] == ["report", *[f"runs/x/policy_{r}_{s}" for r in (0, 1) for s in (4, 7)]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("rounds: 3", "rounds: 0"), "a whole number from 1 to 1,000 is needed"),
        (("rounds: 3", "rounds: many"), "a whole number from 1 to 1,000 is needed"),
        (("rounds: 3", "rounds: 1001"), "a whole number from 1 to 1,000 is needed"),
        (('rounds: "{rounds}"', 'rounds: "{round}"'), "stands for nothing"),
        (("{model.before}", "{modle.before}"), "no link of the rounds is called 'modle'"),
        (("{data.all}", "{data.alll}"), None),
        (("{model}/last", "{modell}/last"), "{modell} stands for nothing"),
        (("table: report", "policy: report"), "is there twice"),
        (("table: report", "model_1: report"), "link 'model_1' of `after:` is called as one of the rounds is"),
        (("{model}/last", "{look}/last"), "{look} has not run yet; links name those above them, or {look.before}"),
        (("{model}/last", "{policy}/last"), "{policy} has not run yet"),
        (("look: report {policy.all}", "look:"), "link 'look_0' has no command"),
        (("look: report", "std: report"), "{std} would stand for a link and for an entry of `set:`"),
        (("table: report", "std: report"), "{std} would stand for a link and for an entry of `set:`"),
        (("look: report", "folder: report"), "{folder} would stand for a link and for the chain's folder"),
        (('rounds: "{rounds}"\n', ""), "there is no `rounds:`"),
        (("after:\n  table: report {policy} {model.all} --output=runs/x", "after: [1]"), "`after:` needs links"),
        (("after:\n  table: report {policy} {model.all} --output=runs/x", "after: 3"), "`after:` needs links"),
        (("look: report", "look: x'report"), "o closing quotation"),
        (('rounds: "{rounds}"', "round: 3"), "no entry 'round'; did you mean 'rounds'?"),
        (
            ("--model.start={model.before}", "--model.start {model.before}"),
            "write --model.start={model.before}/last.ckpt",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: tuple[str, str], says: str | None) -> None:
    text = CHAIN.replace(*change)
    assert text != CHAIN
    if says is None:  # braces around what is no name stay as they are, as in yaml's own
        assert "--data.source.id=[{data.alll}]" in links(tmp_path, text)["model_0"]
        return
    with pytest.raises(InputError) as raised:
        links(tmp_path, text)
    assert says in str(raised.value)
    assert "chain.yaml" in str(raised.value)


TRAINED = """
folder: runs/pendulum
rounds: 2
links:
  data: >-
    collect {policy.before}/last.ckpt --environment=Pendulum-v1 --steps=400 --seed={round}
  policy: >-
    fit --model=BC --model.hidden_sizes=[8] --data.source=Minari --data.source.id={data}
    --data.updates_per_epoch=20 --trainer.max_steps=400 --data.batch_size=16 --data.rollouts.episodes=1
after:
  table: report {policy.all} --output=table
"""


def chain(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "oper_lightning", "run", "chain.yaml", *words],
        cwd=folder,
        env={**os.environ, "MINARI_DATASETS_PATH": str(folder / "minari")},
        start_new_session=True,
    )


@pytest.mark.parametrize("link", ["policy_0", "data_1"])
def test_a_chain_killed_within_a_round_goes_on_there(tmp_path: Path, link: str) -> None:
    (tmp_path / "chain.yaml").write_text(TRAINED)
    process = chain(tmp_path)
    ledger = tmp_path / "runs" / "pendulum" / "chain.json"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (ledger.exists() and f'"{link}"' in ledger.read_text()):
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)  # the chain and its link
    process.wait()
    before = json.loads(ledger.read_text())
    assert before[link]["done"] is False or [*before][-1] != link
    done = {name for name, entry in before.items() if entry["done"]}
    files = [path for path in tmp_path.glob("runs/pendulum/*/last.ckpt") if path.parent.name in done]
    kept = {path: path.stat().st_mtime_ns for path in files}
    assert chain(tmp_path).wait() == 0
    assert all(entry["done"] for entry in json.loads(ledger.read_text()).values())
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (tmp_path / "table" / "report.md").exists()


def test_who_plays_is_random_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    words = ["--environment=Pendulum-v1", "--steps=60", "--explore=true"]
    assert oper("collect", *words, "--output=data/a-v0") == 0
    assert oper("collect", "random", *words, "--output=data/b-v0") == 0
    first, second = (sorted((tmp_path / "data" / name).rglob("*.arrow")) for name in ("a-v0", "b-v0"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second] != []


def test_a_changed_link_may_run_again_once_its_folder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = """
folder: chained
set: {length: 20}
links:
  data: collect --environment=Pendulum-v1 --steps=60
  other: fit {small} --data.source.id={data} --trainer.max_steps=20
  clone: fit {small} --data.source.id={data} --trainer.max_steps={length}
  further: fit {small} --data.source.id=[{data}] --start={clone}/last.ckpt --trainer.max_steps=20
  table: report {further} --output=table
""".replace("{small}", "--model=BC --model.hidden_sizes=[8] --data.source=Minari --data.updates_per_epoch=20 "
            "--data.batch_size=16 --data.rollouts=null")  # fmt: skip
    Path("chain.yaml").write_text(text)
    assert oper("run", "chain.yaml") == 0
    capfd.readouterr()
    assert oper("run", "chain.yaml", "--length=40") == 1
    line = capfd.readouterr().err
    assert "link 'clone' was another command (--trainer.max_steps=20 became --trainer.max_steps=40)" in line
    assert line.endswith("or delete chained/clone and chained/further\n")
    # What was made of it has to go as well, before anything is done again.
    shutil.rmtree("chained/clone")
    assert oper("run", "chain.yaml", "--length=40") == 1
    assert capfd.readouterr().err.endswith("or delete chained/further\n")
    shutil.rmtree("chained/further")
    assert oper("run", "chain.yaml", "--length=40") == 0
    out = capfd.readouterr().out
    assert [name for name in ("data", "other", "clone", "further", "table") if f"# {name}: done" in out] == [
        "data",
        "other",
    ]
    assert "chained/further: update 20" in out
    # Whoever needs the room may delete what is done.
    shutil.rmtree("chained/clone")
    assert oper("run", "chain.yaml", "--length=40") == 0
    assert not Path("chained/clone").exists()


def test_a_conversion_that_was_made_and_not_noted_is_done(
    small_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("chain.yaml").write_text(
        f"folder: c\nlinks:\n  flat: convert {small_file} --to=tianshou --output=c/made.hdf5\n"
    )
    assert oper("run", "chain.yaml") == 0
    ledger = Path("c/chain.json")
    ledger.write_text(ledger.read_text().replace('"done": true', '"done": false'))  # as a killed chain leaves it
    made = Path("c/made.hdf5").read_bytes()
    assert oper("run", "chain.yaml") == 0
    assert "# flat: done already" in capfd.readouterr().out
    assert '"done": true' in ledger.read_text()
    assert Path("c/made.hdf5").read_bytes() == made
    # What lay there before the link began is somebody else's.
    ledger.unlink()
    for _ in range(2):
        assert oper("run", "chain.yaml") == 1
        assert "c/made.hdf5: exists already" in capfd.readouterr().err


def test_a_missing_yaml_is_found_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    links = (
        "links:\n  data: collect --environment=Pendulum-v1 --steps=60\n  clone: fit --config={data}/{yaml} --model=BC\n"
    )
    Path("chain.yaml").write_text(f"folder: chained\n{links}".replace("{data}/{yaml}", "configs/pendulm.yaml"))
    assert oper("run", "chain.yaml") == 1
    line = capfd.readouterr().err
    assert "chain.yaml: link 'clone': configs/pendulm.yaml: no such configuration" in line
    assert not Path("chained").exists()
    # One that an earlier link writes cannot be there yet.
    Path("chain.yaml").write_text(f"folder: chained\n{links}".replace("{yaml}", "config.yaml"))
    assert oper("run", "chain.yaml") == 1
    assert Path("chained/data-v0").exists()


def test_collections_of_a_changed_policy_have_to_go_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = "--model=BC --model.hidden_sizes=[8] --data.source=Minari --data.updates_per_epoch=20 --data.batch_size=16"
    text = f"""
folder: chained
rounds: 2
set: {{length: 20}}
links:
  data: collect {{clone.before}}/last.ckpt --environment=Pendulum-v1 --steps=60
  clone: fit {small} --data.rollouts=null --data.source.id={{data}} --trainer.max_steps={{length}}
"""
    Path("chain.yaml").write_text(text)
    assert oper("run", "chain.yaml") == 0
    capfd.readouterr()
    assert oper("run", "chain.yaml", "--length=40") == 1
    line = capfd.readouterr().err
    assert line.endswith("or delete chained/clone_0 and chained/data_1-v0 and chained/clone_1\n")
    for name in ("clone_0", "data_1-v0", "clone_1"):
        shutil.rmtree(f"chained/{name}")
    assert oper("run", "chain.yaml", "--length=40") == 0
    assert "# data_0: done already" in capfd.readouterr().out
