"""Requests reach the controller's inbox as records, and its answers come back."""

from __future__ import annotations

import threading

import pytest

from elastic_train.adapters.coordination.memory import MemoryCoordination, MemoryStore
from elastic_train.core.records import (
    ControlAnswer,
    ControlRequest,
    JobRecord,
    Keys,
    Stage,
    WorkerId,
    WorkerRecord,
    WorkerStatus,
    WorldRecord,
)
from elastic_train.errors import CoordinationUnavailable, JobNotFound
from elastic_train.ports import Changes, Coordination, Put, Snapshot
from elastic_train.trainer.controls import JobControls

KEYS = Keys("digits")
W1, W2 = WorkerId("w0001"), WorkerId("w0002")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def coordination(store: MemoryStore) -> Coordination:
    return MemoryCoordination(store)


def fill(coordination: Coordination) -> None:
    """Write the keys of a running job with two workers."""
    lease = coordination.grant(10.0)
    coordination.commit(
        [
            Put(KEYS.job, JobRecord("digits", 2, 8, 8, 0, "file:///x", 1.0).to_bytes()),
            Put(KEYS.leader, b"driver", lease.lease_id),
            Put(KEYS.world, WorldRecord(3, Stage.SEALED, (W2, W1), reason="w0003 was lost").to_bytes()),
            Put(KEYS.worker(W1), WorkerRecord(W1, WorkerStatus.READY, "node-a", pid=11, version=7).to_bytes()),
            Put(KEYS.worker(W2), WorkerRecord(W2, WorkerStatus.READY, "node-b", pid=12, version=7).to_bytes()),
            Put(KEYS.status, b'{"phase":"running","step":7,"metrics":{"loss":0.5}}'),
        ]
    )


def answer_requests(coordination: Coordination, answer: ControlAnswer) -> threading.Thread:
    """Play the controller: answer the first request with `answer` under its id."""

    def run() -> None:
        watch = coordination.watch(KEYS.control)
        for batch in watch:
            values = [i.value for i in batch.items] if isinstance(batch, Snapshot) else _written(batch)
            for value in values:
                request = ControlRequest.from_bytes(value)
                reply = ControlAnswer(request.request_id, answer.accepted, f"{request.action}: {answer.message}")
                coordination.commit([Put(KEYS.answers + request.request_id, reply.to_bytes())])
                watch.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def _written(batch: Changes) -> list[bytes]:
    return [change.value for change in batch.changes if change.value is not None]


def test_a_request_is_written_with_what_it_asks_and_ends_by_itself(
    coordination: Coordination, store: MemoryStore
) -> None:
    request = JobControls(coordination, "digits").resize(5, reason="night")
    written = coordination.get(KEYS.control + request.request_id)
    assert written is not None
    assert ControlRequest.from_bytes(written.value) == request
    assert (request.action, request.workers, request.reason) == ("resize", 5, "night")
    assert written.lease_id != 0


@pytest.mark.parametrize("ask_first", [True, False])
def test_the_answer_is_found_whether_it_comes_before_or_after_it_is_waited_for(
    coordination: Coordination, *, ask_first: bool
) -> None:
    controls = JobControls(coordination, "digits")
    request = controls.drain(W1) if ask_first else None
    controller = answer_requests(coordination, ControlAnswer("", accepted=True, message="w0001 leaves"))
    if ask_first:
        controller.join()
    answer = controls.answer(request or controls.drain(W1), timeout_s=30.0)
    controller.join()
    assert (answer.accepted, answer.message) == (True, "drain: w0001 leaves")


def test_without_an_answer_it_says_where_to_look(coordination: Coordination) -> None:
    controls = JobControls(coordination, "digits")
    with pytest.raises(CoordinationUnavailable, match="did not answer the request to stop within 0"):
        controls.answer(controls.stop(), timeout_s=0.01)


def test_the_status_is_read_from_the_keys_of_the_job(coordination: Coordination) -> None:
    fill(coordination)
    status = JobControls(coordination, "digits").status()
    assert status.job.max_workers == 8
    assert status.world is not None
    assert status.world.members == (W2, W1)
    assert [worker.worker_id for worker in status.workers] == [W1, W2]
    assert [worker.node for worker in status.world_workers] == ["node-b", "node-a"]
    assert status.has_controller
    assert status.progress == {"phase": "running", "step": 7, "metrics": {"loss": 0.5}}


def test_a_job_that_is_not_there_is_not_found(coordination: Coordination) -> None:
    with pytest.raises(JobNotFound, match="Check its name and the URL"):
        JobControls(coordination, "digits").status()
