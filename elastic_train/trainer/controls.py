"""Ask a running job for something through the coordination service, and read how it stands there."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from elastic_train.core.records import (
    ControlAnswer,
    ControlRequest,
    JobRecord,
    Keys,
    WorkerId,
    WorkerRecord,
    WorldRecord,
)
from elastic_train.errors import CoordinationUnavailable, JobNotFound
from elastic_train.ports import Changes, Coordination, Lease, Put, Snapshot, Watch

_REQUEST_TTL_S = 30.0  # a request that nobody takes disappears by itself


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How a job stands, as its keys tell; `world` is None before the first proposal."""

    job: JobRecord
    world: WorldRecord | None
    workers: tuple[WorkerRecord, ...]
    has_controller: bool
    progress: dict[str, object] = field(default_factory=dict)

    @property
    def world_workers(self) -> tuple[WorkerRecord, ...]:
        """Return the members of the world that still have a record; by rank."""
        known = {worker.worker_id: worker for worker in self.workers}
        members = self.world.members if self.world is not None else ()
        return tuple(known[member] for member in members if member in known)


class JobControls:
    """A job's controls. Any process that reaches the coordination service may use them; safe from many threads."""

    def __init__(self, coordination: Coordination, job: str) -> None:
        self._coordination = coordination
        self._keys = Keys(job)
        self._job = job

    def resize(self, workers: int, reason: str = "") -> ControlRequest:
        """Write the request for another number of workers."""
        return self._submit(ControlRequest(_request_id(), "resize", workers=workers, reason=reason))

    def drain(self, worker_id: WorkerId, reason: str = "") -> ControlRequest:
        """Write the request that a worker leaves at the next step boundary."""
        return self._submit(ControlRequest(_request_id(), "drain", worker_id=worker_id, reason=reason))

    def stop(self, reason: str = "") -> ControlRequest:
        """Write the request to end the job after the current step."""
        return self._submit(ControlRequest(_request_id(), "stop", reason=reason))

    def answer(self, request: ControlRequest, timeout_s: float) -> ControlAnswer:
        """Wait for the controller's answer.

        Raises:
            CoordinationUnavailable: None came in time.
        """
        key = self._keys.answers + request.request_id
        with _closing_after(self._coordination.watch(key), timeout_s) as watch:
            for batch in watch:
                for value in _values(batch):
                    return ControlAnswer.from_bytes(value)
        raise CoordinationUnavailable(
            f"job {self._job!r}: its controller did not answer the request to {request.action} within {timeout_s:g} s. "
            "Look at 'elastic-train status': the job may be ending, or its controller may be gone"
        )

    def status(self) -> JobStatus:
        """Read how the job stands.

        Raises:
            JobNotFound: The coordination service knows no such job.
        """
        items = {item.key: item.value for item in self._coordination.list(self._keys.root).items}
        if self._keys.job not in items:
            raise JobNotFound(self._job, "is not known to this coordination service. Check its name and the URL")
        world = items.get(self._keys.world)
        return JobStatus(
            job=JobRecord.from_bytes(items[self._keys.job]),
            world=WorldRecord.from_bytes(world) if world is not None else None,
            workers=tuple(
                WorkerRecord.from_bytes(value)
                for key, value in sorted(items.items())
                if key.startswith(self._keys.workers)
            ),
            has_controller=self._keys.leader in items,
            progress=_json_object(items.get(self._keys.status)),
        )

    def _submit(self, request: ControlRequest) -> ControlRequest:
        lease: Lease = self._coordination.grant(_REQUEST_TTL_S)
        self._coordination.commit([Put(self._keys.control + request.request_id, request.to_bytes(), lease.lease_id)])
        return request


def _request_id() -> str:
    return uuid.uuid4().hex


def _values(batch: Snapshot | Changes) -> Iterator[bytes]:
    if isinstance(batch, Snapshot):
        yield from (item.value for item in batch.items)
    else:
        yield from (change.value for change in batch.changes if change.value is not None)


@contextmanager
def _closing_after(watch: Watch, timeout_s: float) -> Iterator[Watch]:
    timer = threading.Timer(timeout_s, watch.close)
    timer.daemon = True
    timer.start()
    try:
        yield watch
    finally:
        timer.cancel()
        timer.join()
        watch.close()


def _json_object(value: bytes | None) -> dict[str, object]:
    parsed = json.loads(value) if value else {}
    return parsed if isinstance(parsed, dict) else {}
