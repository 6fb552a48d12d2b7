"""What the driver learns about a running job: the few kinds of facts that the live view and the result are made of.

`elastic_train.trainer.journal_reader` makes them out of journal records; everything behind it is pure.
All times (`at`) are on the driver's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from elastic_train.core.records import Cause, Failure, WorkerId, WorkerStatus


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker reached a status; `status` is None when its process is gone."""

    at: float
    worker_id: WorkerId
    status: WorkerStatus | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class WorldProposed:
    """A change of the membership was begun."""

    at: float
    membership_epoch: int
    members: tuple[WorkerId, ...]
    cause: Cause
    reason: str
    planned: bool


@dataclass(frozen=True, slots=True)
class WorldSealed:
    """All members of the proposal acknowledged it."""

    at: float
    membership_epoch: int


@dataclass(frozen=True, slots=True)
class PhaseSeen:
    """The job entered a phase of the controller's state machine, named as there."""

    at: float
    phase: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StepSeen:
    """A step was committed.

    Attributes:
        step: Its index in its loop.
        version: Transactions in the state after it: names the step within the whole job.
        samples: In its global batch; `metrics` are means over them.
    """

    at: float
    step: int
    version: int
    membership_epoch: int
    samples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoopSeen:
    """The loop knows how many steps it has in all."""

    at: float
    total_steps: int


@dataclass(frozen=True, slots=True)
class CheckpointSeen:
    """A checkpoint was committed; `version` counts the transactions (steps and evaluations) in it."""

    at: float
    version: int
    key: str


@dataclass(frozen=True, slots=True)
class FailureSeen:
    """The user's own code raised in a worker."""

    at: float
    worker_id: WorkerId
    failure: Failure


Observation = WorkerSeen | WorldProposed | WorldSealed | PhaseSeen | StepSeen | LoopSeen | CheckpointSeen | FailureSeen
