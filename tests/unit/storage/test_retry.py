"""Retrying, by a clock that only these tests move."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import CredentialsExpired, DeadlineExceeded, NotFound, RetryPolicy, StorageError
from storage.errors import ConnectionLost, RequestTimeout, Throttled, TransientError
from storage.limiter import ConcurrencyLimiter
from storage.retry import Retrier


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Script:
    """An attempt that fails by a script, then succeeds; each try takes some time."""

    def __init__(self, clock: FakeClock, failures: list[StorageError], took_s: float = 0.0) -> None:
        self.clock = clock
        self.failures = failures
        self.took_s = took_s
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        self.clock.now += self.took_s
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def never() -> bool:
    return False


def test_success_at_once_waits_for_nothing() -> None:
    clock = FakeClock()
    attempt = Script(clock, [])
    assert Retrier(RetryPolicy(), clock=clock).call(attempt, refresh=never) == "done"
    assert (attempt.calls, clock.slept) == (1, [])


def test_transient_failures_are_tried_again() -> None:
    clock = FakeClock()
    attempt = Script(clock, [ConnectionLost(), Throttled(), RequestTimeout()])
    assert Retrier(RetryPolicy(), clock=clock).call(attempt, refresh=never) == "done"
    assert (attempt.calls, len(clock.slept)) == (4, 3)


def test_other_failures_are_not() -> None:
    clock = FakeClock()
    attempt = Script(clock, [NotFound()])
    with pytest.raises(NotFound):
        Retrier(RetryPolicy(), clock=clock).call(attempt, refresh=never)
    assert attempt.calls == 1


def test_without_a_policy_nothing_is_tried_again() -> None:
    attempt = Script(FakeClock(), [ConnectionLost()])
    with pytest.raises(ConnectionLost):
        Retrier(None).call(attempt, refresh=never)


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_pauses_are_jittered_under_a_doubling_bound(seed: int, failures: int) -> None:
    clock = FakeClock()
    policy = RetryPolicy(base_delay_s=0.1, max_delay_s=2.0, deadline_s=1e6)
    attempt = Script(clock, [TransientError() for _ in range(failures)])
    Retrier(policy, clock=clock, rng=random.Random(seed)).call(attempt, refresh=never)
    bounds = [min(2.0, 0.1 * 2**n) for n in range(failures)]
    assert all(0 <= pause <= bound for pause, bound in zip(clock.slept, bounds, strict=True))


def test_pauses_differ_between_clients() -> None:
    pauses = set()
    for seed in range(20):
        clock = FakeClock()
        Retrier(RetryPolicy(), clock=clock, rng=random.Random(seed)).call(
            Script(clock, [TransientError()]), refresh=never
        )
        pauses.add(clock.slept[0])
    assert len(pauses) == 20


@given(st.floats(0.1, 100.0), st.floats(0.0, 5.0), st.integers(0, 1000))
def test_no_attempt_begins_after_the_deadline(deadline_s: float, took_s: float, seed: int) -> None:
    clock = FakeClock()
    begun: list[float] = []
    retrier = Retrier(RetryPolicy(deadline_s=deadline_s), clock=clock, rng=random.Random(seed))

    def attempt() -> None:
        begun.append(clock.now - 1000.0)
        clock.now += took_s + 0.01
        raise ConnectionLost("reset")

    with pytest.raises(DeadlineExceeded) as caught:
        retrier.call(attempt, refresh=never)
    assert max(begun) <= deadline_s
    assert caught.value.attempts == len(begun)
    assert isinstance(caught.value.last, ConnectionLost)


def test_a_large_transfer_gets_a_longer_deadline() -> None:
    clock = FakeClock()
    attempt = Script(clock, [ConnectionLost()], took_s=20.0)
    retrier = Retrier(RetryPolicy(deadline_s=10.0), clock=clock)
    assert retrier.call(attempt, refresh=never, nbytes=2**30) == "done"


def test_attempts_can_be_bounded() -> None:
    clock = FakeClock()
    attempt = Script(clock, [ConnectionLost() for _ in range(9)])
    with pytest.raises(DeadlineExceeded) as caught:
        Retrier(RetryPolicy(max_attempts=3), clock=clock).call(attempt, refresh=never)
    assert (attempt.calls, caught.value.attempts, len(clock.slept)) == (3, 3, 2)


@pytest.mark.parametrize(
    ("failures", "writes", "doubt"),
    [
        ([ConnectionLost], True, True),
        ([RequestTimeout, Throttled], True, True),
        ([Throttled, Throttled], True, False),  # refused, so not done
        ([ConnectionLost], False, False),
    ],
)
def test_only_an_unanswered_write_is_in_doubt(failures: list[type[TransientError]], writes: bool, doubt: bool) -> None:
    clock = FakeClock()
    attempt = Script(clock, [kind() for kind in failures])
    with pytest.raises(DeadlineExceeded) as caught:
        Retrier(RetryPolicy(max_attempts=len(failures)), clock=clock).call(attempt, refresh=never, writes=writes)
    assert caught.value.maybe_applied is doubt
    assert ("may have been applied" in str(caught.value)) is doubt


def test_expired_credentials_are_refreshed_once() -> None:
    clock = FakeClock()
    refreshed: list[int] = []

    def refresh() -> bool:
        refreshed.append(1)
        return True

    assert Retrier(RetryPolicy(), clock=clock).call(Script(clock, [CredentialsExpired()]), refresh=refresh) == "done"
    with pytest.raises(CredentialsExpired):
        Retrier(RetryPolicy(), clock=clock).call(
            Script(clock, [CredentialsExpired(), CredentialsExpired()]), refresh=refresh
        )
    assert len(refreshed) == 2
    assert clock.slept == []


def test_throttling_lowers_the_limit_and_success_raises_it() -> None:
    clock = FakeClock()
    limiter = ConcurrencyLimiter(initial=8, maximum=16)
    retrier = Retrier(RetryPolicy(), limiter, clock=clock)
    retrier.call(Script(clock, [Throttled()]), refresh=never)
    assert limiter.limit == 4
    for _ in range(60):
        retrier.call(Script(clock, []), refresh=never)
    assert limiter.limit > 8


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RetryPolicy(deadline_s=0),
        lambda: RetryPolicy(base_delay_s=5, max_delay_s=1),
        lambda: RetryPolicy(base_delay_s=0),
        lambda: RetryPolicy(max_attempts=0),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: Callable[[], RetryPolicy]) -> None:
    with pytest.raises(ValueError, match=r"positive|at least"):
        wrong()
