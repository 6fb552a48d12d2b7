"""What a controller that takes over knows: the job's state, read off the records that are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from elastic_train.core.bounds import Backoff, Bounds
from elastic_train.core.effects import Ending, FinishJob
from elastic_train.core.events import Event, WorkerFailed
from elastic_train.core.records import (
    Cause,
    ControllerRecord,
    Stage,
    WorkerId,
    WorkerRecord,
    WorkerStatus,
    WorldRecord,
)
from elastic_train.core.world import Change, JobState, Life, Phase, Worker, World

_LIFE = {
    WorkerStatus.STARTING: Life.STARTING,
    WorkerStatus.READY: Life.READY,
    WorkerStatus.LEAVING: Life.LEAVING,
    WorkerStatus.FINISHED: Life.FINISHED,
    WorkerStatus.FAILED: Life.LEAVING,
}
_PHASE = {"succeeded": Phase.SUCCEEDED, "failed": Phase.FAILED, "stopped": Phase.STOPPED}
_ENDING = {"succeeded": Ending.FINISHED, "failed": Ending.USER_CODE, "stopped": Ending.STOPPED}


@dataclass(frozen=True, slots=True)
class Remains:
    """The records of a job that a controller finds.

    `workers` are in the order of their appearance; `ours` are those that this controller's own launcher runs, whether
    or not they have a record; `fence` is the revision of `world` if it is sealed.
    """

    world: WorldRecord | None
    fence: int
    workers: tuple[WorkerRecord, ...]
    memo: ControllerRecord | None
    ours: frozenset[WorkerId] = frozenset()
    probe: int = 0  # number of the newest probe; workers answer higher ones only


def resume(remains: Remains, bounds: Bounds, at_s: float) -> JobState:
    """Return the state of a job from what the controller before left.

    A sealed world is taken as running; what befell it meanwhile shows by its members' records, or will. An open
    proposal is given up and made again: who had left the world before for it cannot be told. Nor, of an unplanned one,
    can be told who was in the world before: those who acknowledged anything, and do not join, were.
    """
    world, memo = remains.world, remains.memo
    members = _members(remains)
    workers = {worker.worker_id: worker for worker in _workers(remains, members, at_s)}
    state = replace(
        JobState.initial(bounds, at_s),
        wanted=bounds.num_workers if memo is None else min(max(memo.wanted, bounds.min_workers), bounds.max_workers),
        launched=max(0 if memo is None else memo.launched, *(_number(worker_id) for worker_id in workers), 0),
        workers=workers,
        census=Counter(worker.life for worker in workers.values()),
        appeared=len(workers),
        probes=remains.probe,
        failures=Backoff(0 if memo is None else memo.failures, at_s),
    )
    if memo is not None and memo.stop_reason is not None:
        state = replace(state, stop_s=at_s, stop_reason=memo.stop_reason)
    if world is None:
        return state
    fence = remains.fence if world.standing is None else world.standing.fence
    state = replace(state, membership_epoch=world.membership_epoch, fence=fence)
    if world.stage is Stage.ENDED:
        return replace(state, phase=_PHASE.get(world.outcome, Phase.STOPPED))
    if members or world.stage is Stage.SEALED:
        number = world.membership_epoch if world.standing is None else world.standing.membership_epoch
        sealed = replace(world, membership_epoch=number, stage=Stage.SEALED, members=members, standing=None)
        state = replace(state, world=World(sealed, at_s), short_s=None)
    return _resume_phase(state, world, at_s)


def outcome(remains: Remains) -> FinishJob:
    """Return how a job ended whose world is marked as ended."""
    assert remains.world is not None
    failure = next((record.failure for record in remains.workers if record.failure is not None), None)
    ending = _ENDING.get(remains.world.outcome, Ending.STOPPED)
    return FinishJob(ending, remains.world.reason, failure if ending is Ending.USER_CODE else None)


def unheard(remains: Remains, at_s: float) -> list[Event]:
    """Return the failures that no controller has counted yet: as far as can be told, those while none was counted."""
    if remains.memo is not None and remains.memo.failures:
        return []
    return [
        WorkerFailed(at_s=at_s, worker_id=record.worker_id, failure=record.failure)
        for record in remains.workers
        if record.failure is not None
    ]


def _resume_phase(state: JobState, world: WorldRecord, at_s: float) -> JobState:
    if state.world is None:
        return state
    present = {worker.worker_id for worker in state.workers.values() if worker.life in (Life.MEMBER, Life.FINISHED)}
    lost = [member for member in state.world.members if member not in present]
    if world.stage is Stage.SEALED and not lost:
        return replace(state, phase=Phase.RUNNING)
    reason = f"a new controller took over; {', '.join(lost) or 'nobody'} is missing"
    change = Change(at_s, Cause.LOSS if lost else world.cause, (reason,))
    if world.cause is Cause.STOP and state.stop_s is None:
        state = replace(state, stop_s=at_s, stop_reason=world.reason)
    return replace(state, phase=Phase.BROKEN, due_s=at_s, change=change)


def _members(remains: Remains) -> tuple[WorkerId, ...]:
    """Return the members of the newest sealed world, as far as they can be told, most senior first."""
    world = remains.world
    if world is None:
        return ()
    if world.stage is Stage.SEALED:
        return world.members
    if world.standing is not None:
        return world.standing.members
    staying = [member for member in world.members if member not in world.joining]
    leaving = [
        record.worker_id
        for record in remains.workers
        if record.acknowledged and record.worker_id not in world.members and record.status in _MEMBERS
    ]
    return (*staying, *leaving)


_MEMBERS = (WorkerStatus.READY, WorkerStatus.FINISHED)


def _workers(remains: Remains, members: Iterable[WorkerId], at_s: float) -> Iterable[Worker]:
    chosen = frozenset(members)
    for number, record in enumerate(remains.workers, start=1):
        life = _LIFE[record.status]
        if life is Life.READY and record.worker_id in chosen:
            life = Life.MEMBER
        elif life is Life.FINISHED and record.worker_id not in chosen:
            life = Life.LEAVING
        yield Worker(
            worker_id=record.worker_id,
            life=life,
            since_s=at_s,
            began_s=at_s,
            ours=record.worker_id in remains.ours,
            appeared=number,
            node=record.node,
        )
    known = {record.worker_id for record in remains.workers}
    for worker_id in sorted(remains.ours - known):
        yield Worker(worker_id, Life.LAUNCHED, since_s=at_s, began_s=at_s, ours=True)


def _number(worker_id: WorkerId) -> int:
    """Return the number in a name that we gave, else 0."""
    digits = worker_id[1:]
    return int(digits) if worker_id.startswith("w") and digits.isdecimal() else 0
