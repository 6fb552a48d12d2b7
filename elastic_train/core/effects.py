"""What to do, in the imperative: the only output of the membership core.

Effects are performed in order by the controller; what comes of them returns as events.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from elastic_train.core.records import (
    Cause,
    ControlAnswer,
    ControllerRecord,
    Failure,
    ProbeRecord,
    WorkerId,
    WorldRecord,
)


class Ending(StrEnum):
    """Why a job ended."""

    FINISHED = "finished"  # every member's train function returned
    STOPPED = "stopped"  # somebody asked for it
    USER_CODE = "user_code"  # the train function raised too often
    NEVER_STEPPED = "never_stepped"  # the train function returned without taking a step
    NO_START = "no_start"  # workers end before they are ready, again and again
    NOT_ENOUGH_WORKERS = "not_enough_workers"  # below the minimum for longer than allowed


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """One line of the membership history: how a membership epoch came about."""

    membership_epoch: int
    fence: int
    members: tuple[WorkerId, ...]  # index = rank
    cause: Cause
    reason: str
    planned: bool
    joined: tuple[WorkerId, ...]  # members that were not in the sealed world before
    left: tuple[WorkerId, ...]  # members of that one that are not in this
    version: int  # most transactions (steps and evaluations) in any member's state when it acknowledged
    took_s: float  # from the first sign of the change until the world was sealed
    sealed_at_s: float  # monotonic

    @property
    def world_size(self) -> int:
        """Return the number of members."""
        return len(self.members)


@dataclass(frozen=True, slots=True)
class Effect:
    """Something to do."""


@dataclass(frozen=True, slots=True)
class ProposeWorld(Effect):
    """Write the roster as a proposal."""

    record: WorldRecord


@dataclass(frozen=True, slots=True)
class SealWorld(Effect):
    """Write the roster as sealed and delete what the groups before it exchanged; answered by WorldPublished."""

    record: WorldRecord
    previous_membership_epoch: int  # of the world sealed before; 0: none


@dataclass(frozen=True, slots=True)
class EndWorld(Effect):
    """Tell all workers that the job is over."""

    record: WorldRecord


@dataclass(frozen=True, slots=True)
class ProbeWorld(Effect):
    """Ask all members' agents for a sign of life."""

    record: ProbeRecord


@dataclass(frozen=True, slots=True)
class RememberJob(Effect):
    """Write down what a controller that takes over could not read off the other records."""

    record: ControllerRecord


@dataclass(frozen=True, slots=True)
class LaunchWorkers(Effect):
    """Start worker processes under these names, none of which was used before."""

    worker_ids: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True)
class KillWorker(Effect):
    """End a worker's process for good, if it is ours to end."""

    worker_id: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class AnswerRequest(Effect):
    """Answer a control request."""

    answer: ControlAnswer


@dataclass(frozen=True, slots=True)
class NoteMembershipEpoch(Effect):
    """Add a line to the membership history."""

    change: MembershipChange


@dataclass(frozen=True, slots=True)
class FinishJob(Effect):
    """Hand the job's outcome to whoever waits for it."""

    ending: Ending
    reason: str
    failure: Failure | None = None
