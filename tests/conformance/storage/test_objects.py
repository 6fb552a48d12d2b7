"""What every store does with objects: put, get, ranges, head, list, copy, delete."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

import pytest

from storage import InvalidKey, NotFound, ObjectStore, RangeNotSatisfiable, StoreClosed
from tests.conformance.storage.conftest import Subject

LARGE = random.Random(7).randbytes(66 * 2**20 + 13)


def test_what_was_put_is_got(store: ObjectStore) -> None:
    info = store.put("a/b/c.bin", b"hello")
    assert (info.key, info.nbytes) == ("a/b/c.bin", 5)
    assert store.get("a/b/c.bin") == b"hello"


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert store.head("empty").nbytes == 0
    assert store.get_range("empty", 0, 0) == b""


def test_a_put_overwrites(store: ObjectStore) -> None:
    store.put("key", b"a longer first version")
    store.put("key", b"second")
    assert store.get("key") == b"second"


@pytest.mark.parametrize("kind", ["bytearray", "memoryview", "array", "list", "generator"])
def test_any_buffers_can_be_put(store: ObjectStore, kind: str) -> None:
    doubles = array("d", range(1000))
    whole = doubles.tobytes()
    data: Any = {
        "bytearray": bytearray(whole),
        "memoryview": memoryview(whole),
        "array": doubles,
        "list": [whole[:10], memoryview(whole)[10:4000], b"", bytearray(whole[4000:])],
        "generator": (whole[i : i + 777] for i in range(0, len(whole), 777)),
    }[kind]
    assert store.put("key", data).nbytes == len(whole)
    assert store.get("key") == whole


def test_a_large_object_survives_the_way_there_and_back(store: ObjectStore, tmp_path: Path) -> None:
    store.put("large", [LARGE[:1_000_001], LARGE[1_000_001:]])
    assert store.get("large") == LARGE
    out = bytearray(len(LARGE) - 5)
    store.get_range_into("large", 5, out)
    assert out == LARGE[5:]
    source = tmp_path / "source"
    source.write_bytes(LARGE)
    assert store.put_file("from a file".replace(" ", "-"), source).nbytes == len(LARGE)
    assert store.get_range("from-a-file", 100, 33 * 2**20 + 100) == LARGE[100 : 33 * 2**20 + 100]


def test_a_range_is_half_open(store: ObjectStore) -> None:
    store.put("key", b"0123456789")
    assert store.get_range("key", 2, 5) == b"234"
    assert store.get_range("key", 0, 10) == b"0123456789"
    assert store.get_range("key", 9, 10) == b"9"
    out = bytearray(b"..........")
    store.get_range_into("key", 7, memoryview(out)[1:4])
    assert out == b".789......"


@pytest.mark.parametrize(("start", "stop"), [(8, 11), (10, 11), (50, 60)])
def test_a_range_past_the_end_is_an_error_and_not_short(store: ObjectStore, start: int, stop: int) -> None:
    store.put("key", b"0123456789")
    with pytest.raises(RangeNotSatisfiable):
        store.get_range("key", start, stop)
    with pytest.raises(RangeNotSatisfiable):
        store.get_range_into("key", start, bytearray(stop - start))


def test_head_says_size_and_time(store: ObjectStore) -> None:
    store.put("key", b"12345")
    info = store.head("key")
    assert (info.key, info.nbytes) == ("key", 5)
    assert info.modified_at is None or info.modified_at > 1_600_000_000


def test_an_etag_changes_with_the_content(store: ObjectStore) -> None:
    if not store.capabilities.put_if_match:
        pytest.skip("promises no etags")
    first = store.put("key", b"one")
    assert first.etag is not None
    assert store.head("key").etag == first.etag
    second = store.put("key", b"two")
    assert second.etag != first.etag
    assert [info.etag for info in store.list("key")] == [second.etag]


def test_a_missing_object_is_not_found_by_any_reader(store: ObjectStore) -> None:
    store.put("other", b"x")
    for read in (
        lambda: store.get("missing"),
        lambda: store.get("other/below"),
        lambda: store.get_range("missing", 0, 1),
        lambda: store.get_range_into("missing", 0, bytearray(1)),
        lambda: store.head("missing"),
        lambda: store.copy("missing", "elsewhere"),
    ):
        with pytest.raises(NotFound) as caught:
            read()
        assert caught.value.key in ("missing", "other/below")
        assert type(caught.value) is NotFound
    assert not store.exists("missing")
    assert store.exists("other")


def test_a_directory_is_not_an_object(store: ObjectStore) -> None:
    store.put("folder/object", b"x")
    assert not store.exists("folder")
    with pytest.raises(NotFound):
        store.get("folder")


def test_list_yields_keys_with_the_prefix_in_order(store: ObjectStore) -> None:
    keys = ["a", "ab/1", "ab/10", "ab/2", "ab/c/d", "ab-c", "abc", "b"]
    for key in keys:
        store.put(key, key.encode())
    assert [info.key for info in store.list()] == sorted(keys)
    assert [info.key for info in store.list("ab")] == ["ab-c", "ab/1", "ab/10", "ab/2", "ab/c/d", "abc"]
    assert [info.key for info in store.list("ab/")] == ["ab/1", "ab/10", "ab/2", "ab/c/d"]
    assert [info.key for info in store.list("ab/1")] == ["ab/1", "ab/10"]
    assert [info.key for info in store.list("ab/c/d")] == ["ab/c/d"]
    assert [(info.key, info.nbytes) for info in store.list("abc")] == [("abc", 3)]
    assert list(store.list("nothing/here")) == []


def test_list_sees_at_once_what_another_store_did(subject: Subject) -> None:
    mine, theirs = subject.open(), subject.open()
    assert list(mine.list()) == []
    theirs.put("new", b"1")
    assert [info.key for info in mine.list()] == ["new"]
    assert mine.exists("new")
    theirs.put("new", b"other content")
    assert mine.get("new") == b"other content"
    assert mine.head("new").nbytes == 13
    theirs.delete("new")
    assert list(mine.list()) == []
    assert not mine.exists("new")


def test_more_objects_than_a_page_are_all_listed_and_deleted(store: ObjectStore, subject: Subject) -> None:
    count = 30 if subject.is_faulty else 1100 if subject.name == "s3-s3fs" else 200
    keys = [f"many/{number:05}" for number in range(count)]
    for key in keys:
        store.put(key, b"")
    assert [info.key for info in store.list("many/")] == keys
    store.delete_many(keys)
    assert list(store.list()) == []


def test_delete_succeeds_also_when_there_is_nothing(store: ObjectStore) -> None:
    store.put("folder/key", b"x")
    store.put("folder/kept", b"x")
    store.delete("folder/key")
    store.delete("folder/key")
    store.delete("never/was")
    store.delete_many(["folder/key", "nor/this"])
    store.delete_many([])
    assert [info.key for info in store.list()] == ["folder/kept"]


def test_copy_makes_an_equal_object_and_overwrites(store: ObjectStore) -> None:
    store.put("src", b"content")
    store.put("dst/key", b"old")
    info = store.copy("src", "dst/key")
    assert (info.key, info.nbytes) == ("dst/key", 7)
    store.put("src", b"changed")
    assert store.get("dst/key") == b"content"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "../a",
        "a/../b",
        "a/./b",
        "a b",
        "a\nb",
        "a\x00",
        "ä",
        "a%2Fb",
        "a\\b",
        "x" * 1000,
    ],
)
def test_a_bad_key_is_refused_before_anything_happens(store: ObjectStore, key: str) -> None:
    for use in (store.get, store.head, store.delete, lambda bad: store.put(bad, b""), lambda bad: store.copy("a", bad)):
        with pytest.raises(InvalidKey):
            use(key)


def test_every_allowed_character_makes_the_way_there_and_back(store: ObjectStore) -> None:
    key = "AZaz09!_.'()=+@,:-/.hidden/x=1,y=2/(a)'b'!"
    store.put(key, b"x")
    assert store.get(key) == b"x"
    assert [info.key for info in store.list()] == [key]
    assert [info.key for info in store.list("AZaz09!_.'()=+@,:-/.h")] == [key]
    store.copy(key, "plain")
    store.delete(key)
    assert [info.key for info in store.list()] == ["plain"]


def test_what_is_no_data_is_refused(store: ObjectStore) -> None:
    for bad in ("text", 5, None, ["text"], memoryview(b"abcd")[::2]):
        with pytest.raises(TypeError):
            store.put("key", bad)  # type: ignore[arg-type]  # that is the point
    assert not store.exists("key")


def test_a_stream_that_fails_leaves_no_object(store: ObjectStore) -> None:
    def broken() -> object:
        yield b"x" * 100
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.put("key", broken())  # type: ignore[arg-type]  # a generator
    assert list(store.list()) == []


def test_a_closed_store_says_so(store: ObjectStore) -> None:
    store.put("key", b"x")
    store.close()
    store.close()
    with pytest.raises(StoreClosed):
        store.get("key")


def test_a_store_is_a_context_manager_and_names_itself(subject: Subject) -> None:
    with subject.open() as store:
        store.put("key", b"x")
        assert store.url in repr(store)
        assert store.client in repr(store)
