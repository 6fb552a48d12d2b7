"""A crash at every store operation of a save, a load, a retention and a collection: enumerated, not sampled."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from checkpointing import Checkpointer, KeepLast
from checkpointing.errors import CheckpointError
from checkpointing.repository import Repository
from checkpointing.retention import Collector
from storage.store import ObjectStore
from tests.unit.checkpointing.harness import (
    FAST,
    Crash,
    WatchedStore,
    crash_at,
    load,
    memory_store,
    same,
    save,
    state_of,
)

Work = Callable[[ObjectStore], None]


def two_checkpoints() -> ObjectStore:
    store = memory_store()
    save(store, 1)
    save(store, 2)
    return store


def save_third(store: ObjectStore) -> None:
    save(store, 3, fence=2, retention=KeepLast(1))


def sweep_after_crashes(store: ObjectStore) -> None:
    # Two days later, when also the notices of dead collections are old enough.
    catalog = Repository("store", store, "job", settings=FAST).catalog
    Collector(catalog, wall_clock=lambda: time.time() + 2 * 86400).sweep()


def load_newest(store: ObjectStore) -> None:
    load(store)


def dies_in(work: Work, store: WatchedStore, number: int, *, applied: bool) -> bool:
    """Tell whether `work` reached its operation `number` and died there."""
    crash_at(store, number, applied=applied)
    try:
        work(store)
    except Crash:
        return True
    return False


def with_litter() -> ObjectStore:
    """Return a store with what a crashed save and a crashed retention leave behind."""
    store = two_checkpoints()
    watched = WatchedStore(store)
    assert dies_in(save_third, watched, 4, applied=True)
    watched = WatchedStore(store)
    crash_at(watched, 0, applied=False)
    save(store, 3, fence=2)
    return store


@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("prepare", "work", "allowed"),
    [
        (memory_store, save_third, {None, 3}),
        (two_checkpoints, save_third, {2, 3}),
        (with_litter, sweep_after_crashes, {3}),
        (two_checkpoints, load_newest, {2}),
    ],
    ids=["first save", "save and retention", "collection", "load"],
)
def test_nothing_committed_is_lost_wherever_it_crashes(
    prepare: Callable[[], ObjectStore], work: Work, allowed: set[int | None], *, applied: bool
) -> None:
    number = 0
    while True:
        inner = prepare()
        died = dies_in(work, WatchedStore(inner), number, applied=applied)
        found = load(inner)
        assert (found and found[0]) in allowed, f"after a crash at operation {number}"
        assert found is None or same(found[1], state_of(found[0]))
        save(inner, 9, fence=3)
        sweep_after_crashes(inner)
        assert same(load(inner), (9, state_of(9))), "the next save works as if nothing had happened"
        assert_no_litter(inner)
        if not died:
            break
        number += 1
    assert number >= 4, "the work has fewer operations than it can have"


def assert_no_litter(store: ObjectStore) -> None:
    repository = Repository("store", store, "job", settings=FAST)
    used = {repository.keys.pointer}
    for ref in repository.catalog.committed():
        used |= {repository.catalog.key_of(ref)} | repository.catalog.files_of(ref)
    assert {info.key for info in store.list("job/")} == used


def test_a_commit_whose_answer_was_lost_is_not_made_twice() -> None:
    store = memory_store()
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        checkpointer.save(1, state_of(1), fence=1)
        checkpointer.wait()
        record = checkpointer.pointer.read()
        assert record is not None
        checkpointer.pointer.commit(record, 1)
        assert checkpointer.pointer.read() == record


def test_a_lost_pointer_is_rebuilt_from_the_manifests() -> None:
    store = two_checkpoints()
    store.delete("job/pointer.json")
    assert same(load(store), (2, state_of(2)))
    save(store, 3, fence=2)
    assert same(load(store), (3, state_of(3)))


def test_an_unreadable_pointer_is_told_and_replaced() -> None:
    store = two_checkpoints()
    store.put("job/pointer.json", b'{"format":')
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        info = checkpointer.latest()
        assert info is not None
        assert info.step == 2
        assert "pointer.json" in str(info.problems[0])
        checkpointer.save(3, state_of(3), fence=0)
        with pytest.raises(CheckpointError, match="stale"):
            checkpointer.wait()
        checkpointer.save(3, state_of(3), fence=1)
        checkpointer.wait()
        record = checkpointer.pointer.read()
        assert record is not None
        assert [ref.step for ref in record.checkpoints] == [1, 2, 3]
