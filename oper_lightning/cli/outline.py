"""Names and arguments of the package's classes and functions, read from their files without importing them.

Importing Lightning and torch takes seconds; help, and most slips on a command line, need neither.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# Where the classes stand that a flag can name, and what they descend from.
FOLDERS = {
    "model": ("algorithms", "Stage"),
    "source": ("data/sources", "Source"),
    "priority": ("priorities", "Priority"),
    "bonus": ("data/bonuses", "Bonus"),
    "task": ("envs", "Task"),
    "data": ("data", "LightningDataModule"),
}
REQUIRED = None  # the default of an argument that has none


@dataclass
class Outline:
    """A class or function as its file shows it."""

    name: str
    docs: list[str]
    """its docstring, indentation cleaned, then those of the parents that it passes arguments on to"""
    module_doc: str
    """the docstring of its file"""
    arguments: dict[str, str | None]
    """argument names with their defaults as text; those of a class are its own, then its parents' if it passes on"""

    @property
    def about(self) -> str:
        """The docstring up to its sections."""
        return self.docs[0].split("\nArgs:")[0].split("\nRaises:")[0].strip()

    @property
    def summary(self) -> str:
        """The first sentence of the docstring."""
        return self.docs[0].split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")

    def explained(self) -> dict[str, tuple[str, str | None]]:
        """Explanation and default of each argument."""
        from docstring_parser import parse

        texts: dict[str, str] = {}
        for doc in reversed(self.docs):
            texts |= {found.arg_name: found.description or "" for found in parse(doc).params}
        return {name: (texts.get(name, ""), default) for name, default in self.arguments.items()}


@cache
def _read(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _doc(node: ast.ClassDef | ast.FunctionDef | ast.Module) -> str:
    return inspect.cleandoc(ast.get_docstring(node) or "")


def function(file: Path, name: str) -> Outline:
    """A function of a file."""
    tree = _read(file)
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    return Outline(name, [_doc(found)], _doc(tree), _arguments(found, tree))


def class_of(file: Path, name: str) -> Outline:
    """A class of a file."""
    tree = _read(file)
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return _class(found, tree, [])


def classes(kind: str) -> dict[str, Outline]:
    """The classes that a flag can name, by name; ``kind`` is one of :data:`FOLDERS`."""
    folder, root = FOLDERS[kind]
    known = {
        node.name: (node, tree)
        for tree in map(_read, sorted((PACKAGE / folder).glob("*.py")))
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }

    def parents(name: str) -> Iterator[str]:
        for base in known[name][0].bases if name in known else ():
            if isinstance(base, ast.Name):
                yield base.id
                yield from parents(base.id)

    found = {}
    for name in sorted(known):
        chain = list(parents(name))
        above = [known[parent] for parent in chain if parent in known]
        if root in chain and not name.startswith("_") and not _abstract(known[name][0], *(cls for cls, _ in above)):
            found[name] = _class(*known[name], above)
    return found


def _abstract(*family: ast.ClassDef) -> bool:
    """Whether a class has an abstract method; its family is the class itself and then its parents."""
    nearest: dict[str, bool] = {}
    for cls in family:
        for item in cls.body:
            if isinstance(item, ast.FunctionDef):
                nearest.setdefault(item.name, "abstractmethod" in map(ast.unparse, item.decorator_list))
    return any(nearest.values())


def _class(node: ast.ClassDef, tree: ast.Module, parents: list[tuple[ast.ClassDef, ast.Module]]) -> Outline:
    """A class with the arguments that it passes on to its parents, and their explanations."""
    docs: list[str] = []
    arguments: dict[str, str | None] = {}
    for cls, module in [(node, tree), *parents]:
        init = next((item for item in cls.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
        own = _arguments(init, module) if init else _fields(cls)
        docs.append(_doc(cls))
        # What a parent cannot do without is given by the class below it.
        passed_on = {name: default for name, default in own.items() if cls is node or default is not REQUIRED}
        arguments |= {name: default for name, default in passed_on.items() if name not in arguments}
        if own and not (init and init.args.kwarg):
            break
    return Outline(node.name, docs, _doc(tree), arguments)


def _fields(cls: ast.ClassDef) -> dict[str, str | None]:
    """The fields of a dataclass."""
    if not any("dataclass" in ast.unparse(decorator) for decorator in cls.decorator_list):
        return {}
    return {
        item.target.id: ast.unparse(item.value) if item.value else REQUIRED
        for item in cls.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def _arguments(node: ast.FunctionDef, tree: ast.Module) -> dict[str, str | None]:
    """Arguments of a function, with their defaults; constants of its file by their values."""
    constants = {
        item.targets[0].id: item.value
        for item in tree.body
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name)
    }

    def text(value: ast.expr | None) -> str | None:
        if value is None:
            return REQUIRED
        return ast.unparse(constants.get(value.id, value) if isinstance(value, ast.Name) else value)

    plain = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    missing: list[ast.expr | None] = [None] * (len(plain) - len(node.args.defaults))
    found = dict(zip(plain, map(text, [*missing, *node.args.defaults]), strict=True))
    found |= dict(
        zip([argument.arg for argument in node.args.kwonlyargs], map(text, node.args.kw_defaults), strict=True)
    )
    found.pop("self", None)
    return found
