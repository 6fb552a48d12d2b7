from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_train.controller.translator import Translator
from elastic_train.core.events import (
    DrainRequested,
    Event,
    Loss,
    RequestNotUnderstood,
    ResizeRequested,
    StopRequested,
    WorkerAcknowledged,
    WorkerAnsweredProbe,
    WorkerAppeared,
    WorkerFailed,
    WorkerFinished,
    WorkerLeft,
    WorkerLost,
    WorkerReady,
    WorldSuspected,
)
from elastic_train.core.records import (
    Activity,
    ControlRequest,
    Failure,
    Keys,
    Suspicion,
    WorkerId,
    WorkerRecord,
    WorkerStatus,
)
from elastic_train.ports import Change, Changes, KeyValue, Snapshot

KEYS = Keys("job")
A = WorkerId("w0001")
STARTING = WorkerRecord(A, WorkerStatus.STARTING, node="n1")
READY = replace(STARTING, status=WorkerStatus.READY)


def _translator() -> Translator:
    return Translator(KEYS, clock=lambda: 7.0)


def _written(revision: int, *records: WorkerRecord) -> Changes:
    return Changes(tuple(Change(KEYS.worker(r.worker_id), r.to_bytes(), revision) for r in records), revision)


def _listed(revision: int, *records: tuple[WorkerRecord, int]) -> Snapshot:
    return Snapshot(tuple(KeyValue(KEYS.worker(r.worker_id), r.to_bytes(), 1, at) for r, at in records), revision)


def _told(translator: Translator, *batches: Snapshot | Changes) -> list[Event]:
    return [event for batch in batches for event in translator.translate(batch)]


def _asked(request: bytes, request_id: str = "r1") -> Event:
    (event,) = _told(_translator(), Changes((Change(KEYS.control + request_id, request, 3),), 3))
    return event


def test_each_change_of_a_workers_record_is_told_once() -> None:
    steps = [
        STARTING,
        READY,
        replace(READY, acknowledged=4, version=12),
        replace(READY, acknowledged=4, probe=2, activity=Activity.WAITING, activity_s=1.5),
        replace(READY, acknowledged=4, probe=2, status=WorkerStatus.FINISHED),
    ]
    translator = _translator()
    told = [_told(translator, _written(revision, record)) for revision, record in enumerate(steps, start=2)]
    assert told == [
        [WorkerAppeared(at_s=7.0, worker_id=A, node="n1")],
        [WorkerReady(at_s=7.0, worker_id=A)],
        [WorkerAcknowledged(at_s=7.0, worker_id=A, membership_epoch=4, version=12)],
        [WorkerAnsweredProbe(at_s=7.0, worker_id=A, probe=2, activity=Activity.WAITING, activity_s=1.5)],
        [WorkerFinished(at_s=7.0, worker_id=A)],
    ]


def test_a_deleted_record_is_a_lost_worker_once() -> None:
    translator = _translator()
    gone = Changes((Change(KEYS.worker(A), None, 3),), 3)
    events = _told(translator, _written(2, STARTING), gone, gone)
    assert events[1:] == [WorkerLost(at_s=7.0, worker_id=A, why=Loss.LEASE)]


def test_a_list_after_a_gap_tells_what_was_missed() -> None:
    b, c = WorkerId("w0002"), WorkerId("w0003")
    translator = _translator()
    _told(translator, _written(2, STARTING, replace(STARTING, worker_id=b)))
    events = _told(translator, _listed(9, (READY, 5), (replace(READY, worker_id=c, acknowledged=3), 6)))
    assert events == [
        WorkerLost(at_s=7.0, worker_id=b, why=Loss.LEASE),
        WorkerReady(at_s=7.0, worker_id=A),
        WorkerAppeared(at_s=7.0, worker_id=c, node="n1"),
        WorkerReady(at_s=7.0, worker_id=c),
        WorkerAcknowledged(at_s=7.0, worker_id=c, membership_epoch=3),
    ]
    assert not _told(translator, _listed(9, (READY, 5), (replace(READY, worker_id=c, acknowledged=3), 6)))


def test_what_a_snapshot_said_before_the_watch_began_is_not_told_again_but_requests_are() -> None:
    request = KeyValue(KEYS.control + "r1", ControlRequest("r1", "stop").to_bytes(), 2, 2)
    known = Snapshot((request, KeyValue(KEYS.worker(A), READY.to_bytes(), 3, 3)), 4)
    translator = _translator()
    translator.prime(known)
    assert _told(translator, known) == [StopRequested(at_s=7.0, request_id="r1")]


def test_a_failure_is_told_with_what_was_raised() -> None:
    failure = Failure("ValueError", "nan", "Traceback", step=3, samples=(0, 8))
    failed = replace(READY, status=WorkerStatus.FAILED, failure=failure)
    events = _told(_translator(), _written(2, READY), _written(3, failed))
    assert events[-1] == WorkerFailed(at_s=7.0, worker_id=A, failure=failure)


def test_a_worker_that_left_is_told() -> None:
    events = _told(_translator(), _written(2, READY), _written(3, replace(READY, status=WorkerStatus.LEAVING)))
    assert events[-1] == WorkerLeft(at_s=7.0, worker_id=A)


def test_a_suspicion_is_told() -> None:
    suspicion = Suspicion(A, 3, True, 0.5, 12, "reset")
    change = Change(KEYS.suspicion(3, A), suspicion.to_bytes(), 2)
    assert _told(_translator(), Changes((change,), 2)) == [WorldSuspected(at_s=7.0, suspicion=suspicion)]


def test_requests_are_told_as_what_they_ask_for() -> None:
    assert _asked(ControlRequest("r1", "resize", workers=3).to_bytes()) == ResizeRequested(
        at_s=7.0, workers=3, request_id="r1"
    )
    assert _asked(ControlRequest("r1", "drain", worker_id=A, reason="x", deadline_s=30.0).to_bytes()) == DrainRequested(
        at_s=7.0, worker_ids=(A,), deadline_at_s=37.0, reason="x", request_id="r1"
    )


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"not json",
        b"[1, 2]",
        b"{}",
        ControlRequest("r1", "resize").to_bytes(),
        ControlRequest("r1", "drain").to_bytes(),
        ControlRequest("r1", "dance").to_bytes(),
    ],
)
def test_a_request_that_makes_no_sense_is_answered_too(request_bytes: bytes) -> None:
    event = _asked(request_bytes)
    assert isinstance(event, RequestNotUnderstood)
    assert event.request_id == "r1"


@given(st.sampled_from([KEYS.worker(A), KEYS.suspicion(1, A), KEYS.control + "r"]), st.binary(max_size=40))
def test_no_bytes_under_any_key_stop_the_translation(key: str, value: bytes) -> None:
    _told(_translator(), Changes((Change(key, value, 2),), 2))
    _told(_translator(), Snapshot((KeyValue(key, value, 2, 2),), 2))


@pytest.mark.parametrize("text", [b"[]", b"3", b'"x"', b"null", b'{"worker_id": 3, "status": "no"}'])
def test_json_that_is_no_record_is_passed_over(text: bytes) -> None:
    assert not _told(_translator(), Changes((Change(KEYS.worker(A), text, 2),), 2))
