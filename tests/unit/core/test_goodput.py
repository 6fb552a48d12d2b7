"""Every second that was paid for is in exactly one bucket, and in the right one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_train.core.goodput import Bucket, CommittedStep, Goodput, WorkerSpan, WorldSpan, account
from elastic_train.core.records import WorkerId

A, B, C = WorkerId("w0"), WorkerId("w1"), WorkerId("w2")


def _span(worker_id: WorkerId, started_at: float = 0.0, ended_at: float = 10.0, **more: float) -> WorkerSpan:
    return WorkerSpan(worker_id, started_at, ended_at, **{"ready_at": started_at + 1.0, **more})


def _steps(membership_epoch: int, first: int, *commits: float, samples: int = 8) -> list[CommittedStep]:
    return [CommittedStep(first + index, membership_epoch, at, samples) for index, at in enumerate(commits)]


def _nonzero(goodput: Goodput) -> dict[Bucket, object]:
    return {bucket: pytest.approx(spent_s) for bucket, spent_s in goodput.seconds.items() if spent_s}


def test_an_undisturbed_job_starts_forms_trains_and_ends() -> None:
    goodput = account(
        [_span(A, done_at=8.0), _span(B, done_at=8.0)],
        [WorldSpan(1, (A, B), begun_at=1.0, sealed_at=1.5)],
        _steps(1, 0, 3.0, 4.0, 5.0, 6.0, 7.0),
    )
    assert _nonzero(goodput) == {
        Bucket.STARTING: 2.0,
        Bucket.REFORMING: 2.0,  # until one usual step before the first commit
        Bucket.TRAINING: 10.0,
        Bucket.IDLE: 6.0,
    }
    assert goodput.samples == 40
    assert goodput.possible_rate == pytest.approx(8 / 1.0 / 2)
    assert goodput.training_fraction == pytest.approx(0.5)
    assert goodput.ratio == pytest.approx(40 / 20 / 4)


def test_a_lost_worker_costs_the_aborted_step_and_the_change() -> None:
    goodput = account(
        [_span(A, done_at=9.0, ended_at=9.0), _span(B, ended_at=4.5)],
        [WorldSpan(1, (A, B), 1.0, 1.0), WorldSpan(2, (A,), begun_at=4.6, sealed_at=4.8)],
        _steps(1, 0, 2.0, 3.0, 4.0) + _steps(2, 3, 6.0, 7.0, 8.0, 9.0),
    )
    assert _nonzero(goodput) == {
        Bucket.STARTING: 2.0,
        Bucket.TRAINING: 3 * 2 + 4.0,
        Bucket.REDONE: 0.6 + 0.5,  # what both had done of step 3 when B was lost
        Bucket.REFORMING: 0.4,
    }
    assert goodput.steps_redone == 0


def test_steps_that_were_run_again_count_once() -> None:
    goodput = account(
        [_span(A, ready_at=0.0, ended_at=6.0)],
        [WorldSpan(1, (A,), 0.0, 0.0), WorldSpan(2, (A,), 3.0, 3.0)],
        _steps(1, 0, 1.0, 2.0, 3.0) + _steps(2, 1, 4.0, 5.0, 6.0),
    )
    assert _nonzero(goodput) == {Bucket.TRAINING: 4.0, Bucket.REDONE: 2.0}
    assert (goodput.samples, goodput.steps_redone) == (32, 2)


def test_a_pause_is_waiting_until_the_next_world_is_begun() -> None:
    goodput = account(
        [_span(A, ready_at=0.0, ended_at=10.0)],
        [WorldSpan(1, (A, B), 0.0, 0.0), WorldSpan(2, (A, C), 8.0, 8.5)],
        _steps(1, 0, 1.0, 2.0) + _steps(2, 2, 9.0, 10.0),
        paused_at=[2.0],
    )
    assert _nonzero(goodput) == {Bucket.TRAINING: 3.5, Bucket.WAITING: 6.0, Bucket.REFORMING: 0.5}


def test_a_joiner_waits_until_its_world_is_begun_and_one_that_never_gets_ready_only_starts() -> None:
    goodput = account(
        [_span(B, ready_at=2.0, ended_at=6.0), _span(C, ready_at=20.0, ended_at=3.0)],
        [WorldSpan(1, (A,), 0.0, 0.0), WorldSpan(2, (A, B), begun_at=3.0, sealed_at=4.0)],
        _steps(1, 0, 1.0, 2.0, 4.0) + _steps(2, 3, 5.0, 6.0),
    )
    assert goodput.seconds[Bucket.STARTING] == pytest.approx(2.0 + 3.0)
    assert goodput.seconds[Bucket.WAITING] == pytest.approx(1.0)
    assert goodput.seconds[Bucket.REFORMING] == pytest.approx(1.0)


def test_a_job_without_workers_has_an_account_of_zeros() -> None:
    goodput = account([], [], [])
    assert (goodput.paid_s, goodput.ratio, goodput.training_fraction) == (0.0, 0.0, 0.0)
    assert set(goodput.seconds) == set(Bucket)


_MOMENTS = st.floats(0.0, 100.0)
_WORKERS = st.builds(
    WorkerSpan,
    st.sampled_from([A, B, C]),
    _MOMENTS,
    _MOMENTS,
    ready_at=st.none() | _MOMENTS,
    done_at=st.none() | _MOMENTS,
)
_WORLDS = st.builds(
    WorldSpan, st.integers(1, 5), st.sets(st.sampled_from([A, B, C]), min_size=1).map(tuple), _MOMENTS, _MOMENTS
)
_COMMITS = st.builds(CommittedStep, st.integers(0, 9), st.integers(1, 5), _MOMENTS, st.integers(1, 64))


@given(
    st.lists(_WORKERS, max_size=4),
    st.lists(_WORLDS, max_size=4, unique_by=lambda world: world.membership_epoch),
    st.lists(_COMMITS, max_size=12).map(lambda steps: sorted(steps, key=lambda step: step.committed_at)),
    st.lists(_MOMENTS, max_size=3),
)
def test_the_buckets_sum_to_the_time_paid_whatever_the_records_say(
    workers: list[WorkerSpan], worlds: list[WorldSpan], steps: list[CommittedStep], paused_at: list[float]
) -> None:
    goodput = account(workers, worlds, steps, paused_at)
    paid_s = sum(max(worker.ended_at - worker.started_at, 0.0) for worker in workers)
    assert goodput.paid_s == pytest.approx(paid_s, abs=1e-6)
    assert all(spent_s >= 0 for spent_s in goodput.seconds.values())
    assert goodput.samples == sum({step.step: step.samples for step in steps}.values())
