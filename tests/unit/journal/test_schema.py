"""The kinds that are written are the kinds that the schema names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import elastic_train
from elastic_train.journal.schema import HEAD, KINDS, missing_fields

_ROOT = Path(elastic_train.__file__).parent


def _recorded() -> list[tuple[str, str, set[str], bool]]:
    """Return (place, kind, names of fields, may be more) of every call of `record` with a literal kind."""
    found = []
    for path in sorted(_ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "record"):
                continue
            if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                names = {keyword.arg for keyword in node.keywords if keyword.arg}
                open_ended = any(keyword.arg is None for keyword in node.keywords)
                place = f"{path.relative_to(_ROOT)}:{node.lineno}"
                found.append((place, node.args[0].value, names, open_ended))
    return found


def test_every_kind_that_is_recorded_is_in_the_schema() -> None:
    assert not [(place, kind) for place, kind, _, _ in _recorded() if kind not in KINDS]


def test_every_record_has_the_fields_of_its_kind() -> None:
    assert not [
        (place, kind, lacking)
        for place, kind, names, open_ended in _recorded()
        if not open_ended and (lacking := set(KINDS.get(kind, ())) - names)
    ]


def test_the_search_finds_records() -> None:
    assert {"step_read", "step_committed", "group_formed"} <= {kind for _, kind, _, _ in _recorded()}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_required_field_is_missed(kind: str) -> None:
    whole = dict.fromkeys((*HEAD, *KINDS[kind]), 0) | {"kind": kind}
    assert missing_fields(whole) == []
    for name in (*HEAD, *KINDS[kind]):
        if name != "kind":
            assert missing_fields({key: value for key, value in whole.items() if key != name}) == [name]


def test_a_field_may_not_shadow_the_head() -> None:
    assert not [kind for kind, fields in KINDS.items() if set(fields) & set(HEAD)]
