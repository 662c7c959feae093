"""Tables for terminal, Markdown and HTML, and one HTML page that holds its pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from oper_lightning.errors import InputError
from oper_lightning.files import whole

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2em; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .25em .8em; border-bottom: 1px solid #ddd; }
th { text-align: left; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; } li.warning { color: #a00000; }
"""


LINE, LETTER = 0.22, 0.07  # inches that a line of a legend and a letter take
PICTURE = "!["  # how a picture begins in Markdown


class Table(NamedTuple):
    """Cells as they are to be read."""

    head: list[str]
    rows: list[list[str]]
    words: int = 1
    """columns of words, at the left; the others are numbers"""

    def markdown(self) -> str:
        """Aligned, so that it also reads well in a terminal."""
        lines = [[cell.replace("|", "\\|") for cell in line] for line in (self.head, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        ruler = ["-" * w if place < self.words else "-" * (w - 1) + ":" for place, w in enumerate(widths)]
        return "\n".join(f"| {' | '.join(self._aligned(line, widths))} |" for line in [lines[0], ruler, *lines[1:]])

    def _aligned(self, line: list[str], widths: list[int]) -> list[str]:
        cells = enumerate(zip(line, widths, strict=True))
        return [cell.ljust(width) if place < self.words else cell.rjust(width) for place, (cell, width) in cells]

    def html(self) -> str:
        """The same for a page."""
        rows = [
            f"<tr>{self._cells('th', self.head)}</tr>",
            *(f"<tr>{self._cells('td', row)}</tr>" for row in self.rows),
        ]
        return f"<table>{''.join(rows)}</table>"

    def _cells(self, tag: str, line: list[str]) -> str:
        kinds = ["" if place < self.words else ' class="number"' for place in range(len(line))]
        return "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, line, strict=True))


class Page:
    """Sections for one HTML page and one Markdown text; pictures are files for the one and part of the other."""

    def __init__(self, title: str, folder: str, name: str) -> None:
        self.folder = Path(folder)
        self.name = name
        self.web = [f"<h1>{html.escape(title)}</h1>"]
        self.text: list[str] = []
        self.files: list[Path] = []

    def heading(self, text: str) -> None:
        """Begins a section."""
        self.web.append(f"<h2>{html.escape(text)}</h2>")
        self.text.append(f"## {text}")

    def paragraph(self, text: str) -> None:
        """Plain words."""
        self.web.append(f"<p>{html.escape(text)}</p>")
        self.text.append(text)

    def warnings(self, lines: list[str]) -> None:
        """What somebody should look at before going on."""
        if lines:
            self.web.append(f"<ul>{''.join(f'<li class=warning>{html.escape(line)}</li>' for line in lines)}</ul>")
            self.text.append("\n".join(f"- {line}" for line in lines))

    def table(self, table: Table) -> None:
        """Rows and columns."""
        self.web.append(table.html())
        self.text.append(table.markdown())

    def picture(self, figure: Any, name: str = "") -> None:
        """A matplotlib figure, which is closed."""
        import matplotlib.pyplot as plt

        data = io.BytesIO()
        figure.savefig(data, dpi=130, format="png")
        plt.close(figure)
        file = f"{self.name}{name}.png"
        self._keep(file, data.getvalue())
        self.text.append(f"{PICTURE}{self.name}{name}]({file})")
        coded = base64.b64encode(data.getvalue()).decode()
        self.web.append(f'<img src="data:image/png;base64,{coded}" alt="{html.escape(name or self.name)}">')

    def write(self) -> str:
        """Writes NAME.md and NAME.html beside the pictures; returns the Markdown for a terminal, without pictures."""
        text = "\n\n".join(self.text)
        body = "\n".join(self.web)
        for suffix, content in (
            (".md", f"{text}\n"),
            (".html", f"<!doctype html><meta charset=utf-8><title>{self.name}</title><style>{STYLE}</style>\n{body}\n"),
        ):
            self._keep(f"{self.name}{suffix}", content.encode())
        return "\n\n".join(part for part in self.text if not part.startswith(PICTURE))

    def _keep(self, name: str, content: bytes) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole(self.folder / name) as file:
                file.write(content)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot write there ({error.strerror}); name another --output") from None
        self.files.append(self.folder / name)


def canvas(
    columns: int, rows: int = 1, width: float = 5.5, height: float = 4.2, foot: Sequence[str] = ()
) -> tuple[Any, list[Any]]:
    """A matplotlib figure with panels in a grid, in reading order, and room below for a legend of these words."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = -(-len(foot) // _abreast(width * columns, foot)) if foot else 0
    size = (width * columns, height * rows + LINE * lines)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat:
        panel.grid(alpha=0.3)
    return figure, list(panels.flat)


def plain(name: str) -> str:
    """A name for a picture: matplotlib takes what stands between dollars for a formula."""
    return name.replace("$", r"\$")


def legend(figure: Any, panels: list[Any]) -> None:
    """One legend for all panels, below them."""
    found = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    columns = _abreast(figure.get_figwidth(), list(found))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, fontsize="small")


def _abreast(width: float, words: Sequence[str]) -> int:
    """How many entries of a legend fit side by side into so many inches."""
    return max(1, int(width / (0.7 + LETTER * max(map(len, words)))))
