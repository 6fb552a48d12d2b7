"""The view's numbers and sentences follow from what was observed."""

from __future__ import annotations

import pytest

from elastic_train.core.records import Failure, WorkerStatus
from elastic_train.trainer.observations import FailureSeen, LoopSeen, PhaseSeen, StepSeen, WorkerSeen
from elastic_train.trainer.progress_model import ProgressModel, Tone
from tests.unit.trainer.story import BEGUN_AT, WORKERS, steps, story


def _model(*, until: float = float("inf")) -> ProgressModel:
    model = ProgressModel("digits", BEGUN_AT, (2, 8))
    for seen in story():
        if seen.at <= until:
            model.apply(seen)
    return model


def test_the_story_is_told_in_sentences() -> None:
    assert [happening.text for happening in _model().happenings] == [
        "begin with 4 workers",
        "4 workers go on at step 0, first step after 0.20 s",
        "w0002 was lost: killed by SIGKILL",
        "3 workers go on at step 20, first step after 0.14 s",
        "w0005 joins",
        "4 workers go on at step 30, first step after 0.15 s",
        "checkpoint step-40 committed",
        "w0004 is drained",
        "3 workers go on at step 40, first step after 0.20 s",
    ]


def test_a_loss_is_a_warning_and_going_on_is_good() -> None:
    tones = {happening.text.split()[0]: happening.tone for happening in _model(until=103.5).happenings}
    assert tones["w0002"] is Tone.WARNING
    assert tones["3"] is Tone.GOOD


def test_ranks_follow_the_newest_sealed_world() -> None:
    model = _model(until=104.2)
    assert [model.rank_of(worker) for worker in WORKERS] == [0, None, 1, 2, None]
    assert (model.world_size, model.membership_epoch) == (3, 2)
    assert {worker.worker_id: worker.rank for worker in model.workers.values()} == {
        "w0001": 0,
        "w0003": 1,
        "w0004": 2,
        "w0005": None,
    }


def test_rates_and_the_time_left_come_from_the_last_seconds() -> None:
    model = ProgressModel("digits", 0.0, (1, 4))
    model.apply(LoopSeen(0.0, 101))
    for seen in steps(0, 51, 1, at=100.0, every_s=0.2):
        model.apply(seen)
    assert model.steps_per_s(110.0) == pytest.approx(5.0)
    assert model.samples_per_s(110.0) == pytest.approx(320.0)
    assert model.eta_s(110.0) == pytest.approx(10.0)
    assert model.fraction == pytest.approx(51 / 101)
    assert model.steps_per_s(120.0) == pytest.approx(2.5)  # it has stood still since


def test_nothing_is_said_of_the_end_before_anything_is_known() -> None:
    model = ProgressModel("digits", 0.0, (1, 4))
    assert (model.eta_s(5.0), model.fraction, model.steps_per_s(5.0), model.world_size) == (None, None, 0.0, 0)


def test_a_failure_of_user_code_names_worker_rank_and_step() -> None:
    model = _model(until=102.0)
    failure = Failure("ValueError", "bad batch", "...", rank=1, membership_epoch=1, step=7)
    (happening,) = model.apply(FailureSeen(102.0, WORKERS[1], failure))
    assert happening.text == "w0002 (rank 1) raised ValueError in step 7: bad batch"
    assert happening.tone is Tone.BAD


def test_pausing_is_told_once_with_its_reason() -> None:
    model = _model(until=103.0)
    assert [line.text for line in model.apply(PhaseSeen(103.0, "paused", "1 worker, 2 needed"))] == [
        "paused (1 worker, 2 needed)"
    ]
    assert model.apply(PhaseSeen(103.1, "paused", "1 worker, 2 needed")) == ()


def test_a_worker_that_dies_outside_of_the_world_is_told_and_one_that_left_is_not() -> None:
    model = _model(until=103.5)
    (happening,) = model.apply(WorkerSeen(103.6, WORKERS[4], None, "killed by SIGSEGV"))
    assert happening.text == "w0005 is gone (killed by SIGSEGV)"
    model.apply(WorkerSeen(104.0, WORKERS[3], WorkerStatus.LEAVING))
    assert model.apply(WorkerSeen(104.0, WORKERS[3], None)) == ()


def test_the_curve_is_the_loss_or_else_the_first_metric() -> None:
    assert _model().headline == "loss"
    model = ProgressModel("x", 0.0, (1, 1))
    model.apply(StepSeen(1.0, 0, 1, 1, 8, {"reward": 3.0}))
    assert (model.headline, list(model.curve)) == ("reward", [(0, 3.0)])
