"""A reason fits on a line, and still says why."""

from __future__ import annotations

import pytest

from elastic_train.trainer.wording import brief


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("w0005 is ready to join", "w0005 is ready to join"),
        (
            "a collective of w4 failed: connection reset; w3 was ended by SIGKILL (killed by SIGKILL (log: /x/w3.log))",
            "w3 was ended by SIGKILL",
        ),
        ("a collective of w4 failed: connection reset", "a collective of w4 failed: connection reset"),
        ("w2: trainer.drain; w7 is ready to join", "w2: trainer.drain; w7 is ready to join"),
        ("", ""),
    ],
)
def test_details_and_symptoms_are_left_out(reason: str, expected: str) -> None:
    assert brief(reason) == expected
