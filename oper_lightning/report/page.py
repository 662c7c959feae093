"""Tables for terminal, Markdown and HTML, and one HTML page that holds its pictures."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from oper_lightning import __version__
from oper_lightning.errors import InputError
from oper_lightning.files import whole

# Pictures are drawn on white, and keep a white panel on a dark page. Below 700 pixels tables and pictures scroll.
STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5c6773; --paper: #fff; --line: #d9dee4; --stripe: #f5f7f9;
  --warn: #9c1c1c; --warn-paper: #fdf1ef; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ee; --soft: #9aa7b4; --paper: #14181d; --line: #333c46;
  --stripe: #1b2127; --warn: #ffb4a8; --warn-paper: #33201e; } }
body { font: 15px/1.55 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere; }
h1, h2 { font-weight: 600; line-height: 1.25; } h1 { font-size: 1.6em; } h2 { margin-top: 2em; font-size: 1.2em; }
p, figcaption { color: var(--soft); max-width: 78ch; }
.scroll { overflow-x: auto; margin: 1em 0; } .scroll:focus-visible { outline: 2px solid var(--soft); }
table { border-collapse: collapse; overflow-wrap: normal; }
th, td { padding: .3em .8em; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody tr:nth-child(even) { background: var(--stripe); }
th.short, td.short { white-space: nowrap; } td.long { min-width: 16em; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; } td.number { white-space: nowrap; }
figure { margin: 1em 0; } figcaption { font-size: .9em; }
img { display: block; height: auto; max-width: max(100%, 640px); box-sizing: border-box; background: #fff;
  border-radius: 8px; border: 1px solid var(--line); padding: 6px; }
ul.warnings { list-style: none; padding: 0; } ul.warnings li { margin: .5em 0; padding: .5em .9em; border-radius: 4px;
  color: var(--warn); background: var(--warn-paper); border-left: 4px solid var(--warn); }
footer { margin: 3em 0 1em; color: var(--soft); font-size: .85em; border-top: 1px solid var(--line);
  padding-top: .6em; }
"""
SHORT = 32  # letters of a cell that is not broken into lines
PICTURE = "!["  # how a picture begins in Markdown


class Table(NamedTuple):
    """Cells as they are to be read."""

    head: list[str]
    rows: list[list[str]]
    words: int = 1
    """columns of words, at the left; the others are numbers"""

    def markdown(self) -> str:
        """The table as Markdown, aligned, so that it also reads well in a terminal."""
        lines = [[cell.replace("|", "\\|") for cell in line] for line in (self.head, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        ruler = ["-" * w if place < self.words else "-" * (w - 1) + ":" for place, w in enumerate(widths)]
        return "\n".join(f"| {' | '.join(self._aligned(line, widths))} |" for line in [lines[0], ruler, *lines[1:]])

    def _aligned(self, line: list[str], widths: list[int]) -> list[str]:
        cells = enumerate(zip(line, widths, strict=True))
        return [cell.ljust(width) if place < self.words else cell.rjust(width) for place, (cell, width) in cells]

    def html(self) -> str:
        """The table as HTML."""
        rows = "".join(f"<tr>{self._cells('td', row)}</tr>" for row in self.rows)
        head = f"<tr>{self._cells('th', self.head)}</tr>"
        return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"

    def _cells(self, tag: str, line: list[str]) -> str:
        kinds = [("short" if len(c) <= SHORT else "long") if p < self.words else "number" for p, c in enumerate(line)]
        cells = zip(kinds, line, strict=True)
        return "".join(f'<{tag} class="{kind}">{html.escape(cell)}</{tag}>' for kind, cell in cells)


class Page:
    """Sections for one HTML page and one Markdown text; pictures are files for the one and part of the other."""

    def __init__(self, title: str, folder: str, name: str) -> None:
        self.folder = Path(folder)
        self.name = name
        self.title = title
        self.section = title
        self.web = [f"<h1>{html.escape(title)}</h1>"]
        self.text: list[str] = []
        self.files: list[Path] = []

    def heading(self, text: str) -> None:
        """Begins a section."""
        self.section = text
        self.web.append(f"<h2>{html.escape(text)}</h2>")
        self.text.append(f"## {text}")

    def paragraph(self, text: str) -> None:
        """A paragraph of plain text."""
        self.web.append(f"<p>{html.escape(text)}</p>")
        self.text.append(text)

    def warnings(self, lines: list[str]) -> None:
        """A list of warnings."""
        if lines:
            self.web.append(f"<ul class=warnings>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>")
            self.text.append("\n".join(f"- {line}" for line in lines))

    def table(self, table: Table) -> None:
        """Rows and columns; what is wider than the window scrolls."""
        self._scroll(table.html())
        self.text.append(table.markdown())

    def picture(self, figure: Any, says: str, caption: str, name: str = "") -> None:
        """A matplotlib figure, which is closed.

        Args:
            figure: the picture.
            says: what it shows, for people who cannot see it.
            caption: how to read it.
            name: what is added to the page's name for the picture's file.
        """
        import matplotlib.pyplot as plt

        data, width = io.BytesIO(), round(96 * figure.get_figwidth())
        figure.savefig(data, dpi=130, format="png", facecolor="white")
        plt.close(figure)
        file = f"{self.name}{name}.png"
        self._keep(file, data.getvalue())
        said = says.replace("[", "(").replace("]", ")")
        self.text.append(f"{PICTURE}{said}]({file})\n\n{caption}")
        coded = base64.b64encode(data.getvalue()).decode()
        self.web.append("<figure>")
        self._scroll(f'<img width="{width}" src="data:image/png;base64,{coded}" alt="{html.escape(says)}">')
        self.web.append(f"<figcaption>{html.escape(caption)}</figcaption></figure>")

    def numbers(self, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """NAME.csv with these rows, for other programs."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([head, *rows])
        self._keep(f"{self.name}.csv", text.getvalue().encode())

    def write(self) -> str:
        """Writes NAME.md and NAME.html beside the pictures; returns the Markdown for a terminal, without pictures."""
        made = f"oper {self.name}, oper-lightning {__version__}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
        text, title = "\n\n".join([f"# {self.title}", *self.text, made]), html.escape(self.title)
        page = [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{STYLE}</style></head><body><main>",
            *self.web,
            f"</main><footer>{html.escape(made)}</footer></body></html>\n",
        ]
        self._keep(f"{self.name}.md", f"{text}\n".encode())
        self._keep(f"{self.name}.html", "\n".join(page).encode())
        return "\n\n".join(part for part in self.text if not part.startswith(PICTURE))

    def _scroll(self, content: str) -> None:
        label = html.escape(self.section)
        self.web.append(f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{content}</div>')

    def _keep(self, name: str, content: bytes) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole(self.folder / name) as file:
                file.write(content)
        except OSError as error:
            no_folder = isinstance(error, FileExistsError | NotADirectoryError)
            reason = "it is, or lies in, no folder" if no_folder else error.strerror
            raise InputError(f"{self.folder}: cannot write there ({reason}); name another --output") from None
        self.files.append(self.folder / name)
