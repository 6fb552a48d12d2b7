"""The result is put together from what was observed."""

from __future__ import annotations

import pytest

from elastic_train.core.goodput import Bucket
from elastic_train.core.records import Cause
from elastic_train.trainer.history import History
from elastic_train.trainer.observations import CheckpointSeen, StepSeen
from tests.unit.trainer.story import BEGUN_AT, WORKERS, steps, story


def _history() -> History:
    history = History(BEGUN_AT)
    for seen in story():
        history.apply(seen)
    return history


def test_every_formed_world_is_in_the_membership_history() -> None:
    changes = _history().membership_history()
    assert [(change.membership_epoch, change.world_size, change.cause) for change in changes] == [
        (1, 4, Cause.START),
        (2, 3, Cause.LOSS),
        (3, 4, Cause.JOIN),
        (4, 3, Cause.DRAIN),
    ]
    assert changes[1].reason == "w0002 was lost: killed by SIGKILL"
    assert changes[1].begun_at_s == pytest.approx(3.26)
    assert changes[1].change_s == pytest.approx(0.14)
    assert changes[1].members == (WORKERS[0], WORKERS[2], WORKERS[3])


def test_every_step_is_in_the_metrics_history_once_with_the_world_it_ran_in() -> None:
    history = _history()
    for seen in steps(10, 12, 2, 106.0):
        history.apply(seen)
    metrics = history.metrics_history()
    assert [step.step for step in metrics] == list(range(50))
    assert {step.world_size for step in metrics} == {3, 4}
    assert metrics[10].at_s == pytest.approx(6.0)


def test_steps_that_reported_nothing_are_no_metrics() -> None:
    history = History(BEGUN_AT)
    history.apply(StepSeen(101.0, 0, 1, 1, 8))
    assert history.metrics_history() == ()


def test_the_account_sums_to_the_time_paid() -> None:
    goodput = _history().goodput(now=110.0)
    lives_s = [6.8, 3.15, 6.8, 5.5, 3.6]
    assert goodput.paid_s == pytest.approx(sum(lives_s))
    assert goodput.samples == 50 * 64
    assert goodput.steps_redone == 0
    assert goodput.seconds[Bucket.TRAINING] > goodput.paid_s / 2


def test_the_newest_checkpoint_is_kept() -> None:
    assert _history().checkpoint == CheckpointSeen(105.45, 40, "step-40")
