"""The chains of configs/tianshou give every row the settings that its published figure was made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import oper

from oper_lightning.cli.chain import load

ROOT = Path(__file__).resolve().parents[2]
ADAM_AND_COPIES = {"learning_rate": 1e-4, "discount": 0.99, "n_step": 1, "target_update": 500}
TD3_BC = {
    "alpha": 2.5,
    "learning_rate": 3e-4,
    "policy_noise": 0.2,
    "noise_clip": 0.5,
    "policy_freq": 2,
    "discount": 0.99,
    "tau": 0.005,
    "hidden_sizes": [256, 256],
}
D4RL = {
    "il": {"policy": "deterministic", "learning_rate": 1e-4, "normalise_observations": False},
    "bcq": {
        "learning_rate": 1e-3,
        "hidden_sizes": [256, 256],
        "vae_hidden_sizes": [512, 512],
        "discount": 0.99,
        "tau": 0.005,
        "minimum_share": 0.75,
        "perturbation": 0.05,
        "latent_size": None,
        "target_actions": 10,
        "acting_actions": 100,
        "kl_weight": 0.5,
        "normalise_observations": False,
    },
    "cql": {
        "policy_learning_rate": 1e-4,
        "critic_learning_rate": 3e-4,
        "cql_weight": 1.0,
        "lagrange_gap": 10.0,
        "backup_entropy": True,
        "policy_hidden_sizes": [256, 256],
        "critic_hidden_sizes": [256, 256],
        "discount": 0.99,
        "tau": 0.005,
        "normalise_observations": False,
    },
    "td3_bc": {**TD3_BC, "n_step": 3, "normalise_observations": True},
    "td3_bc_raw": {**TD3_BC, "n_step": 3, "normalise_observations": False},
    "td3_bc_1": {**TD3_BC, "n_step": 1, "normalise_observations": True},
}
CRR = {**ADAM_AND_COPIES, "mode": "exp", "beta": 1.0, "max_weight": 20.0, "hidden_sizes": None}


def atari(penalty: float, crr_penalty: float) -> dict[str, dict[str, Any]]:
    return {
        "il": {"learning_rate": 1e-4, "hidden_sizes": None},
        "bcq": {
            **ADAM_AND_COPIES,
            "learning_rate": 6.25e-5,
            "target_update": 8000,
            "threshold": 0.3,
            "logits_penalty": 0.01,
            "hidden_sizes": None,
        },
        "cql": {**ADAM_AND_COPIES, "quantiles": 200, "cql_weight": penalty, "hidden_sizes": None},
        "crr": {**CRR, "cql_weight": 0.0},
        "crr_cql": {**CRR, "cql_weight": crr_penalty},
    }


@pytest.mark.parametrize(
    ("chain", "given", "rows", "batch", "epoch", "updates"),
    [
        ("d4rl", {}, D4RL, 256, 5000, 1_000_000),
        ("pong", {}, atari(10, 10), 32, 10_000, 50_000),
        ("breakout", {"cql_weight": "20"}, atari(20, 50), 32, 10_000, 120_000),
    ],
)
def test_settings_are_the_published_ones(
    chain: str,
    given: dict[str, str],
    rows: dict[str, dict[str, Any]],
    batch: int,
    epoch: int,
    updates: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    links = load(f"configs/tianshou/{chain}.yaml", given)["links"]
    assert [*links] == [*(f"{row}_0" for row in rows), "table"]
    for row, settings in rows.items():
        words = [word for word in links[f"{row}_0"] if not word.startswith(("--ckpt_path", "--output"))]
        assert oper(*words, "--print_config") == 0
        config = yaml.safe_load(capsys.readouterr().out)
        made_with, data = config["model"]["init_args"], config["data"]["init_args"]
        assert {name: made_with[name] for name in settings} == settings, row
        assert data["batch_size"] == batch
        assert data["updates_per_epoch"] == epoch
        assert data["reward_scale"] == 1
        assert data["rollouts"]["episodes"] == 10
        assert config["trainer"]["max_steps"] == updates
