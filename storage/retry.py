"""Retry transient failures with exponential backoff, full jitter and a deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from storage.errors import (
    CredentialsExpired,
    DeadlineExceeded,
    RequestTimeout,
    Throttled,
    TransientError,
)
from storage.limiter import ConcurrencyLimiter

T = TypeVar("T")

#: How slow a large transfer may be before its deadline ends it.
MIN_BYTES_PER_S = 8 * 2**20


class Clock(Protocol):
    """Tell and pass time; replaced in tests."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Say how long to go on trying.

    The pause before try ``n + 1`` is uniform in ``[0, min(max_delay_s, base_delay_s * 2**n)]``:
    "full jitter", from "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Attributes:
        deadline_s: an operation of few bytes ends by then, give or take one request.
        max_attempts: requests tried at most; None for as many as the deadline allows.
        base_delay_s: bound of the first pause.
        max_delay_s: bound of all pauses.
    """

    deadline_s: float = 120.0
    max_attempts: int | None = None
    base_delay_s: float = 0.1
    max_delay_s: float = 8.0

    def __post_init__(self) -> None:
        if self.deadline_s <= 0 or self.base_delay_s <= 0 or self.max_delay_s < self.base_delay_s:
            raise ValueError(f"delays and deadline must be positive and in order: {self}")
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ValueError("max_attempts is at least 1")

    def delay_bound_s(self, failures: int) -> float:
        """Return the longest pause after this many failures."""
        return min(self.max_delay_s, self.base_delay_s * 2.0 ** min(failures - 1, 60))


class Retrier:
    """Run attempts under a policy and a concurrency limit; without a policy, run them once."""

    def __init__(
        self,
        policy: RetryPolicy | None,
        limiter: ConcurrencyLimiter | None = None,
        *,
        clock: Clock = time,
        rng: random.Random | None = None,
    ) -> None:
        self.policy = policy
        self.limiter = limiter or ConcurrencyLimiter()
        self._clock = clock
        self._rng = rng or random.Random()  # jitter is no secret

    def call(
        self,
        attempt: Callable[[], T],
        *,
        refresh: Callable[[], bool],
        writes: bool = False,
        weight: int = 1,
        nbytes: int = 0,
    ) -> T:
        """Return what ``attempt`` returns, trying again after transient failures.

        Args:
            attempt: one request; raises from the storage error tree.
            refresh: fetches new credentials; false if there are none to try.
            writes: whether a lost answer leaves the effect in doubt.
            weight: how many requests the attempt runs at once.
            nbytes: moved by the attempt; extends the deadline by what they take at
                :data:`MIN_BYTES_PER_S`.

        Raises:
            DeadlineExceeded: the policy's deadline or attempts are used up.
            StorageError: what the attempt raised, if it is not transient.
        """
        if self.policy is None:
            return attempt()
        started = self._clock.monotonic()
        allowed_s = self.policy.deadline_s + nbytes / MIN_BYTES_PER_S
        failures = 0
        refreshed = False
        in_doubt = False
        while True:
            try:
                return self._limited(attempt, weight, started + allowed_s)
            except CredentialsExpired:
                if refreshed or not refresh():
                    raise
                refreshed = True
                continue
            except TransientError as error:
                failures += 1
                in_doubt = in_doubt or (writes and not isinstance(error, Throttled))
                last = error
            # Outside the handler, so that no earlier failure becomes this one's context.
            pause = self._rng.uniform(0.0, self.policy.delay_bound_s(failures))
            elapsed_s = self._clock.monotonic() - started
            out_of_tries = self.policy.max_attempts is not None and failures >= self.policy.max_attempts
            if out_of_tries or elapsed_s + pause >= allowed_s:
                raise DeadlineExceeded(attempts=failures, elapsed_s=elapsed_s, maybe_applied=in_doubt, last=last)
            self._clock.sleep(pause)

    def _limited(self, attempt: Callable[[], T], weight: int, deadline: float) -> T:
        left_s = max(0.0, deadline - self._clock.monotonic())
        with self.limiter.slots(weight, timeout_s=left_s) as mark:
            if mark is None:
                raise RequestTimeout("waited too long behind other requests to this store")
            try:
                result = attempt()
            except Throttled:
                self.limiter.throttled(mark)
                raise
        self.limiter.succeeded()
        return result


NO_RETRIES = Retrier(None)
