from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.core.scenario import Scenario

FILES = sorted((Path(__file__).parents[2] / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_scenario_goes_as_recorded(path: Path) -> None:
    recorded = path.read_text()
    played = Scenario().play(recorded)
    if os.environ.get("RECORD_SCENARIOS"):
        path.write_text(played)
    assert played == path.read_text()


def test_there_are_scenarios() -> None:
    assert len(FILES) > 20
