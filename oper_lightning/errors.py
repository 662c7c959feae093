"""What goes wrong because of something a person gave: a file, a field, a flag."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable

log = logging.getLogger("oper_lightning")


class InputError(ValueError):
    """A file, field or flag cannot be used. The message is one line: which, why, and what would be right."""


class TrainingError(RuntimeError):
    """Training cannot go on: a loss is no longer finite."""


def note(message: str) -> None:
    """Tells the user something worth knowing that stops nothing (logger ``oper_lightning``, level warning)."""
    log.warning(message)


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase that names the known words nearest to ``name``: "did you mean 'alpha'? (of: ...)"."""
    known = sorted(known)
    closest = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if close := closest or difflib.get_close_matches(name, known, cutoff=0.5):
        return "did you mean " + " or ".join(repr(word) for word in close) + "?"
    return "known: " + ", ".join(known)
