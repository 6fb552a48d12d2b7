"""Tells events from changes of a job's keys: a record says how things are, an event what happened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

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
from elastic_train.core.records import ControlRequest, Failure, Keys, Suspicion, WorkerId, WorkerRecord, WorkerStatus
from elastic_train.ports import Changes, Snapshot

_log = logging.getLogger(__name__)


class Translator:
    """Remembers the last record of every worker, and yields what happened since.

    Args:
        keys: The job's keys.
        clock: Monotonic seconds, for the events' stamps.
    """

    def __init__(self, keys: Keys, clock: Callable[[], float]) -> None:
        self._keys = keys
        self._clock = clock
        self._workers: dict[WorkerId, WorkerRecord] = {}
        self._revision = 0  # of what was translated already

    def prime(self, snapshot: Snapshot) -> None:
        """Take the workers' records in a snapshot for known; requests and suspicions are still told."""
        for item in snapshot.items:
            if item.key.startswith(self._keys.workers):
                record = self._parse(item.key, item.value)
                if record is not None:
                    self._workers[record.worker_id] = record

    def translate(self, batch: Snapshot | Changes) -> Iterator[Event]:
        """Yield the events between what was known and this batch."""
        if isinstance(batch, Snapshot):
            yield from self._compare(batch)
        else:
            for change in batch.changes:
                if change.value is not None:
                    yield from self._written(change.key, change.value)
                elif change.key.startswith(self._keys.workers):
                    yield from self._deleted(WorkerId(change.key.removeprefix(self._keys.workers)))
        self._revision = batch.revision

    def _compare(self, snapshot: Snapshot) -> Iterator[Event]:
        present = {item.key for item in snapshot.items}
        for worker_id in [worker_id for worker_id in self._workers if self._keys.worker(worker_id) not in present]:
            yield from self._deleted(worker_id)
        for item in snapshot.items:
            if item.mod_revision > self._revision:
                yield from self._written(item.key, item.value)

    def _written(self, key: str, value: bytes) -> Iterator[Event]:
        if key.startswith(self._keys.workers):
            record = self._parse(key, value)
            if record is not None:
                yield from self._worker(record)
        elif key.startswith(self._keys.suspects):
            try:
                yield WorldSuspected(at_s=self._clock(), suspicion=Suspicion.from_bytes(value))
            except ValueError:
                _log.warning("%s holds no suspicion: %r", key, value[:200])
        elif key.startswith(self._keys.control):
            yield self._request(key.removeprefix(self._keys.control), value)

    def _deleted(self, worker_id: WorkerId) -> Iterator[Event]:
        if self._workers.pop(worker_id, None) is not None:
            yield WorkerLost(at_s=self._clock(), worker_id=worker_id, why=Loss.LEASE)

    def _parse(self, key: str, value: bytes) -> WorkerRecord | None:
        try:
            record = WorkerRecord.from_bytes(value)
        except ValueError:
            _log.warning("%s holds no worker's record: %r", key, value[:200])
            return None
        if key != self._keys.workers + str(record.worker_id):
            _log.warning("%s holds the record of %r", key, record.worker_id)
            return None
        return record

    def _worker(self, record: WorkerRecord) -> Iterator[Event]:
        now_s, worker_id = self._clock(), record.worker_id
        before = self._workers.get(worker_id)
        self._workers[worker_id] = record
        if before is None:
            yield WorkerAppeared(at_s=now_s, worker_id=worker_id, node=record.node)
        status = record.status if before is None or before.status is not record.status else None
        if status is WorkerStatus.READY:
            yield WorkerReady(at_s=now_s, worker_id=worker_id)
        if record.acknowledged > (0 if before is None else before.acknowledged):
            yield WorkerAcknowledged(
                at_s=now_s, worker_id=worker_id, membership_epoch=record.acknowledged, version=record.version
            )
        if record.probe > (0 if before is None else before.probe):
            yield WorkerAnsweredProbe(
                at_s=now_s,
                worker_id=worker_id,
                probe=record.probe,
                activity=record.activity,
                activity_s=record.activity_s,
            )
        if status is WorkerStatus.LEAVING:
            yield WorkerLeft(at_s=now_s, worker_id=worker_id)
        elif status is WorkerStatus.FINISHED:
            yield WorkerFinished(at_s=now_s, worker_id=worker_id)
        elif status is WorkerStatus.FAILED:
            failure = record.failure or Failure("Exception", "the worker did not say what was raised", "")
            yield WorkerFailed(at_s=now_s, worker_id=worker_id, failure=failure)

    def _request(self, request_id: str, value: bytes) -> Event:
        now_s = self._clock()
        try:
            request = ControlRequest.from_bytes(value)
        except ValueError:
            return RequestNotUnderstood(at_s=now_s, request_id=request_id, problem="the request is no ControlRequest")
        if request.action == "resize" and request.workers is not None:
            return ResizeRequested(at_s=now_s, workers=request.workers, request_id=request_id)
        if request.action == "drain" and request.worker_id is not None:
            return DrainRequested(
                at_s=now_s,
                worker_ids=(request.worker_id,),
                deadline_at_s=None if request.deadline_s is None else now_s + request.deadline_s,
                reason=request.reason,
                request_id=request_id,
            )
        if request.action == "stop":
            return StopRequested(at_s=now_s, reason=request.reason, request_id=request_id)
        problem = f"known are resize (with workers), drain (with worker_id) and stop, but not {request.action!r}"
        return RequestNotUnderstood(at_s=now_s, request_id=request_id, problem=problem)
