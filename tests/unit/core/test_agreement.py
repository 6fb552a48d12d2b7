"""The odd ones are those outside the majority; without one, all are."""

from __future__ import annotations

import pytest

from elastic_train.core.agreement import differences, odd_ones


@pytest.mark.parametrize(
    ("said", "odd"),
    [
        ("a", ""),
        ("aa", ""),
        ("ab", "01"),
        ("aab", "2"),
        ("abb", "0"),
        ("abc", "012"),
        ("aabb", "0123"),
        ("aaabc", "34"),
    ],
)
def test_odd_is_who_does_not_say_what_more_than_half_say(said: str, odd: str) -> None:
    assert "".join(odd_ones({str(index): value for index, value in enumerate(said)})) == odd


def test_differences_are_named_whether_a_value_differs_or_is_missing() -> None:
    assert differences({"a": "1", "b": "2", "c": "3"}, {"b": "2", "c": "4", "d": "5"}) == ["a", "c", "d"]
