"""The story of one run, put together from observations: what the result and the goodput account are made of. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from elastic_train.core.goodput import CommittedStep, Goodput, WorkerSpan, WorldSpan, account
from elastic_train.core.records import WorkerId, WorkerStatus
from elastic_train.trainer.observations import (
    CheckpointSeen,
    FailureSeen,
    Observation,
    PhaseSeen,
    StepSeen,
    WorkerSeen,
    WorldProposed,
    WorldSealed,
)
from elastic_train.trainer.result import MembershipChange, StepMetrics

_DONE = (WorkerStatus.FINISHED, WorkerStatus.FAILED, WorkerStatus.LEAVING)


@dataclass(slots=True)
class _Life:
    started_at: float
    ready_at: float | None = None
    done_at: float | None = None
    ended_at: float | None = None


@dataclass(slots=True)
class _World:
    proposed: WorldProposed
    sealed_at: float | None = None
    first_step_at: float | None = None


@dataclass(slots=True)
class History:
    """Everything that was observed, in the order of time.

    Args:
        begun_at: When the run began, on the clock of the observations.
    """

    begun_at: float
    steps: list[StepSeen] = field(default_factory=list)
    checkpoint: CheckpointSeen | None = None
    failures: list[FailureSeen] = field(default_factory=list)
    _lives: dict[WorkerId, _Life] = field(default_factory=dict)
    _worlds: dict[int, _World] = field(default_factory=dict)
    _paused_at: list[float] = field(default_factory=list)

    def apply(self, seen: Observation) -> None:
        """Take in one observation."""
        match seen:
            case WorkerSeen():
                self._apply_worker(seen)
            case WorldProposed():
                self._worlds[seen.membership_epoch] = _World(seen)
            case WorldSealed():
                if seen.membership_epoch in self._worlds:
                    self._worlds[seen.membership_epoch].sealed_at = seen.at
            case PhaseSeen(phase="paused"):
                self._paused_at.append(seen.at)
            case StepSeen():
                self.steps.append(seen)
                world = self._worlds.get(seen.membership_epoch)
                if world is not None and world.first_step_at is None:
                    world.first_step_at = seen.at
            case CheckpointSeen():
                self.checkpoint = seen
            case FailureSeen():
                self.failures.append(seen)
            case _:
                pass

    def committed_steps(self) -> int:
        """Return how many different steps were committed."""
        return len({step.version for step in self.steps})

    def metrics_history(self) -> tuple[StepMetrics, ...]:
        """Return the metrics of every committed step, each step once, as it was committed last."""
        final = {step.version: step for step in self.steps if step.metrics}
        return tuple(self.step_metrics(step) for _, step in sorted(final.items()))

    def step_metrics(self, step: StepSeen) -> StepMetrics:
        """Return one step as users see it."""
        return StepMetrics(
            step=step.step,
            metrics=step.metrics,
            world_size=self._world_size(step.membership_epoch),
            membership_epoch=step.membership_epoch,
            at_s=step.at - self.begun_at,
        )

    def membership_history(self) -> tuple[MembershipChange, ...]:
        """Return every membership epoch that was formed."""
        return tuple(
            MembershipChange(
                membership_epoch=number,
                world_size=len(world.proposed.members),
                members=world.proposed.members,
                cause=world.proposed.cause,
                reason=world.proposed.reason,
                begun_at_s=world.proposed.at - self.begun_at,
                change_s=None if world.first_step_at is None else world.first_step_at - world.proposed.at,
            )
            for number, world in sorted(self._worlds.items())
            if world.sealed_at is not None
        )

    def goodput(self, now: float) -> Goodput:
        """Account for all worker time until `now`."""
        return account(
            workers=[
                WorkerSpan(
                    worker_id,
                    life.started_at,
                    now if life.ended_at is None else life.ended_at,
                    life.ready_at,
                    life.done_at,
                )
                for worker_id, life in self._lives.items()
            ],
            worlds=[
                WorldSpan(number, world.proposed.members, world.proposed.at, world.sealed_at)
                for number, world in self._worlds.items()
                if world.sealed_at is not None
            ],
            steps=[CommittedStep(step.version, step.membership_epoch, step.at, step.samples) for step in self.steps],
            paused_at=self._paused_at,
        )

    def _apply_worker(self, seen: WorkerSeen) -> None:
        life = self._lives.setdefault(seen.worker_id, _Life(started_at=seen.at))
        if seen.status is WorkerStatus.STARTING:
            life.started_at = seen.at  # asked for first, its process begun later
        if seen.status is WorkerStatus.READY and life.ready_at is None:
            life.ready_at = seen.at
        elif seen.status in _DONE and life.done_at is None:
            life.done_at = seen.at
        elif seen.status is None and life.ended_at is None:
            life.ended_at = seen.at

    def _world_size(self, membership_epoch: int) -> int:
        world = self._worlds.get(membership_epoch)
        return len(world.proposed.members) if world is not None else 0
