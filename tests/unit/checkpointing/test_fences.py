"""Two writers with different fences: the older one commits nothing, and undoes nothing, in any interleaving."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from checkpointing import Checkpointer, KeepLast, StaleFence
from checkpointing.settings import Phase
from storage.store import ObjectStore
from tests.unit.checkpointing.harness import FAST, WatchedStore, load, memory_store, same, save, state_of


def test_an_older_fence_is_refused() -> None:
    store = memory_store()
    save(store, 5, fence=9)
    with Checkpointer(store, job="job", settings=FAST) as zombie:
        ticket = zombie.save(6, state_of(6), fence=8)
        with pytest.raises(StaleFence, match="fence 8 is stale: fence 9"):
            zombie.wait()
        assert ticket.phase is Phase.FAILED
    assert same(load(store), (5, state_of(5)))


def operations_of_a_save(keep: int) -> int:
    store = memory_store()
    save(store, 1)
    watched = WatchedStore(store)
    save(watched, 2, fence=2, retention=KeepLast(keep))
    return len(watched.log)


@pytest.mark.parametrize("number", range(operations_of_a_save(1)))
def test_a_newer_writer_may_come_between_any_two_operations_of_an_older_one(number: int) -> None:
    """The older one stops before each of its operations in turn, while the newer one does all of its save."""
    store = memory_store()
    save(store, 1)
    interrupt_at(store, number, lambda: save(store, 3, fence=3, retention=KeepLast(1)))
    assert same(load(store), (3, state_of(3))), "the newer writer's checkpoint stands"
    save(store, 4, fence=4)
    assert same(load(store), (4, state_of(4)))


def interrupt_at(store: ObjectStore, number: int, intrude: Callable[[], None], keep: int = 1) -> bool:
    """Save step 2 with fence 2, and let an intruder in before operation `number`; return whether it was committed."""
    watched = WatchedStore(store)

    def before(current: int, _operation: str, _key: str) -> None:
        if current == number:
            intruder = threading.Thread(target=intrude)
            intruder.start()
            intruder.join(30)

    watched.before = before
    with Checkpointer(watched, job="job", retention=KeepLast(keep), settings=FAST) as checkpointer:
        ticket = checkpointer.save(2, state_of(2), fence=2)
        try:
            checkpointer.wait()
        except StaleFence:
            assert ticket.phase is Phase.FAILED
            return False
        assert ticket.phase is Phase.COMMITTED
        return True


@pytest.mark.parametrize("number", range(operations_of_a_save(5)))
def test_a_commit_that_was_reported_stays_while_the_same_fence_commits_again(number: int) -> None:
    """Two writers with one fence is a mistake; still, what was reported as committed is there."""
    store = memory_store()
    save(store, 1, fence=2)
    assert interrupt_at(store, number, lambda: save(store, 3, fence=2, retention=KeepLast(5)), keep=5)
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        record = checkpointer.pointer.read()
        assert record is not None
        assert sorted(ref.step for ref in record.checkpoints) == [1, 2, 3]
    newest = record.checkpoints[-1].step
    assert same(load(store), (newest, state_of(newest)))


def test_many_writers_racing_leave_one_whole_history() -> None:
    store = memory_store()
    threads = [threading.Thread(target=try_to_save, args=(store, fence)) for fence in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = load(store)
    assert same(found, (12, state_of(12)))
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        record = checkpointer.pointer.read()
        assert record is not None
        fences = [ref.fence for ref in record.checkpoints]
        assert fences == sorted(fences)


def try_to_save(store: ObjectStore, fence: int) -> None:
    with Checkpointer(store, job="job", retention=KeepLast(20), settings=FAST) as checkpointer:
        ticket = checkpointer.save(fence, state_of(fence), fence=fence)
        ticket.wait(60)
        if not isinstance(ticket.error, StaleFence | None):
            raise ticket.error
