"""The in-memory store: leases by an injected clock, injected faults, and the registry's names."""

from __future__ import annotations

import pytest

from elastic_train.adapters.coordination import connect
from elastic_train.adapters.coordination.memory import Hook, MemoryCoordination, MemoryStore
from elastic_train.errors import CoordinationUnavailable, LeaseExpired
from elastic_train.ports import Changes, Put, Snapshot


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def client(store: MemoryStore) -> MemoryCoordination:
    return MemoryCoordination(store)


def test_a_lease_ends_when_the_clock_says_so(client: MemoryCoordination, clock: Clock) -> None:
    lease = client.grant(10.0)
    client.commit([Put("/a", b"1", lease.lease_id)])
    clock.now += 9.0
    lease.renew()
    assert lease.expires_at == clock.now + 10.0
    clock.now += 9.9
    assert client.get("/a") is not None
    clock.now += 0.1
    assert client.get("/a") is None
    with pytest.raises(LeaseExpired):
        lease.renew()


def test_the_end_of_a_lease_reaches_the_watches(client: MemoryCoordination, store: MemoryStore, clock: Clock) -> None:
    lease = client.grant(10.0)
    client.commit([Put("/a", b"1", lease.lease_id)])
    batches = iter(client.watch("/"))
    assert isinstance(next(batches), Snapshot)
    clock.now += 10.0
    store.tick()
    batch = next(batches)
    assert isinstance(batch, Changes)
    assert [(change.key, change.value) for change in batch.changes] == [("/a", None)]


def test_a_fault_before_a_request_keeps_it_from_happening(client: MemoryCoordination, store: MemoryStore) -> None:
    store.before = _unavailable_for("commit")
    with pytest.raises(CoordinationUnavailable):
        client.commit([Put("/a", b"1")])
    assert client.get("/a") is None


def test_a_fault_after_a_request_loses_only_its_answer(client: MemoryCoordination, store: MemoryStore) -> None:
    store.after = _unavailable_for("commit")
    with pytest.raises(CoordinationUnavailable):
        client.commit([Put("/a", b"1")])
    assert client.get("/a") is not None


def test_a_renewal_whose_answer_is_lost_leaves_the_local_deadline_where_it_was(
    client: MemoryCoordination, store: MemoryStore, clock: Clock
) -> None:
    lease = client.grant(10.0)
    store.after = _unavailable_for("renew")
    clock.now += 5.0
    with pytest.raises(CoordinationUnavailable):
        lease.renew()
    assert lease.expires_at == 110.0


def test_a_compaction_behind_a_watch_costs_it_nothing(client: MemoryCoordination, store: MemoryStore) -> None:
    client.commit([Put("/a", b"1")])
    batches = iter(client.watch("/"))
    next(batches)
    store.compact()
    client.commit([Put("/a", b"2")])
    assert isinstance(next(batches), Changes)


def test_a_compaction_ahead_of_a_watch_makes_it_list_again(client: MemoryCoordination, store: MemoryStore) -> None:
    batches = iter(client.watch("/"))
    next(batches)
    client.commit([Put("/a", b"1")])
    store.compact()
    batch = next(batches)
    assert isinstance(batch, Snapshot)
    assert [item.key for item in batch.items] == ["/a"]


def test_memory_urls_of_one_name_share_a_store_and_unnamed_ones_do_not() -> None:
    connect("memory://shared").commit([Put("/a", b"1")])
    assert connect("memory://shared").get("/a") is not None
    assert connect("memory://other").get("/a") is None
    connect("memory://").commit([Put("/a", b"1")])
    assert connect("memory://").get("/a") is None


def _unavailable_for(name: str) -> Hook:
    def hook(request: str) -> None:
        if request == name:
            raise CoordinationUnavailable(f"{request} is faulty")

    return hook
