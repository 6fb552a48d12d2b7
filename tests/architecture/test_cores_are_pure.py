"""A folder named `core` does no I/O, reads no clock and draws no random number: events in, effects out."""

import ast

import pytest

from tests.architecture.source_tree import PACKAGES, ROOT, Module, modules

PURE_STANDARD_LIBRARY = frozenset(
    {"__future__", "abc", "array", "base64", "binascii", "bisect", "collections", "copy", "dataclasses", "enum"}
    | {"fractions", "functools", "hashlib", "heapq", "itertools", "json", "math", "numbers", "operator", "re"}
    | {"statistics", "string", "struct", "textwrap", "types", "typing", "zlib"}
)
"""What a core may import of the standard library; also `collections.abc` and the like."""

PURE_THIRD_PARTIES = frozenset({"numpy", "typing_extensions", "xxhash"})
"""What a core may import from elsewhere: arithmetic on arrays and checksums. Random numbers are forbidden below."""

IMPURE_NAMES = frozenset({"open", "print", "input", "exec", "eval", "__import__", "breakpoint"})
IMPURE_ATTRIBUTES = frozenset(
    {"random", "now", "today", "utcnow", "environ", "fromfile", "tofile", "memmap", "save", "load"}
)

_CORES = [module for module in modules() if "core" in module.name.split(".")[1:]]


def test_the_cores_are_found() -> None:
    on_disk = [path for package in PACKAGES for path in (ROOT / package).rglob("core/**/*.py")]
    assert len(_CORES) == len(on_disk) > 0


@pytest.mark.parametrize("module", _CORES, ids=lambda module: module.name)
def test_a_core_imports_nothing_that_reaches_outside(module: Module) -> None:
    package = module.name.split(".")[0]
    core = module.name[: module.name.index(".core") + len(".core")]
    impure = [
        f"{module.where}:{line} imports {name}"
        for name, line in module.imports()
        if name.split(".")[0] not in PURE_STANDARD_LIBRARY | PURE_THIRD_PARTIES
        and not f"{name}.".startswith(f"{core}.")
        and name != f"{package}.errors"
    ]
    assert not impure


@pytest.mark.parametrize("module", _CORES, ids=lambda module: module.name)
def test_a_core_touches_no_file_clock_or_random_number(module: Module) -> None:
    impure = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_NAMES:
            impure.append(f"{module.where}:{node.lineno} calls {node.func.id}()")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            of_numpy = node.value.id in {"np", "numpy", "datetime", "date", "os"}
            if of_numpy and node.attr in IMPURE_ATTRIBUTES:
                impure.append(f"{module.where}:{node.lineno} uses {node.value.id}.{node.attr}")
    assert not impure
