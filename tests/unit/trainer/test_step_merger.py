"""Parts from many journals become one step, also where some never come."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_train.trainer.observations import StepSeen
from elastic_train.trainer.step_merger import Measured, StepMerger, StepPart


def _part(version: int, samples: int, *, epoch_number: int = 1, loss: float = 1.0, at: float = 0.0) -> StepPart:
    return StepPart(at, version - 1, version, epoch_number, samples, 8, {"loss": (loss * samples, float(samples))})


def test_a_step_is_told_when_its_parts_make_up_the_batch() -> None:
    merger = StepMerger()
    assert list(merger.add(_part(1, 2, loss=1.0, at=1.0))) == []
    assert list(merger.add(_part(1, 0, at=3.0))) == []
    (step,) = merger.add(_part(1, 6, loss=5.0, at=2.0))
    assert (step.step, step.samples, step.at, step.membership_epoch) == (0, 8, 3.0, 1)
    assert step.metrics["loss"] == pytest.approx((2 * 1.0 + 6 * 5.0) / 8)


def test_a_step_with_a_missing_part_is_told_once_a_later_one_is_whole_and_the_journals_were_read_again() -> None:
    merger = StepMerger()
    list(merger.add(_part(1, 5, loss=3.0)))
    assert list(merger.settle()) == []
    assert len(list(merger.add(_part(2, 8, epoch_number=2)))) == 1
    assert list(merger.settle()) == []
    (step,) = merger.settle()
    assert (step.step, step.samples, step.metrics["loss"]) == (0, 8, 3.0)
    assert list(merger.add(_part(1, 3))) == []  # late: told already


def test_a_step_that_was_run_again_instead_was_never_committed() -> None:
    merger = StepMerger()
    list(merger.add(_part(1, 2)))
    (again,) = merger.add(_part(1, 8, epoch_number=2))
    assert again.membership_epoch == 2
    list(merger.add(_part(2, 8, epoch_number=2)))
    assert [*merger.settle(), *merger.settle(), *merger.finish()] == []


def test_a_step_that_all_committed_and_that_was_lost_later_is_told_twice() -> None:
    merger = StepMerger()
    told = [*merger.add(_part(1, 8)), *merger.add(_part(2, 8)), *merger.add(_part(1, 8, epoch_number=5))]
    assert [(step.step, step.membership_epoch) for step in told] == [(0, 1), (1, 1), (0, 5)]


def test_the_end_tells_what_is_left() -> None:
    merger = StepMerger()
    list(merger.add(_part(3, 4)))
    assert [step.step for step in merger.finish()] == [2]


@given(st.permutations([(version, worker) for version in range(1, 7) for worker in range(3)]))
def test_in_whatever_order_the_journals_are_read_each_step_is_told_once(order: list[tuple[int, int]]) -> None:
    merger = StepMerger()
    told: list[StepSeen] = []
    for version, worker in order:
        told.extend(merger.add(_part(version, (3, 3, 2)[worker], loss=float(version))))
    assert sorted(step.step for step in told) == list(range(6))
    assert all(step.metrics["loss"] == pytest.approx(step.step + 1) for step in told)


def _measured(version: int, losses: dict[int, float], *, epoch_number: int = 1) -> Measured:
    rows = [[shard, value, 1.0] for shard, value in losses.items()]
    return Measured(version, epoch_number, {}, {"1.0": rows})


def _named(version: int, samples: int, *, epoch_number: int = 1, whole: float = 0.1) -> StepPart:
    named: dict[str, dict[str, Any]] = {"losses": {"loss": "1.0"}, "whole": {"lr": whole}}
    sums = {"loss": (9.0, 9.0), "lr": (whole * samples, float(samples))}
    return StepPart(0.0, version - 1, version, epoch_number, samples, 8, sums, named)


@given(st.permutations(range(8)), st.integers(1, 7))
def test_losses_of_shards_are_added_in_their_order_whoever_measured_them(order: list[int], cut: int) -> None:
    values = {shard: 0.1 * 3**shard for shard in range(8)}
    merger = StepMerger()
    for shards in (order[:cut], order[cut:]):
        merger.measure(_measured(1, {shard: values[shard] for shard in shards}))
    list(merger.add(_named(1, cut)))
    (step,) = merger.add(_named(1, 8 - cut))
    total = 0.0
    for shard in range(8):
        total += values[shard]
    assert step.metrics == {"loss": total / 8, "lr": 0.1}


def test_what_a_lost_member_measured_counts_although_its_commit_never_came() -> None:
    merger = StepMerger()
    merger.measure(_measured(1, {0: 1.0}))
    merger.measure(_measured(1, {1: 4.0}))
    list(merger.add(_named(1, 4)))
    list(merger.add(_named(2, 8, epoch_number=2)))
    list(merger.settle())
    (step,) = merger.settle()
    assert step.metrics["loss"] == 2.5


def test_what_was_measured_in_an_aborted_step_does_not_count() -> None:
    merger = StepMerger()
    merger.measure(_measured(1, {0: 100.0}))
    merger.measure(_measured(1, {0: 1.0, 1: 2.0}, epoch_number=2))
    (step,) = merger.add(_named(1, 8, epoch_number=2))
    assert step.metrics["loss"] == 1.5
