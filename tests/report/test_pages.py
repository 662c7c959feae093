"""`oper report` and `oper inspect` on runs and data that they never saw, sound and broken."""

from __future__ import annotations

import csv
import re
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import columns, oper, write_hdf5

from oper_lightning.report.curves import Curve
from oper_lightning.report.runs import Group, Run, grouped

SMALL = ["--data.batch_size=32", "--data.updates_per_epoch=20", "--trainer.max_steps=40"]
EVALUATION = "--data.rollouts={episodes: 3, parallel: 3}"


def fit(file: Path, output: str, *words: str, model: str = "BC") -> None:
    words = (*SMALL, "--model.hidden_sizes=[16]", f"--output={output}", *words)
    assert oper("fit", f"--model={model}", "--data.source=D4RL", f"--data.source.path={file}", *words) == 0


def weights(file: Path, output: str) -> Path:
    options = ["--data.rollouts=null", "--model.iterations=2", "--model.seeds=2"]
    fit(file, output, *options, model="OperA")
    return Path(output) / "weights.safetensors"


def scored(path: Path, seed: int) -> Path:
    """Data that Reacher-v5 fits, with references for scores."""
    arrays = columns([20] * 30, 10, 2, seed=seed)
    return write_hdf5(path, arrays, env_id="Reacher-v5", ref_min_score=-50.0, ref_max_score=0.0)


def page(name: str) -> str:
    """An HTML page: it needs nothing from elsewhere."""
    text = Path(name).read_text()
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|<script", text)
    assert '<html lang="en">' in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    # Whatever is wide scrolls by itself, and everything that scrolls can be reached by keyboard.
    wide = len(re.findall("<table>|<img ", text))
    assert len(re.findall('<div class="scroll" tabindex="0"', text)) == wide
    return text


def test_runs_that_differ_in_their_seeds_are_one_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for file in (scored(tmp_path / "small.hdf5", 0), scored(tmp_path / "other.hdf5", 5)):
        for seed in (0, 1):
            for name, words in (("uniform", []), ("oper_r", ["--data.priority=OperR"])):
                runs.append(f"{file.stem}-{name}-{seed}")
                fit(file, runs[-1], EVALUATION, f"--seed_everything={seed}", *words)
    capsys.readouterr()
    assert oper("report", *runs, "--gap_to=0", "--output=out") == 0
    out, err = capsys.readouterr()
    assert "oper:" not in err  # nothing odd about these
    for data in ("small", "other"):
        for method in ("BC, uniform", "BC, OPER-R"):
            line = re.search(rf"\| {data} +\| {method} +\| +40 \|.*", out)
            assert line, out
            assert line.group().split("|")[7].strip() == "2"  # runs
    assert len(re.findall(r"\| BC, OPER-R +\| +[-\d.]+ \| +4 \|", out)) == 1  # over both datasets
    assert "95 %" not in out  # of two seeds
    for data in ("small", "other"):
        assert f"Scores on {data}: 0 is a return of -50 and 100 one of 0 (stored in the dataset)." in out
    text = page("out/report.html")
    assert text.count('src="data:image/png;base64,') == 2
    assert all(run in text for run in runs)
    assert "<title>BC, uniform; BC, OPER-R on small; other</title>" in text
    said = re.findall(r'alt="([^"]*)"', text)
    assert "BC, OPER-R on other ends at a score of" in said[0]
    assert "Scores on other: 0 is a return of -50" in text
    assert "All ran with oper-lightning " in text
    assert datetime.now(timezone.utc).strftime(">%Y-%m-%d ") in text  # when the runs ended
    rows = list(csv.DictReader(Path("out/report.csv").read_text().splitlines()))
    assert [row["method"] for row in rows if row["data"] == "small"] == ["BC, uniform", "BC, OPER-R"]
    assert all(float(row["lowest"]) <= float(row["score_last"]) <= float(row["highest"]) for row in rows)
    assert Path("out/report.png").read_bytes().startswith(b"\x89PNG")
    text = Path("out/report.md").read_text()
    assert "| small | BC, OPER-R" in text
    assert "](report.png)" in text


def test_what_is_no_seed_of_a_method_is_told(
    small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(small_file, "whole", EVALUATION)
    fit(small_file, "same", EVALUATION)
    fit(small_file, "stopped", EVALUATION, "--seed_everything=1", "--trainer.limit_train_batches=1")
    (tmp_path / "elsewhere").mkdir()
    twin = write_hdf5(tmp_path / "elsewhere" / "small.hdf5", columns([20] * 30, 10, 2, seed=5), env_id="Reacher-v5")
    fit(twin, "elsewhere/run", EVALUATION, "--seed_everything=1")
    capsys.readouterr()
    assert oper("report", "whole", "same", "elsewhere/run") == 0
    out, err = capsys.readouterr()
    assert "whole and 1 more: some have the same seed" in err
    assert f"small, path={small_file}" in out  # data of the same name are not the same data
    assert f"small, path={twin}" in out
    other = write_hdf5(tmp_path / "small.h5", columns([20] * 30, 10, 2, seed=5), env_id="Reacher-v5")
    fit(other, "ending", EVALUATION, "--seed_everything=1")
    capsys.readouterr()
    assert oper("report", "whole", "ending") == 0
    out = capsys.readouterr().out
    assert "| small.hdf5 |" in out
    assert "| small.h5 " in out
    assert "path=" not in out  # the ending says enough
    assert oper("report", "whole", "whole/", "--output=never") == 1
    assert "this run is given twice" in capsys.readouterr().err
    assert not Path("never").exists()


def test_a_run_that_was_stopped_does_not_count(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(small_file, "whole", EVALUATION)
    fit(small_file, "stopped", EVALUATION, "--seed_everything=1")
    config = Path("stopped/config.yaml")
    config.write_text(config.read_text().replace("max_steps: 40", "max_steps: 80"))
    long = Path("whole/config.yaml")
    fit(small_file, "longer", EVALUATION, "--seed_everything=2", "--trainer.max_steps=80")
    capsys.readouterr()
    assert oper("report", "stopped", "longer") == 0
    out, err = capsys.readouterr()
    assert "stopped: stopped at update 40, others of its method at 80: left out" in err
    assert "better than first" not in out
    assert oper("report", "stopped") == 0
    assert "stopped: unfinished, update 40 of 80" in capsys.readouterr().err
    long.write_text("model: [")
    assert oper("report", "whole", "longer") == 1
    assert "whole/config.yaml: not valid yaml" in capsys.readouterr().err


def test_coupling_is_named_in_the_papers_words() -> None:
    common = {"model": "TD3BC", "data.source": "D4RL", "data.source.path": "x.hdf5", "data.priority": "OperR"}
    roles = (["improvement", "constraint"], ["evaluation", "improvement", "constraint"], ["constraint"])
    runs = [Run("", {**common, "data.prioritise": which}, {}) for which in roles]
    names = [group.method for group in grouped(runs)]
    assert names == ["TD3BC, OPER-R, decoupled", "TD3BC, OPER-R, coupled", "TD3BC, OPER-R, prioritise=['constraint']"]


def test_what_only_one_of_two_classes_takes_is_not_in_a_methods_name() -> None:
    common = {"model": "IQL", "data": "OfflineDataModule", "data.source": "D4RL", "data.source.path": "x.hdf5"}
    common = {**common, "data.bonus": None, "data.upsample": None}
    online = {**common, "data": "OnlineDataModule", "data.environment": "Hopper-v5", "data.warmup": 1000}
    curious = {**online, "data.bonus": "RND", "data.bonus.features": 512, "data.bonus.scale": 0.5}
    good = {**common, "data.upsample.rows": 8}
    del good["data.upsample"]

    def names(*configs: dict[str, object]) -> list[str]:
        return [group.method for group in grouped([Run("", config, {}) for config in configs])]

    assert names(common, online) == ["IQL, uniform, offline", "IQL, uniform, online"]
    assert names(online, curious) == ["IQL, uniform, no bonus", "IQL, uniform, RND"]
    assert names(curious, {**curious, "data.bonus.scale": 2}) == [
        "IQL, uniform, bonus.scale=0.5",
        "IQL, uniform, bonus.scale=2",
    ]
    assert names(common, good) == ["IQL, uniform, upsample=None", "IQL, uniform, upsample.rows=8"]


def test_arguments_that_an_older_run_does_not_have_are_no_difference(
    small_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(small_file, "new", EVALUATION, "--data.priority=OperR")
    fit(small_file, "old", EVALUATION, "--data.priority=OperR", "--seed_everything=1")
    fit(small_file, "other", EVALUATION, "--data.priority=OperR", "--data.priority.returns=rank")
    config = yaml.safe_load(Path("old/config.yaml").read_text())
    data = config["data"]["init_args"]
    removed = ((data["priority"]["init_args"], "returns"), (data["source"]["init_args"], "action_low"))
    for part, name in (*removed, (data["rollouts"], "steps"), (data, "clip_actions"), (data, "seed")):
        del part[name]
    Path("old/config.yaml").write_text(yaml.safe_dump(config))
    capsys.readouterr()
    assert oper("report", "old", "new", "other") == 0
    out = capsys.readouterr().out
    assert re.search(r"\| small +\| BC, OPER-R, priority.returns=sum +\| +40 \|([^|]*\|){2} +2 \|", out), out
    assert "action_low" not in out
    assert "rollouts.steps" not in out
    assert "clip_actions" not in out


def test_curves_of_runs_that_were_evaluated_at_other_updates() -> None:
    runs = [
        Run("a", {}, {"eval/return": Curve([10, 30], [1.0, 3.0])}),
        Run("b", {}, {"eval/return": Curve([20, 40], [5.0, 7.0])}),
    ]
    updates, values = Group("data", "method", runs).values_along("eval/return")
    assert updates.tolist() == [20, 30]
    np.testing.assert_allclose(values, [[2, 3], [5, 6]])


def test_settings_tell_methods_apart(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(small_file, "one", EVALUATION, "--data.priority=OperR")
    fit(small_file, "two", EVALUATION, "--data.priority=OperR", "--data.mode=reweight", "--model.learning_rate=1e-3")
    assert oper("report", "one", "two") == 0
    out = capsys.readouterr().out
    assert "BC, OPER-R, learning_rate=0.001, mode=reweight" in out
    assert "better than first" not in out  # of single runs nothing is said


def test_runs_without_evaluation_show_what_they_logged(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights(small_file, "stage1")
    fit(small_file, "judged", EVALUATION)
    assert oper("report", "stage1", "judged", "--output=out") == 0
    assert "stage1: no evaluations in this run" in capsys.readouterr().err
    assert "stage1" in page("out/report.html")
    assert oper("report", "stage1", "--output=alone") == 0
    assert Path("alone/report-training.png").is_file()


def test_a_dataset_and_its_weights(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = weights(small_file, "stage1")
    capsys.readouterr()
    assert oper("inspect", str(small_file), str(file), "--output=out") == 0
    out = capsys.readouterr().out
    assert re.search(r"\| episodes +\| 40 +\|", out)
    assert re.search(r"\| ended by termination +\| 20 +\|", out)
    for name in ("uniform", "OPER-R", "OPER-A, iteration 1", "OPER-A, iteration 2"):
        assert re.search(rf"\| {name} +\|", out)
    text = page("out/inspect.html")
    assert text.count('src="data:image/png;base64,') == 2
    # The folder of a run stands for the data that it was trained on.
    assert oper("inspect", "stage1", "--output=again") == 0
    assert re.search(r"\| episodes +\| 40 +\|", capsys.readouterr().out)


def test_bounds_that_were_guessed_are_told_from_known_ones(
    small_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_hdf5(Path("nameless.hdf5"), columns([25] * 4, 10, 2))
    for file, said in ((small_file, "-1 to 1"), (Path("nameless.hdf5"), r"-1 to 1 \(not known: read off the data\)")):
        assert oper("inspect", str(file), "--output=out") == 0
        assert re.search(rf"\| actions: bounds +\| +{said} +\|", capsys.readouterr().out)


def test_a_source_with_arguments_and_weights_of_several_runs(
    small_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        weights(small_file, f"stage1-{seed}")
        Path(f"stage1-{seed}/weights.safetensors").rename(f"w{seed}.safetensors")
    source = ["--source=D4RL", f"--source.path={small_file}", "--source.max_episode_steps=100"]
    capsys.readouterr()
    assert oper("inspect", "w{seed}.safetensors", "w1.safetensors", *source, "--output=out") == 0
    out = capsys.readouterr().out
    assert re.search(r"\| w\{seed\}, iteration 2 +\| +4 \|", out)
    assert re.search(r"\| w1, iteration 2 +\| +2 \|", out)
    assert "](inspect-weights.png)" in Path("out/inspect.md").read_text()
    for words, answer in (
        ((), "name a dataset"),
        (("w1.safetensors",), "not a kind of file that is known"),
        (("nowhere",), "no file, and no dataset of D4RL"),
        (("a.npz", "b.npz"), "b.npz: a dataset where weights are expected; look at one dataset at a time"),
    ):
        assert oper("inspect", *words) == 1
        assert answer in capsys.readouterr().err


def test_broken_data_and_weights_of_other_data(
    small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = weights(small_file, "stage1")
    arrays = columns([25] * 40, 10, 2)
    arrays["observations"][np.arange(0, 1000, 33)[:30], 4] = 1e6  # 3 %
    arrays["observations"][:, 7] = 1.0
    arrays["rewards"][:] = 1.0
    broken = write_hdf5(tmp_path / "broken.hdf5", arrays)
    capsys.readouterr()
    assert oper("inspect", str(broken), str(file), "nowhere.safetensors", "--output=out") == 1
    out, err = capsys.readouterr()
    assert "What to look at" in out
    assert "observation[4]: 3.00% (30) of values lie far from all others" in out
    assert "observation columns that never change, or by rounding only: 7" in out
    assert "all episodes return 25" in out
    assert f"{file}: made for other data (small): rows, order or values differ" in out
    assert "nowhere.safetensors: no such file" in out
    assert "2 of 2 weights could not be shown" in err
    assert "every transition weighs the same" in err
    assert "nan" not in out


def test_runs_of_another_logger_and_numbers_that_are_none(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(small_file, "events", EVALUATION)
    fit(small_file, "csv", EVALUATION, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv")
    found = []
    for run in ("events", "csv"):
        assert oper("report", run, f"--output={run}-report") == 0
        found += list(csv.DictReader(Path(f"{run}-report/report.csv").read_text().splitlines()))
    # The numbers of the same run are the same, whoever wrote them down.
    assert float(found[0]["return_last"]) == pytest.approx(float(found[1]["return_last"]), rel=1e-6)
    # What is no number any more is shown, and named.
    metrics = next(Path("csv").rglob("metrics.csv"))
    head, *lines = metrics.read_text().splitlines()
    broken = [",".join("nan" if "." in cell else cell for cell in text.split(",")) for text in lines]
    metrics.write_text("\n".join([head, *broken]))
    capsys.readouterr()
    assert oper("report", "csv", "events", "--output=nan") == 0
    out, err = capsys.readouterr()
    assert "not finite" in out
    assert re.search(r"csv: \w+/\w+ is no finite number at update 20, the first such", err)
    assert "is no finite number" in page("nan/report.html")


def test_a_run_that_logged_nothing_or_elsewhere_is_named(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, logger, words in (("none", "false", []), ("away", "CSVLogger", ["--trainer.logger.save_dir=logs"])):
        fit(small_file, run, "--data.rollouts=null", f"--trainer.logger={logger}", *words)
        capsys.readouterr()
        assert oper("report", run) == 1
        line = capsys.readouterr().err
        assert f"{run}: no TensorBoard events and no metrics.csv; it ran with trainer.logger={logger}" in line
    assert "save_dir=logs: move what lies there into the run's folder" in line


def test_wide_data_and_a_single_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = write_hdf5(tmp_path / "wide.hdf5", columns([30] * 20, 300, 40))
    assert oper("inspect", wide, "--output=wide") == 0
    assert "and 32 more" in capsys.readouterr().out
    page("wide/inspect.html")
    single = {name: column[:1] for name, column in columns([5]).items()}
    single["terminals"][:] = True
    assert oper("inspect", write_hdf5(tmp_path / "one.hdf5", single), "--output=one") == 0
    out = capsys.readouterr().out
    assert "only one episode" in out
    assert "nan" not in out
    page("one/inspect.html")
