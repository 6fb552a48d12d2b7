"""Garbage collections that run at the same time as saves, without any age to protect what is being written."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from checkpointing import Checkpointer, KeepLast, NoCheckpoint
from checkpointing.errors import Damaged
from checkpointing.repository import Repository
from checkpointing.retention import Collector
from storage.store import ObjectStore
from tests.unit.checkpointing.harness import FAST, WatchedStore, load, memory_store, same, save, state_of


def collector_of(store: ObjectStore) -> Collector:
    return Repository("store", store, "job", settings=FAST).collector


def sweep(store: ObjectStore) -> None:
    collector_of(store).sweep(min_age_s=-1)


def run_aside(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)


def with_reusable_chunks() -> ObjectStore:
    """Return a store whose newest checkpoint will be dropped while the next save refers to its chunks."""
    store = memory_store()
    save(store, 1)
    save(store, 2)
    store.put("job/shards/litter.safetensors", b"12345")
    return store


def count_operations(work: Callable[[ObjectStore], object]) -> int:
    watched = WatchedStore(with_reusable_chunks())
    work(watched)
    return len(watched.log)


def save_third(store: ObjectStore) -> None:
    save(store, 3, fence=2, retention=KeepLast(1))


@pytest.mark.parametrize("number", range(count_operations(save_third)))
def test_a_collection_between_any_two_operations_of_a_save_takes_nothing_from_it(number: int) -> None:
    store = with_reusable_chunks()
    watched = WatchedStore(store)
    watched.before = lambda current, *_: run_aside(lambda: sweep(store)) if current == number else None
    save_third(watched)
    assert same(load(store), (3, state_of(3)))


@pytest.mark.parametrize("number", range(count_operations(sweep)))
def test_a_save_between_any_two_operations_of_a_collection_stays_whole(number: int) -> None:
    store = with_reusable_chunks()
    watched = WatchedStore(store)
    watched.before = lambda current, *_: run_aside(lambda: save_third(store)) if current == number else None
    sweep(watched)
    assert same(load(store), (3, state_of(3)))


@pytest.mark.parametrize("save_at", range(count_operations(save_third)))
@pytest.mark.parametrize("sweep_at", range(count_operations(sweep)))
def test_a_save_and_a_collection_stopped_halfway_in_each_other_lose_nothing(save_at: int, sweep_at: int) -> None:
    """The save stops at one operation, the collection runs up to one of its own, the save ends, the collection ends."""
    store = with_reusable_chunks()
    may_go_on, has_stopped = threading.Event(), threading.Event()
    sweeping = WatchedStore(store)

    def hold(current: int, *_: object) -> None:
        if current == sweep_at:
            has_stopped.set()
            assert may_go_on.wait(30)

    def sweep_to_the_end() -> None:
        sweep(sweeping)
        has_stopped.set()  # it had fewer operations than that

    sweeping.before = hold
    sweeper = threading.Thread(target=sweep_to_the_end)
    saving = WatchedStore(store)

    def start_sweep(current: int, *_: object) -> None:
        if current == save_at:
            sweeper.start()
            assert has_stopped.wait(30)

    saving.before = start_sweep
    save_third(saving)
    may_go_on.set()
    sweeper.join(30)
    assert same(load(store), (3, state_of(3)))


def test_a_file_that_was_condemned_is_written_again_under_another_name() -> None:
    store = with_reusable_chunks()
    used = [info.key for info in store.list("job/shards/0")]
    watched = WatchedStore(store)

    def condemn(_number: int, operation: str, key: str) -> None:
        if operation == "put" and key.endswith("pointer.json"):
            store.put("job/gc/other.json", json.dumps({"keys": used}).encode())

    watched.before = condemn
    with Checkpointer(watched, job="job", settings=FAST) as checkpointer:
        ticket = checkpointer.save(3, state_of(3), fence=2)
        checkpointer.wait()
        assert ticket.stats.attempts == 2
        assert ticket.info is not None
        assert not {file.key for file in ticket.info.manifest.files} & set(used)
    for key in used:
        store.delete(key)
    assert same(load(store), (3, state_of(3)))


def test_a_dry_run_says_what_would_go_and_leaves_it() -> None:
    store = with_reusable_chunks()
    found = collector_of(store).sweep(min_age_s=-1, dry_run=True)
    assert [info.key for info in found.objects] == ["job/shards/litter.safetensors"]
    assert found.nbytes == 5
    assert store.exists("job/shards/litter.safetensors")


def test_young_objects_are_left_alone() -> None:
    store = with_reusable_chunks()
    assert not collector_of(store).sweep(min_age_s=3600).objects
    old = Collector(Repository("s", store, "job").catalog, wall_clock=lambda: time.time() + 4000)
    assert len(old.sweep(min_age_s=3600).objects) == 1


def test_nothing_is_collected_when_what_is_committed_cannot_be_told() -> None:
    store = with_reusable_chunks()
    pointer = store.get("job/pointer.json")
    store.delete("job/pointer.json")
    with pytest.raises(NoCheckpoint, match="no pointer"):
        collector_of(store).sweep(min_age_s=-1)
    store.put("job/pointer.json", pointer[:50])
    with pytest.raises(Damaged):
        collector_of(store).sweep(min_age_s=-1)
    store.put("job/pointer.json", pointer)
    manifest = next(info.key for info in store.list("job/manifests/"))
    store.put(manifest, b"{}")
    with pytest.raises(Damaged):
        collector_of(store).sweep(min_age_s=-1)
    assert same(load(store), (2, state_of(2)))


def test_removing_one_checkpoint_keeps_the_chunks_that_others_use() -> None:
    store = memory_store()
    state = {"a": np.arange(8192), "b": np.arange(8192)}
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        for step in range(3):
            state["b"] += 1
            checkpointer.save(step, state, fence=1)
            checkpointer.wait()
        refs = Repository("s", store, "job").catalog.committed()
        collector_of(store).forget(refs[1:])
        assert same(checkpointer.load(), state)
        record = checkpointer.pointer.read()
        assert record is not None
        assert [ref.step for ref in record.checkpoints] == [2]
    assert len(list(store.list("job/manifests/"))) == 1
