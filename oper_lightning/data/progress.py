"""A bar that shows how far a long step is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str, total: int | None, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
    """Shows a bar on stderr, if that is a terminal; the function takes how many of ``total`` are done in all."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    counted = [DownloadColumn()] if unit == "bytes" else [MofNCompleteColumn(), TextColumn(f"{unit},")]
    columns = TextColumn("{task.description}"), BarColumn(), *counted, TimeRemainingColumn(compact=True)
    with Progress(*columns, TextColumn("left"), console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
