from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointing import (
    AnyOf,
    Loss,
    Moment,
    SaveAtBestInterval,
    SaveEverySeconds,
    SaveEverySteps,
    SaveOnPreemption,
    choose_interval,
    estimate_mtbf_s,
)
from checkpointing.core.urgency import Option, choose_for_deadline


def at(step: int, now_s: float, **known: float) -> Moment:
    return Moment(step, now_s, last_step=10, last_s=100.0, **known)  # type: ignore[arg-type]  # numbers all


def test_steps_and_seconds_count_from_the_last_save() -> None:
    assert not SaveEverySteps(5).due(at(14, 0))
    assert SaveEverySteps(5).due(at(15, 0)) == "5 steps since the last save"
    assert not SaveEverySeconds(30).due(at(11, 129))
    assert SaveEverySeconds(30).due(at(11, 130)) == "30 s since the last save"


def test_a_preemption_notice_saves_each_step_once() -> None:
    assert SaveOnPreemption().due(at(11, 0, preempted=True)) == "a preemption notice"
    assert not SaveOnPreemption().due(at(10, 0, preempted=True))
    assert not SaveOnPreemption().due(at(11, 0))


def test_any_of_several_policies_is_enough() -> None:
    policy = AnyOf(SaveEverySteps(5), SaveOnPreemption())
    assert policy.due(at(11, 0, preempted=True)) == "a preemption notice"
    assert not policy.due(at(11, 0))
    assert not AnyOf().due(at(99, 0))


@pytest.mark.parametrize(
    "make", [lambda: SaveEverySteps(0), lambda: SaveEverySeconds(0), lambda: SaveAtBestInterval(0)]
)
def test_intervals_are_positive(make: object) -> None:
    with pytest.raises(ValueError, match=r"positive|1 or more"):
        make()  # type: ignore[operator]


def test_the_best_interval_says_what_it_is_and_why() -> None:
    best = choose_interval(cost_s=2.0, mtbf_s=3600.0)
    assert best.seconds == pytest.approx(math.sqrt(2 * 2 * 3600), rel=0.05), "Young's rule, with a small correction"
    assert best.reason.startswith("every 119 s: Daly's optimum for a save that costs 2 s and a failure every 3.6e+03 s")
    assert "no save before the last one is written" in choose_interval(0.1, 3600, write_s=300).reason


@given(st.floats(1e-3, 100), st.floats(10, 1e6))
def test_no_other_interval_costs_noticeably_less(cost_s: float, mtbf_s: float) -> None:
    """Daly's cost model: time for one unit of work with exponential failures and no restart cost."""

    def cost_of(interval_s: float) -> float:
        return mtbf_s * math.expm1((interval_s + cost_s) / mtbf_s) / interval_s

    best = choose_interval(cost_s, mtbf_s).seconds
    if cost_s < mtbf_s / 4:
        assert cost_of(best) <= 1.01 * min(cost_of(best * factor) for factor in (0.25, 0.5, 0.8, 1.25, 2, 4))


def test_the_best_interval_waits_for_the_cost_to_be_measured() -> None:
    policy = SaveAtBestInterval(mtbf_s=3600, first_s=60)
    assert not policy.due(at(11, 159))
    assert "not known yet" in policy.due(at(11, 160))
    assert not policy.due(at(11, 210, save_cost_s=2.0))
    assert "Daly" in policy.due(at(11, 220, save_cost_s=2.0))


@given(st.integers(0, 1000), st.floats(0, 1e7), st.floats(1, 1e7))
def test_the_estimate_lies_between_what_was_expected_and_what_was_seen(
    failures: int, observed_s: float, prior_s: float
) -> None:
    estimate = estimate_mtbf_s(failures, observed_s, prior_s)
    if failures:
        low, high = sorted((prior_s, observed_s / failures))
        assert low * 0.999 <= estimate <= high * 1.001 + 1
    else:
        assert estimate >= prior_s


OPTIONS = [
    Option("ram", Loss.WORKER, 10e9),
    Option("peer", Loss.NODE, 1e9),
    Option("store", Loss.CLUSTER, 0.1e9),
]


@pytest.mark.parametrize(
    ("losing", "left_s", "chosen"),
    [
        (Loss.WORKER, 100, ("ram", "peer", "store")),
        (Loss.WORKER, 5, ("ram", "peer")),
        (Loss.NODE, 5, ("peer",)),
        (Loss.NODE, 0.1, ("peer",)),
        (Loss.CLUSTER, 0.1, ("store",)),
    ],
)
def test_an_urgent_save_goes_where_the_time_allows(losing: Loss, left_s: float, chosen: tuple[str, ...]) -> None:
    assert choose_for_deadline(OPTIONS, losing, nbytes=10**9, left_s=left_s) == chosen


def test_what_is_not_known_yet_is_tried_in_the_order_given() -> None:
    unknown = [Option("a", Loss.NODE), Option("b", Loss.NODE)]
    assert choose_for_deadline(unknown, Loss.NODE, nbytes=10**9, left_s=1) == ("a", "b")
