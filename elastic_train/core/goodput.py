"""Where the workers' paid time went.

Goodput in the sense of Google's "ML Productivity Goodput" (2024): the part of the time paid for that moved the final
result forward. Every second of every worker process, from its start to its end, falls into exactly one bucket, so the
buckets sum to the time paid (invariant I8). Pure: times in, account out.

A worker's time is cut at marks: it started, became ready, its world was begun, a step was committed, its world was
broken or superseded, it finished, it ended. Between two marks it is in one bucket.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

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
    """One step that a world committed; `step` is the same whenever it is run again."""

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


_Steps = Mapping[int, list[CommittedStep]]
"""The steps of each membership epoch in the order of their commits."""


def account(
    workers: Iterable[WorkerSpan],
    worlds: Iterable[WorldSpan],
    steps: Sequence[CommittedStep],
    paused_at: Iterable[float] = (),
) -> Goodput:
    """Sort every second of every worker into a bucket.

    Args:
        workers: Each worker once.
        worlds: The sealed worlds, in any order.
        steps: The commits in the order in which they happened.
        paused_at: When the job fell below its minimum; such a pause ends where the next world is begun.
    """
    ordered = sorted(worlds, key=lambda world: world.membership_epoch)
    by_world: dict[int, list[CommittedStep]] = {}
    for step in steps:
        by_world.setdefault(step.membership_epoch, []).append(step)
    final = {step.step: step for step in steps}  # the last commit of a step is the one that counts
    pauses = tuple(paused_at)
    seconds = dict.fromkeys(Bucket, 0.0)
    for worker in workers:
        marks = [*_marks(worker, ordered, by_world, final), *_pauses(worker, pauses)]
        for bucket, spent_s in _spent(worker, marks):
            seconds[bucket] += spent_s
    return Goodput(
        seconds=seconds,
        samples=sum(step.samples for step in final.values()),
        steps_redone=len(steps) - len(final),
        possible_rate=_possible_rate(ordered, by_world),
    )


def _marks(
    worker: WorkerSpan, worlds: Sequence[WorldSpan], by_world: _Steps, final: Mapping[int, CommittedStep]
) -> Iterator[_Mark]:
    """Yield where the worker's bucket changes, except for pauses and its end."""
    yield _Mark(worker.started_at, Bucket.STARTING)
    if worker.ready_at is None:
        return
    yield _Mark(worker.ready_at, Bucket.WAITING)
    free_at = worker.ready_at  # from when on it can have worked on the next world
    for world in worlds:
        if worker.worker_id not in world.members:
            continue
        begun_at = max(world.begun_at, free_at)
        yield _Mark(begun_at, Bucket.REFORMING)
        committed = by_world.get(world.membership_epoch, [])
        if not committed:
            continue
        begins_at = max(begun_at, world.sealed_at, committed[0].committed_at - _usual_s(committed))
        for step in committed:
            yield _Mark(begins_at, Bucket.TRAINING if final[step.step] is step else Bucket.REDONE)
            begins_at = step.committed_at
        yield _Mark(begins_at, Bucket.IDLE if world is worlds[-1] else Bucket.REDONE)  # its last step was aborted
        free_at = begins_at


def _pauses(worker: WorkerSpan, paused_at: Iterable[float]) -> list[_Mark]:
    ready_at = worker.ready_at
    return [] if ready_at is None else [_Mark(at, Bucket.WAITING) for at in paused_at if at >= ready_at]


def _spent(worker: WorkerSpan, marks: Iterable[_Mark]) -> Iterator[tuple[Bucket, float]]:
    """Yield the time in each bucket; whatever the marks say, it sums to the worker's life."""
    ended_at = max(worker.started_at, worker.ended_at)
    done_at = min(max(worker.done_at, worker.started_at), ended_at) if worker.done_at is not None else ended_at
    at, bucket = worker.started_at, Bucket.STARTING
    for mark in sorted(marks, key=lambda mark: mark.at):  # stable: of marks at one time the last yielded wins
        cut = min(max(mark.at, at), done_at)
        yield bucket, cut - at
        if mark.at <= done_at:
            bucket = mark.bucket
        at = cut
    yield bucket, done_at - at
    yield Bucket.IDLE, ended_at - done_at


def _intervals(committed: Sequence[CommittedStep]) -> list[float]:
    return [after.committed_at - before.committed_at for before, after in pairwise(committed)]


def _usual_s(committed: Sequence[CommittedStep]) -> float:
    intervals = _intervals(committed)
    return statistics.median(intervals) if intervals else float("inf")


def _possible_rate(worlds: Iterable[WorldSpan], by_world: _Steps) -> float:
    rates: list[float] = []
    for world in worlds:
        committed = by_world.get(world.membership_epoch, [])
        for step, interval_s in zip(committed[1:], _intervals(committed), strict=False):
            if interval_s > 0:
                rates.append(step.samples / interval_s / len(world.members))
    return statistics.median(rates) if rates else 0.0
