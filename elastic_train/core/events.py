"""What happened, in the past tense: the only input of the membership core.

Every event says when it was seen, on the controller's monotonic clock; the core reads no clock of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from elastic_train.core.records import Activity, Failure, Suspicion, WorkerId


class Loss(StrEnum):
    """How a worker was found to be gone."""

    EXITED = "exited"  # the launcher saw its process end
    LEASE = "lease"  # its key was deleted: the lease ended or was revoked
    SUSPECTED = "suspected"  # somebody who can tell says so; the process may still run


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened at `at_s` (monotonic seconds)."""

    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick(Event):
    """Nothing happened but time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAppeared(Event):
    """A worker wrote its record for the first time: its process runs, imports and builds."""

    worker_id: WorkerId
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady(Event):
    """A worker reached its first step or evaluation: it can be a member."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAcknowledged(Event):
    """A worker answered the proposal of a membership epoch; `version` counts the transactions in its state."""

    worker_id: WorkerId
    membership_epoch: int
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAnsweredProbe(Event):
    """A worker's agent said what its training thread has been doing, and for how long."""

    worker_id: WorkerId
    probe: int
    activity: Activity
    activity_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLeft(Event):
    """A worker left its loop at a step boundary and is about to exit."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFinished(Event):
    """A worker's train function returned; the worker stays and serves its state."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFailed(Event):
    """A worker's train function raised."""

    worker_id: WorkerId
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(Event):
    """A worker is gone. `exit_code` < 0: killed by that signal; None: unknown."""

    worker_id: WorkerId
    why: Loss
    exit_code: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFailed(Event):
    """The launcher could not bring up a worker that it was asked for."""

    worker_id: WorkerId
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSuspected(Event):
    """A member reported its world broken or stuck."""

    suspicion: Suspicion


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldPublished(Event):
    """The write that sealed a world was committed at revision `fence`."""

    membership_epoch: int
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeRequested(Event):
    """Somebody wants this many workers."""

    workers: int
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested(Event):
    """Workers shall leave at a step boundary; by `deadline_at_s` (monotonic) they are taken; None: by nobody."""

    worker_ids: tuple[WorkerId, ...]
    deadline_at_s: float | None = None
    reason: str = ""
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested(Event):
    """Somebody wants the job to end after the current step."""

    reason: str = ""
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestNotUnderstood(Event):
    """Somebody asked for something that this controller does not know how to do."""

    request_id: str
    problem: str
