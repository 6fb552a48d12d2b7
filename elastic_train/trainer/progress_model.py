"""What a person wants to know of a running job at one glance. Pure: observations in, numbers and sentences out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from elastic_train.core.records import Cause, WorkerId, WorkerStatus
from elastic_train.trainer.observations import (
    CheckpointSeen,
    FailureSeen,
    LoopSeen,
    Observation,
    PhaseSeen,
    StepSeen,
    WorkerSeen,
    WorldProposed,
    WorldSealed,
)
from elastic_train.trainer.wording import brief

_RATE_WINDOW_S = 10.0
_KEPT_EVENTS = 200
_CURVE_POINTS = 512
_ENDING = ("stopping", "succeeded", "stopped", "failed")


class Tone(StrEnum):
    """How an event is meant."""

    GOOD = "good"
    NEUTRAL = "neutral"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of the job's story."""

    at: float
    text: str
    tone: Tone = Tone.NEUTRAL


@dataclass(slots=True)
class Worker:
    """One worker as the view shows it; `rank` is None outside of the world."""

    worker_id: WorkerId
    status: WorkerStatus
    rank: int | None = None


@dataclass(slots=True)
class ProgressModel:
    """The state behind every renderer.

    Args:
        job: Its name.
        begun_at: When the run began, on the clock of the observations.
        bounds: Smallest and largest number of workers.
    """

    job: str
    begun_at: float
    bounds: tuple[int, int]
    phase: str = "starting"
    phase_reason: str = ""
    step: int | None = None  # newest committed
    total_steps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    membership_epoch: int = 0
    workers: dict[WorkerId, Worker] = field(default_factory=dict)
    happenings: deque[Happening] = field(default_factory=lambda: deque(maxlen=_KEPT_EVENTS))
    curve: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_CURVE_POINTS))
    _recent: deque[StepSeen] = field(default_factory=deque)
    _proposed: WorldProposed | None = None
    _members: tuple[WorkerId, ...] = ()
    _awaiting_first_step: WorldProposed | None = None

    def apply(self, seen: Observation) -> tuple[Happening, ...]:
        """Take in one observation; return what is worth a line of its own."""
        new = tuple(self._take(seen))
        self.happenings.extend(new)
        return new

    # ------------------------------------------------------------------ derived

    @property
    def world_size(self) -> int:
        """Return the size of the newest sealed world."""
        return len(self._members)

    def rank_of(self, worker_id: WorkerId) -> int | None:
        """Return a worker's rank in the newest sealed world."""
        return self._members.index(worker_id) if worker_id in self._members else None

    def steps_per_s(self, now: float) -> float:
        """Return the rate of commits over the last seconds."""
        return self._rate(now, [1] * len(self._recent))

    def samples_per_s(self, now: float) -> float:
        """Return the rate of committed samples over the last seconds."""
        return self._rate(now, [step.samples for step in self._recent])

    def eta_s(self, now: float) -> float | None:
        """Return how long the rest takes at the present rate, None where that cannot be said."""
        rate = self.steps_per_s(now)
        if self.total_steps is None or self.step is None or rate <= 0:
            return None
        return max(self.total_steps - self.step - 1, 0) / rate

    @property
    def fraction(self) -> float | None:
        """Return the part of the steps that is done, in [0, 1]."""
        if not self.total_steps:
            return None
        return min(((self.step if self.step is not None else -1) + 1) / self.total_steps, 1.0)

    # ------------------------------------------------------------------ observations

    def _take(self, seen: Observation) -> Iterable[Happening]:
        match seen:
            case WorkerSeen():
                return self._take_worker(seen)
            case WorldProposed():
                self._proposed = seen
                return self._tell_proposal(seen)
            case WorldSealed():
                return self._take_sealed(seen)
            case StepSeen():
                return self._take_step(seen)
            case PhaseSeen():
                return self._take_phase(seen)
            case LoopSeen():
                self.total_steps = seen.total_steps
                return ()
            case CheckpointSeen():
                return [Happening(seen.at, f"checkpoint {seen.key} committed")]
            case FailureSeen(failure=failure):
                where = "" if failure.step is None else f" in step {failure.step}"
                rank = "" if failure.rank is None else f" (rank {failure.rank})"
                text = f"{seen.worker_id}{rank} raised {failure.error_type}{where}: {failure.message}"
                return [Happening(seen.at, text, Tone.BAD)]

    def _take_worker(self, seen: WorkerSeen) -> Iterable[Happening]:
        if seen.status is None:
            gone = self.workers.pop(seen.worker_id, None)
            left_by_itself = gone is not None and gone.status in (WorkerStatus.LEAVING, WorkerStatus.FINISHED)
            told_by_the_change = gone is not None and gone.rank is not None
            if gone is None or left_by_itself or told_by_the_change or self.phase in _ENDING:
                return
            yield Happening(seen.at, f"{seen.worker_id} is gone{_because(seen.detail)}", Tone.WARNING)
            return
        worker = self.workers.setdefault(seen.worker_id, Worker(seen.worker_id, seen.status))
        worker.status = seen.status
        worker.rank = self.rank_of(seen.worker_id)

    def _tell_proposal(self, seen: WorldProposed) -> Iterable[Happening]:
        tone = Tone.WARNING if seen.cause in (Cause.LOSS, Cause.FORMATION, Cause.BROKEN) else Tone.NEUTRAL
        yield Happening(seen.at, brief(seen.reason) or f"membership epoch {seen.membership_epoch} begins", tone)

    def _take_sealed(self, seen: WorldSealed) -> Iterable[Happening]:
        proposed = self._proposed
        if proposed is None or proposed.membership_epoch != seen.membership_epoch:
            return ()
        self.membership_epoch = seen.membership_epoch
        self._members = proposed.members
        self._awaiting_first_step = proposed
        for worker in self.workers.values():
            worker.rank = self.rank_of(worker.worker_id)
        return ()

    def _take_step(self, seen: StepSeen) -> Iterable[Happening]:
        self.step = seen.step
        self._recent.append(seen)
        while self._recent and self._recent[0].at < seen.at - _RATE_WINDOW_S:
            self._recent.popleft()
        if seen.metrics:
            self.metrics = {**self.metrics, **seen.metrics}
            headline = self.headline
            if headline in seen.metrics:
                self.curve.append((seen.step, seen.metrics[headline]))
        begun = self._awaiting_first_step
        if begun is not None and seen.membership_epoch == begun.membership_epoch:
            self._awaiting_first_step = None
            took = f"first step after {seen.at - begun.at:.2f} s"
            yield Happening(seen.at, f"{_workers(len(begun.members))} go on at step {seen.step}, {took}", Tone.GOOD)

    def _take_phase(self, seen: PhaseSeen) -> Iterable[Happening]:
        changed = seen.phase != self.phase
        self.phase, self.phase_reason = seen.phase, seen.reason
        if changed and seen.phase == "paused":
            yield Happening(seen.at, f"paused{_because(seen.reason)}", Tone.WARNING)
        elif changed and seen.phase in ("stopping", "failed", "stopped"):
            yield Happening(seen.at, f"{seen.phase}{_because(seen.reason)}", Tone.WARNING)

    @property
    def headline(self) -> str:
        """Return the metric whose curve is shown: the loss, or else the first one reported."""
        return "loss" if "loss" in self.metrics else next(iter(self.metrics), "loss")

    def _rate(self, now: float, amounts: list[int]) -> float:
        if len(self._recent) < 2:
            return 0.0
        span_s = max(now, self._recent[-1].at) - self._recent[0].at
        return sum(amounts[1:]) / span_s if span_s > 0 else 0.0


def _because(reason: str) -> str:
    return f" ({brief(reason)})" if reason else ""


def _workers(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"
