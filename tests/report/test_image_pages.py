"""`oper inspect` on images: few numbers in place of many pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Arrays, image_columns, oper

from oper_lightning.data.frames import held
from oper_lightning.data.storage import fill, transitions_in
from oper_lightning.report import images
from oper_lightning.report.describe import describe

LENGTHS = [12] * 6
BOUNDS = torch.tensor(0), torch.tensor(2)


def said(arrays: dict[str, np.ndarray]) -> list[str]:
    kept = fill(Arrays(arrays), torch.device("cpu"))
    facts = describe(transitions_in(kept), *BOUNDS, held(kept)[1])
    assert facts.plane.shape == (72, 2)
    return facts.warnings


def test_sound_images() -> None:
    assert said(image_columns(LENGTHS)) == []


def test_copies_and_seams() -> None:
    copied = image_columns(LENGTHS)
    for key in ("observations", "next_observations", "actions", "rewards"):
        copied[key][12:24] = copied[key][:12]
    assert any("1 of 6 episodes are copies of others" in line for line in said(copied))
    torn = image_columns(LENGTHS)
    torn["observations"][30:36] = torn["observations"][30:36, :, ::-1]
    assert any("of steps within episodes begin elsewhere" in line and "first: row 30" in line for line in said(torn))


def test_features_are_averages_of_the_newest_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "ROWS", 20)
    arrays = image_columns(LENGTHS, side=40)
    kept = fill(Arrays(arrays), torch.device("cpu"))
    frames = held(kept)[1]
    assert frames is not None
    seen, stands = images.features(frames, transitions_in(kept))
    assert stands.tolist() == [row // 4 for row in range(72)]
    squares = arrays["observations"][::4, -1].reshape(18, 8, 5, 8, 5).mean((2, 4)).reshape(18, 64)
    np.testing.assert_allclose(seen, squares, rtol=1e-5)


def test_the_page_shows_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "play.npz", **image_columns(LENGTHS))
    assert oper("inspect", "play.npz", "--output=out") == 0
    assert {"inspect.png", "inspect-frames.png", "inspect-weights.png"} <= {path.name for path in Path("out").iterdir()}
    printed = capsys.readouterr().out
    assert "(4, 36, 36)" in printed
    assert "observation[" not in printed


@pytest.mark.parametrize("shape", [(36, 36), (36, 36, 3), (3, 36, 36)])
def test_stills_of_any_shape_are_shown(shape: tuple[int, ...]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (73, *shape), dtype=np.uint8)
    arrays = {**image_columns(LENGTHS), "observations": frames[:-1].copy(), "next_observations": frames[1:].copy()}
    kept = fill(Arrays(arrays), torch.device("cpu"))
    seen = held(kept)[1]
    assert seen is not None
    transitions = transitions_in(kept)
    assert images.newest(seen, transitions["first"][:5]).shape == (5, 36, 36)
    assert images.features(seen, transitions)[0].shape == (72, 64)


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [((40, 48, 3), "puts channels first"), ((3, 30, 30), "save larger ones"), ((40, 48), "is one channel")],
)
def test_images_that_no_algorithm_takes(shape: tuple[int, ...], remedy: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (73, *shape), dtype=np.uint8)
    lines = said({**image_columns(LENGTHS), "observations": frames[:-1], "next_observations": frames[1:]})
    (line,) = [line for line in lines if "no algorithm" in line]
    assert line.startswith(f"no algorithm takes these observations: images of shape {shape}")
    assert line.endswith(remedy)


@pytest.mark.parametrize("place", [0, 2], ids=["channels first", "channels last"])
def test_frames_are_drawn_in_their_colours(place: int) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (73, 36, 36, 3), dtype=np.uint8)
    frames = np.moveaxis(colour, 3, 1 + place).copy()
    kept = fill(
        Arrays({**image_columns(LENGTHS), "observations": frames[:-1], "next_observations": frames[1:]}),
        torch.device("cpu"),
    )
    transitions, seen = transitions_in(kept), held(kept)[1]
    assert seen is not None
    figure = images.sheet(seen, transitions, torch.arange(6.0), torch.tensor(LENGTHS))
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), colour[0])
    np.testing.assert_array_equal(figure.axes[7].images[0].get_array(), colour[11])


def test_images_in_floating_point_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = image_columns(LENGTHS)
    for key in ("observations", "next_observations"):
        arrays[key] = arrays[key].astype(np.float32) / 255
    np.savez(tmp_path / "grey.npz", **arrays)
    assert oper("inspect", str(tmp_path / "grey.npz"), f"--output={tmp_path / 'out'}") == 1
    assert "save images as uint8" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
