"""Where the workers' paid time went.

Goodput in the sense of Google's "ML Productivity Goodput" (2024): the part of the time paid for that moved the final
result forward. Every second of every worker process, from its start to its end, falls into exactly one bucket, so the
buckets sum to the time paid (invariant I8). Pure: times in, account out.

A worker's time is cut at marks: it started, became ready, its world was begun, a step was committed, its world was
broken or superseded, it finished, it ended. Between two marks it is in one bucket.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from elastic_train.core.records import WorkerId


class Bucket(StrEnum):
    """What a worker's time was spent on."""

    TRAINING = "training"  # steps that the final weights contain
    REDONE = "redone"  # steps that were aborted, or lost and run again
    REFORMING = "re-forming"  # from a change's beginning until the new world computes
    WAITING = "waiting"  # ready, but not a member: not admitted yet, or the job is paused
    STARTING = "starting"  # process start, imports, building the model
    IDLE = "idle"  # drained or finished, or a member before and after all steps


@dataclass(frozen=True, slots=True)
class WorkerSpan:
    """The life of one worker process; all times on one clock, in seconds."""

    worker_id: WorkerId
    started_at: float
    ended_at: float
    ready_at: float | None = None  # None: never became ready
    done_at: float | None = None  # when it finished or left; None: it was ended from outside


@dataclass(frozen=True, slots=True)
class WorldSpan:
    """One membership epoch that was sealed."""

    membership_epoch: int
    members: tuple[WorkerId, ...]
    begun_at: float  # the loss or request that led to it became known
    sealed_at: float


@dataclass(frozen=True, slots=True)
class CommittedStep:
    """One step that a world committed."""

    step: int
    membership_epoch: int
    committed_at: float
    samples: int


@dataclass(frozen=True, slots=True)
class Goodput:
    """The account of one job.

    Attributes:
        seconds: Worker-seconds by bucket; every bucket is present.
        samples: Samples in the final lineage: each step counted once, as it was committed last.
        steps_redone: Commits that a later commit of the same step replaced.
        possible_rate: Samples per worker-second in the median undisturbed step, 0 where there was none.
    """

    seconds: Mapping[Bucket, float]
    samples: int = 0
    steps_redone: int = 0
    possible_rate: float = 0.0

    @property
    def paid_s(self) -> float:
        """Return all worker-seconds."""
        return sum(self.seconds.values())

    @property
    def training_fraction(self) -> float:
        """Return the part of the paid time that went into steps of the final lineage, in [0, 1]."""
        return self.seconds[Bucket.TRAINING] / self.paid_s if self.paid_s > 0 else 0.0

    @property
    def ratio(self) -> float:
        """Return samples per paid worker-second over what the same workers did when nothing disturbed them."""
        if self.paid_s <= 0 or self.possible_rate <= 0:
            return 0.0
        return self.samples / self.paid_s / self.possible_rate


EMPTY = Goodput(seconds=dict.fromkeys(Bucket, 0.0))


@dataclass(frozen=True, slots=True)
class _Mark:
    at: float
    bucket: Bucket  # from here on


@dataclass(slots=True)
class _WorldSteps:
    """The steps of one world in the order of their commits, with what an undisturbed one takes."""

    steps: list[CommittedStep] = field(default_factory=list)

    def intervals(self) -> list[float]:
        return [
            after.committed_at - before.committed_at for before, after in zip(self.steps, self.steps[1:], strict=False)
        ]


def account(workers: Iterable[WorkerSpan], worlds: Sequence[WorldSpan], steps: Sequence[CommittedStep]) -> Goodput:
    """Sort every second of every worker into a bucket.

    Args:
        workers: Each worker once.
        worlds: Sealed worlds in the order of their membership epochs.
        steps: Commits in the order in which they happened.
    """
    by_world: dict[int, _WorldSteps] = {}
    for step in steps:
        by_world.setdefault(step.membership_epoch, _WorldSteps()).steps.append(step)
    final = {step.step: step for step in steps}  # the last commit of a step is the one that counts
    ordered = sorted(worlds, key=lambda world: world.membership_epoch)
    seconds = dict.fromkeys(Bucket, 0.0)
    for worker in workers:
        marks = sorted(_marks(worker, ordered, by_world, final), key=lambda mark: mark.at)
        for bucket, spent_s in _spent(worker, marks):
            seconds[bucket] += spent_s
    return Goodput(
        seconds=seconds,
        samples=sum(step.samples for step in final.values()),
        steps_redone=len(steps) - len(final),
        possible_rate=_possible_rate(ordered, by_world),
    )


def _marks(
    worker: WorkerSpan,
    worlds: Sequence[WorldSpan],
    by_world: Mapping[int, _WorldSteps],
    final: Mapping[int, CommittedStep],
) -> Iterator[_Mark]:
    """Yield where the worker's bucket changes. The sort is stable: of marks at one time the last yielded wins."""
    yield _Mark(worker.started_at, Bucket.STARTING)
    if worker.ready_at is not None:
        yield _Mark(worker.ready_at, Bucket.WAITING)
    left_at: float | None = None  # when the last world that it belonged to had committed its last step
    for world, following in zip(worlds, (*worlds[1:], None), strict=True):
        if worker.worker_id not in world.members:
            continue
        begun_at = max(world.begun_at, left_at if left_at is not None else worker.ready_at or world.begun_at)
        yield _Mark(begun_at, Bucket.REFORMING)
        committed = by_world.get(world.membership_epoch, _WorldSteps()).steps
        previous = begun_at
        if committed:
            previous = max(world.sealed_at, committed[0].committed_at - _usual_s(committed), begun_at)
        for step in committed:
            kept = final[step.step] is step
            yield _Mark(previous, Bucket.TRAINING if kept else Bucket.REDONE)
            previous = left_at = step.committed_at
        if committed:
            stays = following is None or worker.worker_id in following.members
            yield _Mark(previous, Bucket.REDONE if following is not None and stays else Bucket.IDLE)
        if following is not None and worker.worker_id not in following.members:
            yield _Mark(max(previous, following.begun_at), Bucket.WAITING)
    if worker.done_at is not None:
        yield _Mark(worker.done_at, Bucket.IDLE)


def _spent(worker: WorkerSpan, marks: Sequence[_Mark]) -> Iterator[tuple[Bucket, float]]:
    """Yield the time in each bucket; whatever the marks say, it sums to the worker's life."""
    ended_at = max(worker.started_at, worker.ended_at)
    cuts = [min(max(mark.at, worker.started_at), ended_at) for mark in marks] + [ended_at]
    finished = bisect_right(cuts, worker.done_at) if worker.done_at is not None else len(marks)
    for index, mark in enumerate(marks):
        yield (Bucket.IDLE if index >= finished else mark.bucket), cuts[index + 1] - cuts[index]


def _usual_s(committed: Sequence[CommittedStep]) -> float:
    intervals = _WorldSteps(list(committed)).intervals()
    return statistics.median(intervals) if intervals else float("inf")


def _possible_rate(worlds: Sequence[WorldSpan], by_world: Mapping[int, _WorldSteps]) -> float:
    rates = []
    for world in worlds:
        committed = by_world.get(world.membership_epoch, _WorldSteps())
        for step, interval_s in zip(committed.steps[1:], committed.intervals(), strict=True):
            if interval_s > 0:
                rates.append(step.samples / interval_s / len(world.members))
    return statistics.median(rates) if rates else 0.0
