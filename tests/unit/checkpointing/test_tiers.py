from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from checkpointing import Checkpointer, KeepLast, Loss, SaveEverySteps, Tier
from checkpointing.errors import NoCheckpoint
from checkpointing.settings import Event, EventKind, Phase
from storage import BackendError
from tests.unit.checkpointing.harness import FAST, WatchedStore, hold_until, memory_store, same, state_of


def fail_all(_number: int, operation: str, key: str) -> None:
    raise BackendError("down", operation=operation, key=key)


def test_each_tier_has_its_own_interval_and_restore_takes_the_newest() -> None:
    memory, store = memory_store(), memory_store()
    tier = Tier("memory", memory, SaveEverySteps(1))
    with Checkpointer(store, job="job", every=SaveEverySteps(3), tiers=[tier], settings=FAST) as checkpointer:
        for step in range(1, 6):
            checkpointer.save(step, state_of(step), fence=1)
            checkpointer.wait()
        found = checkpointer.latest()
        assert found is not None
        assert (found.step, found.tier) == (5, "memory")
        assert same(checkpointer.load(), state_of(5))
        assert same(checkpointer.load(found), state_of(5))
    with Checkpointer(store, job="job", settings=FAST) as alone:
        found = alone.latest()
        assert found is not None
        assert (found.step, found.tier) == (3, "store")


def test_of_the_same_checkpoint_the_fastest_tier_is_read() -> None:
    memory, store = WatchedStore(memory_store()), WatchedStore(memory_store())
    with Checkpointer(store, job="job", tiers=[Tier("memory", memory)], settings=FAST) as checkpointer:
        checkpointer.save(1, state_of(1), fence=1)
        checkpointer.wait()
        store.log.clear()
        assert same(checkpointer.load(), state_of(1))
        assert not [operation for operation, _ in store.log if operation.startswith("get_range")]


def test_a_damaged_tier_is_passed_over() -> None:
    memory, store = memory_store(), memory_store()
    with Checkpointer(store, job="job", tiers=[Tier("memory", memory)], settings=FAST) as checkpointer:
        checkpointer.save(1, state_of(1), fence=1)
        checkpointer.wait()
        key = next(info.key for info in memory.list("job/shards/"))
        memory.put(key, bytes(len(memory.get(key))))
        assert same(checkpointer.load(), state_of(1))


def test_a_tier_that_is_down_disturbs_neither_saving_nor_loading() -> None:
    events: list[Event] = []
    broken = WatchedStore(memory_store())
    broken.before = fail_all
    settings = replace(FAST, retry_for_s=0.0, on_event=events.append)
    with Checkpointer(memory_store(), job="job", tiers=[Tier("memory", broken)], settings=settings) as checkpointer:
        ticket = checkpointer.save(1, state_of(1), fence=1)
        assert checkpointer.wait()
        assert ticket.phase is Phase.COMMITTED
        assert (EventKind.FAILED, "memory") in [(event.kind, event.tier) for event in events]
        assert same(checkpointer.load(), state_of(1))


def test_a_store_that_is_down_is_an_error_and_not_an_absence() -> None:
    broken = WatchedStore(memory_store())
    broken.before = fail_all
    with Checkpointer(broken, job="job", tiers=[Tier("memory", memory_store())], settings=FAST) as checkpointer:
        with pytest.raises(BackendError):
            checkpointer.latest()
        with pytest.raises(BackendError):
            checkpointer.load()


def test_a_tier_of_its_own_holds_the_whole_state_of_a_divided_save() -> None:
    store = memory_store()
    mine = [memory_store() for _ in range(2)]
    checkpointers = [
        Checkpointer(store, job="job", rank=rank, world_size=2, tiers=[Tier("disk", mine[rank])], settings=FAST)
        for rank in range(2)
    ]
    for checkpointer in checkpointers:
        checkpointer.save(1, state_of(1), fence=1)
    for checkpointer in checkpointers:
        checkpointer.wait()
        checkpointer.close()
    for place in (*mine, store):
        with Checkpointer(place, job="job", settings=FAST) as alone:
            assert same(alone.load(), state_of(1))


def test_tiers_need_different_names() -> None:
    with pytest.raises(ValueError, match="name"):
        Checkpointer(memory_store(), job="job", tiers=[Tier("store", memory_store())])


def test_an_urgent_save_goes_to_what_survives_and_does_not_wait_for_the_store() -> None:
    store, disk, ram = WatchedStore(memory_store()), memory_store(), memory_store()
    may_write = threading.Event()
    tiers = [Tier("ram", ram, survives=Loss.WORKER), Tier("disk", disk, survives=Loss.NODE)]
    with Checkpointer(store, job="job", tiers=tiers, settings=FAST) as checkpointer:
        store.before = hold_until(may_write)
        ticket = checkpointer.save_urgently(7, state_of(7), within_s=0.2, losing=Loss.NODE, fence=1)
        assert ticket.info is not None
        assert ticket.info.tier == "disk"
        assert not ticket.is_done, "the store was tried too, but is too slow"
        may_write.set()
        assert ticket.wait(20)
    with Checkpointer(disk, job="job", settings=FAST) as alone:
        assert same(alone.load(), state_of(7))
    with Checkpointer(ram, job="job", settings=FAST) as alone, pytest.raises(NoCheckpoint):
        alone.load()


def test_an_urgent_save_is_made_beside_one_that_is_under_way() -> None:
    store, disk = WatchedStore(memory_store()), memory_store()
    may_write = threading.Event()
    tiers = [Tier("disk", disk, SaveEverySteps(1000), survives=Loss.NODE)]
    with Checkpointer(store, job="job", retention=KeepLast(9), tiers=tiers, settings=FAST) as checkpointer:
        store.before = hold_until(may_write)
        running = checkpointer.save(6, state_of(6), fence=1)
        while running.phase is Phase.STAGED:
            pass
        urgent = checkpointer.save_urgently(7, state_of(7), within_s=0.2, fence=1)
        assert urgent.info is not None
        may_write.set()
        assert urgent.wait(20)
        checkpointer.wait()
        assert running.phase is Phase.COMMITTED
        record = checkpointer.pointer.read()
        assert record is not None
        assert sorted(ref.step for ref in record.checkpoints) == [6, 7]


def test_no_place_that_survives_is_said() -> None:
    with Checkpointer(memory_store(), job="job", settings=FAST) as checkpointer:
        assert checkpointer.why_due(1)
        ticket = checkpointer.save_urgently(1, {"w": np.zeros(3)}, within_s=5, losing=Loss.CLUSTER, fence=1)
        assert ticket.info is not None
