"""The one queue through which everything reaches the control loop."""

from __future__ import annotations

import queue
from collections.abc import Callable

from elastic_train.core.events import Event, Tick


class Inbox:
    """Events from any thread, in the order of their arrival.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._queue: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()

    def put(self, event: Event) -> None:
        """Add an event."""
        self._queue.put(event)

    def fail(self, error: BaseException) -> None:
        """Let `next` raise this error when its turn comes."""
        self._queue.put(error)

    def next(self, until_s: float | None) -> Event:
        """Wait for the next event; return a Tick if none came by `until_s` (monotonic; None: wait for ever).

        Raises:
            BaseException: What `fail` was given.
        """
        timeout_s = None if until_s is None else max(0.0, until_s - self._clock())
        try:
            item = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            assert until_s is not None
            return Tick(at_s=max(until_s, self._clock()))
        if isinstance(item, BaseException):
            raise item
        return item

    def clear(self) -> None:
        """Drop all that is in it."""
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                return
