"""What the controller knows of a job: an immutable value that `membership.step` turns into the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from elastic_train.core.bounds import Backoff, Bounds
from elastic_train.core.records import Activity, Cause, ControllerRecord, WorkerId, WorldRecord


class Phase(StrEnum):
    """Where a job stands."""

    GATHERING = "gathering"  # no world was ever sealed; waits for enough ready workers
    FORMING = "forming"  # an unplanned proposal is open: nobody trains
    RUNNING = "running"  # the world is sealed
    SWITCHING = "switching"  # a planned proposal is open: the old world trains to its next step boundary
    BROKEN = "broken"  # the world lost members or broke; others may follow within moments
    PAUSED = "paused"  # below the minimum; survivors keep their state
    STOPPING = "stopping"  # all members were asked to leave
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_terminal(self) -> bool:
        """Say whether nothing more will happen."""
        return self in _TERMINAL


_TERMINAL = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED})


class Life(StrEnum):
    """Where the controller believes a worker to stand. Lost workers are forgotten."""

    LAUNCHED = "launched"  # the launcher was asked; no record yet
    STARTING = "starting"  # imports and builds
    READY = "ready"  # stands at its first step; in no world yet
    MEMBER = "member"  # of the sealed world
    FINISHED = "finished"  # a member whose train function returned; serves its state
    LEAVING = "leaving"  # left out, failed or left; its process is about to exit


@dataclass(frozen=True, slots=True)
class Drain:
    """A worker shall leave: as soon as it is replaced, at `due_s` at the latest."""

    due_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker that is not known to be gone."""

    worker_id: WorkerId
    life: Life
    since_s: float  # in this life
    began_s: float  # launched, or appeared if others started it
    ours: bool  # our launcher runs it
    appeared: int = 0  # order of first records
    node: str = ""
    drain: Drain | None = None


@dataclass(frozen=True, slots=True)
class World:
    """The newest sealed world."""

    record: WorldRecord
    sealed_at_s: float

    @property
    def membership_epoch(self) -> int:
        """Return its incarnation."""
        return self.record.membership_epoch

    @property
    def members(self) -> tuple[WorkerId, ...]:
        """Return its members; index = rank."""
        return self.record.members


@dataclass(frozen=True, slots=True)
class Proposal:
    """The world that members are asked to form."""

    record: WorldRecord
    proposed_at_s: float
    missing: frozenset[WorkerId]  # members that have not acknowledged
    version: int = 0  # most transactions in any state acknowledged so far
    parted_at_s: float | None = None  # planned: when the first member said it left the old world
    patience_s: float = 0.0  # planned: since then, until the others are probed

    @property
    def members(self) -> tuple[WorkerId, ...]:
        """Return who shall form it; index = rank."""
        return self.record.members


@dataclass(frozen=True, slots=True)
class Probe:
    """A sign of life was asked of every member."""

    number: int
    asked_at_s: float
    deadline_s: float
    missing: frozenset[WorkerId]
    suspicion: str  # what made us ask
    answers: Mapping[WorkerId, tuple[Activity, float]] = field(default_factory=dict[WorkerId, tuple[Activity, float]])


_UNPLANNED = (Cause.LOSS, Cause.BROKEN)


@dataclass(frozen=True, slots=True)
class Change:
    """The change of membership under way, from its first sign until a world is sealed."""

    first_sign_s: float
    cause: Cause
    reasons: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Return it in words, short also when a thousand workers go at once."""
        shown = self.reasons[:4]
        more = len(self.reasons) - len(shown)
        return "; ".join(shown) + (f"; and {more} more" if more else "")

    def and_also(self, at_s: float, cause: Cause, reason: str) -> Change:
        """Add a sign: what breaks a world outweighs (and restarts the clock of) what was planned for it."""
        first_sign_s, winner = self.first_sign_s, self.cause
        if cause in _UNPLANNED and winner not in _UNPLANNED:
            first_sign_s, winner = at_s, cause
        elif cause is Cause.LOSS or (cause is Cause.FORMATION and winner not in _UNPLANNED):
            winner = cause
        return Change(first_sign_s, winner, (*self.reasons, reason))


@dataclass(frozen=True, slots=True)
class Sealing:
    """A sealed world whose write is on its way."""

    proposal: Proposal
    change: Change
    departed: tuple[WorkerId, ...]  # members of the world before it that are not in it
    sealed_at_s: float


_NEVER = Backoff()


@dataclass(frozen=True, slots=True)
class JobState:
    """All that the core knows."""

    phase: Phase
    now_s: float
    wanted: int
    workers: Mapping[WorkerId, Worker] = field(default_factory=dict[WorkerId, Worker])
    census: Mapping[Life, int] = field(default_factory=dict[Life, int])  # of `workers`
    gone: frozenset[WorkerId] = frozenset()  # lost, and their records may still stand or change
    draining: frozenset[WorkerId] = frozenset()
    silent: Mapping[WorkerId, Worker] = field(default_factory=dict[WorkerId, Worker])  # not ours, taken for lost

    membership_epoch: int = 0  # newest proposed
    fence: int = 0  # of the newest world known to be published
    world: World | None = None
    proposal: Proposal | None = None
    probe: Probe | None = None
    probes: int = 0  # asked so far
    change: Change | None = None
    sealing: Sealing | None = None

    due_s: float | None = None  # when the phase's own wait ends
    scan_s: float | None = None  # when some worker may have outstayed its welcome
    short_s: float | None = None  # since when there has been no world for want of workers
    launch_s: float = float("-inf")  # no launch before
    launched: int = 0  # highest number used in a worker's name
    appeared: int = 0
    stop_s: float | None = None  # when a stop was asked for
    stop_reason: str = ""

    failures: Backoff = _NEVER  # of user code
    start_failures: Backoff = _NEVER  # before a worker was ready, in a row
    young_deaths: Backoff = _NEVER
    breaks: Backoff = _NEVER  # of worlds that broke though nobody was lost
    growths: Backoff = _NEVER  # planned changes that took joiners in

    @classmethod
    def initial(cls, bounds: Bounds, at_s: float) -> JobState:
        """Return the state of a job of which nothing exists yet."""
        return cls(phase=Phase.GATHERING, now_s=at_s, wanted=bounds.num_workers, short_s=at_s, scan_s=at_s)

    @property
    def remembered(self) -> ControllerRecord:
        """Return what a controller that takes over must be told."""
        return ControllerRecord(
            wanted=self.wanted,
            launched=self.launched,
            failures=self.failures.count,
            stop_reason=None if self.stop_s is None else self.stop_reason,
        )
