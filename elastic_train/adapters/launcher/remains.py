"""What workers had forked themselves and left behind: ended with them, but given a moment to clean up.

The moment is for Python's resource tracker: it ignores SIGTERM, and unlinks the shared memory of a killed worker as
soon as nobody holds the other end of its pipe.

The fork server adopts them (prctl(2), PR_SET_CHILD_SUBREAPER), so that it can reap them: in a container whose first
process does not, they would stay zombies for ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Container
from pathlib import Path

_GRACE_S = 1.0
_SWEEP_S = 0.02


class Remains:
    """The process groups of dead workers that still have members.

    A group's number cannot belong to others while it has members. Numbers are given out in turn, so one that became
    free between two sweeps has not come round again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked: dict[int, float] = {}  # process group -> when its moment is over
        self._killed: dict[int, float] = {}  # process group -> when to stop looking for its end

    def take_over(self, group: int) -> None:
        """Ask all members to end. The group's leader must have ended; reap it after this and before the next sweep."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGTERM)
            os.killpg(group, signal.SIGCONT)  # a stopped process ends only when it goes on
        self._asked[group] = self._clock() + _GRACE_S

    def sweep(self) -> None:
        """Reap what has ended, forget groups that are gone, and kill those that had their moment."""
        now = self._clock()
        for group in [*self._asked, *self._killed]:
            _reap_group(group)
            if not _signal_group(group, 0):
                self._asked.pop(group, None)
                self._killed.pop(group, None)
        for group in [group for group, until in self._asked.items() if now >= until]:
            del self._asked[group]
            if _signal_group(group, signal.SIGKILL):
                self._killed[group] = now + _GRACE_S
        self._killed = {group: until for group, until in self._killed.items() if now < until}

    def wait(self) -> None:
        """Return when all have ended or were killed."""
        self.sweep()
        while self.timeout_s() is not None:
            time.sleep(_SWEEP_S / 4)
            self.sweep()

    def timeout_s(self) -> float | None:
        """Return when to sweep next, None if there is nothing to wait for."""
        return _SWEEP_S if self._asked or self._killed else None


def reap_strays(known: Container[int]) -> None:
    """Reap adopted processes that have ended by themselves; stop at the first that is `known`, for others to reap."""
    with contextlib.suppress(ChildProcessError):
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in known:
                return
            os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)


def kill_children() -> None:
    """Kill and reap all children of this process, and theirs, which become its own as their parents end."""
    listing = Path(f"/proc/self/task/{os.getpid()}/children")
    while listing.exists() and (children := listing.read_text().split()):  # a kernel may be built without it
        for child in children:
            os.kill(int(child), signal.SIGKILL)  # our own and not reaped: the number is still its
        for child in children:
            os.waitpid(int(child), 0)


def _signal_group(group: int, signum: int) -> bool:
    """Signal a group; return whether it had members."""
    try:
        os.killpg(group, signum)
    except (ProcessLookupError, PermissionError):  # gone; or its number is somebody else's already
        return False
    return True


def _reap_group(group: int) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG):
            pass
