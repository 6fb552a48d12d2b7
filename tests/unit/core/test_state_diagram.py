from __future__ import annotations

from scripts.state_diagram import PATH, diagram


def test_the_state_diagram_shows_the_table() -> None:
    assert PATH.read_text() == diagram(), "run `python -m scripts.state_diagram`"
