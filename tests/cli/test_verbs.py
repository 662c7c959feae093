"""The command as a person meets it: what is typed, what appears, what lies on disk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import columns, oper, write_hdf5
from safetensors.torch import load_file

from oper_lightning.algorithms.bc import BC
from oper_lightning.cli.chain import load
from oper_lightning.report.curves import read_curves

SMALL = ["--data.batch_size=32", "--data.updates_per_epoch=20", "--trainer.max_steps=40", "--model.hidden_sizes=[16]"]
EVALUATION = "--data.rollouts={episodes: 3, parallel: 2}"


def fit(file: Path, *words: str, model: str = "BC") -> int:
    return oper("fit", f"--model={model}", "--data.source=D4RL", f"--data.source.path={file}", *SMALL, *words)


def test_a_run_leaves_what_it_says(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(small_file, EVALUATION, "--data.priority=OperR", "--output=run", "--trainer.log_every_n_steps=10") == 0
    out, err = capsys.readouterr()
    assert out == "run: update 40; last.ckpt, best.ckpt\n"
    lines = err.splitlines()
    assert len(lines) == 4, (
        err
    )  # what was read, what will be done, a line for each evaluation; nothing that is not ours
    line = r"BC  update 40/40  return -?[\d.]+ ± [\d.]+  policy_loss [\d.]+  \([\d,]+ updates/s\)"
    assert re.fullmatch(line, lines[3]), lines[3]
    names = {path.name.split(".")[0] for path in Path("run").iterdir()}
    assert names == {"best", "last", "config", "events", ""}
    curves = read_curves("run")
    assert curves["eval/episodes"].values == [3, 3]
    assert curves["eval/return"].updates == [20, 40]
    assert curves["train/policy_loss"].updates == [20, 40]
    assert 0 < curves["weights/ess"].values[0] < 1
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["model"]["init_args"]["hidden_sizes"] == [16]
    assert config["output"] is None


def test_a_checkpoint_is_judged_without_its_configuration_repeated(
    small_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(small_file, EVALUATION, "--output=run") == 0
    curves = read_curves("run")
    assert curves["train/policy_loss"].updates == [40]  # a run that is shorter than log_every_n_steps logs its end
    last = curves["eval/return"].values[-1]
    capsys.readouterr()
    assert oper("validate", "--ckpt_path=run/last.ckpt") == 0
    out = capsys.readouterr().out
    found = re.fullmatch(r"return (-?[\d.]+) ± [\d.]+ over 3 episodes.* \(Reacher-v5\)\n", out)
    assert found, out
    assert float(found.group(1)) == pytest.approx(last, abs=0.01)
    assert oper("test", "--ckpt_path=run/last.ckpt") == 0
    other = re.match(r"return (-?[\d.]+)", capsys.readouterr().out)
    assert other
    assert other.group(1) != found.group(1)  # other episodes
    kept = json.loads(Path("run/test.json").read_text())
    assert f"{kept['return']:.2f}" == other.group(1)
    assert kept["checkpoint"] == "run/last.ckpt"
    # Weights that were there for training only need not be there for judging.
    assert (
        oper("validate", "--ckpt_path=run/best.ckpt", "--data.priority=WeightsFile", "--data.priority.path=gone") == 0
    )


def test_predictions_are_in_row_order(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(small_file, "--data.rollouts=null", "--output=run") == 0
    assert oper("predict", "--ckpt_path=run/last.ckpt") == 0
    assert "run/predictions.safetensors: action [1000, 2]" in capsys.readouterr().out
    actions = load_file("run/predictions.safetensors")["action"]
    model = BC.load_from_checkpoint("run/last.ckpt", weights_only=True)
    observations = torch.from_numpy(columns([25] * 40, 10, 2)["observations"])
    torch.testing.assert_close(actions, model.act(observations), rtol=1e-5, atol=1e-6)
    # Other data of the same shape.
    other = write_hdf5(Path("other.hdf5"), columns([5, 7, 30], 10, 2, seed=3))
    assert oper("predict", "--ckpt_path=run/last.ckpt", f"--data.source.path={other}", "--output=elsewhere") == 0
    assert len(load_file("elsewhere/predictions.safetensors")["action"]) == 42


def test_advantages_are_predicted(small_file: Path) -> None:
    stage = ["--model.iterations=1", "--data.rollouts=null", "--output=run"]
    assert fit(small_file, *stage, model="OperA") == 0
    assert oper("predict", "--ckpt_path=run/last.ckpt") == 0
    predicted, kept = load_file("run/predictions.safetensors"), load_file("run/weights.safetensors")
    for name in ("value", "advantage"):
        torch.testing.assert_close(predicted[name].T, kept[name][0], rtol=1e-5, atol=1e-5)


def test_hyper_parameters_follow_the_checkpoint_unless_given(small_file: Path) -> None:
    assert fit(small_file, "--data.rollouts=null", "--output=run", "--model.learning_rate=1e-3") == 0
    base = ["fit", "--data.source=D4RL", f"--data.source.path={small_file}", "--data.rollouts=null"]
    base += ["--data.batch_size=32", "--data.updates_per_epoch=20", "--ckpt_path=run/last.ckpt"]
    assert oper(*base, "--trainer.max_steps=60") == 0
    kept = torch.load("run/last.ckpt", weights_only=True)
    assert kept["hyper_parameters"]["learning_rate"] == 1e-3
    assert kept["hyper_parameters"]["hidden_sizes"] == [16]
    assert kept["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-3
    assert oper(*base, "--trainer.max_steps=80", "--model.learning_rate=5e-4") == 0
    kept = torch.load("run/last.ckpt", weights_only=True)
    assert kept["global_step"] == 80
    assert kept["optimizer_states"][0]["param_groups"][0]["lr"] == 5e-4


def test_a_run_that_goes_on_tells_what_changed(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(small_file, "--data.rollouts=null", "--output=run", "--data.priority=OperR") == 0
    capsys.readouterr()
    again = ["--data.rollouts=null", "--output=run", "--ckpt_path=last", "--trainer.max_steps=60"]
    assert fit(small_file, *again) == 0  # nothing else was said: the run's own configuration goes on
    assert " was " not in capsys.readouterr().err
    Path("plain.yaml").write_text("trainer:\n  max_steps: 80\n")
    assert fit(small_file, "--config=plain.yaml", *again[:3]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if " was " in line]
    assert "oper: data.init_args.priority.class_path was oper_lightning.OperR in this run, now it is None" in notes
    assert all("priority" in line for line in notes), notes


def test_a_refused_run_leaves_no_folder(small_file: Path) -> None:
    assert fit(small_file, "--data.batch_size=5000") == 1
    assert not list(Path("runs/fit").iterdir())


def test_a_finished_run_is_not_trained_on(small_file: Path) -> None:
    assert fit(small_file, EVALUATION, "--output=run") == 0
    before = torch.load("run/last.ckpt", weights_only=True)
    assert fit(small_file, EVALUATION, "--output=run", "--ckpt_path=last") == 0
    after = torch.load("run/last.ckpt", weights_only=True)
    assert after["global_step"] == 40
    assert all(value.equal(after["state_dict"][name]) for name, value in before["state_dict"].items())


def test_the_best_checkpoint_stays_when_its_folder_moves(small_file: Path) -> None:
    assert fit(small_file, EVALUATION, "--output=run") == 0
    Path("run").rename("moved")
    best = torch.load("moved/best.ckpt", weights_only=True)
    score = best["callbacks"]
    assert score
    # Training on with nonsense cannot win over what is there.
    assert fit(small_file, EVALUATION, "--output=moved", "--ckpt_path=last", "--trainer.max_steps=60",
               "--model.learning_rate=10") == 0  # fmt: skip
    assert torch.load("moved/best.ckpt", weights_only=True)["global_step"] == best["global_step"]


def test_runs_are_numbered_by_their_configurations(small_file: Path) -> None:
    Path("a.yaml").write_text("model: BC\n")
    Path("b.yaml").write_text("trainer:\n  max_steps: 20\n")
    words = ["--data.source=D4RL", f"--data.source.path={small_file}", "--data.rollouts=null"]
    words += ["--data.updates_per_epoch=20", "--model.hidden_sizes=[8]"]
    for _ in range(2):
        assert oper("fit", "--config=a.yaml", "--config=b.yaml", *words) == 0
    assert oper("fit", "--config=a.yaml", "--config=b.yaml", *words, "--ckpt_path=last", "--trainer.max_steps=40") == 0
    assert sorted(path.name for path in Path("runs/a-b").iterdir()) == ["0", "1"]
    steps = [torch.load(f"runs/a-b/{number}/last.ckpt", weights_only=True)["global_step"] for number in (0, 1)]
    assert steps == [20, 40]
    # From any other checkpoint a new run begins.
    assert oper("fit", "--config=a.yaml", "--config=b.yaml", *words, "--output=other",
                "--ckpt_path=runs/a-b/0/last.ckpt", "--trainer.max_steps=40") == 0  # fmt: skip
    assert torch.load("runs/a-b/0/last.ckpt", weights_only=True)["global_step"] == 20


def test_what_a_yaml_must_not_say(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text("output: run\n")
    assert fit(small_file, "--config=a.yaml") == 1
    assert "--output=run" in capsys.readouterr().err
    assert oper("fit", "--model=BC", "--data.source=D4RL", f"--data.source.path={small_file}") == 1
    assert "trainer.max_steps must be given" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["fit", "--help"], ["run", "--help"], ["report", "--help"]])
def test_help_is_there(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = oper(*words)
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code == 0
    assert len(capsys.readouterr().out) > 200


def test_help_of_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    assert oper("fit", "--data.source.help=Npz") == 0
    out = capsys.readouterr().out
    assert "--data.source.names" in out
    assert "D4RL's name" in out
    assert oper("fit", "--data.priority.help", "WeightFile") == 1
    assert "did you mean 'WeightsFile'?" in capsys.readouterr().err


def test_the_saved_configuration_runs_again(small_file: Path) -> None:
    assert fit(small_file, EVALUATION, "--data.priority=OperR", "--output=run") == 0
    assert oper("fit", "--config=run/config.yaml", "--output=again") == 0
    runs = [torch.load(f"{name}/last.ckpt", weights_only=True)["state_dict"] for name in ("run", "again")]
    assert all(value.equal(runs[1][name]) for name, value in runs[0].items())


CHAIN = """
folder: chain
set: {seed: 0}
links:
  weights: >-
    fit --model=OperA --data.source=D4RL "--data.source.path=small file.hdf5" --data.rollouts=null
    --model.iterations=2 --data.updates_per_epoch=20 --trainer.max_steps=40 --seed_everything={seed}
  policy: >-
    fit --model=BC --data.source=D4RL "--data.source.path=small file.hdf5" --data.rollouts={episodes: 2}
    --data.priority=WeightsFile --data.priority.path={weights}/weights.safetensors
    --data.updates_per_epoch=20 --trainer.max_steps=40
  score: validate --ckpt_path={policy}/last.ckpt
"""


def test_a_chain_goes_on_where_it_stopped(small_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small_file.rename("small file.hdf5")
    Path("chain.yaml").write_text(CHAIN.replace("{episodes: 2}", "'{episodes: 2}'").replace("'", '"'))
    Path("broken.yaml").write_text(
        Path("chain.yaml").read_text().replace("score: validate", "score: validate --nonsense=1")
    )
    assert oper("run", "broken.yaml") != 0
    out = capfd.readouterr().out
    assert "$ oper fit --model=OperA" in out
    assert "link 'score' stopped" in out
    # The links that are done are not done again; the one that failed may be mended.
    assert oper("run", "chain.yaml") == 0
    out = capfd.readouterr().out
    assert "# weights: done already" in out
    assert "# policy: done already" in out
    assert re.search(r"return -?[\d.]+ ± [\d.]+ over 2 episodes", out)
    # What only looks at the others may be asked something else.
    text = Path("chain.yaml").read_text()
    Path("chain.yaml").write_text(text.replace("score: validate", "score: test"))
    assert oper("run", "chain.yaml") == 0
    assert Path("chain/policy/test.json").is_file()
    assert oper("run", "chain.yaml", "--seed=1") == 1
    assert (
        "link 'weights' was another command (--seed_everything=0 became --seed_everything=1)" in capfd.readouterr().err
    )


def test_a_name_of_a_chain_may_stand_for_several_words() -> None:
    Path("chain.yaml").write_text("""
set: {data: "--data.source=D4RL --data.source.path='a file.hdf5'", run: my run}
links:
  first: fit {data} --data.priority.path={run}/weights
  second: validate --ckpt_path {first} {data}
""")
    links = load("chain.yaml", {"folder": "the runs"})["links"]
    assert links["first"][1:4] == [
        "--data.source=D4RL",
        "--data.source.path=a file.hdf5",
        "--data.priority.path=my run/weights",
    ]
    assert links["second"][2:] == ["the runs/first", "--data.source=D4RL", "--data.source.path=a file.hdf5"]


def test_a_list_repeats_the_links_of_a_chain() -> None:
    Path("chain.yaml").write_text("""
folder: runs/{dataset}
set: {dataset: hopper, data: "--data.source=D4RL --data.source.path={dataset}-{{dataset}}", seed: [1, 2]}
links:
  weights: fit {data}
  policy: fit --seed_everything={seed} --data.priority.path={weights}/w
  score: test --ckpt_path={policy}/last.ckpt
  table: report {policy} --output={folder}
""")
    chain = load("chain.yaml", {"seed": "3,4,5", "dataset": "walker"})
    links = chain["links"]
    assert list(links) == [
        "weights",
        *(f"{name}_{seed}" for name in ("policy", "score") for seed in (3, 4, 5)),
        "table",
    ]
    assert links["weights"][1:3] == ["--data.source=D4RL", "--data.source.path=walker-{dataset}"]
    assert links["policy_4"] == [
        "fit",
        "--seed_everything=4",
        "--data.priority.path=runs/walker/weights/w",
        "--output=runs/walker/policy_4",
        "--ckpt_path=last",
    ]
    assert links["score_5"] == ["test", "--ckpt_path=runs/walker/policy_5/last.ckpt"]
    folders = [f"runs/walker/policy_{seed}" for seed in (3, 4, 5)]
    assert links["table"] == ["report", *folders, "--output=runs/walker"]
    assert list(load("chain.yaml", {})["links"]) == ["weights", "policy_1", "policy_2", "score_1", "score_2", "table"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_no_success(number: int, code: int, small_file: Path) -> None:
    command = [sys.executable, "-m", "oper_lightning", "fit", "--model=BC", "--data.source=D4RL"]
    command += [f"--data.source.path={small_file}", *SMALL[:2], "--trainer.max_steps=2000000", "--output=run"]
    command += ["--data.rollouts=null"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell starts what it puts into the background with interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    for _ in range(4):  # what it read and will do; the first checkpoint is there when the second epoch is done
        process.stderr.readline()
    errors = ""
    for _ in range(5):  # Python drops an interrupt that falls into a destructor
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, errors = process.communicate(timeout=15)
            break
    assert process.returncode == code, errors
    assert errors.splitlines()[-1] == "oper: stopped; --ckpt_path=run/last.ckpt goes on"
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] >= 20


@pytest.mark.parametrize("own", [True, False])
def test_garbage_of_another_program_is_left_to_it(own: bool) -> None:
    """What imports made is set aside for good only where the process ends with the command."""
    code = (
        "import gc, sys\nfrom oper_lightning.cli import main\nsys.argv = ['oper', 'report', 'nowhere']\n"
        f"print(main({'' if own else 'sys.argv[1:]'}), gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == f"1 True {own}\n"
    assert "nowhere" in result.stderr
