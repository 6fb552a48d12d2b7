"""Rules about ends: workers that leave, finish or fail, requests to stop, and what ends the job."""

from __future__ import annotations

from elastic_train.core.draft import Draft
from elastic_train.core.effects import Ending, FinishJob
from elastic_train.core.events import RequestNotUnderstood, StopRequested, WorkerFailed, WorkerFinished, WorkerLeft
from elastic_train.core.evolve import evolve
from elastic_train.core.forming import note_parting
from elastic_train.core.losing import is_left_out, part_badly
from elastic_train.core.records import Failure
from elastic_train.core.world import Life, Phase, Worker

_NEVER_STEPPED = Failure(
    error_type="elastic_train.errors.UsageError",
    message=(
        "the train function returned without taking a step; iterate over `state.steps(batches)` (or call `report`), "
        "so that there is something to train"
    ),
    traceback="",
)


def leave(d: Draft, event: WorkerLeft) -> None:
    """Let a worker go that left its loop at a step boundary."""
    worker = d.state.workers.get(event.worker_id)
    if worker is None or worker.life is Life.LEAVING:
        d.say(f"{event.worker_id} left, as expected")
        return
    if is_left_out(d, worker):
        note_parting(d)
    elif worker.life not in (Life.LAUNCHED, Life.STARTING):
        part_badly(d, worker, f"{event.worker_id} left without having been asked to")
        return
    d.dismiss(event.worker_id)
    d.say(f"{event.worker_id} left")


def finish(d: Draft, event: WorkerFinished) -> None:
    """Note that a worker's train function returned."""
    worker = d.state.workers.get(event.worker_id)
    if worker is None or worker.life in (Life.LEAVING, Life.FINISHED):
        d.say(f"{event.worker_id} finished, which no longer matters")
    elif worker.life is Life.MEMBER:
        d.move(event.worker_id, Life.FINISHED)
        d.state = evolve(d.state, draining=d.state.draining - {event.worker_id})
        d.say(f"{event.worker_id} finished")
    else:
        reason = f"{event.worker_id}: {_NEVER_STEPPED.message}"
        d.finish(Phase.FAILED, FinishJob(Ending.NEVER_STEPPED, reason, _NEVER_STEPPED))


def fail(d: Draft, event: WorkerFailed) -> None:
    """Count a train function's exception: the user's error, not the infrastructure's."""
    worker, failure = d.state.workers.get(event.worker_id), event.failure
    what = f"{event.worker_id} raised {failure.error_type}: {failure.message}"
    failures = d.state.failures.again(d.now_s, _attempt_began_s(d, worker, failure))
    d.state = evolve(d.state, failures=failures)
    if failures.count > d.bounds.max_failures:
        d.finish(Phase.FAILED, FinishJob(Ending.USER_CODE, what, failure))
        return
    what = f"{what} (failure {failures.count} of {d.bounds.max_failures} that are answered by another try)"
    if worker is None or worker.life is Life.LEAVING:
        d.say(what)
    else:
        part_badly(d, worker, what)


def _attempt_began_s(d: Draft, worker: Worker | None, failure: Failure) -> float:
    """Return when the try began that ended in this failure: workers of one world that raise together fail once."""
    world = d.state.world
    if world is not None and failure.membership_epoch == world.membership_epoch:
        return world.sealed_at_s
    return d.now_s if worker is None else worker.began_s


def stop(d: Draft, event: StopRequested) -> None:
    """Begin to end the job, because somebody wants it."""
    if d.state.stop_s is None:
        d.state = evolve(d.state, stop_s=d.now_s, stop_reason=event.reason or "a stop was asked for")
    d.answer(event.request_id, accepted=True, message="stopping after the current step")


def refuse(d: Draft, event: RequestNotUnderstood) -> None:
    """Turn down a request for what nobody here can do."""
    d.answer(event.request_id, accepted=False, message=event.problem)


# ---------------------------------------------------------------------- what ends the job


def end_if_done(d: Draft) -> None:
    """End the job if all finished, if it waits in vain, or if those who were asked to leave do not."""
    state, bounds = d.state, d.bounds
    if d.is_finishing and not d.count(Life.MEMBER):
        d.finish(Phase.SUCCEEDED, FinishJob(Ending.FINISHED, "the train function returned in every worker"))
    elif state.stop_s is not None and d.now_s >= state.stop_s + bounds.stop_timeout_s:
        reason = f"{state.stop_reason}; not all workers left within {bounds.stop_timeout_s:.0f} s"
        d.finish(Phase.STOPPED, FinishJob(Ending.STOPPED, reason))
    elif state.stop_s is not None and state.phase in (Phase.GATHERING, Phase.PAUSED):
        d.finish(Phase.STOPPED, FinishJob(Ending.STOPPED, state.stop_reason))
    elif _waits_in_vain(d):
        reason = (
            f"fewer than {bounds.min_workers} workers for more than {bounds.pause_timeout_s:.0f} s. "
            "Start more, lower min_workers, or run the job again later: it continues from its newest checkpoint"
        )
        d.finish(Phase.FAILED, FinishJob(Ending.NOT_ENOUGH_WORKERS, reason))


def _waits_in_vain(d: Draft) -> bool:
    state, timeout_s = d.state, d.bounds.pause_timeout_s
    if timeout_s is None or state.short_s is None or state.phase not in (Phase.GATHERING, Phase.PAUSED):
        return False
    return d.now_s >= state.short_s + timeout_s


def follow_stop(d: Draft) -> None:
    """End the job when all members have left (STOPPING)."""
    if not d.count(Life.MEMBER, Life.FINISHED):
        d.finish(Phase.STOPPED, FinishJob(Ending.STOPPED, d.state.stop_reason))
