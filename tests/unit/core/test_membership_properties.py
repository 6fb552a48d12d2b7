from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elastic_train.core import events
from elastic_train.core.bounds import Bounds
from elastic_train.core.events import Loss, Tick, WorldPublished
from elastic_train.core.membership import TABLE, ImpossibleEvent, step
from elastic_train.core.table import IMPOSSIBLE
from elastic_train.core.world import JobState, Phase
from tests.unit.core.nemesis import heal, nemesis
from tests.unit.core.simulated_job import Choose, SimulatedJob


@st.composite
def bounds(draw: st.DrawFn) -> Bounds:
    least = draw(st.integers(1, 3))
    most = least + draw(st.integers(0, 3))
    return Bounds(
        least,
        most,
        draw(st.integers(least, most)),
        capacity=draw(st.sampled_from([None, 0, most, most + 2])),
        max_failures=draw(st.sampled_from([0, 2, 100])),
        max_start_failures=draw(st.sampled_from([3, 100])),
        pause_timeout_s=draw(st.sampled_from([None, 50.0])),
    )


choices = st.lists(st.integers(0, 2**16), max_size=600)


def _chooser(drawn: list[int]) -> tuple[Choose, Iterator[int]]:
    rest = iter(drawn)
    return (lambda n: next(rest, 0) % n), rest


def _begun(limits: Bounds, settled: bool) -> SimulatedJob:
    job = SimulatedJob(limits)
    if limits.capacity == 0:
        for _ in range(limits.max_workers):
            job.join()
    if settled:
        heal(job)
    return job


@given(bounds(), choices, st.booleans())
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_happens_the_invariants_hold_and_training_goes_on_once_faults_stop(
    limits: Bounds, drawn: list[int], settled: bool
) -> None:
    """See invariants.check: fences and epochs rise, one world an epoch, ranks, bounds, declared phases."""
    job = _begun(limits, settled)
    choose, rest = _chooser(drawn)
    while not job.state.phase.is_terminal and next(rest, None) is not None:
        nemesis(job, choose)
    if limits.capacity == 0:
        for _ in range(limits.max_workers):
            job.join()
    assert heal(job) < 600


@given(bounds(), choices)
@settings(max_examples=50)
def test_the_same_history_is_decided_the_same_way_again(limits: Bounds, drawn: list[int]) -> None:
    logs = []
    for _ in range(2):
        job = _begun(limits, settled=True)
        choose, rest = _chooser(list(drawn))
        while not job.state.phase.is_terminal and next(rest, None) is not None:
            nemesis(job, choose)
        logs.append((job.log, job.state))
    assert logs[0] == logs[1]


@given(bounds(), choices)
@settings(max_examples=50)
def test_a_step_leaves_the_state_that_it_was_given_untouched(limits: Bounds, drawn: list[int]) -> None:
    job = _begun(limits, settled=True)
    choose, rest = _chooser(drawn)
    while not job.state.phase.is_terminal and next(rest, None) is not None:
        before, workers, census = job.state, dict(job.state.workers), dict(job.state.census)
        nemesis(job, choose)
        assert (dict(before.workers), dict(before.census)) == (workers, census)


def _let_flap(job: SimulatedJob, seconds: float) -> None:
    """Kill every worker but the most senior member a moment after it joined."""
    until_s = job.now_s + seconds
    while job.now_s < until_s:
        job.live(0.05)
        assert job.state.world is not None
        for member in job.state.world.members[1:] if job.state.phase is Phase.RUNNING else ():
            worker = job.workers[member]
            job.kill(worker, why=Loss.LEASE if worker.external else Loss.EXITED)


def test_replacements_that_die_young_are_launched_ever_more_rarely() -> None:
    job = SimulatedJob(Bounds(1, 4, 4))
    heal(job)
    launched, formed = len(job.launches), len(job.reformations)
    _let_flap(job, seconds=600.0)
    assert len(job.launches) - launched <= 3 * (600 / 10 + 10)
    assert len(job.reformations) - formed <= 2 * (600 / 10 + 10)


def test_workers_started_by_hand_that_flap_cost_a_bounded_number_of_worlds() -> None:
    job = SimulatedJob(Bounds(1, 2, 2, capacity=0))
    job.join()
    heal(job)
    formed = len(job.reformations)
    for _ in range(600):
        job.join()
        _let_flap(job, seconds=1.0)
    assert len(job.reformations) - formed <= 2 * (600 / 10 + 10)


def test_a_herd_of_joiners_is_taken_in_by_few_changes() -> None:
    job = SimulatedJob(Bounds(1, 200, 200, capacity=0))
    for _ in range(2):
        job.join()
    heal(job)
    formed = len(job.reformations)
    for _ in range(198):
        job.join()
        job.live(0.05)
    job.live(10.0)
    assert job.state.world is not None
    assert len(job.state.world.members) == 200
    assert len(job.reformations) - formed <= 12


def test_a_world_that_keeps_breaking_is_formed_ever_more_rarely() -> None:
    job = SimulatedJob(Bounds(2, 2, 2, capacity=0))
    for _ in range(2):
        job.join()
    heal(job)
    formed, until_s = len(job.reformations), job.now_s + 600
    while job.now_s < until_s:
        job.breaks(job.workers[next(iter(job.workers))])
        job.live(0.05)
    assert len(job.reformations) - formed <= 600 / 10 + 10


# ---------------------------------------------------------------------- the table


def test_rows_are_missing_exactly_where_it_is_declared_that_nothing_can_happen() -> None:
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)]
    known = {event for _, event in TABLE}
    assert known == set(kinds) - {events.Event}
    assert {(phase, event) for phase in Phase for event in known} - set(TABLE) == IMPOSSIBLE


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase.is_terminal])
def test_nothing_can_happen_to_a_job_that_has_ended(phase: Phase) -> None:
    state = JobState(phase=phase, now_s=0.0, wanted=1)
    with pytest.raises(ImpossibleEvent, match="Tick cannot happen in phase"):
        step(state, Tick(at_s=1.0), Bounds(1, 1, 1))


def test_an_impossible_event_raises() -> None:
    limits = Bounds(1, 1, 1)
    with pytest.raises(ImpossibleEvent, match="WorldPublished cannot happen in phase gathering"):
        step(JobState.initial(limits, 0.0), WorldPublished(at_s=0.0, membership_epoch=1, fence=1), limits)


def test_no_live_phase_is_a_dead_end() -> None:
    ends = {phase for phase in Phase if phase.is_terminal}
    leading_to_end = set(ends)
    while True:
        more = {phase for (phase, _), row in TABLE.items() if row.goes_to & leading_to_end} - leading_to_end
        if not more:
            break
        leading_to_end |= more
    assert leading_to_end == set(Phase)
