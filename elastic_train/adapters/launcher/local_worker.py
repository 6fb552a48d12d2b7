"""One worker process as the driver knows it: how far its start has come, and the pidfd by which it is signalled."""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path

from elastic_train.adapters.launcher.zygote_process import ZygoteProcess
from elastic_train.core.records import WorkerId

_log = logging.getLogger(__name__)

_END_S = 5.0
_PIDFD_SIGNAL_PROCESS_GROUP = 4  # pidfd_send_signal(2), Linux 6.9


class Stage(enum.Enum):
    """How far the start of a worker has come."""

    QUEUED = enum.auto()  # the fork server does not know of it yet
    REQUESTED = enum.auto()
    RUNNING = enum.auto()


@dataclass(slots=True, eq=False)
class LocalWorker:
    """One worker process."""

    worker_id: WorkerId
    index: int
    stage: Stage = Stage.QUEUED
    zygote: ZygoteProcess | None = None
    pid: int = 0
    pidfd: int = -1
    killed: bool = False  # somebody wants it gone: also if it comes to run only later
    answer_due: float = math.inf  # monotonic, by which the fork server must have told of its start, or of its exit

    def note_start(self, pid: int, pidfd: int) -> None:
        """Note its process; end it at once where it was killed before it was there."""
        self.stage, self.pid, self.pidfd = Stage.RUNNING, pid, pidfd
        self.answer_due = math.inf
        if self.killed:
            self.signal(signal.SIGKILL)

    def kill(self) -> None:
        """Kill its process, now or as soon as there is one."""
        self.killed = True
        self.signal(signal.SIGKILL)

    def signal(self, signum: int) -> None:
        """Send a signal if it runs. The caller sees to it that the pidfd is not closed meanwhile."""
        if self.stage is Stage.RUNNING:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signum)

    def end_orphan(self) -> None:
        """Make sure that it is gone after its fork server has ended, with whatever it forked itself."""
        self.signal(signal.SIGKILL)
        ended = select.poll()
        ended.register(self.pidfd, select.POLLIN)
        if not ended.poll(_END_S * 1000):
            _log.warning("worker %s (pid %d) does not end on SIGKILL", self.worker_id, self.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL, None, _PIDFD_SIGNAL_PROCESS_GROUP)
            except OSError:  # an older kernel. While the group has members its number belongs to no other process.
                if not Path(f"/proc/{self.pid}").exists():
                    os.killpg(self.pid, signal.SIGKILL)
