"""The look of pictures: colours and lines that everybody can distinguish, panels in a grid, one legend below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Okabe and Ito, "Color Universal Design", 2008: told apart with any kind of colour blindness. In place of their yellow,
# which is hardly seen on white, a violet.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#4B2AD1")
# As many as have no factor in common with the colours: no two of 40 methods look alike.
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINE, LETTER = 0.22, 0.07  # inches that a line of a legend and a letter take


def look(number: int) -> dict[str, Any]:
    """Colour and line of the method with this number."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}


def marker(number: int) -> str:
    """The shape of its points."""
    return MARKERS[number % len(MARKERS)]


def canvas(
    columns: int, rows: int = 1, width: float = 5.5, height: float = 4.2, foot: Sequence[str] = ()
) -> tuple[Any, list[Any]]:
    """A matplotlib figure with panels in a grid, in reading order, and room below for a legend of these words."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = -(-len(foot) // _abreast(width * columns, foot)) if foot else 0
    size = (width * columns, height * rows + LINE * lines)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.12)
    for panel in panels.flat:
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.ticklabel_format(useOffset=False)  # no "+1" beside an axis, to be added in one's head
    return figure, list(panels.flat)


def colour_bar(figure: Any, panel: Any, coloured: Any, label: str) -> None:
    """What the colours of a panel's points mean."""
    bar = figure.colorbar(coloured, ax=panel, label=label)
    bar.solids.set_alpha(1)
    bar.formatter.set_useOffset(False)


def plain(name: str) -> str:
    """A name for a picture: matplotlib takes what stands between dollars for a formula."""
    return name.replace("$", r"\$")


def legend(figure: Any, panels: list[Any], order: Sequence[str] = ()) -> None:
    """One legend for all panels, below them; its words in this order, where one is given."""
    found = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    found = {word: found[word] for word in map(plain, order) if word in found} | found
    if not found:
        return
    columns = _abreast(figure.get_figwidth(), list(found))
    figure.legend(
        found.values(), found.keys(), loc="outside lower center", ncols=columns, fontsize="small", handlelength=3.2
    )


def same_axes(panels: Sequence[Any], across: bool = True, up: bool = False) -> None:
    """Gives panels that show the same the same axes: the widest of them."""
    for wanted, get, put in ((across, "get_xlim", "set_xlim"), (up, "get_ylim", "set_ylim")):
        if wanted and panels:
            limits = [getattr(panel, get)() for panel in panels]
            for panel in panels:
                getattr(panel, put)(min(low for low, _ in limits), max(high for _, high in limits))


def _abreast(width: float, words: Sequence[str]) -> int:
    """How many entries of a legend fit side by side into so many inches."""
    return max(1, int(width / (0.9 + LETTER * max(map(len, words)))))
