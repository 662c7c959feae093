"""The rules of the house: imports go down only, names are lazy, nothing that we read can run code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import oper_lightning

PACKAGE = Path(oper_lightning.__file__).parent
# A room may import from the rooms of lower numbers and from itself.
FLOORS = {
    "errors": 0,
    "spec": 1,
    "nn": 1,
    "files": 0.5,
    "renamed": 0,
    "data.transitions": 1,
    "envs": 2,
    "priorities": 2,
    "data": 3,
    "training": 3.5,
    "algorithms": 4,
    "trust": 4.5,
    "report": 5,
    "cli": 6,
    "__main__": 7,
}
# Variants of an algorithm, which are classes below it; no other algorithm imports another.
PARENTS = {"cal_ql": "cql"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(module: str) -> str:
    """The room of a module path relative to the package."""
    return "data.transitions" if module.startswith("data.transitions") else module.split(".")[0]


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, relative to the package; not those that only its types name."""
    found = set()
    tree = ast.parse(path.read_text())
    typing = {id(node) for block in ast.walk(tree) if _for_types(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name.removeprefix("oper_lightning.") for name in found if name.startswith("oper_lightning.")}


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def known(name: str) -> bool:
    """Whether an imported name is a module, not something in one."""
    path = PACKAGE / name.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    module = str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    floor = FLOORS[room(module)]
    for name in filter(known, imports(path)):
        assert FLOORS[room(name)] < floor or room(name) == room(module), f"{module} imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "algorithms").glob("*.py")), ids=lambda path: path.stem)
def test_algorithms_know_neither_data_nor_envs(path: Path) -> None:
    if path.stem in ("base", "stage", "__init__"):
        return
    bases = ("algorithms.base", "algorithms.stage")
    allowed = ("nn", "priorities", *bases, "training", "data.transitions", "spec", "errors")
    for name in filter(known, imports(path)):
        parent = PARENTS.get(path.stem, "nothing")
        assert name in ("data",) or name.startswith((*allowed, f"algorithms.{parent}")), f"{path.stem} imports {name}"


def test_public_names_exist() -> None:
    for name in oper_lightning.__all__:
        assert getattr(oper_lightning, name) is not None
    with pytest.raises(AttributeError):
        _ = oper_lightning.NoSuchName


def test_nothing_heavy_comes_with_the_package() -> None:
    code = "import sys, oper_lightning; print([m for m in ('torch', 'lightning', 'gymnasium') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_command_imports_only_what_every_run_needs() -> None:
    """What one source, one environment or the end of a run needs is imported there, even if all classes are known."""
    some = ("gymnasium", "minari", "h5py", "pyarrow", "tensorboard", "safetensors", "ale_py", "cv2", "pandas", "scipy")
    code = (
        "import sys, oper_lightning.cli.verbs\nfrom oper_lightning.trust import load_all\nload_all()\n"
        f"print([m for m in {some} if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_unpickles(path: Path) -> None:
    text = path.read_text()
    for call in ("allow_pickle=True", "weights_only=False", "pickle.load(", "pickle.loads("):
        assert call not in text
    if path.name != "published.py":
        assert "pickle.Unpickler" not in text


def test_algorithms_do_not_wait_for_the_device() -> None:
    for path in (PACKAGE / "algorithms").glob("*.py"):
        if path.stem in ("base", "stage"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (node.name == "update" or node.name.endswith("_loss")):
                called = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
                assert not called & {"item", "cpu", "numpy", "tolist"}, f"{path.stem}.{node.name}"
