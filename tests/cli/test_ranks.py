"""Two ranks with batches of B train what one process with batches of 2 B trains; one launch for all algorithms."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import columns, image_columns, oper, write_hdf5
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from oper_lightning.algorithms import load_all
from oper_lightning.cli.messages import known_types

load_all()
BATCH = 32
SEVEN = "--data.rollouts={episodes: 7, parallel: 3}"
MODELS = known_types("model")
PRIORITISED = ["--data.priority=OperR", SEVEN]
RND = "--data.bonus={class_path: RND, init_args: {hidden_sizes: [16], features: 8, every: 2}}"
IMAGINED = [
    "--model.dynamics=HERE/DynamicsEnsemble/last.ckpt",
    "--model.clone=HERE/BC/last.ckpt",
    "--model.horizon=5",
    "--model.discount=0.9",
    *PRIORITISED,
]
RUNS = {
    **{name: (name, PRIORITISED) for name in MODELS},
    "OperA": ("OperA", ["--model.iterations=2", "--data.rollouts=null"]),
    "DynamicsEnsemble": ("DynamicsEnsemble", ["--model.members=2", "--data.holdout=0.2", "--data.rollouts=null"]),
    "BREMEN": ("BREMEN", IMAGINED),
    "penalised": (
        "BREMEN",
        [
            "--model.alpha=0.1",
            "--model.baseline=network",
            "--model.fisher_share=0.2",
            "--data.mode=reweight",
            *IMAGINED,
        ],
    ),
    "reweighted": ("BC", ["--data.mode=reweight", *PRIORITISED]),
    "mapped": ("TD3BC", ["--model.n_step=3", "--data.location=memmap", *PRIORITISED]),
    "decoupled": ("TD3BC", ["--data.prioritise=[constraint]", *PRIORITISED]),
    "dropout": ("IQL", ["--model.dropout=0.3", *PRIORITISED]),
    "lagrange": ("CQL", ["--model.lagrange_gap=2", *PRIORITISED]),
    "images": ("CRR", ["--model.target_update=7", "--data.priority=OperR", "--data.rollouts=null"]),
    "online": ("TD3BC", ["--data=OnlineDataModule", "--data.parallel=4", "--data.warmup=40", *PRIORITISED]),
    "prior_data": (
        "RLPD",
        [
            "--model.policy_freq=2",
            "--data=OnlineDataModule",
            "--data.parallel=4",
            "--data.warmup=40",
            "--data.offline_share=0.5",
            *PRIORITISED,
        ],
    ),
    "pictures": (
        "QRDQN",
        [
            "--data=OnlineDataModule",
            "--data.environment=test_online_images:Bars-v0",
            "--data.parallel=4",
            "--data.warmup=60",
            "--data.updates_per_step=0.5",
            "--model.quantiles=4",
            "--model.n_step=2",
            "--model.epsilon_decay=20",
            "--model.target_update=10",
            "--data.rollouts={episodes: 3, parallel: 2}",
        ],
    ),
    "compiled": ("TD3BC", ["--model.compile=default", *PRIORITISED]),
    "bfloat16": ("TD3BC", ["--trainer.precision=bf16-mixed", *PRIORITISED]),
    "bonus": ("TD3BC", [RND, SEVEN]),
    "begun": ("TD3BC", [RND, SEVEN, "--start=HERE/begin/last.ckpt"]),
    "reverse_kl": ("OnestepRL", ["--model.operator=reverse_kl", "--model.phases=[1,1,1]", *PRIORITISED]),
}


def files(folder: Path) -> None:
    """Rows of Reacher's and of CartPole's shape, and small images; what BREMEN builds on."""
    write_hdf5(folder / "continuous.hdf5", columns([25] * 40, 10, 2), env_id="Reacher-v5")
    write_hdf5(folder / "discrete.hdf5", columns([25] * 40, 4, 2, discrete=True), env_id="CartPole-v1")
    write_hdf5(folder / "images.hdf5", image_columns([25] * 8))
    for name in ("DynamicsEnsemble", "BC"):
        assert oper(*words(name, folder), "--data.rollouts=null", f"--output={folder / name}") == 0


def words(name: str, folder: Path) -> list[str]:
    model, options = RUNS[name]
    file = folder / f"{'images' if name == 'images' else MODELS[model].kinds[0]}.hdf5"
    source = ["--data.source=D4RL", f"--data.source.path={file}"] if name != "pictures" else []
    sizes = [key for key in inspect.signature(MODELS[model]).parameters if key.endswith("hidden_sizes")]
    return [
        "fit",
        f"--model={model}",
        *(f"--model.{key}=[16,16]" for key in sizes),
        *(option.replace("HERE", str(folder)) for option in options),
        *source,
        "--data.updates_per_epoch=20",
        "--trainer.max_steps=40",
        "--trainer.accelerator=cpu",
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process and of two ranks, side by side."""
    folder = tmp_path_factory.mktemp("ranks")
    files(folder)
    assert oper(*words("bonus", folder), f"--data.batch_size={BATCH}", f"--output={folder / 'begin'}") == 0
    for name in RUNS:
        (folder / f"{name}.words").write_text("\n".join(words(name, folder)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = str(Path(__file__).with_name("ranks.py"))
    batch = f"--data.batch_size={BATCH // 2}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*launcher, script, batch, *RUNS], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (folder / "terminal.txt").write_text(result.stdout + result.stderr)
    return folder


def numbers(run: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(run)).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_are_one_process_with_the_whole_batch(name: str, folder: Path) -> None:
    assert oper(*words(name, folder), f"--data.batch_size={BATCH}", "--output=alone") == 0
    alone, shared = (
        torch.load(run / "last.ckpt", weights_only=True) for run in (Path("alone"), folder / "ranks" / name)
    )
    assert alone["global_step"] == shared["global_step"] == 40
    # Each rank rounds its own gradients: a few of forty steps of 3e-4 turn where a gradient is next to nothing.
    near, relative = (3e-3, 1e-2) if name == "bfloat16" else (2e-6, 1e-3)
    for key, value in alone["state_dict"].items():
        if key.endswith("coefficients"):
            continue  # of powers of time, of which one can stand for another; the policy shows what they come to
        torch.testing.assert_close(shared["state_dict"][key], value, rtol=1e-4, atol=near, msg=key)
    if name in ("bonus", "begun"):
        here, there = (checkpoint["OfflineDataModule"]["bonus"] for checkpoint in (alone, shared))
        for key, value in here.items():
            torch.testing.assert_close(there[key], value, rtol=1e-4, atol=2e-6, msg=key)

    logged, expected = numbers(folder / "ranks" / name), numbers(Path("alone"))
    assert logged.keys() == expected.keys()
    for tag in expected:
        assert logged[tag] == pytest.approx(expected[tag], rel=relative, abs=1e-4), tag
    if "eval/episodes" in logged:
        assert {*logged["eval/episodes"]} == {3 if name == "pictures" else 7}


def test_the_terminal_shows_one_process(folder: Path) -> None:
    lines = (folder / "terminal.txt").read_text().splitlines()
    assert len([line for line in lines if "update 40/40" in line]) == len(RUNS)
    assert not [line for line in lines if "Warning" in line]
