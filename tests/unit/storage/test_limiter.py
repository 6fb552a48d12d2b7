"""The limit on concurrent requests."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.limiter import ConcurrencyLimiter


def test_slots_are_held_and_given_back() -> None:
    limiter = ConcurrencyLimiter(initial=2, maximum=2)
    with ExitStack() as held:
        assert held.enter_context(limiter.slots(1, timeout_s=0)) is not None
        assert held.enter_context(limiter.slots(1, timeout_s=0)) is not None
        assert limiter.in_flight == 2
        with limiter.slots(1, timeout_s=0) as refused:
            assert refused is None
        assert limiter.in_flight == 2
    assert limiter.in_flight == 0


def test_slots_are_given_back_after_an_error() -> None:
    limiter = ConcurrencyLimiter(initial=1, maximum=1)
    with pytest.raises(ZeroDivisionError), limiter.slots(1, timeout_s=0):
        raise ZeroDivisionError
    assert limiter.in_flight == 0


def test_a_heavy_request_takes_the_whole_limit_and_is_not_starved_for_ever() -> None:
    limiter = ConcurrencyLimiter(initial=4, maximum=4)
    with limiter.slots(100, timeout_s=0) as mark:
        assert mark is not None
        assert limiter.in_flight == 4


def test_a_waiter_wakes_when_a_slot_is_free() -> None:
    limiter = ConcurrencyLimiter(initial=1, maximum=1)
    entered = threading.Event()

    def wait() -> None:
        with limiter.slots(1, timeout_s=30):
            entered.set()

    waiter = threading.Thread(target=wait)
    with limiter.slots(1, timeout_s=0):
        waiter.start()
        assert not entered.is_set()
    waiter.join(30)
    assert entered.is_set()


def test_refusals_of_one_burst_cut_the_limit_once() -> None:
    limiter = ConcurrencyLimiter(initial=16, maximum=16)
    with ExitStack() as held:
        marks = [held.enter_context(limiter.slots(1, timeout_s=0)) for _ in range(16)]
        for mark in marks:
            assert mark is not None
            limiter.throttled(mark)
    assert limiter.limit == 8
    with limiter.slots(1, timeout_s=0) as mark:
        assert mark is not None
        limiter.throttled(mark)
    assert limiter.limit == 4


def test_a_round_of_successes_adds_one() -> None:
    limiter = ConcurrencyLimiter(initial=10, maximum=64)
    for _ in range(11):
        limiter.succeeded()
    assert limiter.limit == 11


@given(st.lists(st.booleans(), max_size=300))
def test_the_limit_stays_between_one_and_its_maximum(outcomes: list[bool]) -> None:
    limiter = ConcurrencyLimiter(initial=4, maximum=8)
    for succeeds in outcomes:
        with limiter.slots(1, timeout_s=0) as mark:
            assert mark is not None
            if succeeds:
                limiter.succeeded()
            else:
                limiter.throttled(mark)
        assert 1 <= limiter.limit <= 8


def test_a_child_forgets_the_parents_requests() -> None:
    limiter = ConcurrencyLimiter(initial=1, maximum=1)
    with limiter.slots(1, timeout_s=0):
        limiter.reset_after_fork()
        assert limiter.in_flight == 0


@pytest.mark.parametrize(("initial", "maximum"), [(0, 4), (5, 4)])
def test_limits_that_make_no_sense_are_refused(initial: int, maximum: int) -> None:
    with pytest.raises(ValueError, match="1 <= initial"):
        ConcurrencyLimiter(initial=initial, maximum=maximum)
