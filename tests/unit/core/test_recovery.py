from __future__ import annotations

from dataclasses import replace

from elastic_train.core.bounds import Bounds
from elastic_train.core.effects import Ending, LaunchWorkers, NoteMembershipEpoch, ProposeWorld
from elastic_train.core.events import Event, Tick, WorkerAcknowledged, WorkerFailed, WorldPublished
from elastic_train.core.membership import Transition, step
from elastic_train.core.records import (
    Cause,
    ControllerRecord,
    Failure,
    Stage,
    Standing,
    WorkerId,
    WorkerRecord,
    WorkerStatus,
    WorldRecord,
)
from elastic_train.core.recovery import Remains, outcome, resume, unheard
from elastic_train.core.world import Life, Phase

BOUNDS = Bounds(1, 4, 2)
A, B, C = WorkerId("w0001"), WorkerId("w0002"), WorkerId("w0003")
SEALED = WorldRecord(7, Stage.SEALED, (A, B), cause=Cause.JOIN, reason="grew")
MEMO = ControllerRecord(wanted=2, launched=9)


def _record(worker_id: WorkerId, status: WorkerStatus = WorkerStatus.READY, acknowledged: int = 7) -> WorkerRecord:
    return WorkerRecord(worker_id, status, acknowledged=acknowledged)


def _left(world: WorldRecord | None, *workers: WorkerRecord, memo: ControllerRecord | None = MEMO) -> Remains:
    return Remains(world, 40, workers, memo)


def _first(remains: Remains, event: Event | None = None) -> Transition:
    return step(resume(remains, BOUNDS, 5.0), event or Tick(at_s=5.0), BOUNDS)


def test_nothing_left_means_a_new_job() -> None:
    transition = _first(_left(None, memo=None))
    assert transition.state.phase is Phase.GATHERING
    assert any(isinstance(effect, LaunchWorkers) for effect in transition.effects)


def test_a_whole_sealed_world_goes_on_as_it_is() -> None:
    transition = _first(_left(SEALED, _record(A), _record(B)))
    assert transition.state.phase is Phase.RUNNING
    assert transition.state.fence == 40
    assert not transition.effects


def test_a_sealed_world_with_a_missing_member_is_formed_anew_in_the_same_order() -> None:
    transition = _first(_left(SEALED, _record(B), _record(C, acknowledged=0)))
    (proposal,) = [effect for effect in transition.effects if isinstance(effect, ProposeWorld)]
    assert proposal.record.membership_epoch == 8
    assert proposal.record.members == (B, C)
    assert proposal.record.cause is Cause.LOSS
    assert "w0001" in proposal.record.reason


def test_an_open_proposal_is_made_again_among_those_who_were_in_the_world_before() -> None:
    planned = WorldRecord(8, Stage.PROPOSED, (A, C), (C,), planned=True, standing=Standing(7, (A, B), 40))
    unplanned = WorldRecord(8, Stage.PROPOSED, (A, C), (C,))
    _is_made_again(planned)
    _is_made_again(unplanned)


def _is_made_again(open_proposal: WorldRecord) -> None:
    state = resume(_left(open_proposal, _record(A), _record(B), _record(C, acknowledged=0)), BOUNDS, 5.0)
    assert {worker.worker_id for worker in state.workers.values() if worker.life is Life.MEMBER} == {A, B}
    transition = step(state, Tick(at_s=5.0), BOUNDS)
    (proposal,) = [effect for effect in transition.effects if isinstance(effect, ProposeWorld)]
    assert proposal.record.membership_epoch == 9
    assert not proposal.record.planned


def test_names_are_never_used_twice_by_another_controller() -> None:
    remains = _left(None, _record(WorkerId("w0012"), WorkerStatus.STARTING, 0), memo=ControllerRecord(2, launched=9))
    assert resume(remains, BOUNDS, 0.0).launched == 12
    assert resume(_left(None), BOUNDS, 0.0).launched == 9


def test_what_was_asked_of_the_controller_before_still_holds() -> None:
    memo = ControllerRecord(wanted=3, launched=9, failures=1, stop_reason="enough")
    state = resume(_left(SEALED, _record(A), _record(B), memo=memo), BOUNDS, 5.0)
    assert (state.wanted, state.failures.count, state.stop_reason) == (3, 1, "enough")
    assert _first(_left(SEALED, _record(A), _record(B), memo=memo)).state.phase is Phase.STOPPING


def test_a_stop_under_way_is_ended() -> None:
    stopping = WorldRecord(8, Stage.PROPOSED, (), planned=True, cause=Cause.STOP, reason="enough")
    memo = replace(MEMO, stop_reason="enough")
    state = resume(_left(stopping, _record(A), _record(B, WorkerStatus.LEAVING), memo=memo), BOUNDS, 5.0)
    formed = step(state, Tick(at_s=5.0), BOUNDS)
    assert formed.state.phase is Phase.FORMING
    acknowledged = WorkerAcknowledged(at_s=5.1, worker_id=A, membership_epoch=9)
    sealed = step(formed.state, acknowledged, BOUNDS)
    transition = step(sealed.state, WorldPublished(at_s=5.2, membership_epoch=9, fence=70), BOUNDS)
    assert transition.state.phase is Phase.STOPPING
    assert [type(effect) for effect in transition.effects] == [ProposeWorld, NoteMembershipEpoch]


def test_an_ended_job_stays_ended_and_says_how() -> None:
    failure = Failure("ValueError", "nan", "")
    ended = WorldRecord(7, Stage.ENDED, (A, B), reason="w0001 raised", outcome="failed")
    remains = _left(ended, replace(_record(A, WorkerStatus.FAILED), failure=failure))
    assert resume(remains, BOUNDS, 0.0).phase is Phase.FAILED
    assert outcome(remains).ending is Ending.USER_CODE
    assert outcome(remains).failure == failure


def test_a_failure_that_nobody_counted_is_told_again() -> None:
    failure = Failure("ValueError", "nan", "", membership_epoch=7)
    remains = _left(SEALED, replace(_record(A, WorkerStatus.FAILED), failure=failure), _record(B))
    (event,) = unheard(remains, 5.0)
    assert isinstance(event, WorkerFailed)
    assert _first(remains, event).state.phase is Phase.FAILED
    assert not unheard(replace(remains, memo=ControllerRecord(2, 9, failures=1)), 5.0)
