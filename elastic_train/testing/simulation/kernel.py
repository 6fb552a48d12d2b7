"""Time, chance and processes: everything that happens in a simulation happens from one queue, in one thread."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

_PATIENCE = 400_000


class Kernel:
    """A discrete-event scheduler. One seed decides everything.

    Args:
        seed: Of the only source of randomness.
    """

    def __init__(self, seed: int) -> None:
        self.now_s = 1000.0
        self.random = random.Random(seed)
        self.events = 0
        self.after_each: Callable[[], None] = lambda: None
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = 0

    def clock(self) -> float:
        """Return the true time, in seconds."""
        return self.now_s

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Let something happen later."""
        self._numbers += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self._numbers, action, arguments))

    def run(self, until_s: float, done: Callable[[], bool]) -> None:
        """Let happen what is due until then, or until `done`, looking at the invariants after each event."""
        queue = self._queue
        first = self.events
        while queue and queue[0][0] <= until_s and not done():
            at_s, _, action, arguments = heapq.heappop(queue)
            self.now_s = max(self.now_s, at_s)
            self.events += 1
            action(*arguments)
            self.after_each()
            if self.events - first > _PATIENCE:
                raise AssertionError(f"more than {_PATIENCE} events: the simulated processes chase each other")
        self.now_s = max(self.now_s, until_s) if not done() else self.now_s


class Process:
    """Something that can be killed, stopped and continued, with a monotonic clock of its own.

    What reaches a stopped process waits, in order, until it is continued (signals and sockets keep it, as an operating
    system does).
    """

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel = kernel
        self.name = name
        self.alive = True
        self.stopped = False
        self.skew_s = 0.0
        self.lagged = False
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def clock(self) -> float:
        """Return this process's monotonic time."""
        return self.kernel.now_s + self.skew_s

    def jump(self, by_s: float) -> None:
        """Let its clock leap (a machine slept), or lag behind (a virtual machine was suspended)."""
        self.skew_s += by_s
        self.lagged = self.lagged or by_s < 0.0  # its leases may be over before it can tell: only fences hold now

    def post(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Let this process do something later, if it lives then."""
        self.kernel.after(delay_s, self._perform, action, arguments)

    def _perform(self, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if not self.alive:
            return
        if self.stopped:
            self._backlog.append((action, arguments))
        else:
            action(*arguments)

    def kill(self) -> None:
        """End it (SIGKILL): it does nothing more."""
        self.alive = False
        self._backlog.clear()

    def stop(self) -> None:
        """Stop it (SIGSTOP)."""
        self.stopped = True

    def resume(self) -> None:
        """Continue it (SIGCONT): it works off what came meanwhile."""
        if not self.stopped:
            return
        self.stopped = False
        backlog, self._backlog = self._backlog, []
        for action, arguments in backlog:
            self.kernel.after(0.0, self._perform, action, arguments)
