"""A store that is full, forbidden, broken or down: training goes on, the user is told, the save is retried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from checkpointing import Checkpointer
from checkpointing.errors import SaveFailed
from checkpointing.settings import Event, EventKind, Phase
from storage import BackendError, DeadlineExceeded, PermissionDenied, StorageError, StoreFull
from storage.errors import RequestTimeout
from tests.unit.checkpointing.harness import FAST, WatchedStore, memory_store, same, save, state_of

ERRORS = [
    StoreFull("ENOSPC: no space left on device"),
    BackendError("EIO: input/output error"),
    PermissionDenied("EACCES"),
    DeadlineExceeded(attempts=9, elapsed_s=60.0, maybe_applied=True, last=RequestTimeout("no answer")),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("operation", ["put", "get", "head", "list"])
def test_a_failing_operation_is_told_and_the_save_is_made_again(error: StorageError, operation: str) -> None:
    events: list[Event] = []
    store = WatchedStore(memory_store())
    save(store, 1)
    left = [3]

    def fail(_number: int, current: str, _key: str) -> None:
        if current == operation and left[0]:
            left[0] -= 1
            raise error

    with Checkpointer(store, job="job", settings=replace(FAST, on_event=events.append)) as checkpointer:
        store.before = fail
        ticket = checkpointer.save(2, state_of(2), fence=1)
        assert checkpointer.wait(20)
        assert ticket.phase is Phase.COMMITTED
        assert not left[0]
        assert same(checkpointer.load(), state_of(2))
    told = [event for event in events if event.kind is EventKind.RETRYING]
    assert len(told) == 3
    assert told[0].error is error


def test_a_store_that_stays_full_fails_the_save_in_the_end_and_keeps_what_was_committed() -> None:
    store = WatchedStore(memory_store())
    save(store, 1)

    def fail(_number: int, operation: str, _key: str) -> None:
        if operation == "put":
            raise StoreFull("no space left")

    store.before = fail
    with Checkpointer(store, job="job", settings=replace(FAST, retry_for_s=0.01)) as checkpointer:
        ticket = checkpointer.save(2, state_of(2), fence=1)
        with pytest.raises(SaveFailed, match="no space left") as caught:
            checkpointer.wait(20)
        assert isinstance(caught.value.__cause__, StoreFull)
        assert ticket.phase is Phase.FAILED
        assert same(checkpointer.load(), state_of(1))
        store.before = lambda *_: None
        checkpointer.save(3, state_of(3), fence=1)
        assert checkpointer.wait(20)
        assert same(checkpointer.load(), state_of(3))


def test_a_newer_save_takes_the_place_of_one_that_is_being_retried() -> None:
    store = WatchedStore(memory_store())

    def fail(_number: int, operation: str, key: str) -> None:
        if operation == "put" and "/shards/000000000001" in key:
            raise StoreFull("no space left")

    store.before = fail
    with Checkpointer(store, job="job", settings=replace(FAST, retry_for_s=7200, first_retry_s=3600)) as checkpointer:
        first = checkpointer.save(1, state_of(1), fence=1)
        while not first.stats.attempts:
            pass
        second = checkpointer.save(2, state_of(2), fence=1)
        assert checkpointer.wait(20)
        assert first.phase is Phase.SUPERSEDED
        assert second.phase is Phase.COMMITTED


def test_an_error_that_nobody_expected_fails_the_save_and_not_the_thread() -> None:
    store = WatchedStore(memory_store())

    def explode(_number: int, operation: str, _key: str) -> None:
        if operation == "put":
            raise ZeroDivisionError("a bug")

    store.before = explode
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        checkpointer.save(1, state_of(1), fence=1)
        with pytest.raises(ZeroDivisionError, match="a bug"):
            checkpointer.wait(20)
        store.before = lambda *_: None
        checkpointer.save(2, state_of(2), fence=1)
        assert checkpointer.wait(20)
        assert same(checkpointer.load(), state_of(2))
