"""What the agent says to the controller survives a service that does not answer, and two threads that speak."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from elastic_train.adapters.coordination.memory import MemoryCoordination, MemoryStore
from elastic_train.core.records import Keys, Stage, Suspicion, WorkerId, WorkerRecord, WorkerStatus, WorldRecord
from elastic_train.errors import CoordinationUnavailable
from elastic_train.ports import Put
from elastic_train.worker.agent import Agent

PATIENCE_S = 20.0
A = WorkerId("w0001")
KEYS = Keys("job")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def agent(store: MemoryStore) -> Iterator[Agent]:
    coordination = MemoryCoordination(store)
    agent = Agent(coordination, KEYS, WorkerRecord(A, WorkerStatus.STARTING), lease_ttl_s=60.0)
    yield agent
    store.before = None
    agent.close()
    coordination.close()


def _await(store: MemoryStore, condition: Callable[[], bool]) -> None:
    with store.changed:
        assert store.changed.wait_for(condition, PATIENCE_S)


def test_a_suspicion_that_was_not_written_is_said_again(store: MemoryStore, agent: Agent) -> None:
    refusals = 2

    def refuse(request: str) -> None:
        nonlocal refusals
        if request == "commit" and refusals:
            refusals -= 1
            raise CoordinationUnavailable("away")

    store.before = refuse
    agent.suspect("connection reset", broken=True)
    key = KEYS.suspicion(0, A)
    assert store.get(key) is None
    _await(store, lambda: store.get(key) is not None)
    item = store.get(key)
    assert item is not None
    assert Suspicion.from_bytes(item.value).broken


def test_a_late_answer_to_an_old_proposal_takes_no_newer_one_back(store: MemoryStore, agent: Agent) -> None:
    writer = MemoryCoordination(store)
    unplanned = WorldRecord(2, Stage.PROPOSED, (A,))
    writer.commit([Put(KEYS.world, unplanned.to_bytes())])

    def record() -> WorkerRecord:
        item = store.get(KEYS.worker(A))
        assert item is not None
        return WorkerRecord.from_bytes(item.value)

    _await(store, lambda: record().acknowledged == 2)
    agent.acknowledge(1, version=7)
    assert (record().acknowledged, record().version) == (2, 7)
    writer.close()
