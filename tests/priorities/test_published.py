from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import columns, oper, write_hdf5
from hypothesis import given, settings
from hypothesis import strategies as st

from oper_lightning import D4RL, InputError, WeightsFile
from oper_lightning.data.transitions import squeezed
from oper_lightning.priorities.published import published_weights, read_published

ROWS = 12


def save(path: Path, content: Any, protocol: int = 3) -> str:
    """Saves as numpy does, with a pickle protocol of one's choice."""
    array = np.empty((), dtype=object)
    array[()] = content
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    path.write_bytes(header.getvalue() + pickle.dumps(array, protocol=protocol))
    return str(path)


def iterated(seed: int = 0) -> dict[Any, Any]:
    generator = np.random.default_rng(seed)
    weights = {k: generator.uniform(0, 2, (ROWS, 1)) for k in (1, 2, 3)}
    return {"iter": 3, "first_eval_steps": 1e6, "eval_steps": np.float64(1e6), **weights}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_iterated_layout(tmp_path: Path, protocol: int) -> None:
    content = iterated()
    files = [save(tmp_path / f"{seed}.npy", part, protocol) for seed, part in enumerate((content, iterated(1)))]
    found = published_weights(files, ROWS)
    assert found.keys() == {"weights"}
    assert found["weights"].shape == (3, 2, ROWS)
    np.testing.assert_allclose(found["weights"][1, 0], content[2][:, 0] / content[2].mean(), rtol=1e-6)


def test_numpys_own_save_is_read(tmp_path: Path) -> None:
    content = iterated()
    np.save(tmp_path / "w.npy", content, allow_pickle=True)  # type: ignore[arg-type]
    assert read_published(tmp_path / "w.npy")["iter"] == 3


def older(adv: np.ndarray) -> dict[Any, Any]:
    return {500_000: {"adv": adv * 0, "q": adv, "v": adv}, 1_000_000: {"adv": adv, "q": adv, "v": adv + 1}}


def test_the_older_layout(tmp_path: Path) -> None:
    adv = np.arange(ROWS, dtype=np.float32)[:, None] - 5
    found = published_weights([save(tmp_path / "w.npy", older(adv))], ROWS)
    np.testing.assert_allclose(found["weights"][0, 0], np.arange(ROWS) / np.arange(ROWS).mean(), rtol=1e-6)
    np.testing.assert_array_equal(found["advantage"][0, 0], adv[:, 0])
    np.testing.assert_array_equal(found["value"][0, 0], adv[:, 0] + 1)


def test_seeds_of_the_older_layout_are_averaged_as_raw_advantages(tmp_path: Path) -> None:
    """A seed whose advantages are ten times as large counts ten times as much, as in the authors' loader."""
    generator = np.random.default_rng(0)
    seeds = [generator.normal(size=(ROWS, 1)) * scale for scale in (1, 10)]
    files = [save(tmp_path / f"{seed}.npy", older(adv)) for seed, adv in enumerate(seeds)]
    mean = (seeds[0] + seeds[1])[:, 0] / 2
    expected = (mean - mean.min()) / (mean - mean.min()).mean()
    np.testing.assert_allclose(published_weights(files, ROWS)["weights"], expected[None, None], rtol=1e-5, atol=1e-6)


def test_layouts_are_not_mixed(tmp_path: Path) -> None:
    files = [save(tmp_path / "0.npy", older(np.ones((ROWS, 1)))), save(tmp_path / "1.npy", iterated())]
    with pytest.raises(InputError, match=r"0\.npy and others: files of the older and of the newer layout"):
        published_weights(files, ROWS)


class Payload:
    """Runs a command when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    hidden = np.array([Payload(mark)], dtype=object)
    for content in (Payload(mark), {"iter": 1, 1: Payload(mark)}, {"iter": 1, 1: hidden}):
        file = save(tmp_path / "evil.npy", content)
        with pytest.raises(InputError, match=r"cannot|asks for posix\.system"):
            read_published(file)
        assert not mark.exists()
    # The same file does run its command under numpy's own loader: the test is a test.
    np.load(save(tmp_path / "evil.npy", Payload(mark)), allow_pickle=True)
    assert mark.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "os.system", "numpy.load", "torch.load"])
def test_no_other_name_is_admitted(tmp_path: Path, name: str) -> None:
    module, function = name.rsplit(".", 1)
    body = f"c{module}\n{function}\n.".encode()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    (tmp_path / "evil.npy").write_bytes(header.getvalue() + body)
    with pytest.raises(InputError, match=f"asks for {re.escape(name)}"):
        read_published(tmp_path / "evil.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"iter": 4, **{k: np.ones((ROWS, 1)) for k in (1, 2, 3)}}, "no entry 4"),
        ({"iter": 1, 1: np.ones((ROWS + 1, 1))}, "has 13 float64, but the dataset has 12 transitions"),
        ({"other": 1}, "no known layout"),
        ([1, 2], "a dict of arrays is needed"),
        ({"iter": 1, 1: -np.ones((ROWS, 1))}, "negative"),
        ({"iter": [1], 1: np.ones((ROWS, 1))}, r"w\.npy: cannot read it as published weights"),
        ({"iter": 0}, r"w\.npy: 'iter' is 0; at least 1 is needed"),
        ({1: {"adv": np.ones(ROWS)}, "last": {"adv": np.ones(ROWS)}}, r"w\.npy: cannot read it as published weights"),
    ],
)
def test_other_content(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        published_weights([save(tmp_path / "w.npy", content)], ROWS)


def test_files_that_are_none(tmp_path: Path) -> None:
    for content in (b"", b"no numpy", np.lib.format.magic(1, 0) + b"\xff"):
        (tmp_path / "w.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read safely|not published weights"):
            read_published(tmp_path / "w.npy")
    np.save(tmp_path / "plain.npy", np.ones(3))
    with pytest.raises(InputError, match="a dict of arrays is needed"):
        read_published(tmp_path / "plain.npy")


def test_convert_makes_a_file_that_fits_the_published_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = columns([5, 5, 5])  # terminal, timeout, terminal: qlearning_dataset keeps 13 of the 15 rows
    file = write_hdf5(tmp_path / "d.hdf5", arrays)
    seeds = []
    for seed in range(2):
        content = iterated(seed)
        for k in (1, 2, 3):
            content[k] = np.random.default_rng((seed, k)).uniform(0, 2, (13, 1))
        seeds.append(save(tmp_path / f"published_{seed}.npy", content))
    source = ["--source=D4RL", f"--source.path={file}"]
    assert oper("convert", *seeds, *source) == 1
    assert "--source.qlearning_rows=true" in capsys.readouterr().err
    assert oper("convert", *seeds, *source, "--source.qlearning_rows=true", "--output=w.safetensors") == 0
    assert "3 iterations, 2 seeds, 13 transitions" in capsys.readouterr().out
    source_read = D4RL(str(file), qlearning_rows=True)
    table = squeezed(torch.cat(list(source_read.episodes())))
    weights = WeightsFile("w.safetensors")(table)
    assert len(weights) == 13
    # All rows of the same file are other data.
    whole = squeezed(torch.cat(list(D4RL(str(file)).episodes())))
    with pytest.raises(InputError, match="weights for 13 transitions, but the dataset has 15"):
        WeightsFile("w.safetensors")(whole)


class Constructor:
    """Asks numpy itself for an array over raw memory: a pointer of the writer's choice."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return np.ndarray, self.arguments


@pytest.mark.parametrize("content", [Constructor((), np.dtype(object), b"A" * 8), {1: Constructor((4,), "f8")}])
def test_numpys_constructor_is_out_of_reach(content: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read safely|not published weights"):
        published_weights([save(tmp_path / "w.npy", content)], ROWS)


@pytest.mark.parametrize("order", ["<f8", ">f8", "<f4", "<i8"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_orders_and_kinds_of_numbers(order: str, protocol: int, tmp_path: Path) -> None:
    values = np.asfortranarray(np.arange(1, 13).reshape(3, 4)).astype(order, order="F")
    content = read_published(save(tmp_path / "w.npy", {"iter": 1, 1: values, "x": np.float32(0.5)}, protocol))
    np.testing.assert_array_equal(content[1], values)
    assert content["x"] == 0.5


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_read(data: st.DataObject) -> None:
    """Whatever byte is changed, the outcome is a dict or one InputError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.npy"
        save(path, iterated())
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        with contextlib.suppress(InputError):
            assert isinstance(read_published(path), dict)


def test_a_small_pickle_that_stands_for_much(tmp_path: Path) -> None:
    """Lists of two of a list of two …: walked through entry by entry they would never end."""
    adv: Any = np.ones((ROWS, 1))
    for _ in range(200):
        adv = [adv, adv]
    path = save(tmp_path / "w.npy", {1: {"adv": adv}})
    with pytest.raises(InputError, match=r"w\.npy: entry 'adv' is a list, no array"):
        published_weights([path], ROWS)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.npy")
    with pytest.raises(InputError, match=r"w\.npy: is no regular file"):
        read_published(tmp_path / "w.npy")
