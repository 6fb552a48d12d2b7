"""What a worker concludes from the records of the ``world`` key."""

from __future__ import annotations

import pytest

from elastic_train.core.records import Stage, Standing, WorkerId, WorldRecord
from elastic_train.worker.view import WorldView

A, B, C = WorkerId("w0001"), WorkerId("w0002"), WorkerId("w0003")


def _member(membership_epoch: int, worker_id: WorkerId = A) -> WorldView:
    """Return the view of a worker whose training thread is in a world of A and B."""
    view = WorldView(worker_id)
    view.learn(WorldRecord(membership_epoch, Stage.SEALED, (A, B)), revision=10)
    view.membership_epoch = membership_epoch
    return view


def test_an_unplanned_proposal_is_acknowledged_and_interrupts_at_once() -> None:
    view = _member(3)
    assert view.learn(WorldRecord(4, Stage.PROPOSED, (A,)), revision=11)
    assert view.interrupted
    assert view.planned is None


def test_a_planned_proposal_is_acknowledged_at_once_by_those_who_join_only() -> None:
    proposal = WorldRecord(4, Stage.PROPOSED, (A, B, C), joining=(C,), planned=True)
    member, joiner = _member(3), WorldView(C)
    assert not member.learn(proposal, revision=11)
    assert member.planned == proposal
    assert not member.interrupted
    assert joiner.learn(proposal, revision=11)


def test_a_member_that_has_not_taken_its_place_yet_does_not_acknowledge_the_change_after_it() -> None:
    view = WorldView(A)
    view.learn(WorldRecord(3, Stage.SEALED, (A, B)), revision=10)
    assert not view.learn(WorldRecord(4, Stage.PROPOSED, (A, B, C), joining=(C,), planned=True), revision=11)


@pytest.mark.parametrize("seen", [0, 2])
def test_a_world_that_a_planned_proposal_has_covered_up_is_formed_all_the_same(seen: int) -> None:
    """A watch that was cut lists the newest record only."""
    view = _member(seen) if seen else WorldView(A)
    standing = Standing(3, (A, B), fence=10)
    proposal = WorldRecord(4, Stage.PROPOSED, (A, B, C), joining=(C,), planned=True, standing=standing)
    assert not view.learn(proposal, revision=11)
    assert view.interrupted
    sealed = view.sealed_after(seen)
    assert sealed is not None
    assert (sealed.record.membership_epoch, sealed.record.members, sealed.fence) == (3, (A, B), 10)
    view.membership_epoch = 3
    assert view.planned == proposal


def test_whoever_is_not_in_the_world_that_was_covered_up_is_dismissed() -> None:
    view = _member(2, B)
    standing = Standing(3, (A,), fence=10)
    view.learn(WorldRecord(4, Stage.PROPOSED, (A, C), joining=(C,), planned=True, standing=standing), revision=11)
    assert view.dismissed


def test_a_record_that_is_known_already_changes_nothing() -> None:
    view = _member(3)
    view.learn(WorldRecord(4, Stage.PROPOSED, (A,)), revision=11)
    assert not view.learn(WorldRecord(4, Stage.PROPOSED, (A,)), revision=11)
    assert not view.learn(WorldRecord(3, Stage.SEALED, (A, B)), revision=10)


def test_a_planned_proposal_survives_its_encoding() -> None:
    record = WorldRecord(4, Stage.PROPOSED, (A, C), (C,), planned=True, standing=Standing(3, (A, B), 10))
    assert WorldRecord.from_bytes(record.to_bytes()) == record
