"""Lightning's options and callbacks through `oper fit`: each works as documented, after a resume too, or is refused."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from helpers import oper
from lightning.pytorch import Trainer, callbacks, loggers
from safetensors.torch import load_file

DOCS = Path(__file__).parents[2] / "docs" / "lightning.md"
EPISODE = "--data.rollouts={episodes: 1, parallel: 1, steps: 3}"


def words(file: Path, folder: Path, updates: int = 60) -> list[str]:
    return [
        "fit", "--model=TD3BC", "--model.hidden_sizes=[8]", "--data.source=D4RL", f"--data.source.path={file}",
        "--data.updates_per_epoch=20", "--data.updates_per_block=5", "--data.batch_size=16", EPISODE,
        f"--trainer.max_steps={updates}", "--trainer.accelerator=cpu", f"--output={folder}",
    ]  # fmt: skip


def named(name: str, **arguments: Any) -> dict[str, Any]:
    path = name if "." in name else f"lightning.pytorch.callbacks.{name}"
    return {"class_path": path, "init_args": arguments}


def callback(name: str, **arguments: Any) -> str:
    return f"--trainer.callbacks={json.dumps([named(name, **arguments)])}"


def option(name: str, value: object) -> str:
    return f"--trainer.{name}={value}"


def checkpoint(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def same_end(first: Path, second: Path) -> bool:
    """Whether two runs ended alike: networks, counters, and what was best."""
    one, other = (checkpoint(folder / "last.ckpt") for folder in (first, second))
    assert one["loops"]["fit_loop"] == other["loops"]["fit_loop"]
    best = [folder / "best.ckpt" for folder in (first, second)]
    assert best[0].exists() == best[1].exists()
    if best[0].exists():
        assert checkpoint(best[0])["global_step"] == checkpoint(best[1])["global_step"]
    return all(value.equal(other["state_dict"][name]) for name, value in one["state_dict"].items())


def returns(text: str) -> list[tuple[str, str]]:
    """Updates and returns of the lines that show one."""
    return re.findall(r"update ([\d,]+)/\S+  return (\S+)", text)


REFUSED = {
    "precision 64": ([option("precision", "64-true")], "trainer.precision 64-true does not work"),
    "accumulate": ([option("accumulate_grad_batches", 2)], "take a larger data.batch_size"),
    "clip": ([option("gradient_clip_val", 0.5)], "do not clip"),
    "overfit": ([option("overfit_batches", 1)], "trainer.overfit_batches: an epoch is as long as"),
    "limit": ([option("limit_train_batches", 0.5)], "trainer.limit_train_batches: an epoch is as long as"),
    "interval": ([option("val_check_interval", 7)], "7 is no multiple of the 5 updates of a block: choose 5"),
    "long interval": ([option("val_check_interval", 30)], "set trainer.check_val_every_n_epoch to null"),
    "io": ([option("plugins", "TorchCheckpointIO")], "checkpoints are written by this package"),
    "fsdp": ([option("strategy", "fsdp")], "requires a GPU"),
    "engine": ([option("precision", "transformer-engine")], "transformer_engine"),
    "not installed": ([option("logger", "MLFlowLogger")], "MLFlowLogger: Requirement 'mlflow"),
    "swa": ([callback("StochasticWeightAveraging", swa_lrs=0.001)], "StochasticWeightAveraging does not work here"),
    "accumulation": ([callback("GradientAccumulationScheduler", scheduling={0: 2})], "every batch makes an update"),
    "batch size": ([callback("BatchSizeFinder")], "name it in data.batch_size"),
    "rates": ([callback("LearningRateFinder")], "name them in model"),
    "pruning": ([callback("ModelPruning", pruning_fn="l1_unstructured")], "ModelPruning does not work here"),
    "finetuning": ([callback("BackboneFinetuning")], "BackboneFinetuning does not work here"),
    "spike": ([callback("lightning.pytorch.callbacks.spike.SpikeDetection")], "SpikeDetection does not work here"),
    "exception": ([callback("OnExceptionCheckpoint", dirpath="x")], "within a block of updates"),
    "averaging": ([callback("EMAWeightAveraging")], "set data.updates_per_block to 1"),
    "rate per step": ([callback("LearningRateMonitor", logging_interval="step")], "set logging_interval to epoch"),
    "save by 7": ([callback("ModelCheckpoint", every_n_train_steps=7)], "7 is no multiple of the 5"),
    "save by time": ([callback("ModelCheckpoint", train_time_interval="0:01:00")], "use every_n_train_steps"),
    "save on exception": ([callback("ModelCheckpoint", save_on_exception=True)], "save_on_exception could save within"),
    "unmeasured": (
        [callback("ModelCheckpoint", every_n_train_steps=10, monitor="eval/return")],
        "leave every_n_train_steps out",
    ),
    "nothing scored": (
        [callback("EarlyStopping", monitor="eval/return"), "--data.rollouts=null"],
        "EarlyStopping monitors eval/return, but nothing is scored",
    ),
    "no such number": ([callback("EarlyStopping", monitor="train/loss")], "`train/critic_loss`"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(
    name: str, small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, said = REFUSED[name]
    assert oper(*words(small_file, tmp_path / "run"), *more) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("oper: error: ")
    assert said in line


GOES_ON = {
    "within epochs": [option("val_check_interval", 10)],
    "across epochs": [option("val_check_interval", 15), option("check_val_every_n_epoch", "null")],
    "every second epoch": [option("check_val_every_n_epoch", 2)],
    "early stopping": [callback("EarlyStopping", monitor="train/critic_loss", patience=9), "--data.rollouts=null"],
    "checkpoints": [callback("ModelCheckpoint", every_n_train_steps=10, save_top_k=-1, filename="{step}")],
    "averaging": [callback("EMAWeightAveraging", decay=0.9), "--data.updates_per_block=1"],
    "bar and logs": [
        "--trainer.callbacks=" + json.dumps([named("TQDMProgressBar"), named("LearningRateMonitor"), named("Timer")]),
        option("num_sanity_val_steps", 1),
        option("log_every_n_steps", 0),
    ],
}


@pytest.mark.parametrize("name", GOES_ON)
def test_a_resumed_run_is_the_one_that_was_left_alone(
    name: str, small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert oper(*words(small_file, whole), *GOES_ON[name]) == 0
    alone = returns(capsys.readouterr().err)
    assert oper(*words(small_file, parts, 20), *GOES_ON[name]) == 0
    assert oper(*words(small_file, parts), *GOES_ON[name], "--ckpt_path=last") == 0
    assert returns(capsys.readouterr().err) == alone
    assert same_end(whole, parts)
    # From within an epoch, before or after an evaluation, too.
    for number, path in enumerate([*whole.glob("best.ckpt"), *whole.glob("checkpoints/*[1356]0.ckpt")]):
        other = tmp_path / str(number)
        assert oper(*words(small_file, other), *GOES_ON[name], f"--ckpt_path={path}") == 0
        said = returns(capsys.readouterr().err)
        assert said == alone[len(alone) - len(said) :]
        assert checkpoint(other / "last.ckpt")["loops"] == checkpoint(whole / "last.ckpt")["loops"]
        for key, value in checkpoint(other / "last.ckpt")["state_dict"].items():
            assert value.equal(checkpoint(whole / "last.ckpt")["state_dict"][key])


def test_weights_of_stage_1_do_not_depend_on_where_it_was_interrupted(small_file: Path, tmp_path: Path) -> None:
    """From checkpoints within an iteration, and from one that stands just before the last iteration's end."""
    more = ["--model=OperA", "--model.iterations=2", "--model.hidden_sizes=[8]", "--data.rollouts=null"]
    saves = callback("ModelCheckpoint", every_n_train_steps=10, save_top_k=-1, filename="{step}")
    assert oper(*words(small_file, tmp_path / "whole", 40), *more, saves) == 0
    weights = load_file(tmp_path / "whole" / "weights.safetensors")
    for step in (10, 20, 30, 40):
        folder = tmp_path / str(step)
        start = f"--ckpt_path={tmp_path}/whole/checkpoints/step={step}.ckpt"
        assert oper(*words(small_file, folder, 40), *more, start) == 0
        again = load_file(folder / "weights.safetensors")
        assert all(value.equal(again[name]) for name, value in weights.items())


def test_best_is_the_network_that_was_scored(
    small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert oper(*words(small_file, folder), option("val_check_interval", 10)) == 0
    measured = {int(update): float(value) for update, value in returns(capsys.readouterr().err)}
    assert [*measured] == [10, 20, 30, 40, 50, 60]
    best = checkpoint(folder / "best.ckpt")["global_step"]
    assert measured[best] == max(measured.values())  # two may look alike in a line
    assert oper("validate", f"--ckpt_path={folder}/best.ckpt") == 0
    assert f"return {measured[best]:.2f} " in capsys.readouterr().out


def test_lines_show_losses_always_and_returns_when_measured(
    small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every_third = [option("check_val_every_n_epoch", 3), "--data.priority=OperR"]
    assert oper(*words(small_file, tmp_path / "run", 80), *every_third) == 0
    read, does, *lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(r"small\.hdf5: 1,000 transitions in 40 episodes; OperR draws .* \(effective share \d+%\)$", read)
    assert "updates 1 to 80 with batches of 16 on cpu in 32-true; a checkpoint every 20; scored over 1" in does
    assert ["return" in line for line in lines] == [False, False, True, False]
    assert all(re.search(r"critic_loss [\d.e+-]+ ", line) for line in lines)
    assert oper(*words(small_file, tmp_path / "blind"), "--data.rollouts=null") == 0
    _, does, *lines = capsys.readouterr().err.strip().splitlines()
    assert does.endswith("without rollouts in an environment nothing is scored")
    assert ["critic_loss" in line for line in lines] == [True] * 3


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([option("max_epochs", 2)], "update 40 of 60: trainer.max_epochs 2 are over"),
        ([callback("Timer", duration={"seconds": 0}, interval="epoch")], "update 0 of 60: the time is up"),
        (
            [callback("EarlyStopping", monitor="train/critic_loss", stopping_threshold=1e9)],
            "update 20 of 60: Stopping threshold reached",
        ),
    ],
)
def test_an_early_end_says_why(
    more: list[str], reason: str, small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert oper(*words(small_file, tmp_path / "run"), *more) == 0
    assert reason in capsys.readouterr().out


class Lab(ReacherEnv):
    """Reacher in a laboratory that can be closed."""

    closed = False

    def step(self, action: np.ndarray) -> Any:
        if Lab.closed:
            raise OSError("the laboratory is closed")
        return super().step(action)


gymnasium.register("Lab-v0", Lab, max_episode_steps=3)


@pytest.mark.parametrize("updates", [20, 40])
def test_a_failing_evaluation_loses_nothing(
    updates: int, small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first evaluation comes at update 20, which is the end of one of the runs."""
    here = ["--data.rollouts={episodes: 1, parallel: 1, environment: Lab-v0}"]
    assert oper(*words(small_file, tmp_path / "whole", updates), *here) == 0
    alone = returns(capsys.readouterr().err)
    monkeypatch.setattr(Lab, "closed", True)
    assert oper(*words(small_file, tmp_path / "run", updates), *here) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"'Lab-v0' failed in the episode of seed 10000 at step 1: the laboratory is closed", line)
    assert checkpoint(tmp_path / "run" / "last.ckpt")["global_step"] == 20
    monkeypatch.setattr(Lab, "closed", False)
    assert oper(*words(small_file, tmp_path / "run", updates), *here, "--ckpt_path=last") == 0
    assert returns(capsys.readouterr().err) == alone
    assert same_end(tmp_path / "whole", tmp_path / "run")


def test_runs_without_checkpoints_or_for_a_try(small_file: Path, tmp_path: Path) -> None:
    for number, more in enumerate(
        [
            [option("enable_checkpointing", "false"), option("logger", "false")],
            [option("barebones", "true")],
            [option("fast_dev_run", 3)],
        ]
    ):
        folder = tmp_path / str(number)
        assert oper(*words(small_file, folder), *more) == 0
        assert not [*folder.glob("*.ckpt")]


def test_several_loggers_get_the_same_numbers_by_updates(small_file: Path, tmp_path: Path) -> None:
    several = [
        {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": {"save_dir": "logs"}}
        for name in ("CSVLogger", "TensorBoardLogger")
    ]
    more = [f"--trainer.logger={json.dumps(several)}", option("log_every_n_steps", 10)]
    assert oper(*words(small_file, tmp_path / "run"), *more, callback("LearningRateMonitor")) == 0
    (table,) = Path("logs").rglob("metrics.csv")
    rows = [dict(zip(table.read_text().splitlines()[0].split(","), line.split(","), strict=True))
            for line in table.read_text().splitlines()[1:]]  # fmt: skip
    assert [row["step"] for row in rows if row["train/critic_loss"]] == ["10", "20", "30", "40", "50", "60"]
    assert [row["step"] for row in rows if row["eval/return"]] == ["20", "40", "60"]
    assert {row["step"] for row in rows if row["lr-Adam"]} <= {"0", "20", "40"}
    assert [*Path("logs").rglob("events.*")]


def test_the_page_names_every_option_callback_and_logger() -> None:
    page = DOCS.read_text()
    names = {*inspect.signature(Trainer.__init__).parameters} - {"self"}
    names |= {*callbacks.__all__, *loggers.__all__} - {"Callback", "Checkpoint", "ProgressBar", "Logger"}
    assert not {name for name in names if f"`{name}`" not in page}
