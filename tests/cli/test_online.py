"""Online runs by the command: stopped, gone on, in other folders, and in an environment that does not repeat itself."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from helpers import columns, oper, write_hdf5

from oper_lightning.data import log


class Unrepeatable(gymnasium.Env[np.ndarray, np.ndarray]):
    """Its noise has no seed."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict[str, object]]:
        self.count = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
        self.count += 1
        noise = np.random.normal(size=3).astype(np.float32)  # noqa: NPY002
        return noise, float(noise[0]), False, self.count == 30, {}


gymnasium.register("Unrepeatable-v0", Unrepeatable, disable_env_checker=True)


def fit(output: str, *words: str, environment: str = "Pendulum-v1", steps: int = 200) -> int:
    return oper(
        "fit", "--data=OnlineDataModule", f"--data.environment={environment}", "--data.parallel=2",
        "--data.warmup=100", "--data.batch_size=16", "--data.rollouts=null", "--data.updates_per_epoch=50",
        "--data.updates_per_step=0.5", "--model=TD3BC", "--model.hidden_sizes=[8]", f"--trainer.max_steps={steps}",
        "--model.normalise_observations=false", f"--output={output}", *words,
    )  # fmt: skip


def gathered(run: str) -> dict[str, torch.Tensor]:
    whole = (slice(None), slice(None))
    parts = [log.steps(log.read(path)[0], whole) for _, _, path in log.files(Path(run) / "replay")]
    return {key: torch.cat([part[key] for part in parts], 1) for key in parts[0]}


def same(first: str, second: str) -> bool:
    """Whether two runs ended with the same parameters, and gathered the same."""
    one, other = (torch.load(Path(run) / "last.ckpt", weights_only=True) for run in (first, second))
    logs = gathered(first), gathered(second)
    return (
        one["global_step"] == other["global_step"]
        and all(value.equal(other["state_dict"][key]) for key, value in one["state_dict"].items())
        and all(value.equal(logs[1][key]) for key, value in logs[0].items())
    )


def test_a_run_that_is_made_longer_is_the_longer_run() -> None:
    assert fit("whole") == 0
    assert fit("part", steps=100) == 0
    assert fit("part", "--ckpt_path=last") == 0
    assert same("whole", "part")


def test_a_run_goes_on_in_another_folder() -> None:
    assert fit("whole") == 0
    assert fit("part", steps=100) == 0
    before = {path.name: path.read_bytes() for path in Path("part/replay").iterdir()}
    assert fit("moved", "--ckpt_path=part/last.ckpt") == 0
    assert same("whole", "moved")
    assert {path.name: path.read_bytes() for path in Path("part/replay").iterdir()} == before


def test_with_recorded_rows_too() -> None:
    write_hdf5(Path("small.hdf5"), columns([25] * 8, 3, 1))
    words = ["--data.source=D4RL", "--data.source.path=small.hdf5", "--data.offline_share=0.5", "--data.priority=OperR"]
    assert fit("whole", *words) == 0
    assert fit("part", *words, steps=100) == 0
    assert fit("part", *words, "--ckpt_path=last") == 0
    assert same("whole", "part")


def test_an_environment_that_does_not_repeat_itself_is_noted(capfd: pytest.CaptureFixture[str]) -> None:
    assert fit("run", environment="Unrepeatable-v0", steps=100) == 0
    before = gathered("run")
    steps = before["reward"].shape[1]
    assert steps % 30, "episodes are running"
    capfd.readouterr()
    assert fit("run", "--ckpt_path=last", environment="Unrepeatable-v0") == 0
    assert "does not repeat itself" in capfd.readouterr().err
    after = gathered("run")
    for key, column in before.items():
        if key != "truncated":
            assert column.equal(after[key][:, :steps]), key
    assert after["truncated"][:, steps - 1].all()
    ends = after["truncated"].nonzero()
    expected = [*range(29, steps, 30), steps - 1, *range(steps + 29, after["reward"].shape[1], 30)]
    assert ends[ends[:, 0] == 0, 1].tolist() == ends[ends[:, 0] == 1, 1].tolist() == expected


@pytest.mark.parametrize("broken", ["gone", "gap", "short", "foreign", "copies"])
def test_what_does_not_fit_the_checkpoint_is_refused_in_a_line(broken: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert fit("run", steps=100) == 0
    files = sorted(Path("run/replay").iterdir())
    words = []
    if broken == "gone":
        shutil.rmtree("run/replay")
    elif broken == "gap":
        files[0].unlink()
    elif broken == "short":
        files[-1].unlink()
    elif broken == "foreign":
        files[-1].write_bytes(b"nothing")
    else:
        words = ["--data.parallel=1"]
    capfd.readouterr()
    assert fit("run", "--ckpt_path=last", *words) == 1
    lines = capfd.readouterr().err.strip().splitlines()
    assert len([line for line in lines if "error" in line]) == 1
    assert ("data.parallel" if broken == "copies" else "replay") in lines[-1]


def test_weights_that_came_before_the_first_checkpoint_are_no_log(small_file: Path) -> None:
    """OPER-A's are written after each of its iterations."""
    Path("run").mkdir()
    Path("run/weights.safetensors").write_bytes(b"weights")
    words = ["--data.source=D4RL", f"--data.source.path={small_file}", "--data.rollouts=null", "--trainer.max_steps=4"]
    assert oper("fit", "--model=BC", "--model.hidden_sizes=[8]", *words, "--output=run", "--ckpt_path=last") == 0


def test_only_the_first_rank_removes_what_a_run_without_a_checkpoint_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from oper_lightning.cli.verbs import OperCLI

    Path("run/replay").mkdir(parents=True)
    left = Path("run/replay/000000000-000000005.safetensors")
    removed = []
    monkeypatch.setattr(OperCLI, "instantiate_classes", lambda *_: removed.append(not left.exists()))
    monkeypatch.setattr(OperCLI, "_run_subcommand", lambda *_: None)
    for rank, gone in (("1", False), ("0", True)):
        left.write_bytes(b"a log")
        monkeypatch.setenv("RANK", rank)
        fit("run", "--ckpt_path=last")
        assert removed[-1] is gone, rank


def test_what_a_kill_left_of_a_log_that_was_brought_is_no_hindrance() -> None:
    assert fit("whole") == 0
    assert fit("part", steps=100) == 0
    Path("moved/replay.part").mkdir(parents=True)
    Path("moved/replay.part/000000000-000000005.safetensors").write_bytes(b"half")
    assert fit("moved", "--ckpt_path=part/last.ckpt") == 0
    assert same("whole", "moved")
    assert not Path("moved/replay.part").exists()


def test_a_file_of_the_log_that_was_half_written_goes() -> None:
    assert fit("run", steps=100) == 0
    Path("run/replay/000000250-000000263.safetensors.part").write_bytes(b"half")
    assert fit("run", "--ckpt_path=last") == 0
    assert not list(Path("run/replay").glob("*.part"))


def test_a_log_that_cannot_be_brought_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert fit("part", steps=100) == 0
    monkeypatch.setattr(log.os, "link", full)
    monkeypatch.setattr(log.shutil, "copyfile", full)
    capfd.readouterr()
    assert fit("moved", "--ckpt_path=part/last.ckpt") == 1
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert "moved/replay: cannot copy" in line
    assert "No space left on device" in line
    assert not list(Path("moved").glob("replay*"))


def test_a_checkpoint_with_impossible_numbers_removes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert fit("run", steps=100) == 0
    before = sorted(Path("run/replay").iterdir())
    checkpoint = torch.load("run/last.ckpt", weights_only=True)
    checkpoint["OnlineDataModule"].update(steps=-90, drawn=-90)
    torch.save(checkpoint, "run/last.ckpt")
    capfd.readouterr()
    assert fit("run", "--ckpt_path=last") == 1
    assert "do not fit data.warmup" in capfd.readouterr().err
    assert sorted(Path("run/replay").iterdir()) == before
