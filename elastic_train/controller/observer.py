"""Brings the control loop its events: from the job's keys, and from the launcher."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from elastic_train.controller.inbox import Inbox
from elastic_train.controller.translator import Translator
from elastic_train.core.events import LaunchFailed, Loss, WorkerLost
from elastic_train.core.records import Keys
from elastic_train.errors import CoordinationError, CoordinationUnavailable
from elastic_train.ports import Coordination, Snapshot, WorkerExited, WorkerStarted

_log = logging.getLogger(__name__)

_REOPEN_S = 0.2


class Observer:
    """Watches all keys of a job in a thread of its own.

    Args:
        coordination: Where the keys are.
        keys: The job's keys.
        known: The snapshot from which the job's state was read; what it says has happened already.
        inbox: Where events go; a watch that is denied for good ends the loop through it.
        clock: Monotonic seconds.
    """

    def __init__(
        self, coordination: Coordination, keys: Keys, known: Snapshot, inbox: Inbox, clock: Callable[[], float]
    ) -> None:
        self._coordination = coordination
        self._keys = keys
        self._inbox = inbox
        self._translator = Translator(keys, clock)
        self._translator.prime(known)
        self._closing = threading.Event()
        self._watch = coordination.watch(keys.root)
        self._thread = threading.Thread(target=self._run, name="elastic-controller-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the watch and its thread."""
        self._closing.set()
        self._watch.close()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._follow()
            except CoordinationUnavailable as error:
                _log.warning("the watch on %s was cut, opening another: %s", self._keys.root, error)
                self._closing.wait(_REOPEN_S)
                self._reopen()
            except CoordinationError as error:
                self._inbox.fail(error)
                return

    def _follow(self) -> None:
        for batch in self._watch:
            for event in self._translator.translate(batch):
                self._inbox.put(event)
        if not self._closing.is_set():
            raise CoordinationUnavailable("the watch ended by itself")

    def _reopen(self) -> None:
        try:
            self._watch = self._coordination.watch(self._keys.root)
        except CoordinationUnavailable as error:
            _log.warning("no watch on %s yet: %s", self._keys.root, error)
        if self._closing.is_set():
            self._watch.close()


def launcher_event(news: WorkerStarted | WorkerExited, at_s: float) -> WorkerLost | LaunchFailed | None:
    """Return the event behind what a launcher says; None: none (its own record will tell that a worker started)."""
    if isinstance(news, WorkerStarted):
        return None
    if news.exit_code is None:
        return LaunchFailed(at_s=at_s, worker_id=news.worker_id, detail=news.detail or "no detail")
    return WorkerLost(
        at_s=at_s, worker_id=news.worker_id, why=Loss.EXITED, exit_code=news.exit_code, detail=news.detail
    )
