"""Prefixes as key ranges, and prefix deletes that spare the client's own keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_train.adapters.coordination.etcd.ranges import (
    MARKERS,
    end_of_prefix,
    is_hidden,
    root_of,
    start_of_prefix,
    without_markers,
)


def inside(key: bytes, start: bytes, end: bytes) -> bool:
    return key >= start and (end == b"\0" or key < end)


@given(st.binary(max_size=4), st.binary(min_size=1, max_size=6))
def test_a_range_holds_exactly_the_keys_that_begin_with_its_prefix(prefix: bytes, key: bytes) -> None:
    assert inside(key, start_of_prefix(prefix), end_of_prefix(prefix)) == key.startswith(prefix)


@pytest.mark.parametrize(
    ("key", "root"),
    [
        ("/elastic-train/job/workers/w1", "/elastic-train/job/"),
        ("/elastic-train/job/world", "/elastic-train/job/"),
        ("/elastic-train/job/", "/elastic-train/job/"),
        ("/elastic-train/", "/elastic-train/"),
        ("a/b/c", "a/b/"),
        ("", ""),
    ],
)
def test_the_root_of_a_key_is_its_jobs_directory(key: str, root: str) -> None:
    assert root_of(key) == root


parts = st.lists(st.sampled_from(["a", "b", ".commits", "commits"]), min_size=1, max_size=4)


@given(parts, parts, st.booleans())
def test_deleting_a_prefix_takes_every_key_of_the_user_and_none_of_ours(
    prefix_parts: list[str], key_parts: list[str], directory: bool
) -> None:
    prefix = "/" + "/".join(prefix_parts) + "/" * directory
    key = "/" + "/".join(key_parts)
    root = root_of(prefix)
    ranges = without_markers(prefix, [root])
    taken = any(inside(key.encode(), start, end) for start, end in ranges)
    assert taken == (
        key.startswith(prefix) and not (key.startswith(root + MARKERS) and (root + MARKERS).startswith(prefix))
    )


def test_the_clients_own_keys_are_told_from_the_users() -> None:
    assert is_hidden(b"/elastic-train/job/.commits/0123-1")
    assert not is_hidden(b"/elastic-train/job/commits/0123-1")
