"""Chains and the ledgers that they keep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

from fuzzing.case import ACCEPT, EITHER, NASTY, REFUSE, Kind, Mutation, Told, nested, spoil
from fuzzing.configs import WHOLE, Values, change_yaml, put, write_whole

CHAIN, LEDGER = "case.yaml", "out/chain.json"


def _lay_chain(rng: Random) -> str:
    content = {
        "folder": "out",
        "set": {"seed": 0, "data": "data.hdf5"},
        "links": {"one": "--version", "two": "--version {data} {one} {folder}"},  # commands that cost no time
    }
    Path(CHAIN).write_text(yaml.safe_dump(content, sort_keys=False))
    return CHAIN


def _links(**links: Any) -> Callable[[dict[str, Any], Random], Told]:
    def change(content: dict[str, Any], rng: Random) -> Told:
        content["links"] = dict(links.items())
        return REFUSE

    return change


def _named_link(name: Any, told: Told) -> Callable[[dict[str, Any], Random], Told]:
    def change(content: dict[str, Any], rng: Random) -> Told:
        content["links"] = {name: "fit --model=BC --nonsense"}
        return told

    return change


CHAINS = Kind(
    _lay_chain,
    (CHAIN, "nonsense"),
    lambda rng: rng.choice([f"run {CHAIN}", f"run {CHAIN} --seed=3"]),
    {
        "structure: as it was": lambda rng: (_lay_chain(rng), ACCEPT)[1],
        **{
            f"structure: {name}": write_whole(data, REFUSE, CHAIN, _lay_chain)
            for name, (data, _) in WHOLE.items()
            if name != "a long file"
        },
        **{f"meaning: anything {n}": change_yaml(lambda c, rng: spoil(c, rng), CHAIN, _lay_chain) for n in range(4)},
        **{
            f"meaning: link {name!r}": change_yaml(_named_link(name, REFUSE), CHAIN, _lay_chain)
            for name in ("../outside", "/tmp/outside", "..", "a/b", ".", "", "~", "chain.json")
        },
        **{
            f"meaning: link {name!r}": change_yaml(_named_link(name, EITHER), CHAIN, _lay_chain)
            for name in (None, 3, True, "a b")
        },
        "meaning: folder": change_yaml(
            put("folder", Values([[], {"a": 1}, 3, "data.hdf5/x", "/proc/x", "\x07", "{gone}", "{folder}"])),
            CHAIN,
            _lay_chain,
        ),
        "meaning: set": change_yaml(put("set", Values(NASTY)), CHAIN, _lay_chain),
        "meaning: set that names itself": change_yaml(put("set.seed", "{seed}", EITHER), CHAIN, _lay_chain),
        "meaning: set that grows": change_yaml(
            lambda c, rng: (
                c.update(set={f"a{n}": f"{{a{n - 1}}}" * 10 if n else "xxxxxxxxxx" for n in range(12)}),
                REFUSE,
            )[1],
            CHAIN,
            _lay_chain,
        ),
        "meaning: a long list": change_yaml(
            lambda c, rng: (c.update(set={"seed": list(range(100_000))}, links={"a": "fit {seed} {"}), EITHER)[1],
            CHAIN,
            _lay_chain,
        ),
        "meaning: links": change_yaml(put("links", Values(list(NASTY))), CHAIN, _lay_chain),
        "meaning: an unfinished quote": change_yaml(_links(one="fit 'a"), CHAIN, _lay_chain),
        "meaning: no such verb": change_yaml(_links(one="fitt --model=BC"), CHAIN, _lay_chain),
        "meaning: a list for a command": change_yaml(_links(one=["fit", "--model=BC"]), CHAIN, _lay_chain),
        "meaning: null for a command": change_yaml(_links(one=None), CHAIN, _lay_chain),
        "meaning: a number for a command": change_yaml(_links(one=3), CHAIN, _lay_chain),
        "meaning: a chain in itself": change_yaml(_links(one=f"run {CHAIN} --folder=out2"), CHAIN, _lay_chain),
    },
)


def _lay_ledger(rng: Random) -> str:
    _lay_chain(rng)
    Path(LEDGER).parent.mkdir()
    record = {
        "one": {"command": "oper --version", "done": True},
        "two": {"command": "oper --version data.hdf5 out/one out", "done": True},
    }
    Path(LEDGER).write_text(json.dumps(record))
    return LEDGER


def _ledger(text: str, told: Told = EITHER) -> Mutation:
    return write_whole(text.encode(), told, LEDGER, _lay_ledger)


def _ledger_entry(rng: Random) -> Told:
    _lay_ledger(rng)
    content = json.loads(Path(LEDGER).read_text())
    spoil(content, rng)
    Path(LEDGER).write_text(json.dumps(content))
    return EITHER


LEDGERS = Kind(
    _lay_ledger,
    ("chain.json",),
    lambda rng: f"run {CHAIN}",
    {
        "structure: as it was": lambda rng: (_lay_ledger(rng), ACCEPT)[1],
        **{
            f"structure: {text[:12]}": _ledger(text, REFUSE)
            for text in (
                "3",
                "null",
                "[]",
                '"text"',
                "{",
                "[[1, 2]]",
                '{"one": 3}',
                '{"one": null}',
                '{"one": []}',
                '{"one": {}}',
                "true",
                "NaN",
            )
        },
        "structure: deep": _ledger(nested(200_000, "[", "]"), REFUSE),
        "structure: long": _ledger('{"one": "' + "x" * (20 << 20) + '"}', REFUSE),
        "structure: a long number": _ledger('{"one": ' + "9" * 50_000 + "}", REFUSE),
        **{f"meaning: anything {n}": _ledger_entry for n in range(6)},
        "meaning: done is text": _ledger('{"one": {"command": "oper x", "done": "yes"}}'),
        "meaning: command is a number": _ledger('{"one": {"command": 3, "done": true}}'),
        "meaning: an unfinished quote": _ledger('{"one": {"command": "oper \'x", "done": true}}'),
    },
)
