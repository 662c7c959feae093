"""Whatever is wrong with what a person gives ends in one line that says where and what to do, before training."""

from __future__ import annotations

import fcntl
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers import columns, oper, write_hdf5
from safetensors.torch import load_file

from oper_lightning.data.datamodule import OfflineDataModule
from oper_lightning.data.sources.d4rl import D4RL
from oper_lightning.priorities.file import FORMAT, save_tensors

QUICK = ["--data.batch_size=32", "--data.updates_per_epoch=20", "--trainer.max_steps=20", "--model.hidden_sizes=[8]"]


def fit(source: str, path: Any, *words: str) -> list[str]:
    return ["fit", "--model=BC", f"--data.source={source}", f"--data.source.path={path}", *QUICK, *words]


# Data ----------------------------------------------------------------------------------------------------------------

ROWS = columns([25] * 4, 10, 2)


def changed(**arrays: Any) -> dict[str, Any]:
    return {name: array for name, array in {**ROWS, **arrays}.items() if array is not None}


def poisoned(name: str, row: int, value: float) -> np.ndarray:
    array = ROWS[name].copy()
    array[row] = value
    return array


FILES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no actions": (changed(actions=None), ["bad.hdf5", "'actions'"]),
    "no rewards": (changed(rewards=None), ["bad.hdf5", "'rewards'"]),
    "nothing": ({}, ["bad.hdf5", "'observations'"]),
    "no rows": ({name: array[:0] for name, array in ROWS.items()}, ["bad.hdf5", "no rows"]),
    "unequal lengths": (changed(rewards=ROWS["rewards"][:-3]), ["bad.hdf5", "rewards", "97", "100"]),
    "flat observations": (changed(observations=ROWS["observations"][:, 0]), ["bad.hdf5", "observations", "(100,)"]),
    "rewards with columns": (changed(rewards=ROWS["actions"]), ["bad.hdf5", "rewards", "(100, 2)"]),
    "next of other width": (
        changed(next_observations=ROWS["next_observations"][:, :4]),
        ["bad.hdf5", "next_observations", "(100, 4)"],
    ),
    "nan": (
        changed(observations=poisoned("observations", 17, np.nan)),
        ["bad.hdf5", "'observations'", "row 17, column 0"],
    ),
    "infinity": (changed(rewards=poisoned("rewards", 60, np.inf)), ["bad.hdf5", "'rewards'", "row 60"]),
    "more than float32 holds": (
        changed(rewards=np.where(np.arange(100) == 60, 1e300, ROWS["rewards"].astype(float))),
        ["bad.hdf5", "next reward", "more than float32 holds", "row 60"],
    ),
    "nan in actions": (changed(actions=poisoned("actions", 3, np.nan)), ["bad.hdf5", "'actions'", "row 3"]),
    "text": (changed(rewards=np.full(100, b"one")), ["bad.hdf5", "rewards"]),
    "actions outside": (
        changed(actions=poisoned("actions", 7, 1.5)),
        ["bad.hdf5", "1 of 100 actions", "row 7", "data.clip_actions"],
    ),
    "other observations": (
        changed(**{name: ROWS[name][:, :9] for name in ("observations", "next_observations")}),
        ["bad.hdf5", "(9,)", "Reacher-v5", "(10,)", "data.rollouts"],
    ),
    "other actions": (changed(actions=ROWS["actions"][:, :1]), ["bad.hdf5", "(1,)", "Reacher-v5", "(2,)"]),
}


@pytest.mark.parametrize("case", FILES)
def test_files_with_faults(case: str, refused: Callable[..., str]) -> None:
    arrays, words = FILES[case]
    line = refused(*fit("D4RL", write_hdf5(Path("bad.hdf5"), arrays, env_id="Reacher-v5")))
    for word in words:
        assert word in line, line


def test_actions_are_clipped_only_when_asked() -> None:
    path = write_hdf5(Path("wide.hdf5"), changed(actions=poisoned("actions", 7, 1.5)), env_id="Reacher-v5")
    assert oper(*fit("D4RL", path, "--data.clip_actions=true", "--data.rollouts=null", "--output=clipped")) == 0


def test_files_that_are_none(small_file: Path, refused: Callable[..., str]) -> None:
    Path("text.hdf5").write_text("observations: none")
    Path("empty.hdf5").touch()
    whole = small_file.read_bytes()
    Path("cut.hdf5").write_bytes(whole[: len(whole) // 2])
    for name in ("text", "empty", "cut"):
        line = refused(*fit("D4RL", f"{name}.hdf5"))
        assert f"{name}.hdf5" in line
        assert "HDF5" in line
    line = refused(*fit("D4RL", "missing.hdf5"))
    assert "missing.hdf5" in line
    assert "no such file" in line.lower()
    line = refused(*fit("Npz", "missing.npz"))
    assert "missing.npz" in line
    line = refused(*fit("D4RL", "."))
    assert "." in line
    line = refused("fit", "--model=BC", "--data.source=D4RL", *QUICK)
    assert "path" in line


class Trap:
    """Leaves a trace if it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("sprung"),)


def test_pickles_and_objects_are_no_data(refused: Callable[..., str]) -> None:
    Path("pickle.hdf5").write_bytes(pickle.dumps({"observations": Trap()}))
    Path("pickle.npz").write_bytes(pickle.dumps({"observations": Trap()}))
    objects = np.array([Trap()] * 100, dtype=object)
    np.savez("objects.npz", **changed(rewards=objects))
    with h5py.File("objects.hdf5", "w") as file:
        for name, array in ROWS.items():
            if name == "rewards":
                file.create_dataset(name, (100,), h5py.special_dtype(vlen=np.dtype("float32")))
            else:
                file[name] = array
    np.save("weights.npy", np.array({"weight": Trap()}, dtype=object), allow_pickle=True)
    for name in ("pickle.hdf5", "objects.hdf5"):
        assert name in refused(*fit("D4RL", name))
    for name in ("pickle.npz", "objects.npz"):
        assert name in refused(*fit("Npz", name))
    good = write_hdf5(Path("good.hdf5"), ROWS)
    line = refused(*fit("D4RL", good, "--data.priority=WeightsFile", "--data.priority.path=weights.npy"))
    assert "weights.npy" in line
    assert "oper convert" in line
    assert not Path("sprung").exists()


# Weights -------------------------------------------------------------------------------------------------------------


def weights_file(path: str, values: Any, fingerprint: str, rows: int | None = None) -> None:
    weights = torch.as_tensor(values, dtype=torch.float32).reshape(1, 1, -1)
    metadata = {"format": FORMAT, "fingerprint": fingerprint, "rows": rows or weights.shape[-1], "dataset": "other"}
    save_tensors(Path(path), {"weights": weights}, metadata)


@pytest.fixture
def own(small_file: Path) -> str:
    """The fingerprint of the small file."""
    module = OfflineDataModule(D4RL(str(small_file)), batch_size=1)
    module.setup()
    return module.spec.fingerprint


def ones(row: int | None = None, value: float = 1.0, rows: int = 1000) -> torch.Tensor:
    weights = torch.ones(rows)
    weights[row if row is not None else slice(None)] = value
    return weights


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (ones(4, -1.0), ["negative", "row 4"]),
        (ones(5, float("nan")), ["nan", "row 5"]),
        (ones(6, float("inf")), ["inf", "row 6"]),
        (ones(None, 0.0), ["zero"]),
        (ones(rows=999), ["999", "1,000"]),
    ],
    ids=["negative", "nan", "infinite", "all zero", "too short"],
)
def test_weights_with_faults(
    values: torch.Tensor, words: list[str], own: str, small_file: Path, refused: Callable[..., str]
) -> None:
    weights_file("weights.safetensors", values, own)
    for mode in ("resample", "reweight"):
        line = refused(*fit("D4RL", small_file, *PRIORITY, f"--data.mode={mode}", *NO_EVALUATION))
        assert "weights.safetensors" in line
        for word in words:
            assert word in line, line


PRIORITY = ["--data.priority=WeightsFile", "--data.priority.path=weights.safetensors"]
NO_EVALUATION = ["--data.rollouts=null"]


def test_weights_of_another_dataset(own: str, small_file: Path, refused: Callable[..., str]) -> None:
    weights_file("weights.safetensors", ones(), own[::-1])
    line = refused(*fit("D4RL", small_file, *PRIORITY, *NO_EVALUATION))
    assert "weights.safetensors" in line
    assert "made for other data" in line


def test_what_a_weights_file_lacks(own: str, small_file: Path, refused: Callable[..., str]) -> None:
    weights_file("weights.safetensors", ones(), own)
    for iteration in ("2", "0", "-1"):
        line = refused(*fit("D4RL", small_file, *PRIORITY, f"--data.priority.iteration={iteration}", *NO_EVALUATION))
        assert "iteration" in line
    template = ["--data.priority=WeightsFile", "--data.priority.path=weights-{number}.safetensors"]
    line = refused(*fit("D4RL", small_file, *template, *NO_EVALUATION))
    assert "{seed}" in line
    line = refused(*fit("D4RL", small_file, "--data.priority=WeightsFile", "--data.priority.path=weights-{seed}.st"))
    assert "weights-{seed}.st" in line
    Path("cut.safetensors").write_bytes(Path("weights.safetensors").read_bytes()[:-40])
    line = refused(*fit("D4RL", small_file, "--data.priority=WeightsFile", "--data.priority.path=cut.safetensors"))
    assert "cut.safetensors" in line
    line = refused(*fit("D4RL", small_file, "--data.priority=WeightsFile", "--data.priority.path=gone.safetensors"))
    assert "gone.safetensors" in line


# Checkpoints ---------------------------------------------------------------------------------------------------------


def test_checkpoints_that_are_none(small_file: Path, refused: Callable[..., str]) -> None:
    assert oper(*fit("D4RL", small_file, *NO_EVALUATION, "--output=run")) == 0
    whole = Path("run/last.ckpt").read_bytes()
    Path("cut.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("text.ckpt").write_text("weights")
    Path("trap.ckpt").write_bytes(pickle.dumps({"state_dict": Trap()}))
    torch.save({"state_dict": {}}, "other.ckpt")
    for name in ("cut", "text", "trap", "other", "gone"):
        for verb in ("fit", "validate"):
            line = refused(*[verb, *fit("D4RL", small_file)[1:]], f"--ckpt_path={name}.ckpt")
            assert f"{name}.ckpt" in line
    assert not Path("sprung").exists()
    line = refused("validate", "--ckpt_path=run/last.ckpt", "--data.rollouts=null")
    assert "data.rollouts.environment" in line
    line = refused(*fit("D4RL", small_file, "--ckpt_path=run/last.ckpt", "--model=TD3BC", "--output=run"))
    assert "BC" in line
    line = refused(*fit("D4RL", small_file, "--ckpt_path=run/last.ckpt", "--model.hidden_sizes=[16]", "--output=run"))
    assert "hidden_sizes" in line
    line = refused("validate", *fit("D4RL", small_file)[1:])
    assert "--ckpt_path" in line


ROWS_OF_D4RL = ["--source.qlearning_rows=true"]

# Configuration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model=TD3CB"], ["model", "TD3CB", "TD3BC"]),
        (["--data.source=D4LR"], ["source", "D4LR", "D4RL"]),
        (["--data.priority=OperB"], ["priority", "OperB", "OperR"]),
        (["--data.bonus=RMD"], ["bonus", "RMD", "RND"]),
        (["--data.bonus=RND", "--data.bonus.feature=3"], ["feature", "features"]),
        (["--data.bonus=RND", "--data.bonus.learn=false"], ["data.bonus.learn", "data.bonus.path"]),
        (["--model=oper_lightning.algorithms.bc.BCC"], ["model", "BCC", "'BC'"]),
        (["--model=torch.nn.Linear"], ["model", "torch.nn.Linear", "IQL"]),
        (["--trainer.precision=17"], ["precision", "17", "32-true"]),
        (["--trainer.precision=16-true"], ["precision", "32-true"]),
        (["--trainer.gradient_clip_val=1"], ["gradient_clip_val"]),
        (["--trainer.accelerator=tpu7"], ["tpu7"]),
        (["--data.updates_per_block=0"], ["updates_per_block"]),
        (["--model.learning_rate=-1"], ["learning_rate"]),
        (["--model.hiden_sizes=[8]"], ["model", "hiden_sizes", "hidden_sizes"]),
        (["--data.batchsize=32"], ["batchsize", "batch_size"]),
        (["--data.rollouts.episods=3"], ["episods", "episodes"]),
        (["--trainer.max_step=3"], ["max_step", "max_steps"]),
        (["--outptu=run"], ["outptu", "output"]),
        (["--data.batch_size=many"], ["batch_size", "many"]),
        (["--data.batch_size=0"], ["batch_size"]),
        (["--data.reward_shift=.inf"], ["data.reward_shift is inf"]),
        (["--data.reward_scale=1e300"], ["data.reward_scale is 1e+300"]),
        (["--data.batch_size=2000"], ["batch_size", "2000", "1,000"]),
        (["--data.mode=resampel"], ["mode", "resampel", "did you mean 'resample'?"]),
        (["--data.prioritise=[constrant]"], ["prioritise", "constrant", "did you mean 'constraint'?"]),
        (["--data.prioritise=[evaluation,improvment]"], ["prioritise", "improvment", "improvement"]),
        (["--data.priority=OperR", "--data.prioritise=[]"], ["prioritise"]),
        (["--data.priority=OperR", "--data.prioritise=[improvement]"], ["prioritise"]),
        (["--data.priority=OperR", "--data.prioritise=[evaluation]"], ["prioritise", "evaluation", "improvement, con"]),
        (["--data.rollouts.episodes=0"], ["episodes"]),
        (["--data.rollouts.environment=Reecher-v5"], ["Reecher-v5"]),
        (["--data.updates_per_epoch=7"], ["max_steps", "updates_per_epoch"]),
        (["--data.priority=TopFraction", "--data.priority.fraction=2"], ["fraction"]),
        (["--config=missing.yaml"], ["missing.yaml"]),
        (["--config=broken.yaml"], ["broken.yaml"]),
        (["--config=unknown.yaml"], ["alpa"]),
        (["--output=file/run"], ["file/run", "--output"]),
        (["--output=/proc/run"], ["/proc/run", "--output"]),
        (["--output=taken"], ["taken: holds other files already", "--output"]),
    ],
    ids=" ".join,
)
def test_configurations(words: list[str], expected: list[str], small_file: Path, refused: Callable[..., str]) -> None:
    Path("broken.yaml").write_text("model: [BC\n")
    Path("unknown.yaml").write_text("model:\n  class_path: TD3BC\n  init_args:\n    alpa: 2.5\n")
    Path("file").touch()
    Path("taken").mkdir()
    Path("taken/notes.txt").write_text("mine")
    if words[0].startswith("--config"):
        line = refused("fit", *words, "--data.source=D4RL", f"--data.source.path={small_file}", *QUICK)
    else:
        line = refused(*fit("D4RL", small_file, *words))
    for word in expected:
        assert word in line, line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fitt"], ["fitt", "fit"]),
        (["run", "missing.yaml"], ["missing.yaml"]),
        (["run", "chain.yaml", "--sede=1"], ["sede", "seed"]),
        (["run", "hole.yaml"], ["sead", "seed"]),
        (["run", "grows.yaml"], ["grows.yaml", "stands for", "100,000 are the most"]),
        (["run", "lists.yaml"], ["lists.yaml", "seed and data are lists"]),
        (["run", "twice.yaml"], ["twice.yaml", "'one'", "'one_0'"]),
        (["run", "list.yaml", "--seed="], ["list.yaml", "seed has no value"]),
        (["run", "empty.yaml"], ["empty.yaml", "'one'"]),
        (["run", "quote.yaml"], ["quote.yaml", "'one'"]),
        (["run", "chain.yaml", "--folder=/proc/chain"], ["/proc/chain"]),
        (["predict", "--ckpt_path=nowhere/last.ckpt"], ["nowhere/last.ckpt"]),
        (["report", "missing"], ["missing"]),
        (["report", "rans/one"], ["rans/one/config.yaml", "did you mean 'runs'?"]),
        (["convert", "missing.npy"], ["source must be given", "Minari, Npz"]),
        (["inspect", "missing.hdf5"], ["missing.hdf5"]),
        (["inspect", "hoper-medium-v2"], ["hoper-medium-v2", "did you mean 'hopper-medium-v2'"]),
        (["inspect", "rows.hdf5", "--output=/proc/here"], ["/proc/here"]),
        (["convert", "missing.npy", "--source=D4RL", "--source.path=rows.hdf5", *ROWS_OF_D4RL], ["missing.npy"]),
        (["predict", "--ckpt_path=missing.ckpt"], ["missing.ckpt"]),
    ],
    ids=" ".join,
)
def test_other_verbs(words: list[str], expected: list[str], refused: Callable[..., str]) -> None:
    write_hdf5(Path("rows.hdf5"), ROWS)
    Path("runs").mkdir()
    Path("chain.yaml").write_text("set: {seed: 0}\nlinks: {one: 'fit --seed_everything={seed}'}")
    Path("hole.yaml").write_text("set: {seed: 0}\nlinks: {one: 'fit --seed_everything={sead}'}")
    grows = ", ".join(f"a{n}: '{f'{{a{n - 1}}}' * 10 if n else 'xxxxxxxxxx'}'" for n in range(12))
    Path("grows.yaml").write_text(f"set: {{{grows}}}\nlinks: {{one: 'fit {{a11}}'}}")
    Path("lists.yaml").write_text("set: {seed: [0, 1], data: [a, b]}\nlinks: {one: 'fit {seed}'}")
    Path("twice.yaml").write_text("set: {seed: [0]}\nlinks: {one_0: 'fit', one: 'fit {seed}'}")
    Path("list.yaml").write_text("set: {seed: [0]}\nlinks: {one: 'fit {seed}'}")
    Path("empty.yaml").write_text("links: {one: }")
    Path("quote.yaml").write_text("links: {one: 'fit --output=\"here'}")
    line = refused(*words)
    for word in expected:
        assert word in line, line


@pytest.mark.parametrize("verb", ["fit", "run", "report", "inspect"])
def test_words_that_cannot_be_read(verb: str, refused: Callable[..., str]) -> None:
    assert refused(verb, "--output=\udcff").endswith(r"'--output=\udcff' is not UTF-8")
    assert "'--output' has a number of more than 4,000 digits" in refused(verb, f"--output={'9' * 5000}")


def test_files_of_other_shapes(refused: Callable[..., str]) -> None:
    np.save("array.npy", np.ones(3))
    assert "array.npy" in refused(*fit("Npz", "array.npy"))
    images = {name: np.repeat(ROWS[name][..., None], 2, -1) for name in ("observations", "next_observations")}
    line = refused(*fit("D4RL", write_hdf5(Path("images.hdf5"), changed(**images)), "--output=images"))
    assert "(10, 2)" in line
    # A run that was refused does not block its folder.
    assert oper(*fit("D4RL", write_hdf5(Path("good.hdf5"), ROWS), "--output=images")) == 0


def test_a_folder_in_use(small_file: Path, refused: Callable[..., str]) -> None:
    Path("busy").mkdir()
    with open("busy/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "busy: another process" in refused(*fit("D4RL", small_file, "--output=busy", "--ckpt_path=last"))
    assert oper(*fit("D4RL", small_file, *NO_EVALUATION, "--output=busy")) == 0


def test_resuming_with_other_data(small_file: Path, refused: Callable[..., str]) -> None:
    write_hdf5(Path("other.hdf5"), columns([25] * 40, 10, 2, seed=1), env_id="Reacher-v5")
    for model in ("BC", "OperA"):
        words = ["fit", f"--model={model}", "--data.source=D4RL", *QUICK, *NO_EVALUATION, f"--output={model}"]
        words += ["--model.iterations=1"] if model == "OperA" else []
        assert oper(*words, f"--data.source.path={small_file}") == 0
        line = refused(*words, "--data.source.path=other.hdf5", "--ckpt_path=last")
        assert "other data (small)" in line
    line = refused(*words, f"--data.source.path={small_file}", "--ckpt_path=last", "--trainer.max_steps=40")
    assert "must keep trainer.max_steps" in line


# What is worth a note and no more -----------------------------------------------------------------------------------


def test_notes(capsys: pytest.CaptureFixture[str]) -> None:
    arrays = columns([25] * 40, 10, 2)
    arrays["timeouts"][-1] = arrays["terminals"][-1] = False
    arrays["rewards"][:] = 1
    path = write_hdf5(Path("notes.hdf5"), arrays)
    assert oper(*fit("D4RL", path, "--data.priority=OperR", "--output=noted")) == 0
    errors = capsys.readouterr().err
    assert "oper: notes.hdf5: the last episode is unfinished" in errors
    assert "oper: OPER-R: all episodes have the same return" in errors
    assert "no environment known" in errors


def test_training_that_turns_nan_stops(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A learning rate far too large; the message names the loss and the update, the checkpoint before is good."""
    words = fit("D4RL", small_file, *NO_EVALUATION, "--output=run")
    assert oper(*words) == 0
    again = [word for word in words if "max_steps" not in word]
    again += ["--trainer.max_steps=400", "--ckpt_path=last", "--model.learning_rate=1e38"]
    assert oper(*again) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("oper: error: ")
    assert "at update" in line
    checkpoint = torch.load("run/last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert checkpoint["global_step"] >= 20


def test_weights_file_of_stage_one_survives_a_refused_run(small_file: Path, refused: Callable[..., str]) -> None:
    stage = ["fit", "--model=OperA", "--model.iterations=1", "--data.source=D4RL", *NO_EVALUATION, *QUICK]
    assert oper(*stage, f"--data.source.path={small_file}", "--output=weights") == 0
    line = refused(*stage, f"--data.source.path={small_file}", "--output=weights")
    assert "weights: holds another run already; name another folder with --output, or go on" in line
    assert load_file("weights/weights.safetensors")["weights"].shape == (1, 3, 1000)
