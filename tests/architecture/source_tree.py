"""The source files of the packages as the architecture tests see them: parsed once, with their dotted names."""

from __future__ import annotations

import ast
import functools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("elastic_train", "checkpointing", "storage", "chaos")
"""The source folders of the design; the layers test tells which of them are written."""


@dataclass(frozen=True)
class Module:
    """One source file."""

    path: Path
    name: str
    text: str
    tree: ast.Module

    @property
    def where(self) -> str:
        """Return the path as a person would type it."""
        return str(self.path.relative_to(ROOT))

    def imports(self) -> Iterator[tuple[str, int]]:
        """Yield what the file imports at run time, as dotted name and line: not what only a type checker reads."""
        yield from _imports_of(self.tree)


def _imports_of(node: ast.AST) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for alternative in child.orelse:
                yield from _imports_of(alternative)
        elif isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
            yield child.module, child.lineno
        else:
            yield from _imports_of(child)


@functools.cache
def modules() -> tuple[Module, ...]:
    """Return all source files that were written by hand."""
    return tuple(
        _read(path)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if not path.stem.endswith(("_pb2", "_pb2_grpc"))
    )


@functools.cache
def python_files(folder: str) -> tuple[Module, ...]:
    """Return the Python files under a folder that is no source package, such as `tests`."""
    return tuple(_read(path) for path in sorted((ROOT / folder).rglob("*.py")))


@functools.cache
def pyproject() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _read(path: Path) -> Module:
    text = path.read_text()
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(path=path, name=name, text=text, tree=ast.parse(text, filename=str(path)))
