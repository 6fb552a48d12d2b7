"""What every framework promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from elastic_train.errors import StateNotRestorable
from elastic_train.ports import StepPlan
from tests.conformance.framework.casts import Cast, Member, abort_soon, torches, toys

pytestmark = pytest.mark.integration


@pytest.fixture(params=[toys, torches], ids=lambda cast: cast.__name__)
def cast(request: pytest.FixtureRequest) -> Cast:
    made: Cast = request.param
    return made


def _gather(member: Member) -> Any:
    group = member.form([2, 0, 1])
    gathered = group.all_gather_bytes(b"x" * (1000 * group.rank))
    member.meet("gathered", 3)
    group.close()
    return group.rank, group.world_size, [len(payload) for payload in gathered]


def test_ranks_follow_the_order_of_members_and_payloads_the_ranks(cast: Cast, tmp_path: Path) -> None:
    results = cast(3, _gather, tmp_path)
    assert [rank for rank, _, _ in results] == [1, 2, 0]
    assert [rest for _, *rest in results] == [[3, [0, 1000, 2000]]] * 3


def _wait_for_an_absent_member(member: Member) -> Any:
    group = member.form([0, 1, 2])
    if member.index == 2:
        member.meet("aborted", 3)
        return [True]
    thread = abort_soon(group.abort)
    broken = [member.raises_group_broken(lambda: group.all_gather_bytes(b"")) for _ in range(2)]
    thread.join()
    group.abort()
    member.meet("aborted", 3)
    group.close()
    return broken


def test_an_abort_from_another_thread_ends_what_waits_and_all_that_follows(cast: Cast, tmp_path: Path) -> None:
    assert all(all(broken) for broken in cast(3, _wait_for_an_absent_member, tmp_path))


def _one_aborts(member: Member) -> Any:
    group = member.form([0, 1, 2])
    if member.index == 1:
        group.abort()
        broken = True
    else:
        broken = member.raises_group_broken(lambda: group.all_gather_bytes(b""))
    member.meet("broken", 3)
    group.close()
    return broken


def test_the_abort_of_one_breaks_the_group_for_all(cast: Cast, tmp_path: Path) -> None:
    assert cast(3, _one_aborts, tmp_path) == [True] * 3


def _form_alone(member: Member) -> Any:
    formation = member.formation([0, 1], 1, timeout_s=0.3)
    return member.raises_group_broken(lambda: member.framework.form(formation))


def test_a_formation_ends_at_its_deadline(cast: Cast, tmp_path: Path) -> None:
    assert cast(1, _form_alone, tmp_path) == [True]


SHARES = (1, 4, 3)


def _step(member: Member) -> Any:
    group = member.form([0, 1, 2])
    engine = member.engine(group)
    samples = SHARES[member.index]
    engine.begin(StepPlan(0, 1, samples, sum(SHARES)))
    engine.backward(member.program.loss(10.0 * (member.index + 1)), samples, last=True)
    summed = engine.reduce([float(member.index), 1.0])
    member.program.descend()
    engine.commit()
    engine.attach(None)
    member.meet("stepped", 3)
    group.close()
    return member.program.weight, list(summed), engine.intact


def test_a_step_takes_the_mean_over_the_global_batch_and_sums_the_controls(cast: Cast, tmp_path: Path) -> None:
    mean = (1 * 10 + 4 * 20 + 3 * 30) / 8
    for weight, summed, intact in cast(3, _step, tmp_path):
        assert weight == pytest.approx(1 - mean)
        assert summed == [3.0, 3.0]
        assert intact


def _break_and_repeat(member: Member) -> Any:
    group = member.form([0, 1])
    engine = member.engine(group)
    engine.begin(StepPlan(0, 1, 1, 2))
    engine.backward(member.program.loss(3.0), 1, last=True)
    if member.index == 0:
        broken = member.raises_group_broken(lambda: engine.reduce([]))
    else:
        group.abort()
        broken = True
    engine.rollback()
    undone = member.program.weight
    engine.attach(None)
    group.close()
    group = member.form([0, 1], 2)
    engine.attach(group)
    engine.begin(StepPlan(0, 1, 1, 2))
    engine.backward(member.program.loss(3.0), 1, last=True)
    engine.reduce([])
    member.program.descend()
    engine.commit()
    member.meet("done", 2)
    group.close()
    return broken, undone, member.program.weight


def test_a_broken_step_is_undone_and_gives_the_same_when_run_again(cast: Cast, tmp_path: Path) -> None:
    assert cast(2, _break_and_repeat, tmp_path) == [(True, 1.0, -2.0)] * 2


def _hand_over(member: Member) -> Any:
    """Member 0 has trained; the others get its state from it and from each other, and all go on together."""
    engine = member.engine()
    if member.index == 0:
        group = member.form([0])
        engine.attach(group)
        engine.begin(StepPlan(0, 1, 1, 1))
        engine.backward(member.program.loss(2.0), 1, last=True)
        engine.reduce([])
        member.program.descend()
        engine.commit()
        engine.attach(None)
        group.close()
    group = member.form([0, 1, 2], 2)
    engine.attach(group)
    description = group.all_gather_bytes(engine.describe() if group.rank == 0 else b"")[0]
    for sender, receiver in ((0, 1), (1, 2)):
        if group.rank == sender:
            engine.send(description, receiver)
        elif group.rank == receiver:
            engine.receive(description, sender)
    received = member.program.weight
    engine.begin(StepPlan(1, 1, 1, 3))
    engine.backward(member.program.loss(2.0), 1, last=True)
    engine.reduce([])
    member.program.descend()
    engine.commit()
    member.meet("done", 3)
    group.close()
    return received, member.program.weight


def test_state_travels_from_any_member_that_has_it(cast: Cast, tmp_path: Path) -> None:
    results = cast(3, _hand_over, tmp_path)
    assert [received for received, _ in results] == [-1.0] * 3
    assert len({weight for _, weight in results}) == 1


def _export_and_load(member: Member) -> Any:
    engine = member.engine()
    member.program.weight = 7.0
    tree = engine.export()
    other = type(member.program)()
    fresh = member.framework.bind(other.items)
    fresh.load(tree)
    with pytest.raises(StateNotRestorable):
        fresh.load({})
    return other.weight


def test_an_exported_state_can_be_loaded_and_one_that_does_not_fit_is_refused(cast: Cast, tmp_path: Path) -> None:
    assert cast(1, _export_and_load, tmp_path) == [7.0]


def _bind_rubbish(member: Member) -> Any:
    with pytest.raises(StateNotRestorable):
        member.framework.bind({"model": object()})
    return member.framework.name


def test_what_has_no_state_is_refused(cast: Cast, tmp_path: Path) -> None:
    assert cast(1, _bind_rubbish, tmp_path)[0] in ("toy", "torch")
