"""When has the training thread waited too long? A deadline derived from measured step times."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median

from elastic_train.core.records import Activity

_MIN_DEADLINE_S = 1.0
_TYPICAL_STEPS = 8.0  # a collective that takes so many typical steps is worth a question
_WINDOW = 32
_WAITS = (Activity.WAITING, Activity.SWITCHING)


class ProgressDeadline:
    """Says what the training thread is doing and since when, and when that is worth reporting.

    The training thread sets; the agent's thread reads. Only assignments of whole tuples cross threads.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._activity: tuple[Activity, float] = (Activity.IDLE, clock())
        self._durations: deque[float] = deque(maxlen=_WINDOW)
        self._deadline_s = _MIN_DEADLINE_S
        self._reported: tuple[float, float] = (0.0, 0.0)  # (since, waited) of the last report

    @property
    def activity(self) -> tuple[Activity, float]:
        """Return what the training thread does, and since when (monotonic seconds)."""
        return self._activity

    def now(self, activity: Activity) -> None:
        """Set what the training thread does from now on."""
        self._activity = (activity, self._clock())

    def step_took(self, duration_s: float) -> None:
        """Learn from a committed step."""
        self._durations.append(duration_s)
        if len(self._durations) % (_WINDOW // 4) == 0:
            self._deadline_s = max(_MIN_DEADLINE_S, _TYPICAL_STEPS * median(self._durations))

    def overdue_s(self, now: float) -> float | None:
        """Return how long the training thread has waited, at the deadline and at each doubling; else None."""
        activity, since = self._activity
        if activity not in _WAITS:
            return None
        waited_s = now - since
        reported_since, reported_s = self._reported
        due_s = 2 * reported_s if reported_since == since else self._deadline_s
        if waited_s < due_s:
            return None
        self._reported = (since, waited_s)
        return waited_s
