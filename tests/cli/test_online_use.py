"""Online runs as a person uses them: what they say, what they leave, and environments that misbehave."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from helpers import columns, oper, write_hdf5

from oper_lightning.data.sources.minari import Minari
from oper_lightning.data.sources.online_log import OnlineLog
from oper_lightning.data.table import Table
from oper_lightning.report.curves import read_curves


class Misbehaving(gymnasium.Env[np.ndarray, np.ndarray]):
    """After a number of steps it does what it must not."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, how: str) -> None:
        self.how, self.steps = how, 0

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict[str, object]]:
        self.count = 0
        if self.how == "hangs" and self.steps > 50:
            time.sleep(60)
        return np.zeros(3, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
        self.count += 1
        self.steps += 1
        late, seen = self.steps > 50, np.full(3, self.count / 20, np.float32)
        if late and self.how == "crashes":
            raise RuntimeError("the simulator lost its joint")
        if late and self.how == "nan":
            seen[1] = np.nan
        if late and self.how == "shape":
            seen = np.zeros(4, np.float32)
        return seen, np.inf if late and self.how == "reward" else 1.0, False, self.count == 20, {}


for how in ("crashes", "hangs", "nan", "shape", "reward", "never"):
    gymnasium.register(f"{how.capitalize()}-v0", Misbehaving, disable_env_checker=True, kwargs={"how": how})

MODEL = ["--model=TD3BC", "--model.hidden_sizes=[8]", "--model.normalise_observations=false"]
DATA = ["--data=OnlineDataModule", "--data.warmup=20", "--data.batch_size=16", "--data.updates_per_epoch=20"]
UNNAMED = "and there is no data.source: leave it out, or name one"


def fit(output: str, *words: str, environment: str = "Never-v0", steps: int = 100) -> int:
    where = f"--data.environment={environment}"
    return oper(
        "fit",
        *MODEL,
        *DATA,
        where,
        "--data.rollouts=null",
        f"--trainer.max_steps={steps}",
        f"--output={output}",
        *words,
    )


def test_steps_and_returns_are_said_and_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers by hand: 19 steps before the first block of one, episodes of 20 steps with a return of 20."""
    words = ["--trainer.log_every_n_steps=10", "--data.updates_per_block=1"]
    assert fit("whole", *words) == 0
    said = capsys.readouterr().err
    assert "nothing is recorded: all transitions are gathered in Never-v0" in said
    assert "gathers in Never-v0: 119 environment steps, 20 of them before the first update" in said
    assert "update 100/100  steps 119  return in training 20.00" in said
    curves = read_curves("whole")
    assert curves["online/steps"].updates == [*range(10, 101, 10)]
    assert curves["online/steps"].values == [19 + update for update in range(10, 101, 10)]
    assert curves["online/episodes"].values == [(19 + update) // 20 for update in range(10, 101, 10)]
    assert {*curves["online/return"].values} == {*curves["online/length"].values} == {20.0}
    assert fit("part", *words, steps=40) == 0
    capsys.readouterr()
    assert fit("part", *words, "--ckpt_path=last") == 0
    assert "119 environment steps, 59 of them already taken" in capsys.readouterr().err
    resumed = read_curves("part")
    for name in ("online/steps", "online/episodes", "online/return", "online/length"):
        assert dict(zip(*resumed[name], strict=True)) == dict(zip(*curves[name], strict=True)), name


def test_a_report_over_environment_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("one", "--data.rollouts.episodes=1", "--data.rollouts.parallel=1", "--data.updates_per_step=2") == 0
    assert fit("two", "--data.rollouts.episodes=1", "--seed_everything=1", "--trainer.log_every_n_steps=20") == 0
    assert oper("report", "one", "two", "--x=steps", "--output=page") == 0
    page = Path("page/report.md").read_text()
    assert "over environment steps" in page
    assert "over gradient updates" not in page
    assert "## Episodes in training" in page
    assert "| Never-v0 |" in page
    assert Path("page/report-episodes.png").is_file()
    file = write_hdf5(Path("small.hdf5"), columns([25] * 8, 3, 1))
    words = ["--data.source=D4RL", f"--data.source.path={file}", "--data.batch_size=16", "--data.updates_per_epoch=20"]
    assert oper("fit", *MODEL, *words, "--trainer.max_steps=20", "--output=offline") == 0
    capsys.readouterr()
    assert oper("report", "one", "offline", "--x=steps", "--output=other") == 1
    assert "offline: online/steps is not among what it logged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("crashes", "RuntimeError: the simulator lost its joint"),
        ("hangs", "no answer within 1 seconds"),
        ("nan", "its observation is not finite"),
        ("shape", "its observation has shape (4,) instead of (3,)"),
        ("reward", "its reward is inf"),
    ],
)
def test_an_environment_that_misbehaves_ends_the_run(how: str, why: str, capfd: pytest.CaptureFixture[str]) -> None:
    name = f"{how.capitalize()}-v0"
    assert fit("run", "--data.patience=1", environment=name) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("oper: error")]
    step = 59 if how == "hangs" else 50  # steps that had been taken
    assert len(errors) == 1
    assert f"environment '{name}' failed at step {step}: " in errors[0]
    assert why in errors[0]
    # All whole blocks are there, checkpoint or not: blocks of ten behind the warm-up's first ten.
    assert len(OnlineLog("run")) == 50
    assert fit("run", "--data.patience=1", "--ckpt_path=last", environment=name) == 0 or how


def test_a_dataset_at_the_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(Path("store").absolute()))
    words = ["--data.dataset=mine/explored-v0", "--data.parallel=2"]
    assert fit("run", *words, "--trainer.max_epochs=2") == 0
    assert "written when the run has reached trainer.max_steps" in capsys.readouterr().err
    assert not Path("store").exists()
    assert fit("run", *words, "--ckpt_path=last") == 0
    assert fingerprint(Minari("mine/explored-v0")) == fingerprint(OnlineLog("run"))
    assert Minari("mine/explored-v0").origin().environment == "Never-v0"
    assert not [path for path in Path("store/mine").iterdir() if path.name != "explored-v0"]
    assert fit("other", *words) == 1
    assert "data.dataset mine/explored-v0 exists already" in capsys.readouterr().err
    assert fit("other", "--data.dataset=mine") == 1
    assert "a Minari dataset is named like name-v0" in capsys.readouterr().err


def fingerprint(source: Any) -> str:
    import torch

    from oper_lightning.data.storage import fill

    return Table(source, fill(source, torch.device("cpu"))).recorded


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("online")
    assert fit(str(folder / "run"), "--data.warmup=30") == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--data.warmup=2"],
            "do not fit data.warmup 2 and data.updates_per_step 1: they must stay",
        ),
        (["--data.updates_per_step=2"], "do not fit data.warmup 30 and data.updates_per_step 2"),
        (["--data.updates_per_step=0.5"], "do not fit data.warmup 30 and data.updates_per_step 0.5"),
        (["--data.parallel=2"], "the run has gathered with 1 copies"),
        (["--trainer.max_steps=60"], "trainer.max_steps is 60, but the run has 100 updates behind it already"),
        (["--trainer.max_steps=-1", "--trainer.max_epochs=9"], "an online run needs its length"),
    ],
)
def test_what_a_run_that_goes_on_must_keep(
    finished: Path, words: list[str], line: str, refused: Callable[..., str]
) -> None:
    assert line in refused("fit", f"--ckpt_path={finished}/last.ckpt", "--output=on", "--trainer.max_steps=120", *words)


def test_judging_and_predicting(
    finished: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    judged = ["--data.rollouts.episodes=2", "--data.rollouts.environment=Never-v0", f"--output={finished.parent / 'j'}"]
    (finished.parent / "j").mkdir(exist_ok=True)
    for verb in ("validate", "test"):
        assert oper(verb, f"--ckpt_path={finished}", *judged) == 0
        assert json.loads((finished.parent / "j" / f"{verb}.json").read_text())["return"] == 20
    assert "--data.source=OnlineLog --data.source.path=" in refused("predict", f"--ckpt_path={finished}")
    log = ["--data.source=OnlineLog", f"--data.source.path={finished}"]
    capsys.readouterr()
    assert oper("predict", f"--ckpt_path={finished}", *log, f"--output={finished.parent / 'p'}") == 0
    assert "action [120, 1]" in capsys.readouterr().out


def test_one_update_for_a_try(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("run", "--trainer.fast_dev_run=true", "--data.parallel=2", "--data.updates_per_step=3") == 0
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--data.rollouts.environment=MountainCarContinuous-v0"], "environment MountainCarContinuous-v0 has (2,)"),
        (["--data.rollouts.environment=CartPole-v1"], "environment CartPole-v1 has discrete ones"),
        (["--trainer.max_steps=-1", "--trainer.max_time=00:00:01:00"], "give trainer.max_steps"),
        (["--trainer.max_steps=-1", "--trainer.max_epochs=2"], "give trainer.max_steps"),
        (["--data.environment=null"], "data.environment must be given"),
        (["--data.environment=Nothing-v0"], "'Nothing-v0' is not registered with Gymnasium"),
        (["--data.environment=Nothing-v0"], "; one of your own is named module:Env-v0"),
        (["--model.normalise_observations=true"], "and there is no data.source: set it to false"),
        (["--data.updates_per_block=3"], "updates_per_block"),
        (["--data.offline_share=0.5"], f"data.offline_share is for recorded transitions, {UNNAMED}"),
        (["--data.holdout=0.1"], f"data.holdout is for recorded transitions, {UNNAMED}"),
        (["--data.holdout=other.npz"], f"data.holdout is for recorded transitions, {UNNAMED}"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], line: str, refused: Callable[..., str]) -> None:
    environment = [] if any("data.environment" in word for word in words) else ["--data.environment=Never-v0"]
    judged = [] if any("rollouts" in word for word in words) else ["--data.rollouts=null"]
    message = refused("fit", *MODEL, *DATA, *environment, *judged, "--trainer.max_steps=40", "--output=run", *words)
    assert line in message
    assert not Path("run/replay").exists()


def test_a_module_is_imported_only_when_a_person_names_it(refused: Callable[..., str]) -> None:
    Path("trapped.py").write_text(
        "import gymnasium\nopen('sprung', 'a').write('.')\n"
        "from gymnasium.envs.classic_control.pendulum import PendulumEnv\n"
        "gymnasium.register('Own-v0', PendulumEnv, max_episode_steps=20)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path().absolute()))
        assert fit("run", environment="trapped:Own-v0") == 0
        assert Path("sprung").read_text() == "."
        for verb in ("validate", "fit"):
            line = refused(verb, "--ckpt_path=run/last.ckpt", *(["--trainer.max_steps=120"] if verb == "fit" else []))
            assert "'trapped:Own-v0', whose module would be imported; if you trust it, name it" in line
        assert OnlineLog("run").origin().environment is None
        assert fit("run", "--ckpt_path=last", environment="trapped:Own-v0", steps=120) == 0
        named = "--data.environment=trapped:Own-v0"
        assert oper("validate", "--ckpt_path=run/last.ckpt", named, "--data.rollouts.episodes=1") == 0
        Path("named.yaml").write_text("data: {init_args: {environment: 'trapped:Own-v0'}}")
        assert oper("fit", *MODEL, *DATA, "--config=named.yaml", "--data.rollouts=null", "--trainer.max_steps=20") == 0


def test_a_dataset_that_was_published_before_a_kill_is_this_runs(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """A chain that was killed before it noted the link as done comes by again."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(Path("store").absolute()))
    words = ["--data.dataset=mine/explored-v0"]
    assert fit("run", *words) == 0
    published = {path: path.read_bytes() for path in Path("store").rglob("*") if path.is_file()}
    assert fit("run", *words, "--ckpt_path=last") == 0
    assert {path: path.read_bytes() for path in Path("store").rglob("*") if path.is_file()} == published
    # A longer run would gather more than it holds.
    assert fit("run", *words, "--ckpt_path=last", steps=120) == 1
    assert fit("other", *words, "--seed_everything=3") == 1
    assert {path: path.read_bytes() for path in Path("store").rglob("*") if path.is_file()} == published


def test_good_rows_among_gathered_ones_need_joined_sources(refused: Callable[..., str]) -> None:
    """Not all rows without a word."""
    file = write_hdf5(Path("small.hdf5"), columns([25] * 8, 3, 1))
    words = ["--data.environment=Never-v0", "--data.source=D4RL", f"--data.source.path={file}", "--data.rollouts=null"]
    upsample = "--data.upsample={rows: 4, among: gathered}"
    message = refused("fit", *MODEL, *DATA, *words, upsample, "--trainer.max_steps=40", "--output=run")
    assert "data.upsample.among" in message


def test_a_full_disk_leaves_what_was_written(capfd: pytest.CaptureFixture[str]) -> None:
    """No file may grow beyond a number of bytes; what is gathered at first fits, and later blocks do not."""
    import resource

    assert fit("run", steps=40) == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.suffix in (".ckpt", ".safetensors")}
    steps, most = len(OnlineLog("run")), max(map(len, before.values())) + 10_000
    capfd.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        code = fit("run", "--ckpt_path=last", "--data.updates_per_epoch=2000", "--trainer.logger=false", steps=4000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if "error" in line.lower()]
    assert len(errors) == 1
    assert "cannot write it (File too large)" in errors[0]
    assert "run/replay/" in errors[0]
    assert not list(Path("run").rglob("*.part"))
    assert {path: path.read_bytes() for path in before} == before
    assert len(OnlineLog("run")) == steps
    assert fit("run", "--ckpt_path=last", "--trainer.logger=false", steps=60) == 0
