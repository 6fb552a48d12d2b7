"""A short job as observations: four workers, one lost, one drained, one joined, a checkpoint."""

from __future__ import annotations

import math

from elastic_train.core.records import Cause, WorkerId, WorkerStatus
from elastic_train.trainer.observations import (
    CheckpointSeen,
    LoopSeen,
    Observation,
    PhaseSeen,
    StepSeen,
    WorkerSeen,
    WorldProposed,
    WorldSealed,
)

BEGUN_AT = 100.0
WORKERS = tuple(WorkerId(f"w{number:04}") for number in range(1, 6))


def steps(first: int, last: int, membership_epoch: int, at: float, every_s: float = 0.1) -> list[Observation]:
    return [
        StepSeen(
            at + index * every_s,
            step,
            step + 1,
            membership_epoch,
            64,
            {"loss": math.exp(-step / 20), "accuracy": step / 50},
        )
        for index, step in enumerate(range(first, last))
    ]


def world(
    at: float, membership_epoch: int, members: tuple[WorkerId, ...], cause: Cause, reason: str
) -> list[Observation]:
    return [
        WorldProposed(at, membership_epoch, members, cause, reason, planned=cause is not Cause.LOSS),
        WorldSealed(at + 0.02, membership_epoch),
        PhaseSeen(at + 0.02, "running"),
    ]


def story() -> list[Observation]:
    one, two, three, four, five = WORKERS
    begin: list[Observation] = []
    for worker in (one, two, three, four):
        begin += [WorkerSeen(100.1, worker, WorkerStatus.STARTING), WorkerSeen(101.0, worker, WorkerStatus.READY)]
    return [
        *begin,
        LoopSeen(101.0, 50),
        *world(101.1, 1, (one, two, three, four), Cause.START, "begin with 4 workers"),
        *steps(0, 20, 1, 101.3),
        WorkerSeen(103.25, two, None, "killed by SIGKILL"),
        *world(103.26, 2, (one, three, four), Cause.LOSS, "w0002 was lost: killed by SIGKILL"),
        WorkerSeen(103.3, five, WorkerStatus.STARTING),
        *steps(20, 30, 2, 103.4),
        WorkerSeen(104.0, five, WorkerStatus.READY),
        *world(104.35, 3, (one, three, four, five), Cause.JOIN, "w0005 joins"),
        *steps(30, 40, 3, 104.5),
        CheckpointSeen(105.45, 40, "step-40"),
        *world(105.5, 4, (one, three, five), Cause.DRAIN, "w0004 is drained"),
        WorkerSeen(105.52, four, WorkerStatus.LEAVING),
        WorkerSeen(105.6, four, None),
        *steps(40, 50, 4, 105.7),
        *(WorkerSeen(106.7, worker, WorkerStatus.FINISHED) for worker in (one, three, five)),
        PhaseSeen(106.75, "succeeded"),
        *(WorkerSeen(106.9, worker, None) for worker in (one, three, five)),
    ]
