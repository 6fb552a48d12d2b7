from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from elastic_train.core.bounds import Bounds
from elastic_train.core.evolve import evolve
from elastic_train.core.records import Stage, WorldRecord
from elastic_train.core.world import JobState, Phase

STATE = JobState.initial(Bounds(1, 4, 2), 3.0)


def test_it_does_as_replace_does_and_leaves_the_original_alone() -> None:
    changed = evolve(STATE, phase=Phase.PAUSED, now_s=4.0)
    assert changed == replace(STATE, phase=Phase.PAUSED, now_s=4.0)
    assert (STATE.phase, STATE.now_s) == (Phase.GATHERING, 3.0)


def test_a_field_that_does_not_exist_is_an_error() -> None:
    wrong: dict[str, Any] = {"colour": "red"}
    with pytest.raises(AttributeError):
        evolve(STATE, **wrong)


def test_a_class_that_checks_its_fields_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"dataclasses\.replace"):
        evolve(WorldRecord(1, Stage.SEALED, ()), membership_epoch=2)
