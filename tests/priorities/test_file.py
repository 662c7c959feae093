from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import columns, transitions
from hypothesis import given, settings
from hypothesis import strategies as st

from oper_lightning import InputError, WeightsFile
from oper_lightning.data.transitions import fingerprint
from oper_lightning.priorities.file import FORMAT, load_weights, median, rescale_exp, rescale_linear, save_tensors

TABLE = transitions(columns([20, 30]))
ROWS = len(TABLE)


def published(weights: torch.Tensor) -> torch.Tensor:
    return rescale_linear(weights, 2.0, 0.1, None)


def write(path: Path, weights: torch.Tensor, **metadata: object) -> str:
    """A weights file ``[I, S, N]`` for the table."""
    known = {"format": FORMAT, "fingerprint": fingerprint(TABLE), "dataset": "toy", "rows": ROWS}
    save_tensors(path, {"weights": weights.float()}, {**known, **metadata})
    return str(path)


def random_weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, ROWS, generator=torch.Generator().manual_seed(seed)) * 2


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    weights = random_weights(2, 3)
    tensors, metadata = load_weights(write(tmp_path / "w.safetensors", weights, statistics=[{"std": 1.0}]))
    assert tensors["weights"].equal(weights)
    assert metadata["statistics"] == [{"std": 1.0}]
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


COLUMN = st.lists(st.floats(0, 1e3), min_size=3, max_size=40).filter(lambda row: max(row) - min(row) > 1e-2)


@settings(deadline=None)
@given(COLUMN, st.floats(0.1, 5), st.floats(0, 0.5), st.floats(0.01, 100), st.floats(-50, 50))
def test_linear_rescaling_is_the_published_closed_form(
    column: list[float], std: float, floor: float, factor: float, offset: float
) -> None:
    """max(1 + std z, floor) over its sum, whatever affine map went over the weights before."""
    w = np.array(column)
    z = (w - w.mean()) / w.std()
    expected = np.maximum(1 + std * z, floor)
    expected = expected / expected.mean()
    found = rescale_linear(torch.from_numpy(w), std, floor, None)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    mapped = rescale_linear(torch.from_numpy(factor * w + offset), std, floor, None)
    np.testing.assert_allclose(mapped, expected, rtol=1e-6, atol=1e-6)


def test_linear_rescaling_to_twelve_digits() -> None:
    w = np.random.default_rng(0).lognormal(size=5000)
    z = (w - w.mean()) / w.std()
    expected = np.maximum(1 + 2 * z, 0.1)
    np.testing.assert_allclose(published(torch.from_numpy(w)), expected / expected.mean(), rtol=1e-12)


def test_without_std_the_floor_still_counts() -> None:
    found = rescale_linear(torch.tensor([1.0, 1.0, 1.0, 5.0]), None, 0.1, None)
    np.testing.assert_allclose(found, np.array([0.1, 0.1, 0.1, 4]) / 1.075)
    assert rescale_linear(torch.tensor([1.0, 1.0, 5.0]), None, 0.0, None).tolist() == [0, 0, 3]


def test_ceiling_and_exp() -> None:
    found = rescale_linear(torch.tensor([0.0, 0.0, 9.0]), 2.0, 0.1, 1.5)  # z-scores -0.7, -0.7, 1.4
    np.testing.assert_allclose(found, np.array([0.1, 0.1, 1.5]) / np.mean([0.1, 0.1, 1.5]))
    w = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    shares = np.exp(2 * w.numpy())
    np.testing.assert_allclose(rescale_exp(w, 2.0), shares / shares.mean())


def test_equal_weights_stay_equal_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    assert published(torch.full((5,), 2.0)).tolist() == [1] * 5
    assert "all weights are equal" in caplog.text


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_median_is_numpys(count: int) -> None:
    rows = torch.rand(count, 7)
    np.testing.assert_allclose(median(rows), np.median(rows.numpy(), 0), rtol=1e-6)


def test_seeds_are_averaged_over_one_file_a_list_or_a_template(tmp_path: Path) -> None:
    parts = [random_weights(2, 1, seed=seed) for seed in range(3)]
    parts = [part / part.mean(-1, keepdim=True) for part in parts]
    together = write(tmp_path / "all.safetensors", torch.cat(parts, 1))
    alone = [write(tmp_path / f"w_{seed}.safetensors", part) for seed, part in enumerate(parts, 1)]
    write(tmp_path / "w_best.safetensors", random_weights(2, 1, seed=9))
    template = str(tmp_path / "w_{seed}.safetensors")
    expected = WeightsFile(together)(TABLE)
    for path, seeds in ((alone, None), (template, None), (template, [1, 2, 3])):
        torch.testing.assert_close(WeightsFile(path, seeds)(TABLE), expected, rtol=1e-6, atol=1e-6)
    two = WeightsFile(template, [1, 3])(TABLE)
    assert not torch.allclose(two, expected, rtol=1e-3)
    by_hand = published(median(torch.stack([part[0, 0] for part in parts]).double()))
    torch.testing.assert_close(
        WeightsFile(together, iteration=1, average="median")(TABLE), by_hand, rtol=1e-5, atol=1e-5
    )


def test_the_last_iteration_unless_another_is_asked_for(tmp_path: Path) -> None:
    weights = random_weights(3, 1)
    file = write(tmp_path / "w.safetensors", weights)
    torch.testing.assert_close(WeightsFile(file)(TABLE), published(weights[2, 0]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(WeightsFile(file, iteration=2)(TABLE), published(weights[1, 0]), rtol=1e-6, atol=1e-6)


def _rows(weights: torch.Tensor, value: float) -> torch.Tensor:
    changed = weights.clone()
    changed[..., 7] = value
    return changed


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda p: write(p, random_weights(1, 1), fingerprint="0" * 64), {}, "made for other data .toy."),
        (lambda p: write(p, random_weights(1, 1)[..., :-1]), {}, "weights for 49 transitions, but the dataset has 50"),
        (lambda p: write(p, _rows(random_weights(1, 1), -1.0)), {}, r"row 7 \(the first\) is negative"),
        (lambda p: write(p, _rows(random_weights(1, 1), float("nan"))), {}, "weight nan at row 7"),
        (lambda p: write(p, torch.zeros(1, 1, ROWS)), {}, "all weights are zero"),
        (lambda p: write(p, torch.zeros(1, 0, ROWS)), {}, r"w.safetensors: its weights are \[1, 0, 50\] torch.float32"),
        (lambda p: write(p, random_weights(2, 1)), {"iteration": 3}, "no iteration 3; the file has 1 to 2"),
        (lambda p: write(p, random_weights(2, 1)), {"iteration": 0}, "no iteration 0"),
        (lambda p: write(p, random_weights(1, 1)), {"seeds": [1, 2]}, r"seeds \[1, 2\] but no \{seed\} in path"),
        (lambda p: str(p.with_name("w_{seed}.safetensors")), {}, "no file fits this template"),
        (lambda p: str(p.with_name("w_{seed}.safetensors")), {"seeds": [1]}, "w_1.safetensors: no such file"),
        (lambda p: str(p), {}, "no such file"),
        (lambda p: p.write_bytes(b"no safetensors") and str(p), {}, "whole safetensors file"),
        (lambda p: save_tensors(p, {"weights": torch.ones(3)}, {}) or str(p), {}, "not a weights file"),
    ],
)
def test_files_that_cannot_be_used(make: object, options: dict[str, object], message: str, tmp_path: Path) -> None:
    path = make(tmp_path / "w.safetensors")  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as caught:
        WeightsFile(path, **options)(TABLE)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "w.safetensors", random_weights(1, 1)))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="whole safetensors file"):
        WeightsFile(str(path))(TABLE)


def test_arguments_that_make_no_sense() -> None:
    for options in ({"std": 0.0}, {"floor": 1.0}, {"floor": -0.1}, {"ceiling": 0.5}):
        with pytest.raises(InputError, match="std > 0, 0 <= floor < 1 and ceiling > 1 are needed"):
            WeightsFile("w", **options)  # type: ignore[arg-type]
