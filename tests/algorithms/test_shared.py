"""What must hold for every algorithm, found by discovery."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers import Arrays, columns, image_columns
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback

from oper_lightning import InputError, OfflineDataModule, OperR
from oper_lightning.algorithms import load_all
from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.algorithms.bremen import BREMEN
from oper_lightning.algorithms.dynamics import DynamicsEnsemble
from oper_lightning.algorithms.stage import Stage
from oper_lightning.cli.checkpoints import AtomicCheckpointIO, checkpoint_callbacks
from oper_lightning.cli.messages import known_types
from oper_lightning.data.sources.source import Origin
from oper_lightning.errors import TrainingError
from oper_lightning.priorities.priority import Priority
from oper_lightning.spec import Kind

load_all()
ALGORITHMS = known_types("model")
POLICIES = {name: cls for name, cls in ALGORITHMS.items() if issubclass(cls, OfflineAlgorithm)}
CASES = [(name, kind) for name, cls in ALGORITHMS.items() for kind in cls.kinds]
# Images, which take time, are for some of the tests.
IMAGE_CASES = [(name, "images") for name, cls in ALGORITHMS.items() if cls.images]
POLICY_CASES = [(name, kind) for name, kind in CASES if name in POLICIES]
DATA: dict[str, dict[str, np.ndarray]] = {
    "continuous": columns([25] * 8),
    "discrete": columns([25] * 8, action=3, discrete=True),
    "images": image_columns([25] * 8),
}
Rows = Kind | Literal["images"]
SMALL: dict[str, Any] = {
    "hidden_sizes": (16, 16),
    "vae_hidden_sizes": (16, 16),
    "policy_hidden_sizes": (16, 16),
    "critic_hidden_sizes": (16, 16),
    "iterations": 2,
    "seeds": 2,
    "phases": (2, 2, 1),
    "quantiles": 8,
    "target_update": 7,
    "members": 2,
    "horizon": 5,
}
ACTORS_LOSSES = {
    "BCQ": {"improvement_loss"},
    "TD3BC": {"improvement_loss", "constraint_loss"},
    "IQL": {"policy_loss"},
    "CQL": {"policy_loss"},
    "CalQL": {"policy_loss"},
    "OnestepRL": {"policy_loss"},
    "RLPD": {"policy_loss"},
    "CRR": {"policy_loss"},
    "DiscreteIQL": {"policy_loss"},
}
VALUES_ALONE = {"QRDQN"}
"""whose actions nothing draws to the recorded ones: on data without a task any of them may be the best everywhere"""

WITHOUT_LOSS = {"BREMEN"}
"""which steps by itself; what it learns, and in which units, is tested by itself too"""


def arguments(name: str) -> set[str]:
    """Of an algorithm, those of the one that it is a variant of included."""
    family = [cls for cls in ALGORITHMS[name].__mro__ if issubclass(cls, Stage)]
    return {key for cls in family for key in inspect.signature(cls).parameters}


def algorithm(name: str, **options: Any) -> Stage:
    known = arguments(name)
    return ALGORITHMS[name](**{**{key: value for key, value in SMALL.items() if key in known}, **options})


def rates(name: str, rate: float) -> dict[str, float]:
    """All learning rates of an algorithm."""
    return {key: rate for key in arguments(name) if key.endswith("learning_rate")}


def no_bootstrapping(name: str) -> dict[str, float]:
    """What makes an algorithm's targets the rewards themselves."""
    return {"discount": 0.0} if "discount" in arguments(name) else {}


def data(rows: Rows | dict[str, np.ndarray] = "continuous", **options: Any) -> OfflineDataModule:
    known: dict[str, Any] = {"batch_size": 32, "updates_per_epoch": 20, "updates_per_block": 5, "rollouts": None}
    if rows == "images":
        known["batch_size"] = 8
    return OfflineDataModule(Arrays(DATA[rows] if isinstance(rows, str) else rows), **{**known, **options})


def fit(
    model: Stage, module: OfflineDataModule, folder: Path, updates: int = 40, seed: int = 0, **options: Any
) -> Trainer:
    """Trains in this process, with checkpoints in the folder."""
    seed_everything(seed)
    module.seed = model.seed = seed
    if isinstance(model, DynamicsEnsemble):
        module.holdout = 0.25
    if isinstance(model, BREMEN) and not model.dynamics and "ckpt_path" not in options:
        model.dynamics, model.clone = before(module)
        seed_everything(seed)
    trainer = Trainer(
        max_steps=updates,
        default_root_dir=folder,
        accelerator=options.pop("accelerator", "cpu"),
        precision=options.pop("precision", None),
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*checkpoint_callbacks(folder), *options.pop("callbacks", [])],
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(model, datamodule=module, **options)
    return trainer


STAGES: dict[bytes, tempfile.TemporaryDirectory[str]] = {}


def before(module: OfflineDataModule) -> tuple[str, str]:
    """Checkpoints of a tiny dynamics ensemble and of a clone that were trained on a datamodule's source, once."""
    assert isinstance(module.source, Arrays)
    key = b"".join(array.tobytes() for array in module.source.arrays.values()) + repr(module.source.known).encode()
    if key not in STAGES:
        STAGES[key] = tempfile.TemporaryDirectory()
        for name in ("DynamicsEnsemble", "BC"):
            again = OfflineDataModule(module.source, batch_size=32, updates_per_epoch=20, rollouts=None)
            fit(algorithm(name), again, Path(STAGES[key].name) / name)
    folder = Path(STAGES[key].name)
    return str(folder / "DynamicsEnsemble" / "last.ckpt"), str(folder / "BC" / "last.ckpt")


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


class Losses(Callback):
    """Keeps the losses of every update."""

    def __init__(self) -> None:
        self.kept: dict[str, list[float]] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        update = pl_module.update

        def spied(batch: Any) -> Any:
            results = update(batch)
            for name, value in results.items():
                self.kept.setdefault(name, []).append(value.item())
            return results

        pl_module.update = spied


class Weighted(Priority):
    """Weights given by a function of the row number."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, transitions: Any) -> torch.Tensor:
        weights: torch.Tensor = self.function(torch.arange(len(transitions)).double())
        return weights / weights.mean()


def test_algorithms_are_found() -> None:
    assert {"BC", "TD3BC", "OperA"} <= ALGORITHMS.keys()


def seen_rewards(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Rewards that can be seen in an observation: an entry of it, or how bright an image is on the left."""
    observations = rows["observations"]
    if observations.ndim == 2:
        return observations[:, 0].copy()
    return observations[:, -1, :, :12].mean((1, 2)).astype(np.float32) / 128 - 1


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES + IMAGE_CASES if case[0] not in WITHOUT_LOSS])
def test_learning_lowers_the_loss(name: str, kind: Rows, tmp_path: Path) -> None:
    losses = Losses()
    model = algorithm(name, **{**rates(name, 3e-3), **no_bootstrapping(name)})
    # Without bootstrapping what is to be learnt stays where it is: values are rewards, here a part of the observation.
    arrays = {**DATA[kind], "rewards": seen_rewards(DATA[kind])}
    images = kind == "images"
    fit(model, data(arrays, batch_size=8 if images else 32), tmp_path, 100 if images else 400, callbacks=[losses])
    # What an actor is to maximise moves under it; its losses need not fall.
    falling = {kind for kind in losses.kept if kind.endswith("_loss")} - ACTORS_LOSSES.get(name, set())
    assert falling
    for kind in falling:
        values = losses.kept[kind]
        fifth = len(values) // 5
        assert np.mean(values[-fifth:]) < 0.9 * np.mean(values[:fifth]), kind


@pytest.mark.parametrize(("name", "kind"), POLICY_CASES)
@pytest.mark.parametrize("mode", ["resample", "reweight"])
def test_equal_weights_change_nothing(name: str, kind: Kind, mode: str, tmp_path: Path) -> None:
    plain = algorithm(name)
    fit(plain, data(kind), tmp_path / "plain")
    for roles in (None, ["evaluation"], ["improvement", "constraint"]):
        if roles and not {*roles} & {*ALGORITHMS[name].reads}:
            continue
        equal = algorithm(name)
        fit(
            equal,
            data(kind, priority=Weighted(torch.ones_like), mode=mode, prioritise=roles),
            tmp_path / f"equal{roles}",
        )
        assert same(parameters(plain), parameters(equal))
    other = algorithm(name)
    fit(other, data(kind, priority=OperR(), mode=mode), tmp_path / "other")
    assert not same(parameters(plain), parameters(other))


@pytest.mark.parametrize(("name", "kind"), POLICY_CASES + IMAGE_CASES)
def test_weights_of_one_in_the_batch_change_nothing(name: str, kind: Rows, tmp_path: Path) -> None:
    """A weight of exactly one leaves every bit, one of two does not; roles apart change no more than the rounding."""
    results = []
    for factor, apart in ((1.0, False), (1.0, True), (2.0, False), (None, False)):
        model, module = algorithm(name), data(kind)

        def weighted(updates: int, draw: Any = module.draw, factor: Any = factor, apart: bool = apart) -> Any:
            batch = draw(updates)
            if factor is not None:
                batch = batch.map(lambda part: part.set("weight", part["weight"] * factor))
            policy = batch.improvement.clone() if apart else batch.improvement
            return batch._replace(improvement=policy, constraint=policy)

        module.draw = weighted  # type: ignore[method-assign]
        fit(model, module, tmp_path / f"{factor}{apart}")
        results.append(parameters(model))
    together, separate, doubled, plain = results
    assert same(plain, together)
    assert not same(plain, doubled)
    for name_, value in plain.items():
        torch.testing.assert_close(separate[name_], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), CASES + IMAGE_CASES)
def test_an_interrupted_run_goes_on_bit_for_bit(name: str, kind: Rows, tmp_path: Path) -> None:
    priority = {} if name == "OperA" else {"priority": OperR()}
    whole = algorithm(name)
    fit(whole, data(kind, **priority), tmp_path / "whole", 80)

    # The schedule of stage 1 depends on the length of the run, so the first part is the same run, stopped.
    class Stop(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.global_step == stop:
                raise KeyboardInterrupt

    for stop in (20, 40, 60):
        folder = tmp_path / f"part{stop}"
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit(algorithm(name), data(kind, **priority), folder, 80, callbacks=[Stop()])
        part = algorithm(name)
        fit(part, data(kind, **priority), folder, 80, seed=99, ckpt_path=folder / "last.ckpt")
        assert same(parameters(whole), parameters(part))
        checkpoints = [torch.load(path / "last.ckpt", weights_only=True) for path in (tmp_path / "whole", folder)]
        states = [checkpoint["optimizer_states"] for checkpoint in checkpoints]
        for first, second in zip(*states, strict=True):
            for key, moments in first["state"].items():
                assert all(value.equal(second["state"][key][name]) for name, value in moments.items())
        assert checkpoints[0]["global_step"] == checkpoints[1]["global_step"] == 80


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_blocks_of_another_size_count_the_same(name: str, kind: Kind, tmp_path: Path) -> None:
    steps = []
    for block in (1, 4, 5, 20):
        trainer = fit(algorithm(name), data(kind, updates_per_block=block), tmp_path / str(block))
        steps.append((trainer.global_step, trainer.current_epoch))
    assert set(steps) == {(40, 2)}


def in_other_units(actions: torch.Tensor) -> torch.Tensor:
    """Actions in [-1, 1] brought between LOW and HIGH; numbers of discrete ones counted from -2."""
    if actions.is_floating_point():
        return (actions + 1) / 2 * (HIGH - LOW) + LOW
    return actions - 2


LOW, HIGH = torch.tensor([-3.0, 0.0]), torch.tensor([1.0, 6.0])


def elsewhere(kind: Rows, wide: float, far: float, **options: Any) -> OfflineDataModule:
    """The data with observations and actions in other units; images stay as they are."""
    rows = DATA[kind]
    arrays = {**rows, "actions": in_other_units(torch.from_numpy(rows["actions"])).numpy()}
    if kind != "images":
        arrays |= {key: rows[key] * wide + far for key in ("observations", "next_observations")}
    low, high = (LOW, HIGH) if kind == "continuous" else (torch.tensor(-2), torch.tensor(0))
    origin = Origin(dataset="scaled", action_low=low.numpy(), action_high=high.numpy())
    return OfflineDataModule(Arrays(arrays, origin), batch_size=32, rollouts=None, **options)


@pytest.mark.parametrize(("name", "kind"), POLICY_CASES + IMAGE_CASES)
def test_a_checkpoint_acts_alone(name: str, kind: Rows, tmp_path: Path) -> None:
    """Raw observations in, actions in the environment's units out, without data or configuration."""
    module = elsewhere(kind, 50, 20, updates_per_epoch=100)
    model = algorithm(name, **rates(name, 3e-3))
    fit(model, module, tmp_path, 100 if kind == "images" else 400)
    loaded = ALGORITHMS[name].load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    observations = module.rows(slice(None))["observation"]
    with torch.no_grad():
        actions = loaded.act(observations)
    assert actions.equal(model.act(observations))
    if kind != "continuous":
        assert actions.dtype is torch.int64
        acted = set(actions.tolist())
        if name in VALUES_ALONE:
            assert acted <= {-2, -1, 0}
            return
        assert (len(acted) > 1 and acted < {-2, -1, 0, 1}) if kind == "images" else acted == {-2, -1, 0}
    else:
        assert (actions >= LOW - 1e-5).all()
        assert (actions <= HIGH + 1e-5).all()
        assert actions[:, 1].max() > 1.5
    assert loaded.spec is not None
    assert (loaded.spec.dataset, loaded.spec.rows) == ("scaled", 200)


@pytest.mark.parametrize("name", [name for name, cls in ALGORITHMS.items() if cls.images])
def test_a_checkpoint_acts_alone_on_images(name: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = {
        key: generator.integers(256, size=(200, 2, 36, 36), dtype=np.uint8)
        for key in ("observations", "next_observations")
    }
    module, model = data({**DATA["discrete"], **images}, priority=OperR()), algorithm(name)
    fit(model, module, tmp_path, 20)
    loaded = ALGORITHMS[name].load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    observations = torch.from_numpy(images["observations"][:20])
    assert loaded.act(observations).equal(model.act(observations))


@pytest.mark.parametrize(("name", "kind"), [case for case in POLICY_CASES if case[0] not in WITHOUT_LOSS])
def test_scale_and_offset_of_observations_and_actions_do_not_matter(name: str, kind: Kind, tmp_path: Path) -> None:
    """A normalising algorithm sees the same numbers whatever units the data came in."""
    plain, here = algorithm(name), data(kind)
    fit(plain, here, tmp_path / "plain")
    # The same up to the 0.001 that is added to standard deviations.
    wide, far = (50, 20) if plain.normalises else (1, 0)
    there = elsewhere(kind, wide, far, updates_per_epoch=20, updates_per_block=5)
    scaled = algorithm(name)
    fit(scaled, there, tmp_path / "scaled")
    acts, expected = (model.act(rows.transitions["observation"]) for model, rows in ((scaled, there), (plain, here)))
    if kind == "discrete":
        assert (acts == in_other_units(expected)).double().mean() > 0.98  # two actions may be as good as each other
    else:
        torch.testing.assert_close(acts, in_other_units(expected), rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize(("name", "kind"), CASES + IMAGE_CASES)
def test_a_loss_that_is_not_finite_stops_the_run(name: str, kind: Rows, tmp_path: Path) -> None:
    """The run names the loss and the update, and the checkpoint before stays good."""
    module, model = data(kind), algorithm(name)

    class Poison(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.global_step == 20:
                with torch.no_grad():
                    for parameter in pl_module.parameters():
                        parameter.fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"is nan at update 21: training stops"):
        fit(model, module, tmp_path, callbacks=[Poison()])
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 20
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_the_last_gradients_of_an_epoch_poison_no_checkpoint(tmp_path: Path) -> None:
    class Poison(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 40:
                with torch.no_grad():
                    next(pl_module.parameters()).fill_(float("inf"))

    with pytest.raises(TrainingError, match="no longer finite at update 40"):
        fit(algorithm("BC"), data(), tmp_path, callbacks=[Poison()])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 20


def test_another_algorithms_checkpoint_is_refused(tmp_path: Path) -> None:
    fit(algorithm("BC"), data(), tmp_path)
    with pytest.raises(InputError, match=r"holds oper_lightning.algorithms.bc.BC, not .*TD3BC"):
        fit(algorithm("TD3BC"), data(), tmp_path / "other", ckpt_path=tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"observation shape \(3,\) against \(5,\)"):
        fit(algorithm("BC"), data(columns([25] * 8, 5)), tmp_path / "other", ckpt_path=tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"hidden_sizes \(16, 16\) there, \(8,\) here"):
        fit(algorithm("BC", hidden_sizes=(8,)), data(), tmp_path / "other", ckpt_path=tmp_path / "last.ckpt")
