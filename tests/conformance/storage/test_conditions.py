"""Conditional puts: what makes commits and pointers safe."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage import AlreadyExists, CapabilityError, ObjectStore, PreconditionFailed
from tests.conformance.storage.conftest import Subject


@pytest.fixture
def exclusive(store: ObjectStore) -> ObjectStore:
    if not store.capabilities.put_if_absent:
        pytest.skip("does not promise put_if_absent")
    return store


@pytest.fixture
def swapping(store: ObjectStore) -> ObjectStore:
    if not store.capabilities.put_if_match:
        pytest.skip("does not promise put_if_match")
    return store


def test_put_if_absent_makes_an_object_once(exclusive: ObjectStore) -> None:
    exclusive.put("key", b"first", if_absent=True)
    with pytest.raises(AlreadyExists) as caught:
        exclusive.put("key", b"second", if_absent=True)
    assert caught.value.key == "key"
    assert exclusive.get("key") == b"first"
    exclusive.delete("key")
    exclusive.put("key", b"third", if_absent=True)
    assert exclusive.get("key") == b"third"


def test_the_same_content_again_is_still_a_second_put(exclusive: ObjectStore) -> None:
    exclusive.put("key", b"same", if_absent=True)
    with pytest.raises(AlreadyExists):
        exclusive.put("key", b"same", if_absent=True)


def test_a_large_or_streamed_put_can_be_conditional(exclusive: ObjectStore) -> None:
    data = bytes(66 * 2**20)
    exclusive.put("large", data, if_absent=True)
    with pytest.raises(AlreadyExists):
        exclusive.put("large", (data[:10] for _ in range(3)), if_absent=True)
    assert exclusive.head("large").nbytes == len(data)


def test_of_many_creators_exactly_one_wins(subject: Subject) -> None:
    if not subject.open().capabilities.put_if_absent:
        pytest.skip("does not promise put_if_absent")
    stores = [subject.open() for _ in range(4)]
    for round_number in range(5):
        key = f"race/{round_number}"

        def create(number: int, key: str = key) -> None:
            stores[number % 4].put(key, f"writer {number}".encode(), if_absent=True)

        outcomes = _race(8, create)
        winners = [n for n, failure in enumerate(outcomes) if failure is None]
        assert len(winners) == 1, outcomes
        assert all(isinstance(failure, AlreadyExists) for failure in outcomes if failure is not None), outcomes
        assert stores[0].get(key) == f"writer {winners[0]}".encode()


def test_put_if_match_swaps_only_the_version_named(swapping: ObjectStore) -> None:
    first = swapping.put("key", b"one")
    second = swapping.put("key", b"two", if_match=first.etag)
    with pytest.raises(PreconditionFailed):
        swapping.put("key", b"three", if_match=first.etag)
    assert swapping.get("key") == b"two"
    assert swapping.head("key").etag == second.etag


def test_put_if_match_on_nothing_fails(swapping: ObjectStore) -> None:
    etag = swapping.put("key", b"one").etag
    swapping.delete("key")
    with pytest.raises(PreconditionFailed):
        swapping.put("key", b"two", if_match=etag)
    assert not swapping.exists("key")


def test_no_increment_is_lost_between_swapping_writers(subject: Subject) -> None:
    if not subject.open().capabilities.put_if_match:
        pytest.skip("does not promise put_if_match")
    stores = [subject.open() for _ in range(4)]
    stores[0].put("count", b"0 by nobody")

    doubts: list[int] = []

    def increment(number: int) -> None:
        for turn in range(3):
            while True:
                info = stores[number].head("count")
                count = int(stores[number].get("count").split()[0])
                # The content is new each time: an etag made of it never comes back.
                data = f"{count + 1} by {number} in {turn}".encode()
                try:
                    stores[number].put("count", data, if_match=info.etag)
                except PreconditionFailed as lost:
                    if lost.maybe_applied:  # and overwritten since: no one can tell
                        doubts.append(number)
                    continue
                break

    assert _race(4, increment) == [None] * 4
    assert 12 <= int(stores[0].get("count").split()[0]) <= 12 + len(doubts)
    assert not doubts or subject.is_faulty


def test_a_condition_that_cannot_be_kept_is_refused_and_stated(store: ObjectStore) -> None:
    promises = store.capabilities
    if not promises.put_if_absent:
        with pytest.raises(CapabilityError):
            store.put("key", b"", if_absent=True)
        assert "if_absent" in promises.note
    if not promises.put_if_match:
        with pytest.raises(CapabilityError):
            store.put("key", b"", if_match="etag")
        assert "if_match" in promises.note
    assert not store.exists("key")
    with pytest.raises(ValueError, match="exclude each other"):
        store.put("key", b"", if_absent=True, if_match="etag")


def test_readers_never_see_a_part_of_an_object(subject: Subject) -> None:
    if not subject.open().capabilities.atomic_put:
        pytest.skip("does not promise atomic_put")
    writer, reader = subject.open(), subject.open()
    versions = [bytes([n]) * (2**20 + n) for n in range(6)]
    writer.put("key", versions[0])
    done = threading.Event()
    torn: list[int] = []

    def read() -> None:
        while not done.is_set():
            data = reader.get("key")
            if data not in versions:
                torn.append(len(data))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for version in versions[1:]:
            writer.put("key", version)
    finally:
        done.set()
        thread.join()
    assert not torn


def _race(count: int, run: Callable[[int], object]) -> list[BaseException | None]:
    barrier = threading.Barrier(count)

    def start(number: int) -> None:
        barrier.wait()
        run(number)

    with ThreadPoolExecutor(count) as pool:
        return [future.exception() for future in [pool.submit(start, number) for number in range(count)]]
