"""Methods can be told apart, whoever looks at them."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np

from oper_lightning.report.looks import COLOURS, canvas, colour_bar, look, same_axes

# Machado, Oliveira and Fernandes 2009, at full severity, for linear RGB.
BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "none": np.eye(3).tolist(),
}


def lab(colour: str, seen: list[list[float]]) -> np.ndarray:
    """A colour in CIELAB, as somebody sees it."""
    rgb = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(seen) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    part = np.cbrt(np.array(to_xyz) @ linear / [0.9505, 1, 1.089] + 1e-9)
    return np.array([116 * part[1] - 16, 500 * (part[0] - part[1]), 200 * (part[1] - part[2])])


def test_colours_differ_for_every_eye_and_from_the_paper() -> None:
    assert len(COLOURS) <= 8
    for name, seen in BLINDNESS.items():
        for one, other in combinations(COLOURS, 2):
            assert np.linalg.norm(lab(one, seen) - lab(other, seen)) > 15, (name, one, other)
        for colour in COLOURS:
            assert np.linalg.norm(lab(colour, seen) - lab("#FFFFFF", seen)) > 35, (name, colour)


def test_no_two_methods_look_alike_and_lines_differ_from_the_second_on() -> None:
    looks = [look(number) for number in range(40)]
    assert len({str(how) for how in looks}) == 40
    assert all(str(one["linestyle"]) != str(other["linestyle"]) for one, other in pairwise(looks))


def test_panels_of_the_same_have_the_same_axes() -> None:
    _, panels = canvas(2)
    panels[0].set(xlim=(0, 1), ylim=(0, 1))
    panels[1].set(xlim=(-2, 0.5), ylim=(3, 4))
    same_axes(panels)
    assert [panel.get_xlim() for panel in panels] == [(-2, 1)] * 2
    assert panels[0].get_ylim() == (0, 1)


def test_numbers_at_an_axis_are_what_they_say() -> None:
    figure, [panel, other] = canvas(2)
    panel.plot([0, 1], [10_001, 10_002])
    colour_bar(figure, other, other.scatter([0, 1], [0, 1], c=[10_001, 10_002]), "value")
    figure.canvas.draw()
    for axis in (panel.yaxis, figure.axes[-1].yaxis):
        assert axis.get_offset_text().get_text() == ""
        assert {"10001.0", "10002.0"} & {label.get_text() for label in axis.get_ticklabels()}
