"""The chains of configs/ooo give each phase its published settings; what differs is said in docs/ooo-tasks.md."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import columns, oper, write_hdf5

from oper_lightning.cli.chain import load

ROOT = Path(__file__).resolve().parents[2]
M = 1_000_000
SHARED = {"discount": 0.99, "tau": 0.005, "normalise_observations": False, "batch_size": 256}
IQL = {"learning_rate": 3e-4, "hidden_sizes": [256, 256], "schedule": "none", "policy": "gaussian", "reward_scale": 1}
CALQL = {
    "policy_learning_rate": 1e-4,
    "critic_learning_rate": 3e-4,
    "sampled_actions": 10,
    "cql_temperature": 1.0,
    "max_target_backup": True,
    "backup_entropy": False,
    "orthogonal_init": True,
    "initial_lagrange": math.e,
    "target_entropy": None,
    "difference_min": None,
    "difference_max": None,
}
MAZE = {
    "cql_weight": 5,
    "importance_sampling": True,
    "lagrange_gap": 0.8,
    "policy_hidden_sizes": [256, 256],
    "critic_hidden_sizes": [256] * 4,
    "reward_scale": 10,
    "reward_shift": -5,
}
HAND = {
    "cql_weight": 1,
    "importance_sampling": True,
    "lagrange_gap": None,
    "policy_hidden_sizes": [512] * 2,
    "critic_hidden_sizes": [512] * 3,
}
KITCHEN = {
    "cql_weight": 5,
    "importance_sampling": False,
    "lagrange_gap": None,
    "policy_hidden_sizes": [512] * 3,
    "critic_hidden_sizes": [512] * 3,
}


def iql(expectile: float, temperature: float, dropout: float, shift: float) -> dict[str, Any]:
    found = {"expectile": expectile, "temperature": temperature, "dropout": dropout, "reward_shift": shift}
    return {"model": "IQL", **SHARED, **IQL, **found}


def calql(settings: dict[str, Any], scale: float, shift: float, failure: float | None = None) -> dict[str, Any]:
    extra = {"calibrate_uniform": True, "failure_reward": failure, "visible": "episode"}
    return {"model": "CalQL", **SHARED, **CALQL, **settings, "reward_scale": scale, "reward_shift": shift, **extra}


def cql(settings: dict[str, Any], scale: float, shift: float) -> dict[str, Any]:
    rewards = {"reward_scale": scale, "reward_shift": shift, "normalise_features": True}
    return {"model": "CQL", **SHARED, **CALQL, **settings, **rewards}


def good(rows: int, rule: str, value: float | None = None, **how: str) -> dict[str, Any]:
    return {"rows": rows, "rule": rule, "value": value, "mode": "replace", "among": "all", **how}


BEST = good(32, "best", mode="append", among="gathered")
NAIL = good(32, "reward", 25, mode="append", among="gathered")
# Chain, what is given to it, scale of the bonus, updates offline, steps online, share of recorded rows online and in
# the last phase, its updates, its up-sampling, budgets, and the settings of both learners.
Row = tuple[str, dict[str, str], float, int, int, Any, Any, int, Any, list[float], dict[str, Any], dict[str, Any]]
ROWS: list[Row] = [
    # IQL: the published command lines 1 to 5, and 6 to 10 for the last phase.
    (
        *("iql-kitchen", {"task": "Mixed", "data": "kitchen-mixed-v0"}, 10.0, M, 4 * M, None, None, 2 * M),
        *(good(8, "episode", 4), [1, 2, 3, 4], iql(0.7, 0.5, 0.1, -4), iql(0.7, 0.5, 0.1, -4)),
    ),
    (
        *("iql-antmaze", {}, 10.0, M // 2, 2 * M, None, None, 2 * M, good(8, "reward", 1), [0.5, 0.75, 1, 1.25, 1.5]),
        *(iql(0.9, 10, 0, -1), iql(0.9, 10, 0, -1)),
    ),
    (
        *("iql-maze2d", {}, 10.0, M // 2, M // 2, None, None, 2 * M, good(8, "reward", 1), [0.25, 0.5]),
        *(iql(0.9, 3, 0, -1), iql(0.9, 3, 0, -1)),
    ),
    (
        *("iql-hammer", {}, 0.5, 50_000, M // 2, None, None, 2 * M, None, [0.25, 0.5]),
        *(iql(0.7, 3, 0, 0), iql(0.8, 3, 0.1, 0)),
    ),
    (
        *("iql-adroit", {}, 0.5, 25_000, M, None, None, 2 * M, None, [0.25, 0.5, 0.75, 1]),
        *(iql(0.8, 3, 0.1, 0), iql(0.8, 3, 0.1, 0)),
    ),
    # Cal-QL: the published command lines 1 to 5, and 6 to 9 for the last phase; antmaze has none for it.
    (
        *("cal_ql-kitchen", {}, 10.0, M // 2, M, 0.25, 0.25, M, None, [0.1, 0.25, 0.5, 1]),
        *({**calql(KITCHEN, 1, -5), "endless": True}, cql(KITCHEN, 1, -4)),
    ),
    (
        *("cal_ql-antmaze", {}, 50.0, M, 2 * M, 0.5, None, M, BEST, [0.5, 1, 1.5, 2]),
        *(calql(MAZE, 10, -5, -5), cql(MAZE, 10, -5)),
    ),
    (
        *("cal_ql-maze2d", {}, 10.0, M // 2, M, 0.5, None, M, BEST, [0.25, 0.5]),
        *(calql(MAZE, 10, -5, -5), cql(MAZE, 10, -5)),
    ),
    (
        *("cal_ql-hammer", {}, 0.5, 20_000, M, 0.5, None, M, NAIL, [0.25, 0.5, 1]),
        *(calql(HAND, 1, 0), cql(HAND, 0.01, 0)),
    ),
    (
        *("cal_ql-adroit", {}, 0.5, 20_000, M, 0.5, 0.5, M, None, [0.25, 0.5, 0.75, 1]),
        *(calql(HAND, 10, 5, -5), cql(HAND, 10, 5)),
    ),
]


def configuration(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a link runs with: settings of model, data and length side by side."""
    words = [word for word in words if not word.startswith(("--ckpt_path", "--start", "--output"))]
    assert oper(*words, "--print_config") == 0
    config = yaml.safe_load(capsys.readouterr().out)
    model, data = config["model"], config["data"]
    names = {"model": model["class_path"].split(".")[-1], "data": data["class_path"].split(".")[-1]}
    return {**data["init_args"], **model["init_args"], **names, "max_steps": config["trainer"]["max_steps"]}


def agree(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join([row[0], *row[1].values()]))
def test_settings_are_the_published_ones(
    row: Row, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, given, scale, updates, steps, share, mix, anew, upsample, budgets, explorer, exploiter = row
    monkeypatch.chdir(ROOT)
    links = load(f"configs/ooo/{chain}.yaml", given)["links"]
    retrained = [f"retrain_{round(budget * M)}" for budget in budgets]
    assert [name for name, words in links.items() if words[0] == "fit"] == ["offline", "explore", *retrained]

    # The offline phase is the online one without an environment, and as long as it says.
    offline, explore = (links[name][:-2] for name in ("offline", "explore"))
    assert offline[-1].replace("_", "") == f"--trainer.maxsteps={updates}"
    extra = [word for word in explore[:-1] if word not in offline]
    data = extra.pop(1)
    assert data == "--data=OnlineDataModule"
    assert [word.split("=")[0] for word in extra[:2]] == ["--start", "--data.warmup"]
    assert [word for word in explore[:-1] if word not in (*extra, data)] == offline[:-1]

    online = configuration(links["explore"], capsys)
    agree(online, {**explorer, "data": "OnlineDataModule", "max_steps": steps, "updates_per_step": 1, "warmup": 0})
    agree(online, {"offline_share": share, "upsample": None, "value_bounds": None, "parallel": 1})
    # Of values, bounds are for the last phase only.
    order = "predictor_first" if explorer["model"] == "IQL" else "bonus_first"
    learnt = {"scale": scale, "order": order, "every": 1, "proportion": 0.25, "learning_rate": 1e-4}
    agree(online["bonus"]["init_args"], {**learnt, "hidden_sizes": [512], "features": 512})

    last = configuration(links[retrained[0]], capsys)
    agree(last, {**exploiter, "data": "OfflineDataModule", "max_steps": anew, "upsample": upsample})
    agree(last, {"bonus": None, "value_bounds": "data", "offline_share": mix})
    recorded, gathered = last["source"]["init_args"]["sources"]
    assert recorded == online["source"]
    agree(gathered["init_args"], {"path": f"runs/ooo/{folder(chain, links)}/explore", "steps": round(budgets[0] * M)})
    # They are judged by the same task.
    for found in (last, online):
        agree(found["rollouts"], {"episodes": 100, "environment": last["rollouts"]["environment"]})


def folder(chain: str, links: dict[str, list[str]]) -> str:
    """The folder of a chain, with its task if there are several."""
    found = links["offline"][-2].split("/")[2]
    assert found.startswith(chain)
    return found


@pytest.mark.parametrize("robot", ["Ant", "HalfCheetah"])
def test_settings_of_rlpd(robot: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    links = load("configs/ooo/rlpd.yaml", {"robot": robot})["links"]
    budgets = [250_000, 500_000, 750_000, M]
    assert [name for name, words in links.items() if words[0] == "fit"] == [
        "explore",
        *(f"retrain_{b}" for b in budgets),
    ]
    alike = {**SHARED, "model": "RLPD", "learning_rate": 3e-4, "hidden_sizes": [256, 256], "backup_entropy": True}
    alike |= {"target_entropy": None, "reward_scale": 1, "reward_shift": 0}
    online = configuration(links["explore"], capsys)
    agree(online, {**alike, "critics": 10, "subset": 2, "layer_norm": True, "policy_freq": 20, "value_bounds": None})
    agree(online, {"environment": f"oper/{robot}Sparse-v0", "updates_per_step": 20, "warmup": 5000, "source": None})
    assert online["max_steps"] == 20 * M
    agree(online["bonus"]["init_args"], {"scale": 10, "every": 20, "order": "bonus_first", "proportion": 0.25})
    last = configuration(links["retrain_250000"], capsys)
    agree(last, {**alike, "critics": 2, "subset": None, "layer_norm": False, "policy_freq": 1, "value_bounds": "data"})
    agree(last, {"max_steps": M, "bonus": None, "upsample": good(32, "best", mode="append")})
    agree(last["source"]["init_args"], {"path": f"runs/ooo/rlpd-{robot}/explore", "steps": 250_000})


SMALL = ["--data.batch_size=32", "--data.rollouts=null", "--data.updates_per_epoch=20"]


def run(words: list[str], *extra: str) -> dict[str, Any]:
    """Runs a link, made small, and gives its checkpoint."""
    words = [word for word in words if not word.startswith(("--trainer.max_steps", "--ckpt_path", "--data.rollouts"))]
    words = [f"--config={ROOT / word[9:]}" if word.startswith("--config=") else word for word in words]
    assert oper(*words, *SMALL, *extra) == 0
    folder = next(word[9:] for word in words if word.startswith("--output="))
    checkpoint: dict[str, Any] = torch.load(f"{folder}/last.ckpt", weights_only=True)
    return checkpoint


def test_rlpds_phases_run() -> None:
    links = load(str(ROOT / "configs/ooo/rlpd.yaml"), {"budget": "40"})["links"]
    assert run(links["explore"], "--data.warmup=36", "--trainer.max_steps=100")["global_step"] == 100
    assert run(links["retrain_40"], "--trainer.max_steps=20")["global_step"] == 20


@pytest.mark.parametrize("chain", ["iql-maze2d", "cal_ql-maze2d"])
def test_phases_with_recorded_data_run(chain: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arrays = columns([40, 60], 4, 2)
    arrays["observations"][:] = np.random.default_rng(0).uniform([1, 1, -1, -1], [7, 9, 1, 1], (100, 4))
    arrays["next_observations"][:-1] = arrays["observations"][1:]
    arrays["rewards"][:] = np.arange(100) % 7 == 0
    arrays["terminals"][:] = False
    arrays["timeouts"][[39, 99]] = True
    file = write_hdf5(tmp_path / "maze.hdf5", arrays)
    links = load(str(ROOT / f"configs/ooo/{chain}.yaml"), {"budget": "40"})["links"]
    small = ["--model.critic_hidden_sizes=[8]", "--model.policy_hidden_sizes=[8]"]
    small = ["--model.hidden_sizes=[8]"] if chain.startswith("iql") else small
    for name, length in (("offline", 20), ("explore", 40), ("retrain_40", 20)):
        words = [word.replace("maze2d-large-v1", str(file)) for word in links[name]]
        caplog.clear()
        caplog.set_level("INFO", "oper_lightning")
        assert run(words, *small, f"--trainer.max_steps={length}")["global_step"] == length
        kept = sum(
            arrays["rewards"][row] == 0
            and not any(np.abs(arrays["observations"][row, :2] - place).max() <= 0.5 for place in PLACES)
            for row in range(100)
        )
        assert f"{kept} of 100 rows are kept" in caplog.text


PLACES = np.array([[7, 9], [1, 1], [7, 1]]) - 0.2
