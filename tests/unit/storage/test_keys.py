"""Which names are keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import InvalidKey
from storage.keys import MAX_KEY_BYTES, MAX_SEGMENT_BYTES, TEMP_SEGMENT, validate_key, validate_prefix

segments = st.text("abcXYZ019!_.'()=+@,:-", min_size=1, max_size=8).filter(
    lambda text: text not in (".", "..") and not text.startswith(TEMP_SEGMENT)
)
keys = st.lists(segments, min_size=1, max_size=5).map("/".join)


@given(keys)
def test_a_key_of_allowed_segments_is_valid_and_so_is_each_of_its_prefixes(key: str) -> None:
    assert validate_key(key) == key
    for stop in range(len(key) + 1):
        assert validate_prefix(key[:stop]) == key[:stop]


@given(st.text())
def test_any_text_is_taken_or_refused_as_invalid(text: str) -> None:
    refused: InvalidKey | None = None
    try:
        validate_key(text)
    except InvalidKey as error:
        refused = error
    if refused is not None:
        assert len(str(refused)) > 20
    else:
        assert text
        assert not text.startswith("/")
        assert not {"", ".", ".."} & set(text.split("/"))


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("", "empty"),
        ("/a", "relative"),
        ("a/", "trailing"),
        ("a//b", "empty segment"),
        ("a/../b", "'..'"),
        ("./a", "'.'"),
        ("a b", "' ' at position 1"),
        ("a\x00", "position 1"),
        ("ключ", "position 0"),
        ("a/" + TEMP_SEGMENT, "reserved"),
        ("a/" + TEMP_SEGMENT + "-1/x", "reserved"),
        ("x" * (MAX_SEGMENT_BYTES + 1), "segment of 201"),
        ("x/" * MAX_KEY_BYTES, "at most 900"),
    ],
)
def test_a_bad_key_is_refused_with_the_reason(key: str, says: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        validate_key(key)
    assert says in str(caught.value)


def test_a_key_is_a_string() -> None:
    for bad in (b"key", None, 5):
        with pytest.raises(InvalidKey):
            validate_key(bad)  # type: ignore[arg-type]  # that is the point
        with pytest.raises(InvalidKey):
            validate_prefix(bad)  # type: ignore[arg-type]  # that is the point
