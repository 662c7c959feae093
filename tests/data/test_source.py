"""Whatever a source raises, a person's own included, is one line that names it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Arrays, columns
from tensordict import TensorDict

from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.storage import fill
from oper_lightning.errors import InputError


class Mine(Source):
    """Fails where it is told to."""

    def __init__(self, where: str, error: Exception) -> None:
        self.where, self.error = where, error

    def _fail(self, where: str) -> None:
        if where == self.where:
            raise self.error

    def prepare(self) -> None:
        self._fail("prepare")

    def origin(self) -> Origin:
        self._fail("origin")
        return Origin()

    def __len__(self) -> int:
        self._fail("len")
        return 9

    def episodes(self) -> Iterator[TensorDict]:
        yield from Arrays(columns([4])).episodes()
        self._fail("episodes")
        yield from Arrays(columns([5])).episodes()


class Listed(Mine):
    """Gives a list instead of yielding."""

    def episodes(self) -> Any:
        return list(super().episodes())


def consume(source: Source) -> int:
    source.prepare()
    source.origin()
    return len(fill(source, torch.device("cpu")))


ERRORS = [KeyError("speed"), ValueError("two\nlines"), RuntimeError(), OSError(5, "bad"), MemoryError()]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("where", ["prepare", "origin", "len", "episodes"])
@pytest.mark.parametrize("kind", [Mine, Listed])
def test_what_a_source_raises_is_one_line(kind: type[Mine], where: str, error: Exception) -> None:
    source = kind(where, error)
    with pytest.raises(InputError, match=rf"^{kind.__name__}: ") as caught:
        consume(source)
    assert "\n" not in str(caught.value)
    if isinstance(error, KeyError):
        assert "KeyError: 'speed'" in str(caught.value)
        assert caught.value.__cause__ is error


@pytest.mark.parametrize("kind", [Mine, Listed])
def test_a_source_that_does_not_fail(kind: type[Mine]) -> None:
    assert consume(kind("nowhere", ValueError())) == 9


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("rewards", np.ones(9, dtype=complex), "complex128; real numbers"),
        ("actions", np.full((9, 2), "a"), "real numbers"),
        ("terminals", np.arange(9) % 3, "terminated is 2 at row 2 of 3; a flag is 0 or 1"),
        ("timeouts", np.full(9, np.nan), "truncated is nan"),
    ],
)
def test_what_is_no_transition(name: str, values: Any, words: str) -> None:
    arrays = {**columns([3, 3, 3]), name: values}
    arrays["timeouts" if name == "terminals" else "terminals"] = np.arange(9) % 3 == 2
    if name in ("timeouts", "terminals"):
        arrays["rewards"] = np.ones(9)

    class Given(Arrays):
        def episodes(self) -> Iterator[TensorDict]:
            from oper_lightning.data.transitions import transitions_from

            names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
            for start in (0, 3, 6):
                yield transitions_from(*(self.arrays[key][start : start + 3] for key in names))

    with pytest.raises(InputError, match=rf"^Given: .*{words}"):
        fill(Given(arrays), torch.device("cpu"))
