"""Names of columns in flat files: ours, NeoRL-2's, or those that a person gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from oper_lightning.errors import InputError, nearest

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations", "episode_terminals", "masks")
FLAGS = ("terminals", "timeouts", "episode_terminals", "masks")
NEORL2 = {
    "observations": "obs",
    "actions": "action",
    "rewards": "reward",
    "terminals": "done",
    "timeouts": "truncated",
    "next_observations": "next_obs",
}
SHOWN = 24  # arrays that a message lists


def mapping(
    present: Sequence[str], names: dict[str, str] | None, origin: str, described: Callable[[str], str]
) -> dict[str, str]:
    """For each of our names that a file has a column for, the file's name of it.

    Args:
        present: names of the arrays in the file.
        names: the file's names that a person gave, by our names.
        origin: the file, for messages.
        described: an array's name with its shape.

    Raises:
        InputError: if a name is not one of ours, or a column is missing; the line lists what is there.
    """

    def missing(ours: str, theirs: str) -> InputError:
        shown = ", ".join(described(name) for name in present[:SHOWN]) or "no arrays"
        shown += f" and {len(present) - SHOWN:,} more" if len(present) > SHOWN else ""
        # An array in another group may have the right name.
        close = nearest(theirs, present) if present else ""
        inner = [name for name in present if name.split("/")[-1] == theirs.split("/")[-1]]
        if ours == "rewards" and "qpos" in present:
            return InputError(f"{origin}: no array {theirs!r}, but qpos: a file of OGBench? read it with OGBench")
        hint = f"did you mean {inner[0]!r}?" if inner else close if close.startswith("did") else ""
        return InputError(
            f"{origin}: no array {theirs!r}{'' if theirs == ours else f' (for {ours})'}; {hint}{' ' if hint else ''}"
            f"the file has {shown}; say with the source's names which is which"
        )

    for ours in names or {}:
        if ours not in (*REQUIRED, *OPTIONAL):
            raise InputError(f"{origin}: names has {ours!r}; {nearest(ours, (*REQUIRED, *OPTIONAL))}")
    known = NEORL2 if "obs" in present else {name: name for name in (*REQUIRED, *OPTIONAL)}
    wanted = {**known, **{ours: theirs.strip("/") for ours, theirs in (names or {}).items()}}
    for ours, theirs in wanted.items():
        if theirs not in present and (ours in REQUIRED or ours in (names or {})):
            raise missing(ours, theirs)
    return {ours: theirs for ours, theirs in wanted.items() if theirs in present}
