"""What is written under ``/elastic-train/<job>/`` in the coordination service, and under which key.

Every record is one small JSON object. State per worker is O(1): one key, rewritten. All participants
watch the ``world`` prefix only (the world and the probe); the controller watches the whole job.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NewType, Self, cast

WorkerId = NewType("WorkerId", str)
"""Name of one worker process; never reused within a job."""


class Stage(StrEnum):
    """How far a world has come."""

    PROPOSED = "proposed"  # members are asked to leave the old world and acknowledge
    SEALED = "sealed"  # every member acknowledged: form the group and go on
    ENDED = "ended"  # the job is over; workers leave


class Cause(StrEnum):
    """Why a membership epoch was begun."""

    START = "start"
    LOSS = "loss"
    JOIN = "join"
    DRAIN = "drain"
    RESIZE = "resize"
    RECOVER = "recover"  # enough workers again after a pause
    FORMATION = "formation"  # the previous proposal could not be formed
    BROKEN = "broken"  # a collective failed, or all waited for ever, though nobody is known to be lost
    STOP = "stop"  # proposed with no members: all leave at the next step boundary, and save first


class WorkerStatus(StrEnum):
    """Where a worker stands in its life."""

    STARTING = "starting"  # process runs, imports and builds
    READY = "ready"  # reached its first step or evaluation: can be a member
    LEAVING = "leaving"  # drained, left the loop at a step boundary
    FINISHED = "finished"  # the train function returned
    FAILED = "failed"  # the train function raised


class Activity(StrEnum):
    """What the worker's training thread is doing, as its agent sees it."""

    COMPUTING = "computing"  # in user code
    WAITING = "waiting"  # inside a collective
    SWITCHING = "switching"  # between two worlds
    IDLE = "idle"  # not in the loop: starting or finished


class Keys:
    """The keys of one job; all strings, no trailing slash unless a prefix."""

    def __init__(self, job: str) -> None:
        self.root = f"/elastic-train/{job}/"
        self.job = self.root + "job"
        self.leader = self.root + "leader"
        self.world = self.root + "world"
        self.probe = self.root + "world/probe"  # under the one watched prefix
        self.status = self.root + "status"
        self.controller = self.root + "controller"
        self.checkpoint = self.root + "checkpoint"
        self.workers = self.root + "workers/"
        self.suspects = self.root + "suspects/"
        self.control = self.root + "control/"
        self.answers = self.root + "answers/"
        self.groups = self.root + "groups/"

    def worker(self, worker_id: WorkerId) -> str:
        """Return the key of a worker's record."""
        return self.workers + worker_id

    def suspicion(self, membership_epoch: int, reporter: WorkerId) -> str:
        """Return the key under which a worker reports that its world is broken or stuck."""
        return f"{self.suspects}{membership_epoch}/{reporter}"

    def group(self, membership_epoch: int) -> str:
        """Return the prefix through which a world's members exchange addresses."""
        return f"{self.groups}{membership_epoch}/"


def _fields(record: Any) -> dict[str, Any]:
    """Return a record's fields as they are: `asdict` would copy a roster of a thousand names, deeply."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


class _Record:
    def to_bytes(self) -> bytes:
        """Encode as compact JSON."""
        return json.dumps(_fields(self), separators=(",", ":"), default=_fields).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode; unknown fields of a newer writer are ignored.

        Raises:
            ValueError: The bytes are not such a record.
        """
        raw = json.loads(data)
        if not isinstance(raw, dict):
            raise ValueError(f"no {cls.__name__}: {data[:100]!r}")  # noqa: TRY004 - callers look for one error
        fields = cast("Any", cls).__dataclass_fields__
        try:
            return cls(**{name: value for name, value in cast("dict[str, Any]", raw).items() if name in fields})
        except TypeError as error:
            raise ValueError(f"no {cls.__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class Standing(_Record):
    """The sealed world that a planned proposal is to follow, and its fence.

    The proposal takes its place under the one watched key, perhaps before a member whose watch was cut has seen it.
    """

    membership_epoch: int
    members: tuple[WorkerId, ...]
    fence: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))


@dataclass(frozen=True, slots=True)
class WorldRecord(_Record):
    """The roster: the one key everybody watches.

    The fence of a membership epoch is the mod_revision of the write that sealed it.
    """

    membership_epoch: int
    stage: Stage
    members: tuple[WorkerId, ...]  # index = rank; seniority order
    joining: tuple[WorkerId, ...] = ()  # members that were not in the previous sealed world
    planned: bool = False  # proposed: leave at the next step boundary; else abort the step at once
    cause: Cause = Cause.START
    reason: str = ""
    outcome: str = ""  # ended: "succeeded" | "failed" | "stopped"
    standing: Standing | None = None  # proposed and planned: the world that goes on until its next step boundary

    def __post_init__(self) -> None:
        object.__setattr__(self, "stage", Stage(self.stage))
        object.__setattr__(self, "cause", Cause(self.cause))
        object.__setattr__(self, "members", tuple(self.members))
        object.__setattr__(self, "joining", tuple(self.joining))
        standing: Any = self.standing  # a dict where it comes from JSON
        if isinstance(standing, dict):
            object.__setattr__(self, "standing", Standing(**cast("dict[str, Any]", standing)))


@dataclass(frozen=True, slots=True)
class ProbeRecord(_Record):
    """A request to all members' agents: say that you live and what your training thread does."""

    number: int
    membership_epoch: int


@dataclass(frozen=True, slots=True)
class Failure(_Record):
    """An exception of the user's own code."""

    error_type: str
    message: str
    traceback: str
    rank: int | None = None
    membership_epoch: int = 0
    step: int | None = None
    samples: tuple[int, int] | None = None  # half-open range of positions in the sample order

    def __post_init__(self) -> None:
        if self.samples is not None:
            object.__setattr__(self, "samples", tuple(self.samples))


@dataclass(frozen=True, slots=True)
class WorkerRecord(_Record):
    """One worker, attached to its lease; rewritten on a change of status, an acknowledgement or a probe answer."""

    worker_id: WorkerId
    status: WorkerStatus
    node: str = ""  # machine it runs on
    address: str = "127.0.0.1"  # where its peers reach it
    pid: int = 0
    acknowledged: int = 0  # newest membership_epoch whose proposal it has acknowledged
    version: int = 0  # committed transactions (steps and evaluations) in its state
    probe: int = 0  # newest probe answered
    activity: Activity = Activity.IDLE
    activity_s: float = 0.0  # how long, when this record was written
    failure: Failure | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", WorkerStatus(self.status))
        object.__setattr__(self, "activity", Activity(self.activity))
        failure: Any = self.failure  # a dict where it comes from JSON
        if isinstance(failure, dict):
            object.__setattr__(self, "failure", Failure(**cast("dict[str, Any]", failure)))


@dataclass(frozen=True, slots=True)
class Suspicion(_Record):
    """A member's report that its world is broken (a collective failed) or stuck (waited past the progress deadline)."""

    reporter: WorkerId
    membership_epoch: int
    broken: bool  # True: a collective failed; False: waited too long
    waited_s: float
    version: int  # committed transactions in the reporter's state
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ControlRequest(_Record):
    """What a person or tool asks of a running job: ``control/<request_id>``."""

    request_id: str
    action: str  # "resize" | "drain" | "stop" | "save"
    workers: int | None = None  # resize: the wanted number
    worker_id: WorkerId | None = None  # drain: which
    reason: str = ""
    deadline_s: float | None = None  # drain: from now until it is taken; None: nobody takes it


@dataclass(frozen=True, slots=True)
class ControlAnswer(_Record):
    """The controller's answer: ``answers/<request_id>``, on a short lease."""

    request_id: str
    accepted: bool
    message: str


@dataclass(frozen=True, slots=True)
class ControllerRecord(_Record):
    """What a controller that takes over could not read off the other records: ``controller``."""

    wanted: int  # workers, as last asked for
    launched: int  # highest number ever used in a worker's name
    failures: int = 0  # of user code, counted against max_failures
    stop_reason: str | None = None  # not None: somebody asked for a stop


@dataclass(frozen=True, slots=True)
class JobRecord(_Record):
    """What every participant must agree on, written once when the job is created."""

    job: str
    min_workers: int
    max_workers: int
    logical_shards: int
    seed: int
    storage: str
    created_at: float  # wall clock, seconds since 1970
    deterministic: bool = False  # every logical shard is computed by itself
    digest_every_steps: int | None = None  # the state is compared between workers after so many committed steps
    options: dict[str, Any] = field(default_factory=dict[str, Any])
