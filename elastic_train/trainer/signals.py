"""Signals that steer a running job: what a person or a batch system sends to the driver's process."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable
from enum import StrEnum
from types import FrameType, TracebackType
from typing import Any, Self


class Command(StrEnum):
    """What a signal asks for."""

    STOP = "stop"  # SIGINT or SIGTERM, the first time
    STOP_AT_ONCE = "stop at once"  # and the second time: do not wait for the step
    GROW = "grow"  # SIGUSR1: one worker more
    SHRINK = "shrink"  # SIGUSR2: one worker fewer


class Signals:
    """Turns signals into commands while a job runs; as a context manager it puts the old handlers back.

    SIGINT (Ctrl-C) and SIGTERM ask for a clean stop, and the second time to end at once. No handler raises: a job is
    taken down by its own thread, from a place where that is safe.
    SIGUSR1 and SIGUSR2 ask for one worker more or fewer. Outside of the main thread, where Python delivers no signals,
    it does nothing.
    """

    def __init__(self) -> None:
        # a handler may run in the middle of any bytecode, also of `get`: SimpleQueue.put is re-entrant
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._old: dict[signal.Signals, Any] = {}
        self._stops = 0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers().items():
                self._old[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            # None: it was not installed from Python, and cannot be put back from here
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._old.clear()

    def pending(self) -> list[Command]:
        """Return the commands that came since the last call."""
        commands = []
        while True:
            try:
                commands.append(self._commands.get_nowait())
            except queue.Empty:
                return commands

    def _handlers(self) -> dict[signal.Signals, Callable[[int, FrameType | None], None]]:
        return {
            signal.SIGINT: self._stop,
            signal.SIGTERM: self._stop,
            signal.SIGUSR1: lambda _number, _frame: self._commands.put(Command.GROW),
            signal.SIGUSR2: lambda _number, _frame: self._commands.put(Command.SHRINK),
        }

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # the signature of a handler
        self._stops += 1
        self._commands.put(Command.STOP if self._stops == 1 else Command.STOP_AT_ONCE)
