"""A limit on concurrent requests that follows what the store can take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from storage.forking import reset_in_child

BACKOFF_FACTOR = 0.5


class ConcurrencyLimiter:
    """Bound concurrent requests by additive increase and multiplicative decrease.

    The limit grows by one for every ``limit`` requests that succeed, and halves when the store
    throttles; further refusals of requests that began before the last cut do not cut again, since
    they say nothing about the new limit. (Chiu and Jain, "Analysis of the increase and decrease
    algorithms for congestion avoidance in computer networks", 1989; one cut a round trip as in TCP
    Reno.)
    """

    def __init__(self, *, initial: int = 16, maximum: int = 64) -> None:
        if not 1 <= initial <= maximum:
            raise ValueError(f"need 1 <= initial <= maximum, not {initial} and {maximum}")
        self._maximum = maximum
        self._limit = float(initial)
        self._in_flight = 0
        self._cuts = 0
        self._changed = threading.Condition()
        reset_in_child(self)

    @property
    def limit(self) -> int:
        """Return how many requests may run at once now."""
        return int(self._limit)

    @property
    def in_flight(self) -> int:
        """Return how many requests run now."""
        return self._in_flight

    def reset_after_fork(self) -> None:
        """Forget the parent's requests: none of them runs in this process."""
        self._in_flight = 0
        self._changed = threading.Condition()

    @contextmanager
    def slots(self, weight: int, timeout_s: float | None) -> Iterator[int | None]:
        """Hold ``weight`` slots (fewer if the limit is lower), or yield None on time-out.

        Yields a mark to hand to :meth:`throttled`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._fits(weight), timeout_s):
                taken = None
            else:
                taken = min(weight, self.limit)
                self._in_flight += taken
            mark = self._cuts
        if taken is None:
            yield None
            return
        try:
            yield mark
        finally:
            with self._changed:
                self._in_flight -= taken
                self._changed.notify_all()

    def succeeded(self) -> None:
        """Count a request that the store served."""
        with self._changed:
            self._limit = min(float(self._maximum), self._limit + 1.0 / self._limit)
            self._changed.notify()

    def throttled(self, mark: int) -> None:
        """Count a refusal of a request that was started under ``mark``."""
        with self._changed:
            if mark == self._cuts:
                self._cuts += 1
                self._limit = max(1.0, self._limit * BACKOFF_FACTOR)

    def _fits(self, weight: int) -> bool:
        return self._in_flight + min(weight, self.limit) <= self.limit
