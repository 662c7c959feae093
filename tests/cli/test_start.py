"""`oper fit --start`: a run begins with what another has learnt."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import Arrays, columns, oper, write_hdf5
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from runs import QUICK, changed, trained
from tensordict import TensorDict
from test_kill import finished, readable, start, wait_for_checkpoints

from oper_lightning import BC, IQL, InputError, OfflineDataModule
from oper_lightning.algorithms.dynamics import DynamicsEnsemble
from oper_lightning.cli.checkpoints import AtomicCheckpointIO, checkpoint_callbacks
from oper_lightning.cli.start import Start
from oper_lightning.data.bonuses.bonus import Bonus
from oper_lightning.data.sources.source import Origin

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 updates."""
    return trained(tmp_path_factory.mktemp("start"))


@pytest.fixture
def others(tmp_path: Path) -> list[str]:
    """Words for other data of the same shapes, and a length."""
    file = write_hdf5(tmp_path / "others.hdf5", columns([20] * 10, 10, 2, seed=5), env_id="Reacher-v5")
    return ["--data.source=D4RL", f"--data.source.path={file}", *QUICK, "--trainer.max_steps=40"]


class Novelty(Bonus):
    """Learns one number: how many blocks it has seen."""

    def build(self, *_: Any) -> None:
        self.blocks = torch.zeros(())

    def __call__(self, block: TensorDict) -> torch.Tensor:
        self.blocks = self.blocks + 1
        return 0.01 * self.blocks.expand(block.shape)

    def state_dict(self) -> dict[str, Any]:
        return {"blocks": self.blocks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.blocks = state["blocks"].clone()


class Begins(Callback):
    """Keeps what a run has when its first block is drawn."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.networks = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.moments = [
            [value.clone() for state in optimiser.state.values() for value in state.values()]
            for optimiser in trainer.optimizers
        ]
        self.counters = trainer.global_step, trainer.current_epoch, trainer.datamodule.drawn  # type: ignore[attr-defined]
        self.bonus = getattr(trainer.datamodule.bonus, "blocks", None)  # type: ignore[attr-defined]


def iql(**options: Any) -> IQL:
    return IQL(**{"hidden_sizes": (8, 8), "normalise_observations": True, **options})


def fit(
    model: Any, folder: Path, *callbacks: Callback, origin: Origin | None = None, episodes: int = 8, **options: Any
) -> Trainer:
    seed_everything(0)
    arrays = columns([25] * episodes, seed=episodes)
    module = OfflineDataModule(
        Arrays(arrays, origin), batch_size=16, updates_per_epoch=20, updates_per_block=5, rollouts=None, **options
    )
    trainer = Trainer(
        max_steps=40,
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*checkpoint_callbacks(folder), *callbacks],
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(model, datamodule=module)
    return trainer


def test_it_brings_networks_optimisers_and_bonus_to_the_bit(tmp_path: Path) -> None:
    """Of other data, whose statistics would normalise otherwise; every counter begins at 0."""
    first, path = iql(), tmp_path / "first" / "last.ckpt"
    fit(first, path.parent, bonus=Novelty())
    kept = torch.load(path, weights_only=True)
    begins = Begins()
    second = iql()
    trainer = fit(second, tmp_path / "second", Start(path), begins, episodes=4, bonus=Novelty())
    assert begins.networks.keys() == kept["state_dict"].keys()
    assert all(value.equal(kept["state_dict"][name]) for name, value in begins.networks.items())
    for moments, state in zip(begins.moments, kept["optimizer_states"], strict=True):
        stored = [value for entry in state["state"].values() for value in entry.values()]
        assert stored[0] == 40
        assert all(now.equal(was) for now, was in zip(moments, stored, strict=True))
    assert begins.counters == (0, 0, 0)
    assert begins.bonus == kept["OfflineDataModule"]["bonus"]["blocks"] == 8
    assert trainer.global_step == 40
    # What it leaves stands alone, with the statistics that the networks know.
    left = torch.load(tmp_path / "second" / "last.ckpt", weights_only=True)
    assert left["spec"]["observation_mean"].equal(kept["spec"]["observation_mean"])
    assert left["spec"]["rows"] == 100
    observations = torch.randn(5, 3)
    loaded = IQL.load_from_checkpoint(tmp_path / "second" / "last.ckpt", weights_only=True)
    assert loaded.act(observations).equal(second.act(observations))


def test_a_bonus_on_one_side_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(iql(), tmp_path / "with", bonus=Novelty())
    fit(iql(), tmp_path / "without")
    fit(iql(), tmp_path / "third", Start(tmp_path / "with" / "last.ckpt"))
    assert "its bonus is left behind" in caplog.text
    fit(iql(), tmp_path / "fourth", Start(tmp_path / "without" / "last.ckpt"), bonus=Novelty())
    assert "data.bonus begins anew" in caplog.text


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "first" / "last.ckpt"
    fit(iql(), path.parent, bonus=Novelty())
    far = Origin(dataset="far", action_low=[-1.0, -2.0], action_high=[1.0, 2.0])

    class Other(Novelty):
        def state_dict(self) -> dict[str, Any]:
            return {"blocks": self.blocks, "counts": {}}

    for words, model, options in (
        ("hidden_sizes", iql(hidden_sizes=(9,)), {}),
        ("action_low was \\[-1.0, -1.0\\], here it is \\[-1.0, -2.0\\]", iql(), {"origin": far}),
        ("its bonus is none for Other: it has no counts", iql(), {"bonus": Other()}),
    ):
        with pytest.raises(InputError, match=words):
            fit(model, tmp_path / "refused", Start(path), **options)
    with pytest.raises(
        InputError, match=r"DynamicsEnsemble begins with an earlier run by --model\.start, not by --start"
    ):
        fit(DynamicsEnsemble(), tmp_path / "refused", Start(path), holdout=0.2)
    with pytest.raises(InputError, match="do not fit"):
        fit(BC(hidden_sizes=(8, 8)), tmp_path / "refused", Start(path))


def test_class_and_hyper_parameters_follow_the_checkpoint_unless_given(
    run: Path, others: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.load(run / "last.ckpt", weights_only=True)
    assert oper("fit", f"--start={run}", *others, "--output=same") == 0
    same = torch.load("same/last.ckpt", weights_only=True)
    assert same["hyper_parameters"] == before["hyper_parameters"]
    assert same["global_step"] == 40
    assert same["optimizer_states"][0]["state"][0]["step"] > before["optimizer_states"][0]["state"][0]["step"] > 0
    assert yaml.safe_load(Path("same/config.yaml").read_text())["start"] is None
    capsys.readouterr()
    assert oper("fit", f"--start={run}", "--ckpt_path=same", *others, "--trainer.max_steps=60") == 0
    assert f"--start={run} is left aside: this run has begun, and goes on from same" in capsys.readouterr().err
    Path("mine.yaml").write_text("model: {class_path: TD3BC, init_args: {alpha: 1.25}}")
    assert oper("fit", "--start", run / "last.ckpt", "--config=mine.yaml", *others, "--output=other") == 0
    other = torch.load("other/last.ckpt", weights_only=True)["hyper_parameters"]
    assert other == {**before["hyper_parameters"], "alpha": 1.25}


def test_policies_of_discrete_actions_begin_so_too(small_discrete_file: Path) -> None:
    words = ["--data.source=D4RL", f"--data.source.path={small_discrete_file}", *QUICK, "--trainer.max_steps=20"]
    assert oper("fit", "--model=DiscreteCQL", "--model.hidden_sizes=[8]", *words, "--output=first") == 0
    assert oper("fit", "--start=first", *words, "--output=second") == 0
    first, second = (torch.load(f"{name}/last.ckpt", weights_only=True) for name in ("first", "second"))
    steps = [left["optimizer_states"][0]["state"][0]["step"] for left in (first, second)]
    assert steps == [20, 40]


def test_a_chain_begins_a_link_with_an_earlier_one(others: list[str], small_file: Path) -> None:
    chain = {
        "folder": "chain",
        "links": {
            "offline": f"fit --model=IQL --model.hidden_sizes=[8] --data.source=D4RL --data.source.path={small_file} "
            f"{' '.join(QUICK)} --trainer.max_steps=20",
            "online": f"fit --start={{offline}} --model.schedule=none --data=OnlineDataModule --data.warmup=0 "
            f"{' '.join(others)}",
        },
    }
    Path("chain.yaml").write_text(yaml.safe_dump(chain))
    assert oper("run", "chain.yaml") == 0
    left = torch.load("chain/online/last.ckpt", weights_only=True)
    assert (left["global_step"], left["OnlineDataModule"]["steps"]) == (40, 40)
    assert left["optimizer_states"][0]["state"][0]["step"] == 60
    assert left["hyper_parameters"]["schedule"] == "none"


CASES: dict[str, tuple[Change, list[str], str]] = {
    "no optimisers": (lambda c: c.pop("optimizer_states"), [], "has no optimizer_states"),
    "moments of another shape": (
        lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(1)),
        [],
        "exp_avg of parameter 0",
    ),
    "networks that are not finite": (
        lambda c: c["state_dict"]["actor.body.0.weight"].fill_(torch.nan),
        [],
        "actor.body.0.weight is not finite",
    ),
    "half a checkpoint": (lambda c: c.pop("spec"), [], "has no spec"),
    "another algorithm": (lambda c: None, ["--model=IQL"], "holds oper_lightning.algorithms.td3_bc.TD3BC, but the"),
    "other networks": (lambda c: None, ["--model.hidden_sizes=[16]"], "hidden_sizes [8] there, [16] here"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_is_looked_at_first(case: str, run: Path, others: list[str], refused: Callable[..., str]) -> None:
    change, words, expected = CASES[case]
    file = changed(run, change)
    line = refused("fit", f"--start={file}", *words, *others, "--output=run")
    assert line.startswith(f"{file}"), line
    assert expected in line


def test_data_of_other_shapes_are_refused(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    file = write_hdf5(tmp_path / "wide.hdf5", columns([25] * 4, 11, 2))
    words = [f"--data.source.path={file}", *QUICK, "--trainer.max_steps=40", "--output=run"]
    line = refused("fit", f"--start={run}", "--data.source=D4RL", *words)
    assert "observation shape (10,) against (11,)" in line


def test_it_is_a_flag_of_fit_alone(run: Path, others: list[str], refused: Callable[..., str]) -> None:
    line = refused("validate", f"--start={run}")
    assert line == f"--start is what a run of `oper fit` begins with; validate takes --ckpt_path={run}"
    Path("mine.yaml").write_text(f"start: {run}\nmodel: TD3BC")
    line = refused("fit", "--config=mine.yaml", *others, "--output=run")
    assert f"start belongs on the command line, not into a yaml: --start={run}" in line
    line = refused("fit", "--start=nowhere/last.ckpt", *others, "--output=run")
    assert line.startswith("nowhere/last.ckpt: no such checkpoint")


def test_kills_lose_nothing_of_a_run_that_began_so(run: Path, small_file: Path, tmp_path: Path) -> None:
    """The same command again and again; in the end without --start, since last.ckpt holds all of it."""

    def words(folder: Path) -> list[str]:
        return [
            "fit", f"--start={run}", "--data=OnlineDataModule", "--data.warmup=50", "--data.source=D4RL",
            f"--data.source.path={small_file}", "--data.rollouts=null", "--data.batch_size=32",
            "--data.updates_per_epoch=20", "--trainer.max_steps=400", f"--output={folder}", "--ckpt_path=last",
        ]  # fmt: skip

    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert finished(start(words(alone)))
    chance, reached = random.Random(), [0]
    for _ in range(4):
        process = start(words(killed))
        wait_for_checkpoints(process, killed, chance.randint(1, 5))
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        reached.append(readable(killed))
    assert reached[-1] > 0
    assert finished(start(["fit", f"--ckpt_path={killed}", "--trainer.max_steps=400"]))
    first, second = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (alone, killed))
    assert first["global_step"] == second["global_step"] == 400
    assert all(value.equal(second["state_dict"][name]) for name, value in first["state_dict"].items())
    assert first["optimizer_states"][0]["state"][0]["step"] == second["optimizer_states"][0]["state"][0]["step"]
    print(f"killed after updates {reached[1:]}")
