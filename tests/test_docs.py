"""What README and docs/ say can be done is done here, page by page, in the order of the page, in an empty folder.

* Python blocks run, one after another with the same names. A block whose first line names a file is written there.
* `oper fit` runs for 10 updates: the words in CUT stand behind those of the page, and the data that pages name are
  small files that stand for them (`stand_ins`), D4RL's own names included. Only parsed, with --print_config, are
  commands that would download from Minari or start a second process.
* `oper validate`, `test`, `predict`, `inspect`, `report`, `convert` and all help run as they stand, on what the page
  made before or on what the quick start left (`ready`).
* `oper run` of a chain that a page shows runs its links in this process, cut likewise. Where it is run once more into
  another folder, and of chains in configs/, the names that the page sets are filled in and the chain is read;
  tests/cli/test_configs.py looks at the links.
* make, pip and `python benchmarks/...` are not run: their targets, extras, files and flags must exist.

Links and their anchors, paths, arguments and public names in the text must exist, and the site must build.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import columns, oper, write_hdf5
from lightning.pytorch import Trainer
from tf_bundles import brac, write_bundle

import oper_lightning
from oper_lightning import D4RL
from oper_lightning.cli import VERBS
from oper_lightning.cli.chain import load
from oper_lightning.cli.outline import classes
from oper_lightning.data.sources.columns import NEORL2
from oper_lightning.data.sources.d4rl import _file_of

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs"))
import make_reference  # noqa: E402 (a script of the documentation)

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKED = [*PAGES, ROOT / "benchmarks" / "README.md"]
CUT = ["--trainer.max_steps=10", "--data.updates_per_epoch=10", "--data.batch_size=32"]
STAGE_1 = ["--data.updates_per_epoch=2"]  # its five iterations are whole epochs
STAGE_2 = ["--data.rollouts.episodes=1"]
ONLINE = ["--data.warmup=20", "--data.updates_per_step=1", "--data.updates_per_block=5"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ATTRIBUTES = ("data.weights", "data.storage")  # of a datamodule in Python
OWN_MODULES = ("pumps", "mine", "linear", "reach")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def every(pages: list[Path]) -> Any:
    return pytest.mark.parametrize("page", pages, ids=name_of)


def commands(block: str) -> list[list[str]]:
    """The command lines of a block, as lists of words."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


# Running a page --------------------------------------------------------------------------------------------------


def stand_ins(folder: Path) -> None:
    """Small files under the names that pages use."""
    for name in ("configs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    arrays = columns([25] * 20, 10, 2)
    for name in ("hopper-replay.hdf5", "log.hdf5", "val.hdf5", "other.hdf5"):
        write_hdf5(folder / name, arrays, env_id="Reacher-v5")
    write_hdf5(folder / "cartpole.hdf5", columns([25] * 20, 4, 2, discrete=True), env_id="CartPole-v1")
    grouped = {"observations": "steps/seen", "actions": "steps/done"}
    write_hdf5(folder / "grouped.h5", {grouped.get(name, name): array for name, array in arrays.items()})
    np.savez(folder / "choices.npz", **columns([25] * 20, 10, 6, discrete=True))
    theirs = {"observations": "s", "actions": "a"}
    np.savez(folder / "log.npz", **{theirs.get(name, name): array for name, array in arrays.items()})
    masses = columns([25] * 20, 6, 2)
    np.savez(folder / "neorl2-DMSD-train.npz", **{NEORL2[name]: array for name, array in masses.items()})
    cheetah = columns([25] * 20, 17, 6)
    write_hdf5(folder / "halfcheetah-replay.hdf5", cheetah, env_id="HalfCheetah-v5")
    write_bundle(folder / "HalfCheetah" / "gaussian1" / "data", brac(cheetah))
    layers = {f"layer_{n}_w": np.zeros(shape) for n, shape in enumerate([(17, 8), (8, 8), (8, 12)])}
    layers |= {f"layer_{n}_b": np.zeros(size) for n, size in enumerate([8, 8, 12])}
    np.savez(folder / "HalfCheetah.npz", **layers)
    np.savez(folder / "norm.npz", mean=np.zeros(17), std=np.ones(17))
    (folder / "logs").mkdir()
    for day in range(3):
        rows = np.random.default_rng(day).uniform(0, 10, (100, 8))
        np.savetxt(folder / "logs" / f"{day}.csv", rows, delimiter=",")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 4, 84, 84), np.uint8)
    rows = {**columns([20, 20], action=6, discrete=True), "observations": pictures[0], "next_observations": pictures[1]}
    np.savez(folder / "pong.npz", **rows)
    for name in ("hopper-medium-v2", "hopper-medium-replay-v2"):
        file = _file_of(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_hdf5(file, columns([25] * 20, 11, 3))
    rows = len(D4RL("hopper-medium-replay-v2", qlearning_rows=True))
    for seed in range(2):
        weights = np.random.default_rng(seed).uniform(0, 2, (rows, 1))
        np.save(folder / f"published_{seed}.npy", {"iter": 1, 1: weights}, allow_pickle=True)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs that other pages go on from."""
    folder = tmp_path_factory.mktemp("ready")
    here = Path.cwd()
    os.chdir(folder)
    try:
        write_hdf5(folder / "hopper-replay.hdf5", columns([25] * 20, 10, 2), env_id="Reacher-v5")
        data = ["--data.source=D4RL", "--data.source.path=hopper-replay.hdf5", *CUT]
        judged = [*data, *STAGE_2]
        assert oper("fit", "--model=OperA", *data, *STAGE_1, "--data.rollouts=null", "--output=runs/weights") == 0
        assert oper("fit", "--model=TD3BC", *judged, "--output=runs/policy") == 0
        for number, name in enumerate(("uniform", "oper_a")):
            words = [f"--seed_everything={number}", f"--output=runs/quickstart/{name}"]
            assert oper("fit", "--model=BC", *judged, *words, *["--data.priority=OperR"] * number) == 0
    finally:
        os.chdir(here)
    return folder / "runs"


def run_python(block: str, names: dict[str, Any]) -> None:
    first = block.split("\n", 1)[0]
    if found := re.fullmatch(r"# (\w+\.py)", first):
        Path(found.group(1)).write_text(block)
        importlib.invalidate_caches()
    exec(compile(block, first, "exec"), names)


def run_oper(words: list[str]) -> None:
    verb = words[0]
    if verb == "run" and "--help" not in words:
        return run_chain(words[1:])
    if verb == "fit" and not any(word.endswith(("help", "--print_config")) or ".help=" in word for word in words):
        if "--data.source.download=true" in words or "--trainer.devices=2" in words:
            words = [*words, "--print_config"]
        else:
            words = [*words, *CUT, *cut_further(words)]
    if "--print_config" in words:
        words = [word for word in words if not word.startswith("--output")]
    assert oper(*words) == 0, words


def cut_further(words: list[str]) -> list[str]:
    if any("configs/oper_a" in word for word in words):
        return STAGE_1
    if any("configs/dynamics" in word for word in words):
        return []
    files = [Path(word.removeprefix("--config=")).read_text() for word in words if word.endswith(".yaml")]
    online = ONLINE if "OnlineDataModule" in " ".join([*words, *files]) else []
    return online if "--data.rollouts=null" in words else [*online, *STAGE_2]


def run_chain(words: list[str]) -> None:
    sets = dict(zip([word.removeprefix("--") for word in words[1::2]], words[2::2], strict=True))
    links = load(words[0], sets)["links"]
    if words[0].startswith("configs/") or "folder" in sets:
        return
    for link in links.values():
        run_oper(link)


def check_other(words: list[str]) -> None:
    """What is not run must be there."""
    match words:
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["python", script, *arguments]:
            text = (ROOT / script).read_text()
            for flag in arguments:
                assert not flag.startswith("--") or f'"{flag}"' in text, f"{script} has no {flag}"
        case ["pip", "install", *arguments]:
            for extra in re.findall(r"\[(\w+)\]", " ".join(arguments)):
                assert re.search(rf"^{extra} = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        case ["tensorboard", "--logdir", _] | [".", ".venv/bin/activate"]:
            pass
        case _:
            pytest.fail(f"nobody checks this command: {shlex.join(words)}")


@every([page for page in PAGES if FENCE.search(page.read_text())])
def test_a_page_does_what_it_says(page: Path, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    stand_ins(tmp_path)
    text = page.read_text()
    if "oper/Pong-v0" in text:
        pytest.importorskip("ale_py", reason="the extra 'atari' is not installed")
    for run in [*ready.glob("quickstart/*"), *ready.glob("*")]:
        place = f"runs/{run.relative_to(ready)}"
        if place in text and f"--output={place}" not in text and not Path(place).exists():
            shutil.copytree(run, place)
    names: dict[str, Any] = {}
    try:
        for language, block in FENCE.findall(text):
            if language == "python":
                run_python(block, names)
            elif language == "yaml":
                assert isinstance(yaml.safe_load(block), dict)
                if found := re.match(r"# (\w+\.yaml)\n", block):
                    Path(found.group(1)).write_text(block)
            elif language == "sh":
                for words in commands(block):
                    (run_oper(words[1:]) if words[0] == "oper" else check_other(words))
            else:
                assert language in ("text", "bibtex"), f"a block of {language or 'nothing'}: say what it is"
    finally:
        for module in OWN_MODULES:
            sys.modules.pop(module, None)


# What the text mentions ------------------------------------------------------------------------------------------


def known_arguments() -> set[str]:
    found = {f"trainer.{name}" for name in inspect.signature(Trainer).parameters}
    named = [
        ("model", "model"),
        ("model.task", "task"),
        *((f"data.{one}", one) for one in ("source", "priority", "bonus")),
        ("data.source.source", "source"),  # of a source that changes another
    ]
    for flag, kind in named:
        found |= {flag, f"{flag}.help"}
        found |= {f"{flag}.{name}" for cls in classes(kind).values() for name in cls.arguments}
    found |= {f"data.{name}" for data in (make_reference.DATA, make_reference.ONLINE) for name in data.arguments}
    found |= {f"data.upsample.{name}" for name in make_reference.UPSAMPLE.arguments}
    return found | {f"data.rollouts.{name}" for name in make_reference.ROLLOUTS.arguments}


@every(LINKED)
def test_arguments_that_are_mentioned_exist(page: Path) -> None:
    text = page.read_text()
    own = {name for block in FENCE.findall(text) for name in re.findall(r"(\w+): \w+[,)= ]", block[1])}
    known = known_arguments()
    for word in re.findall(r"--((?:data|model|trainer)\.[a-z_]+(?:\.[a-z_]+)*)", text):
        assert word in known or word.startswith("trainer.callbacks.") or word.rsplit(".", 1)[-1] in own, f"--{word}"
    for word in re.findall(r"`((?:data|trainer|model)\.[a-z_]+(?:\.[a-z_]+)*)`", text):
        assert word in known or word in ATTRIBUTES, word


@every(LINKED)
def test_commands_and_paths_that_are_mentioned_exist(page: Path) -> None:
    prose = FENCE.sub("", page.read_text())
    for verb in re.findall(r"`oper (\w+)", prose):
        assert verb in VERBS, verb
    for target in re.findall(r"`make (\w+)`", prose):
        check_other(["make", target])
    for path in re.findall(r"`((?:configs|docs|benchmarks|tests|oper_lightning)/[\w./-]+)`", prose):
        assert (ROOT / path).exists(), path


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {
        slug(heading.strip()) for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    }


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Files in the repository that a page links to, with the anchor."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if not re.match(r"https?://", target):
            path, _, anchor = target.partition("#")
            yield ((page.parent / path).resolve() if path else page), anchor


@every(LINKED)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), target
        assert target.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(target), f"{target.name}#{anchor}"


def test_every_page_is_reached_from_the_front_page() -> None:
    assert {target for target, _ in links(PAGES[0])} >= set(PAGES[1:])


def test_the_front_page_is_a_front_page() -> None:
    assert len(PAGES[0].read_text().splitlines()) <= 200


def test_public_names_are_documented() -> None:
    section = (ROOT / "docs" / "extending.md").read_text().split("## Public names")[1]
    assert set(re.findall(r"`([A-Za-z]\w+)`", section.split("\n## ")[0])) >= set(oper_lightning._PUBLIC)


def test_the_reference_is_up_to_date() -> None:
    assert (ROOT / "docs" / "reference.md").read_text() == make_reference.page(), "run: python docs/make_reference.py"


def test_the_site_builds_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(
            r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["']?(https?://[^"'\s>]+)""", page.read_text()
        )
        assert not fetched, page
