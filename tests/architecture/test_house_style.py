"""Rules of the house that no linter has."""

import ast
import re
from collections.abc import Iterator

from tests.architecture.source_tree import ROOT, Module, modules, python_files

LONGEST_FILE = 400

_ALL = [
    *modules(),
    *(module for folder in ("tests", "examples", "benchmarks", "scripts") for module in python_files(folder)),
]


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {module.where: module.text.count("\n") for module in _ALL}
    assert not {where: length for where, length in lengths.items() if length > LONGEST_FILE}


def test_everything_public_has_a_docstring() -> None:
    assert not [where for module in modules() for where in _undocumented(module)]


def test_a_broad_except_gives_its_reason_on_its_line() -> None:
    """Such a handler ends in `raise`, or has a `noqa` code with words after it: for `Exception` and bare ones, too."""
    reasoned = re.compile(r"# noqa: (BLE001|E722)\b.*\w+ \w+ \w+")
    broad = [
        f"{module.where}:{node.lineno}"
        for module in _ALL
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ExceptHandler)
        and _is_broad(node.type)
        and ast.unparse(node.body[-1]) != "raise"
        and not reasoned.search(module.text.splitlines()[node.lineno - 1])
    ]
    assert not broad


def test_what_is_ignored_gives_its_reason_on_its_line() -> None:
    """A `noqa` or `type: ignore` is followed by words that say why."""
    bare = re.compile(r"#\s*(noqa(: ?[A-Z0-9, ]+)?|type: ?ignore(\[[\w, -]+\])?)\s*$")
    found = [
        f"{module.where}:{number}"
        for module in modules()
        for number, line in enumerate(module.text.splitlines(), 1)
        if bare.search(line)
    ]
    assert not found


def test_nothing_is_called_a_bare_epoch() -> None:
    """There are two kinds: `membership_epoch` and `data_epoch`."""
    bare = [
        f"{module.where}:{line} {name}"
        for module in modules()
        for name, line in _names(module.tree)
        if re.search(r"(?<!membership_)(?<!data_)(?<!MEMBERSHIP_)(?<!DATA_)epoch", name, re.IGNORECASE)
        and not re.search(r"(Membership|Data)Epoch", name)
    ]
    assert not bare


def test_unit_tests_never_sleep_and_open_no_sockets() -> None:
    calls = {"time.sleep", "asyncio.sleep", "socket.socket", "socket.create_server", "socket.create_connection"}
    found = [
        f"{module.where}:{node.lineno} {ast.unparse(node.func)}"
        for module in python_files("tests/unit")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and (ast.unparse(node.func) in calls or ast.unparse(node.func) == "sleep")
    ]
    assert not found


def test_tests_never_kill_by_name() -> None:
    assert not [module.where for module in _ALL if re.search(r"[\"'](pkill|killall)\b", module.text)]


def test_every_test_function_is_in_a_folder_with_a_meaning() -> None:
    folders = {"unit", "scenarios", "conformance", "integration", "chaos", "architecture", "simulation"}
    strays = [
        module.where
        for module in python_files("tests")
        if module.path.name.startswith("test_") and module.path.relative_to(ROOT).parts[1] not in folders
    ]
    assert not strays


def _undocumented(module: Module) -> Iterator[str]:
    if ast.get_docstring(module.tree) is None and module.text.strip():
        yield f"{module.where}:1"
    scopes: list[ast.Module | ast.ClassDef] = [module.tree]
    while scopes:
        for node in scopes.pop().body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            if isinstance(node, ast.ClassDef):
                scopes.append(node)
            is_overload = any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not is_overload and ast.get_docstring(node) is None:
                yield f"{module.where}:{node.lineno} {node.name}"


def _is_broad(caught: ast.expr | None) -> bool:
    if caught is None:
        return True
    names = [ast.unparse(item) for item in caught.elts] if isinstance(caught, ast.Tuple) else [ast.unparse(caught)]
    return bool({"Exception", "BaseException"} & set(names))


def _names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield every name that the file gives to something: variables, parameters, attributes, functions, classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
