"""A worker of a SimulatedJob."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from elastic_train.core.events import Event
from elastic_train.core.records import WorkerId, WorkerRecord, WorkerStatus


@dataclass
class SimulatedWorker:
    """One worker process and what it has said that the controller has not heard yet."""

    worker_id: WorkerId
    alive: bool = True
    stopped: bool = False
    ready: bool = False
    finished: bool = False
    external: bool = False
    sealed: int = 0  # membership epoch it took its place in
    acknowledged: int = 0
    probed: int = 0
    complains_s: float = 0.0  # not again before
    status: WorkerStatus = WorkerStatus.STARTING
    appeared: int = 0  # order of first records; 0: none yet
    has_record: bool = False
    said: deque[Event] = field(default_factory=deque)

    @property
    def record(self) -> WorkerRecord:
        """What stands under its key."""
        return WorkerRecord(self.worker_id, self.status, acknowledged=self.acknowledged, probe=self.probed)
