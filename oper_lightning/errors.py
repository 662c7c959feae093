"""Errors that a person can mend: in a file, a field or a flag. They are one line each."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

log = logging.getLogger("oper_lightning")
LONGEST_WORD, LONGEST_LINE = 400, 900  # characters of an error; paths are long


class InputError(ValueError):
    """A file, field or flag cannot be used. The message is one line: which, why, and what would be right."""


class TrainingError(RuntimeError):
    """Training cannot go on: a loss is no longer finite."""


class Stopped(BaseException):
    """The process was told to stop by a signal; no error, so that nothing takes it for one of a file or an import."""


def note(message: str) -> None:
    """Tells the user something worth knowing that stops nothing (logger ``oper_lightning``, level warning)."""
    log.warning(message)


def first_line(error: BaseException) -> str:
    """What another library's error says, on one line; with its type, if it says no more than a word."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0][:200] if " " in lines[0].strip() else f"{type(error).__name__}: {lines[0][:200]}"


def one_line(text: str) -> str:
    """The text on one line that can be read: what has no end is shortened, what would steer the terminal is shown."""
    text = " ".join(text.split())
    text = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    text = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: f"{word[0][:80]}…{word[0][-20:]}", text)
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}…"


@contextmanager
def reading(origin: object, what: str) -> Iterator[None]:
    """Turns every exception that is raised while ``origin`` is read into one line that names it.

    A broken or hostile file makes the libraries that read it raise nearly anything; none of that helps a person.

    Args:
        origin: the file, as the person named it.
        what: what was expected there, such as "a flat HDF5 file in D4RL's layout".

    Raises:
        InputError: in place of any other exception.
    """
    try:
        yield
    except (InputError, TrainingError):
        raise
    except MemoryError:
        raise InputError(f"{origin}: it needs more memory than there is") from None
    except Exception as error:
        raise InputError(f"{origin}: cannot read it as {what}: {first_line(error)}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase that names the known words nearest to ``name``: "did you mean 'alpha'? (of: ...)"."""
    known = sorted(known)
    closest = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if close := closest or difflib.get_close_matches(name, known, cutoff=0.5):
        return "did you mean " + " or ".join(repr(word) for word in close) + "?"
    shown = ", ".join(known[:12])
    return f"known: {shown}" + (", …" if len(known) > 12 else "")
