"""A worker that others started, and that was taken for lost too soon, comes back."""

from __future__ import annotations

from dataclasses import replace

from elastic_train.core.bounds import Bounds
from elastic_train.core.effects import ProbeWorld, ProposeWorld
from elastic_train.core.events import Event, Loss, Tick, WorkerAcknowledged, WorkerLost, WorkerReady, WorldSuspected
from elastic_train.core.membership import Transition, step, wake_at
from elastic_train.core.records import Stage, Suspicion, WorkerId, WorkerRecord, WorkerStatus, WorldRecord
from elastic_train.core.recovery import Remains, resume
from elastic_train.core.world import JobState, Life, Phase

A, B = WorkerId("x1"), WorkerId("x2")
BOUNDS = Bounds(min_workers=1, max_workers=4, num_workers=2, capacity=0)


def _feed(state: JobState, *events: Event) -> Transition:
    transition = step(state, events[0], BOUNDS)
    for event in events[1:]:
        transition = step(transition.state, event, BOUNDS)
    return transition


def _unanswered() -> JobState:
    """Return a job whose two members, started by others, did not answer the proposal of membership epoch 1 in time."""
    ready = _feed(
        JobState.initial(BOUNDS, 0.0), WorkerReady(at_s=1.0, worker_id=A), WorkerReady(at_s=1.0, worker_id=B)
    ).state
    assert ready.phase is Phase.FORMING
    late_s = wake_at(ready, BOUNDS)
    assert late_s is not None
    silent = _feed(ready, Tick(at_s=late_s)).state
    assert silent.phase is Phase.FORMING, "that nobody answers may be our own deafness"
    last_s = wake_at(silent, BOUNDS)
    assert last_s is not None
    return _feed(silent, Tick(at_s=last_s)).state


def test_its_late_answer_brings_it_back() -> None:
    state = _unanswered()
    assert state.phase is Phase.GATHERING
    assert not state.workers
    back = _feed(state, WorkerAcknowledged(at_s=13.0, worker_id=A, membership_epoch=1))
    assert A in back.state.workers
    assert A not in back.state.gone
    assert "lives after all" in back.reason
    formed = _feed(back.state, WorkerAcknowledged(at_s=13.0, worker_id=B, membership_epoch=1))
    proposals = [effect for effect in formed.effects if isinstance(effect, ProposeWorld)]
    assert [proposal.record.members for proposal in proposals] == [(A, B)]


def test_it_does_not_come_back_once_its_lease_has_ended() -> None:
    state = _feed(_unanswered(), WorkerLost(at_s=12.5, worker_id=A, why=Loss.LEASE)).state
    assert A not in _feed(state, WorkerAcknowledged(at_s=13.0, worker_id=A, membership_epoch=1)).state.workers


def test_it_comes_back_as_a_joiner_when_a_world_was_formed_without_it() -> None:
    newcomer = WorkerId("x3")
    ready = WorkerReady(at_s=12.6, worker_id=newcomer)
    forming = _feed(_unanswered(), ready, Tick(at_s=20.0)).state
    assert forming.membership_epoch == 2
    sealed = _feed(forming, WorkerAcknowledged(at_s=20.1, worker_id=newcomer, membership_epoch=2)).state
    back = _feed(sealed, WorkerAcknowledged(at_s=21.0, worker_id=A, membership_epoch=1)).state
    assert back.workers[A].life is Life.READY


def test_a_controller_that_takes_over_asks_under_a_number_that_was_never_asked_before() -> None:
    """Workers answer probes with higher numbers only: one that was used already would find them all silent."""
    world = WorldRecord(3, Stage.SEALED, (A, B))
    records = tuple(WorkerRecord(who, WorkerStatus.READY, acknowledged=3, probe=4) for who in (A, B))
    remains = Remains(world, 17, records, None, probe=5)
    state = resume(remains, replace(BOUNDS), 1.0)
    assert {worker.life for worker in state.workers.values()} == {Life.MEMBER}
    suspicion = Suspicion(A, 3, broken=False, waited_s=2.0, version=1)
    probes = [
        effect
        for effect in _feed(state, WorldSuspected(at_s=2.0, suspicion=suspicion)).effects
        if isinstance(effect, ProbeWorld)
    ]
    assert [probe.record.number for probe in probes] == [6]
