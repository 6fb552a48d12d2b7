"""Rules about having the right workers: launches, starts, resizes, drains, and planned changes of the world."""

from __future__ import annotations

from elastic_train.core.bounds import Backoff
from elastic_train.core.draft import Draft
from elastic_train.core.effects import LaunchWorkers
from elastic_train.core.events import DrainRequested, ResizeRequested, WorkerAppeared, WorkerReady
from elastic_train.core.evolve import evolve
from elastic_train.core.forming import admission_s, choose, propose
from elastic_train.core.losing import bury, revive
from elastic_train.core.records import Cause, WorkerId
from elastic_train.core.world import Change, Drain, JobState, Life, Phase, Worker

_OUTSIDE = (Life.LAUNCHED, Life.STARTING, Life.READY)


# ---------------------------------------------------------------------- a worker's way in


def appear(d: Draft, event: WorkerAppeared) -> None:
    """Note a worker's first record."""
    if event.worker_id in d.state.gone:
        d.say(f"{event.worker_id} is known to be gone")
        return
    known = d.state.workers.get(event.worker_id)
    if known is not None and known.life is not Life.LAUNCHED:
        d.say(f"{event.worker_id} is known")
        return
    if known is None:
        known = Worker(event.worker_id, Life.STARTING, d.now_s, began_s=d.now_s, ours=False)
    number = d.state.appeared + 1
    d.state = evolve(d.state, appeared=number)
    d.put(evolve(known, life=Life.STARTING, since_s=d.now_s, appeared=number, node=event.node))
    d.scan_by(d.now_s + d.bounds.ready_timeout_s)
    d.say(f"{event.worker_id} starts" + (f" on {event.node}" if event.node else ""))


def welcome(d: Draft, event: WorkerReady) -> None:
    """Note that a worker stands at its first step."""
    revive(d, event.worker_id)
    appear_first = event.worker_id not in d.state.workers and event.worker_id not in d.state.gone
    if appear_first:
        appear(d, WorkerAppeared(at_s=event.at_s, worker_id=event.worker_id))
    worker = d.state.workers.get(event.worker_id)
    if worker is None or worker.life not in (Life.LAUNCHED, Life.STARTING):
        d.say(f"{event.worker_id} is ready, which is known or too late")
        return
    d.put(evolve(worker, life=Life.READY, since_s=d.now_s))
    d.state = evolve(d.state, start_failures=Backoff())
    d.say(f"{event.worker_id} is ready")


def scan(d: Draft) -> None:
    """End whoever has been starting or leaving for too long."""
    bounds = d.bounds
    patience = {
        Life.LAUNCHED: (bounds.start_timeout_s, "wrote no record"),
        Life.STARTING: (bounds.ready_timeout_s, "did not come to its first step"),
        Life.LEAVING: (bounds.leave_timeout_s, "was to leave, but did not exit"),
    }
    d.state = evolve(d.state, scan_s=None)
    for worker in tuple(d.state.workers.values()):
        if worker.life not in patience:
            continue
        limit_s, failing = patience[worker.life]
        verdict = f"{failing} within {limit_s:.0f} s"
        if d.now_s < worker.since_s + limit_s:
            d.scan_by(worker.since_s + limit_s)
        elif worker.life is Life.LEAVING:
            d.kill(worker.worker_id, f"{worker.worker_id} {verdict}")
            d.say(f"{worker.worker_id} {verdict}")
        else:
            bury(d, [worker.worker_id], Cause.LOSS, verdict)


# ---------------------------------------------------------------------- launching


def shortage(state: JobState) -> int:
    """Return how many more workers are wanted than there are or will be; negative: fewer."""
    present = sum(state.census.get(life, 0) for life in (*_OUTSIDE, Life.MEMBER))
    return state.wanted - (present - len(state.draining))


def may_launch(state: JobState) -> bool:
    """Say whether new workers make sense: not once the job nears its end."""
    return state.stop_s is None and not state.census.get(Life.FINISHED, 0)


def staff(d: Draft) -> None:
    """Launch what is short and withdraw what is too many, as far as our launcher is concerned."""
    _release_drained(d)
    short = shortage(d.state)
    if short == 0 or d.bounds.capacity == 0 or not may_launch(d.state):
        return
    if short < 0:
        _withdraw(d, -short)
        return
    if d.now_s < d.state.launch_s or d.state.phase in (Phase.BROKEN, Phase.FORMING):
        return  # what is there goes first: a start would take the machine from those who re-form
    if d.bounds.capacity is not None:
        short = min(short, _room(d, d.bounds.capacity, short))
    if short > 0:
        _launch(d, short)


def _launch(d: Draft, count: int) -> None:
    first = d.state.launched + 1
    names = tuple(WorkerId(f"w{number:04d}") for number in range(first, first + count))
    d.state = evolve(d.state, launched=d.state.launched + count)
    for name in names:
        d.put(Worker(name, Life.LAUNCHED, d.now_s, began_s=d.now_s, ours=True))
    d.scan_by(d.now_s + d.bounds.start_timeout_s)
    d.do(LaunchWorkers(names))
    d.say(f"{names[0]} is launched" if count == 1 else f"{names[0]} to {names[-1]} are launched")


def _room(d: Draft, capacity: int, short: int) -> int:
    """Return how many more our launcher can run; a paused job does not wait for those that are to leave."""
    ours = [worker for worker in d.state.workers.values() if worker.ours]
    room = capacity - len(ours)
    if room < short and d.state.phase is Phase.PAUSED:
        stay = frozenset(choose(d, planned=False))
        for worker in ours:
            leaving = worker.life is Life.LEAVING or (worker.drain is not None and worker.worker_id not in stay)
            if leaving and room < short:
                d.kill(worker.worker_id, f"{worker.worker_id} is to leave, and its replacement needs its place")
                room += 1
    return room


def _release_drained(d: Draft) -> None:
    """End those of our drained workers that have no part in any world, and so no state."""
    for worker_id in sorted(d.state.draining):
        worker = d.state.workers[worker_id]
        proposed = d.state.proposal is not None and worker_id in d.state.proposal.members
        if worker.ours and worker.life in _OUTSIDE and not proposed and worker.drain is not None:
            d.kill(worker_id, worker.drain.reason)


def _withdraw(d: Draft, surplus: int) -> None:
    """End the youngest of our workers that are in no world yet."""
    if not d.count(*_OUTSIDE):
        return
    proposed = frozenset(() if d.state.proposal is None else d.state.proposal.members)
    outside = [
        worker
        for worker in d.state.workers.values()
        if worker.ours and worker.life in _OUTSIDE and worker.drain is None and worker.worker_id not in proposed
    ]
    for worker in sorted(outside, key=_age, reverse=True)[:surplus]:
        d.kill(worker.worker_id, f"{d.state.wanted} workers are wanted, {worker.worker_id} is one too many")
        d.say(f"{worker.worker_id} is not wanted any more")


def _age(worker: Worker) -> tuple[float, WorkerId]:
    return worker.began_s, worker.worker_id


# ---------------------------------------------------------------------- requests


def resize(d: Draft, event: ResizeRequested) -> None:
    """Change the number of workers that are wanted."""
    before, bounds = d.state.wanted, d.bounds
    problem = "the job is being stopped" if d.state.stop_s is not None else bounds.refusal(event.workers)
    if problem:
        d.answer(event.request_id, accepted=False, message=f"cannot resize to {event.workers}: {problem}")
        return
    d.state = evolve(d.state, wanted=event.workers, growths=Backoff())
    if event.workers != before and d.state.phase is Phase.RUNNING:
        d.state = evolve(d.state, change=None)  # an earlier wish, not begun, is overtaken
        d.sign(Cause.RESIZE, f"resize from {before} to {event.workers} workers was asked for")
    note = " (others start the workers of this job)" if bounds.capacity == 0 and event.workers > before else ""
    d.answer(event.request_id, accepted=True, message=f"resizing from {before} to {event.workers} workers{note}")


def drain(d: Draft, event: DrainRequested) -> None:
    """Mark workers that shall leave, or will be taken."""
    known = [d.state.workers[worker_id] for worker_id in event.worker_ids if worker_id in d.state.workers]
    known = [worker for worker in known if worker.life is not Life.LEAVING]
    names = ", ".join(event.worker_ids)
    if not known:
        d.answer(event.request_id, accepted=False, message=f"cannot drain {names}: no such worker in this job")
        return
    reason = event.reason or "a drain was asked for"
    due_s = _drain_due_s(d, event.deadline_at_s)
    for worker in known:
        _drain_one(d, worker, due_s, reason)
    if d.state.phase is Phase.RUNNING and any(worker.life is Life.MEMBER for worker in known):
        d.sign(Cause.DRAIN, f"{names}: {reason}")
    d.answer(event.request_id, accepted=True, message=f"draining {names}: {reason}")


def _drain_one(d: Draft, worker: Worker, due_s: float, reason: str) -> None:
    if worker.drain is not None:
        due_s = min(due_s, worker.drain.due_s)
    d.put(evolve(worker, drain=Drain(due_s, reason)))
    if worker.life is not Life.FINISHED:
        d.state = evolve(d.state, draining=d.state.draining | {worker.worker_id})


def _drain_due_s(d: Draft, deadline_at_s: float | None) -> float:
    """Return until when a replacement is waited for."""
    if deadline_at_s is not None:
        return max(d.now_s, deadline_at_s - d.bounds.drain_lead_s)
    capacity = d.bounds.capacity
    hopeless = capacity is not None and sum(worker.ours for worker in d.state.workers.values()) >= capacity
    if hopeless and not d.count(*_OUTSIDE) and d.count(Life.MEMBER) > d.bounds.min_workers:
        return d.now_s
    return d.now_s + d.bounds.drain_wait_s


# ---------------------------------------------------------------------- planned changes


def plan(d: Draft) -> None:
    """Begin a planned change if one is due (RUNNING)."""
    state = d.state
    d.wait_until(None)
    if state.sealing is not None:  # its fence, which a proposal must name, is not known yet
        return
    if state.stop_s is not None:
        d.state = evolve(state, change=Change(state.stop_s, Cause.STOP, (state.stop_reason,)))
        propose(d, (), Cause.STOP, planned=True)
        return
    members, spare = d.count(Life.MEMBER), d.count(Life.READY)
    complete = members == state.wanted or (members < state.wanted and not spare)
    if d.is_finishing or (complete and not state.draining):
        return
    target, present = choose(d, planned=True), frozenset(() if state.world is None else state.world.members)
    added, removed = frozenset(target) - present, present - frozenset(target)
    if not added and not removed:
        d.wait_until(_next_drain_s(d))
        return
    admit_s = _admission_s(d) if added else d.now_s
    forced = any(d.state.workers[member].drain is None for member in removed) or _drains_due(d)
    if d.now_s < admit_s and not forced:
        drain_s = _next_drain_s(d)
        d.wait_until(admit_s if drain_s is None else min(admit_s, drain_s))
        return
    _announce(d, target, added, removed)


def _announce(d: Draft, target: tuple[WorkerId, ...], added: frozenset[WorkerId], removed: frozenset[WorkerId]) -> None:
    """Propose a planned change under the cause that fits it best."""
    drains = {who: drain.reason for who in sorted(removed) if (drain := d.state.workers[who].drain) is not None}
    cause = Cause.DRAIN if drains else Cause.RESIZE if removed else Cause.JOIN
    if drains and d.state.change is None:
        d.sign(cause, ", ".join(f"{worker_id}: {reason}" for worker_id, reason in drains.items()))
    if added:
        first_s = min(d.state.workers[joiner].since_s for joiner in added)
        d.sign(cause, f"{_names(added)} ready to join")
        assert d.state.change is not None
        if len(d.state.change.reasons) == 1:  # the joiners' readiness was the first sign
            d.state = evolve(d.state, change=evolve(d.state.change, first_sign_s=first_s))
    elif d.state.change is None:
        d.sign(cause, f"{_names(removed)} to leave")
    propose(d, target, cause, planned=True)


def _names(workers: frozenset[WorkerId]) -> str:
    listed = sorted(workers)
    verb = "is" if len(listed) == 1 else "are"
    shown = ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
    return f"{shown} {verb}"


def _admission_s(d: Draft) -> float:
    """Return when joiners may come in: after others that are about to be ready, and not too often."""
    state, bounds = d.state, d.bounds
    assert state.world is not None
    ready = [worker.since_s for worker in state.workers.values() if worker.life is Life.READY and worker.drain is None]
    room = state.wanted - d.count(Life.MEMBER) + len(state.draining)
    batch_s = bounds.join_batch_s if len(ready) < room and d.count(Life.LAUNCHED, Life.STARTING) else 0.0
    return max(
        min(ready) + batch_s,
        state.world.sealed_at_s + state.growths.delay_s(bounds.join_batch_s, bounds.join_delay_max_s),
        admission_s(d),
    )


def _member_drains(d: Draft) -> list[Drain]:
    known = (d.state.workers[worker_id] for worker_id in d.state.draining)
    return [worker.drain for worker in known if worker.life is Life.MEMBER and worker.drain is not None]


def _next_drain_s(d: Draft) -> float | None:
    return min((drain.due_s for drain in _member_drains(d) if drain.due_s > d.now_s), default=None)


def _drains_due(d: Draft) -> bool:
    return any(drain.due_s <= d.now_s for drain in _member_drains(d))
