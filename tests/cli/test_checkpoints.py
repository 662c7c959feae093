"""A checkpoint is looked at before anything uses it: what is missing or wrong in it is one line that names the file."""

from __future__ import annotations

import copy
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import oper
from runs import QUICK, changed, trained

from oper_lightning.algorithms.td3_bc import TD3BC
from oper_lightning.errors import InputError

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return trained(tmp_path_factory.mktemp("checkpoints"))


def without(section: str) -> Change:
    return lambda checkpoint: checkpoint.pop(section)


def having(section: str, value: Any) -> Change:
    return lambda checkpoint: checkpoint.update({section: value})


def moments(change: Change) -> Change:
    """Changes what the first optimiser knows of its first parameter."""
    return lambda checkpoint: change(checkpoint["optimizer_states"][0]["state"][0])


def group(**values: Any) -> Change:
    return lambda checkpoint: checkpoint["optimizer_states"][0]["param_groups"][0].update(values)


def hyper(**values: Any) -> Change:
    return lambda checkpoint: checkpoint["hyper_parameters"].update(values)


def spec(**values: Any) -> Change:
    return lambda checkpoint: checkpoint["spec"].update(values)


WIDE = torch.zeros(1).expand(10**9)
TO_GO_ON: dict[str, tuple[Change, str]] = {
    "no optimisers": (without("optimizer_states"), "has no optimizer_states"),
    "none of the optimisers": (having("optimizer_states", []), "states of 0 optimisers; TD3BC has 2"),
    "optimisers that are none": (having("optimizer_states", [None, None]), "optimiser 0"),
    "forgotten states": (lambda c: [state["state"].clear() for state in c["optimizer_states"]], "have no states"),
    "a parameter without state": (lambda c: c["optimizer_states"][0]["state"].pop(1), "3 of 4 parameters"),
    "a moment of another shape": (moments(lambda s: s.update(exp_avg=torch.zeros(1))), "exp_avg of parameter 0"),
    "a moment that repeats itself": (
        moments(lambda s: s.update(exp_avg=torch.zeros(1).expand(8, 10))),
        "exp_avg of parameter 0",
    ),
    "a moment of another type": (moments(lambda s: s.update(exp_avg=s["exp_avg"].double())), "torch.float64"),
    "a moment that is missing": (moments(lambda s: s.pop("exp_avg_sq")), "exp_avg_sq"),
    "a moment that is text": (moments(lambda s: s.update(exp_avg="text")), "of type str"),
    "a moment that is not finite": (moments(lambda s: s["exp_avg"].fill_(torch.nan)), "not finite"),
    "steps of another shape": (moments(lambda s: s.update(step=torch.zeros(3))), "step of parameter 0"),
    "steps of less than nothing": (moments(lambda s: s["step"].fill_(-1)), "step of parameter 0 is negative"),
    "steps of unequal number": (moments(lambda s: s["step"].add_(1)), "parameters have made 10 to 11 steps"),
    "squares below zero": (moments(lambda s: s["exp_avg_sq"].fill_(-1)), "exp_avg_sq of parameter 0 is negative"),
    "fewer parameters": (group(params=[0]), "a group of 1 parameters; 4 are needed"),
    "options that are text": (group(betas=("a", "b")), "options that are no numbers"),
    "a learning rate that is not finite": (group(lr=float("nan")), "lr is nan"),
    "a learning rate of text": (group(lr="fast"), "lr is of type str"),
    "steps that go nowhere": (group(betas=(0.9, 1.0)), "betas is (0.9, 1.0)"),
    "no groups": (lambda c: c["optimizer_states"][0]["param_groups"].clear(), "0 groups of parameters"),
    "no loops": (without("loops"), "has no loops"),
    "an empty loop": (lambda c: c["loops"]["fit_loop"].pop("epoch_progress"), "has no epoch_progress"),
    "text for a count": (
        lambda c: c["loops"]["fit_loop"]["epoch_progress"]["total"].update(ready="x"),
        "epoch_progress.total.ready",
    ),
    "no callbacks": (without("callbacks"), "has no callbacks"),
    "empty callbacks": (lambda c: [state.clear() for state in c["callbacks"].values()], "has no monitor"),
    "no order of the data": (without("OfflineDataModule"), "has no OfflineDataModule"),
    "half an order of the data": (lambda c: c["OfflineDataModule"].pop("drawn"), "OfflineDataModule has no drawn"),
    "a loader's progress as text": (lambda c: c["OfflineDataModule"].update(drawn="x"), "OfflineDataModule.drawn"),
}
TO_USE: dict[str, tuple[Change, str]] = {
    "no networks": (without("state_dict"), "has no state_dict"),
    "no spec": (without("spec"), "has no spec"),
    "no hyper-parameters": (without("hyper_parameters"), "has no hyper_parameters"),
    "hyper-parameters in a list": (having("hyper_parameters", [1]), "hyper_parameters"),
    "hyper-parameters that hold tensors": (hyper(alpha=torch.ones(3)), "'alpha' is a Tensor"),
    "hyper-parameters that are nan": (hyper(tau=float("nan")), "'tau' is not a number"),
    "hyper-parameters that are text": (hyper(alpha="text"), "model.alpha: 'text' is not a number"),
    "hyper-parameters unknown": (hyper(alpa=2.0), "did you mean 'alpha'?"),
    "hyper-parameters of null": (hyper(hidden_sizes=None), "hidden_sizes is null"),
    "layers of less than nothing": (hyper(hidden_sizes=[-8]), "hidden_sizes: layers of 10, -8, 2 units"),
    "layers beyond memory": (hyper(hidden_sizes=[10**9, 10**9]), "of memory"),
    "steps beyond all numbers": (hyper(policy_freq=0), "policy_freq 0"),
    "a network that is text": (lambda c: c["state_dict"].update({"actor.body.0.weight": "x"}), "actor.body.0.weight"),
    "a network that is complex": (
        lambda c: c["state_dict"].update({"actor.body.0.bias": torch.zeros(8, dtype=torch.complex64)}),
        "actor.body.0.bias",
    ),
    "a network that is sparse": (
        lambda c: c["state_dict"].update({"actor.body.0.bias": torch.zeros(8).to_sparse()}),
        "actor.body.0.bias",
    ),
    "a network that is not finite": (
        lambda c: c["state_dict"]["actor.body.0.weight"].fill_(torch.nan),
        "actor.body.0.weight is not finite",
    ),
    "half a spec": (lambda c: c["spec"].pop("rows"), "lacks rows"),
    "more than a spec": (spec(columns=3), "unknown entry columns"),
    "a shape of text": (spec(observation_shape=["ten"]), "observation_shape"),
    "a deviation of another shape": (spec(observation_std=torch.ones(3)), "observation_std"),
    "a mean that is not finite": (spec(observation_mean=torch.full((10,), torch.nan)), "observation_mean"),
    "a spec that announces much": (
        spec(observation_shape=[10**9], observation_mean=WIDE, observation_std=WIDE),
        "observation_mean",
    ),
    "another Lightning": (having("pytorch-lightning_version", "0.1"), "Lightning 0.1"),
    "a class that is a number": (having("class_path", 5), "class_path"),
}


@pytest.mark.parametrize("case", TO_GO_ON)
def test_training_goes_on_from_whole_checkpoints_only(case: str, run: Path, refused: Callable[..., str]) -> None:
    change, words = TO_GO_ON[case]
    file = changed(run, change)
    line = refused("fit", f"--ckpt_path={file}", "--trainer.max_steps=40")
    assert line.startswith(f"{file}: "), line
    assert words in line


@pytest.mark.parametrize("case", TO_USE)
def test_networks_come_from_whole_checkpoints_only(case: str, run: Path, refused: Callable[..., str]) -> None:
    change, words = TO_USE[case]
    file = changed(run, change)
    for verb in ("predict", "validate"):
        line = refused(verb, f"--ckpt_path={file}", "--data.rollouts.environment=Reacher-v5")
        assert str(file) in line
        assert words in line


def test_what_is_no_file_in_the_place_of_the_last_checkpoint_is_not_passed_over(
    run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = shutil.copytree(run, tmp_path / "again")
    (folder / "last.ckpt").unlink()
    (folder / "last.ckpt").symlink_to("/dev/zero")
    line = refused("fit", f"--config={folder / 'config.yaml'}", f"--output={folder}", "--ckpt_path=last")
    assert line.startswith(f"{folder / 'last.ckpt'}: is no regular file")


def test_judging_does_not_need_what_training_needs(run: Path) -> None:
    file = changed(run, lambda c: [c.pop(name) for name in ("loops", "callbacks", "optimizer_states")])
    assert oper("predict", f"--ckpt_path={file}") == 0


def test_as_a_library(run: Path) -> None:
    for case, words in (("half a spec", "lacks rows"), ("a network that is not finite", "not finite")):
        file = changed(run, TO_USE[case][0], case)
        with pytest.raises(InputError, match=f"the checkpoint.*{words}"):
            TD3BC.load_from_checkpoint(file, weights_only=True)


def test_compressed_entries_are_refused(run: Path, refused: Callable[..., str]) -> None:
    with zipfile.ZipFile(run / "last.ckpt") as old, zipfile.ZipFile("small.ckpt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert "small.ckpt: not a checkpoint of oper-lightning: its entries are compressed" in refused(
        "predict", "--ckpt_path=small.ckpt"
    )


def test_stage_ones_iterations(tmp_path_factory: pytest.TempPathFactory, refused: Callable[..., str]) -> None:
    run = trained(tmp_path_factory.mktemp("stage"), "OperA", "--model.iterations=1")
    whole = torch.load(run / "last.ckpt", weights_only=True)["iterations"]
    for number, value in enumerate(("text", whole[:2], [[], *whole[1:]], [[torch.ones(3)]] * 3)):
        file = changed(run, having("iterations", copy.deepcopy(value)), f"stage{number}")
        line = refused("predict", f"--ckpt_path={file}")
        assert str(file) in line
        assert "iterations" in line


# Where a checkpoint is, and what comes with it -----------------------------------------------------------------------


def test_the_folder_of_a_run(run: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]) -> None:
    shutil.copytree(run, "run")
    shutil.copy("run/last.ckpt", "run/best.ckpt")
    assert oper("predict", "--ckpt_path=run") == 0
    assert "oper: run: taking run/best.ckpt" in capsys.readouterr().err
    assert oper("fit", "--ckpt_path=run", "--trainer.max_steps=40") == 0
    assert "oper: run: going on from run/last.ckpt" in capsys.readouterr().err
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 40
    Path("empty").mkdir()
    assert "empty: no best.ckpt or last.ckpt" in refused("predict", "--ckpt_path=empty")
    assert "did you mean 'last.ckpt'?" in refused("predict", "--ckpt_path=run/lats.ckpt")
    assert "did you mean 'run'?" in refused("predict", "--ckpt_path=rum")
    assert "nowhere is no folder" in refused("predict", "--ckpt_path=nowhere/last.ckpt")


def test_the_trainer_is_todays(run: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]) -> None:
    shutil.copytree(run, "run")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    config["trainer"].update(max_time="00:00:00:00", devices=2, precision="bf16-mixed", log_every_n_steps=7)
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    line = refused("fit", "--ckpt_path=run")
    assert "(this run had 20: --trainer.max_steps=20, or --config=run/config.yaml)" in line
    assert oper("fit", "--ckpt_path=run", "--trainer.max_steps=40") == 0
    assert "run: update 40; last.ckpt" in capsys.readouterr().out
    now = yaml.safe_load(Path("run/config.yaml").read_text())["trainer"]
    assert (now["max_time"], now["devices"], now["log_every_n_steps"]) == (None, 1, 500)
    # A run that ends before its length says so, and why.
    assert oper("fit", "--ckpt_path=run", "--trainer.max_steps=60", "--trainer.max_time=00:00:00:00") == 0
    out = capsys.readouterr().out
    assert "run: update 40 of 60: the time is up" in out
    assert "; no update was made; last.ckpt" in out
    assert oper("fit", "--ckpt_path=run", "--trainer.max_steps=20") == 0
    assert "run: update 40; no update was made, trainer.max_steps is 20; last.ckpt" in capsys.readouterr().out
    assert oper("fit", "--ckpt_path=run", "--trainer.max_steps=80", "--trainer.max_epochs=3") == 0
    assert "of 80: trainer.max_epochs 3 are over" in capsys.readouterr().out


def test_data_that_have_moved(run: Path, refused: Callable[..., str]) -> None:
    shutil.copytree(run, "run")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    config["data"]["init_args"]["source"]["init_args"]["path"] = "moved.hdf5"
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    place = f"moved.hdf5: no such file (looked for at {Path.cwd()}/moved.hdf5)"
    for words in (
        ("predict", "--ckpt_path=run"),
        ("fit", "--ckpt_path=run", "--trainer.max_steps=40"),
        ("inspect", "run"),
    ):
        line = refused(*words)
        assert place in line
        assert "run/config.yaml" in line


def test_arguments_younger_than_a_run_are_no_changes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, "run")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    del config["data"]["init_args"]["source"]["init_args"]["allow_external"]
    del config["model"]["init_args"]["compile"]
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    assert oper("fit", "--ckpt_path=run", "--trainer.max_steps=40", "--data.priority=OperR") == 0
    changes = [line for line in capsys.readouterr().err.splitlines() if "in this run, now it is" in line]
    assert any("data.init_args.priority.class_path was None" in line for line in changes)
    assert not any("allow_external" in line or "compile" in line for line in changes)


def test_updates_of_other_rows_are_noted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, "run")
    assert oper("fit", "--ckpt_path=run", "--trainer.max_steps=40", "--data.batch_size=16") == 0
    assert "updates see 16 rows now" in (errors := capsys.readouterr().err)
    assert "32 before" in errors


def test_rewards_in_other_units_are_noted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, "run")
    assert oper("fit", "--ckpt_path=run", "--trainer.max_steps=40", "--data.reward_scale=sign") == 0
    now, before = (f"data.reward_scale {scale} and data.reward_shift 0.0" for scale in ("sign", 1.0))
    assert f"{now} now, {before} before" in capsys.readouterr().err
    shutil.rmtree("run")
    shutil.copytree(run, "run")
    assert oper("fit", "--ckpt_path=run", "--trainer.max_steps=40") == 0
    assert "before" not in capsys.readouterr().err
    # A checkpoint of an earlier version does not know.
    file = changed(run, lambda checkpoint: checkpoint["OfflineDataModule"].pop("rewards"))
    assert oper("fit", f"--ckpt_path={file}", "--trainer.max_steps=40") == 0


def test_a_folder_for_data_is_not_taken_from_a_file(run: Path) -> None:
    """What lies in data.memmap_folder is replaced: only a command may name it."""
    shutil.copytree(run, "run")
    Path("kept/transitions").mkdir(parents=True)
    Path("kept/transitions/notes.txt").write_text("mine")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    config["data"]["init_args"].update(location="memmap", memmap_folder="kept")
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    assert oper("predict", "--ckpt_path=run", *QUICK) == 0
    assert Path("kept/transitions/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xff\xfe", "cannot read it as text in UTF-8"),
        (b"- 1\n", "names with values"),
        (b"data: [\n", "not valid yaml"),
        (b"data: 5\n", "data is 5"),
        (b"data: {init_args: {batchsize: 3}}\n", "did you mean 'batch_size'?"),
        (b"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
            b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(6)
        ), "more than 100,000 entries"),
    ],
    ids=["no text", "a list", "no yaml", "a number", "an unknown argument", "a bomb"],
)  # fmt: skip
def test_the_configuration_beside_a_checkpoint(text: bytes, words: str, run: Path, refused: Callable[..., str]) -> None:
    shutil.copytree(run, "run")
    Path("run/config.yaml").write_bytes(text)
    line = refused("predict", "--ckpt_path=run/last.ckpt")
    assert "config.yaml" in line
    assert words in line
