"""Several writers of one replicated state: each writes its part, rank 0 commits, or nobody does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from checkpointing import Checkpointer, Settings
from checkpointing.errors import SaveAbandoned, WriterMissing, WritersDisagree
from checkpointing.settings import Phase
from storage import StoreFull
from storage.store import ObjectStore
from tests.unit.checkpointing.harness import FAST, WatchedStore, hold_until, load, memory_store, same, save, state_of


@contextlib.contextmanager
def world(store: ObjectStore, size: int, settings: Settings = FAST) -> Iterator[list[Checkpointer]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(Checkpointer(store, job="job", rank=rank, world_size=size, settings=settings))
            for rank in range(size)
        ]


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_each_writer_writes_its_part_and_any_number_of_readers_reads_it(size: int) -> None:
    store = memory_store()
    with world(store, size) as checkpointers:
        tickets = []
        for step in (1, 2):
            tickets = [c.save(step, state_of(step), fence=5) for c in checkpointers]
            for checkpointer in checkpointers:
                checkpointer.wait()
            assert [ticket.phase for ticket in tickets] == [Phase.COMMITTED] + [Phase.WRITTEN] * (size - 1)
            assert same(load(store), (step, state_of(step)))
        staged = [ticket.stats.staged_nbytes for ticket in tickets]
        assert max(staged) - min(staged) <= 2 * FAST.chunk_nbytes
    assert not list(store.list("job/records/")), "records are removed after the commit"


def test_the_state_is_the_same_for_the_next_world_size_and_unchanged_chunks_stay_where_they_are() -> None:
    store = memory_store()
    with world(store, 4) as checkpointers:
        for checkpointer in checkpointers:
            checkpointer.save(1, state_of(1), fence=1)
        for checkpointer in checkpointers:
            checkpointer.wait()
    with world(store, 3) as checkpointers:
        tickets = [checkpointer.save(2, state_of(1), fence=2) for checkpointer in checkpointers]
        for checkpointer in checkpointers:
            checkpointer.wait()
        assert sum(ticket.stats.uploaded_nbytes for ticket in tickets) == 0
        assert same(load(store), (2, state_of(1)))


def test_a_writer_that_never_appears_fails_the_save_and_nothing_becomes_visible() -> None:
    store = memory_store()
    save(store, 1)
    impatient = replace(FAST, gather_timeout_s=0.05)
    with world(store, 3, impatient) as checkpointers:
        checkpointers[0].save(2, state_of(2), fence=2)
        checkpointers[2].save(2, state_of(2), fence=2)
        checkpointers[2].wait()
        with pytest.raises(WriterMissing, match="rank 1 wrote no shard record") as caught:
            checkpointers[0].wait()
        assert caught.value.ranks == (1,)
    assert same(load(store), (1, state_of(1)))


def test_writers_whose_states_have_other_shapes_do_not_make_a_checkpoint() -> None:
    store = memory_store()
    with world(store, 2) as (first, second):
        second.save(1, {"w": np.zeros((3, 3))}, fence=1)
        second.wait()
        first.save(1, {"w": np.zeros((9, 1))}, fence=1)
        with pytest.raises(WritersDisagree, match="rank 1 has other tensors"):
            first.wait()
    assert load(store) is None


def test_a_writer_that_cannot_write_tells_rank_0_at_once() -> None:
    store = memory_store()
    full = WatchedStore(store)

    def refuse(_number: int, operation: str, key: str) -> None:
        if operation == "put" and "/shards/" in key:
            raise StoreFull("no space left", key=key)

    full.before = refuse
    hopeless = replace(FAST, retry_for_s=0.0)
    with (
        Checkpointer(store, job="job", rank=0, world_size=2, settings=FAST) as first,
        Checkpointer(full, job="job", rank=1, world_size=2, settings=hopeless) as second,
    ):
        first.save(1, state_of(1), fence=1)
        second.save(1, state_of(1), fence=1)
        with pytest.raises(Exception, match="no space left"):
            second.wait()
        first.wait()
        assert first.last_committed is None


def test_a_save_of_the_old_world_is_given_up_when_the_world_changes() -> None:
    store = memory_store()
    with world(store, 2) as (first, second):
        ticket = first.save(1, state_of(1), fence=1)  # rank 1 has died
        first.reconfigure(0, 1)
        first.wait(10)
        assert ticket.phase is Phase.SUPERSEDED
        assert isinstance(ticket.error, SaveAbandoned)
        first.save(2, state_of(2), fence=2)
        first.wait()
        late = second.save(1, state_of(1), fence=1)
        late.wait(10)
    assert same(load(store), (2, state_of(2)))


def test_a_save_of_the_old_world_that_needs_nobody_any_more_may_finish() -> None:
    store = WatchedStore(memory_store())
    may_write = threading.Event()
    with world(store, 2) as (first, second):
        second.save(1, state_of(1), fence=1)
        second.wait()
        store.before = hold_until(may_write)
        ticket = first.save(1, state_of(1), fence=1)
        while ticket.phase is Phase.STAGED:
            pass  # until the thread has taken it
        first.reconfigure(0, 1)
        may_write.set()
        first.wait(10)
        assert ticket.phase is Phase.COMMITTED
    assert same(load(store), (1, state_of(1)))


def test_a_writer_that_moves_on_to_a_newer_save_does_not_keep_rank_0_waiting() -> None:
    store = memory_store()
    slow = WatchedStore(store)
    may_write = threading.Event()
    slow.before = hold_until(may_write)
    with (
        Checkpointer(store, job="job", rank=0, world_size=2, settings=FAST) as first,
        Checkpointer(slow, job="job", rank=1, world_size=2, settings=FAST) as second,
    ):
        running = second.save(1, state_of(1), fence=1)
        while running.phase is Phase.STAGED:
            pass
        second.save(2, state_of(2), fence=1)
        may_write.set()
        second.save(3, state_of(3), fence=1)
        skipped = first.save(2, state_of(2), fence=1)
        first.wait(10)
        assert skipped.phase in (Phase.SUPERSEDED, Phase.COMMITTED)
