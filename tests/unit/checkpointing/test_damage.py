"""Flipped, cut, missing and foreign bytes: never a wrong load, and the newest good checkpoint instead."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from checkpointing import Checkpointer, NoCheckpoint
from checkpointing.core.manifest import decode_manifest
from checkpointing.core.records import PointerRecord
from checkpointing.errors import Damaged, ForeignObject, UnsupportedVersion
from checkpointing.repository import Repository
from storage.store import ObjectStore
from tests.unit.checkpointing.harness import FAST, WatchedStore, memory_store, same

SMALL_OLD = {"w": np.arange(5, dtype="f4"), "n": 1}
SMALL_NEW = {"w": np.arange(5, dtype="f4") * 2, "n": 2, "x": np.ones(3, "u1")}


def small_store() -> ObjectStore:
    store = memory_store()
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        for step, state in enumerate([SMALL_OLD, SMALL_NEW]):
            checkpointer.save(step, state, fence=1)
            checkpointer.wait()
    return store


def load_and_verify(store: ObjectStore) -> tuple[object, list[str]]:
    """Return the loaded state, and what was reported by loading and by verifying the newest."""
    told: list[str] = []
    repository = Repository("store", store, "job", settings=FAST)
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        info = checkpointer.latest()
        if info is not None:
            told += map(str, info.problems)
            try:
                repository.reader.verify(info.manifest)
            except Damaged as problem:
                told.append(str(problem))
        return checkpointer.load(), told


def newest_objects(store: ObjectStore) -> list[str]:
    return [
        info.key for info in store.list("job/") if "/000000000001-" in info.key or info.key.endswith("pointer.json")
    ]


@pytest.mark.parametrize("which", ["manifests", "shards", "pointer"])
def test_every_flipped_byte_is_found_and_never_loaded(which: str) -> None:
    store = small_store()
    key = next(key for key in newest_objects(store) if which in key)
    good = store.get(key)
    for position in range(len(good)):
        store.put(key, good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        loaded, told = load_and_verify(store)
        assert same(loaded, SMALL_NEW) or same(loaded, SMALL_OLD), f"byte {position} of {key}"
        assert any(key in text for text in told), f"byte {position} of {key} was not told: {told}"


@pytest.mark.parametrize("which", ["manifests", "shards", "pointer"])
def test_every_cut_is_found_and_never_loaded(which: str) -> None:
    store = small_store()
    key = next(key for key in newest_objects(store) if which in key)
    good = store.get(key)
    for length in range(len(good)):
        store.put(key, good[:length])
        loaded, told = load_and_verify(store)
        assert same(loaded, SMALL_NEW) or same(loaded, SMALL_OLD)
        assert any(key in text for text in told), f"cut of {key} to {length} was not told: {told}"
    store.put(key, good + b"\0")
    _, told = load_and_verify(store)
    assert any(key in text for text in told)


@pytest.mark.parametrize("which", ["manifests", "shards"])
def test_a_missing_object_is_named_and_the_one_before_is_used(which: str) -> None:
    store = small_store()
    key = next(key for key in newest_objects(store) if which in key)
    store.delete(key)
    loaded, told = load_and_verify(store)
    assert same(loaded, SMALL_OLD)
    assert told == [f"{key} is missing"]


def test_when_nothing_is_good_every_problem_is_told() -> None:
    store = small_store()
    for info in list(store.list("job/shards/")):
        store.delete(info.key)
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        assert checkpointer.latest() is None
        with pytest.raises(NoCheckpoint) as caught:
            checkpointer.load()
    assert len(caught.value.problems) == 2
    assert "is missing" in str(caught.value)


def test_random_damage_to_a_large_checkpoint_is_found() -> None:
    random_ = random.Random(20261120)
    store = memory_store()
    rng = np.random.default_rng(1)
    states = [{f"t{i}": rng.integers(0, 255, 50_000, "u1") for i in range(20)} for _ in range(2)]
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        for step, state in enumerate(states):
            checkpointer.save(step, state, fence=1)
            checkpointer.wait()
    key = next(info.key for info in store.list("job/shards/000000000001"))
    good = store.get(key)
    for _ in range(200):
        bad = bytearray(good)
        start = random_.randrange(len(bad))
        for position in range(start, min(len(bad), start + random_.choice([1, 1, 100, 65536]))):
            bad[position] = random_.randrange(256)
        store.put(key, bytes(bad) if random_.random() < 0.8 else good[:start])
        loaded, told = load_and_verify(store)
        changed = store.get(key) != good
        assert same(loaded, states[1]) or same(loaded, states[0])
        assert bool(told) == changed
        assert all(key in text for text in told)


def test_chunks_of_a_damaged_file_are_not_referred_to_again() -> None:
    store = memory_store()
    frozen = {"w": np.arange(20_000), "n": np.zeros(3)}
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        for step in range(3):
            checkpointer.save(step, {**frozen, "n": np.full(3, step)}, fence=1)
            checkpointer.wait()
    key = next(info.key for info in store.list("job/shards/000000000000"))
    good = store.get(key)
    store.put(key, good[:-100] + bytes(100))
    with Checkpointer(store, job="job", settings=FAST) as checkpointer, pytest.raises(NoCheckpoint):
        checkpointer.load()
    with Checkpointer(store, job="job", settings=FAST) as other:
        other.save(3, frozen, fence=2)
        other.wait()
        assert same(other.load(), frozen)
        for step in (4, 5, 6):
            ticket = other.save(step, frozen, fence=2)
            other.wait()
        assert ticket.stats.uploaded_nbytes == 0
        Repository("store", store, "job").collector.sweep(min_age_s=-1)
        assert key not in [info.key for info in store.list("job/shards/")]


def test_bytes_that_were_changed_on_their_way_are_read_again() -> None:
    store = WatchedStore(small_store())
    real, left = store.get_range_into, [1]

    def garble(key: str, start: int, out: memoryview) -> None:
        real(key, start, out)
        if left[0]:
            left[0] -= 1
            out[0] ^= 1

    store.get_range_into = garble  # type: ignore[method-assign]
    loaded, told = load_and_verify(store)
    assert same(loaded, SMALL_NEW)
    assert not told
    assert not left[0]


def test_what_never_changes_is_written_anew_after_many_checkpoints() -> None:
    store = memory_store()
    state = {"w": np.arange(20_000)}
    uploaded = []
    with Checkpointer(store, job="job", settings=replace(FAST, rewrite_after=3)) as checkpointer:
        for step in range(8):
            uploaded.append(checkpointer.save(step, state, fence=1).stats)
            checkpointer.wait()
    assert [bool(stats.uploaded_nbytes) for stats in uploaded] == [True, False, False, True, False, False, True, False]


def test_a_manifest_of_a_newer_version_is_told_as_such() -> None:
    store = small_store()
    repository = Repository("store", store, "job", settings=FAST)
    newest = repository.catalog.committed()[0]
    document = store.get(repository.catalog.key_of(newest)).replace(b'"version":1', b'"version":2')

    with pytest.raises(UnsupportedVersion, match="upgrade"):
        decode_manifest(document, "key")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"format": "other"}', b"[" * 100_000])
def test_a_foreign_document_is_told_as_such(data: bytes) -> None:

    with pytest.raises(ForeignObject):
        decode_manifest(data, "key")
    with pytest.raises(ForeignObject):
        PointerRecord.from_bytes(data)


def test_foreign_objects_beside_ours_do_no_harm() -> None:
    store = small_store()
    store.put("job/manifests/readme.txt", b"hello")
    store.put("job/manifests/000000000009-0000000000000001-" + "0" * 32 + ".json", b"not a manifest")
    loaded, told = load_and_verify(store)
    assert same(loaded, SMALL_NEW)
    assert told == []
