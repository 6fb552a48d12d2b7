"""Find and end the processes that a run started, wherever they were reparented to.

A run puts a mark of its own into its environment; every descendant inherits it, also one that was double-forked away
from its parent. Only marked processes are ever signalled.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil

RUN_MARK = "ELASTIC_TRAIN_TEST_RUN"
"""The environment variable that carries a run's mark."""

_POLL_S = 0.02


def marked_processes(mark: str) -> list[psutil.Process]:
    """Return the live processes whose environment carries `mark`, oldest first."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_MARK) == mark:
                found.append(process)
        except psutil.Error:  # it ended while we looked, or is not ours to read
            continue
    return sorted(found, key=lambda process: float(process.create_time()))


def end_processes(processes: Iterable[psutil.Process], grace_s: float) -> list[str]:
    """Wait `grace_s` for `processes` to end by themselves, kill the rest and describe each that had to be killed."""
    left = wait_for_end(processes, grace_s)
    descriptions = [describe(process) for process in left]
    for process in left:
        try:
            process.kill()  # psutil checks that the pid was not reused
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=grace_s)
    return descriptions


def wait_for_end(processes: Iterable[psutil.Process], grace_s: float) -> list[psutil.Process]:
    """Return those of `processes` that still run after `grace_s`; return at once when none does."""
    deadline = time.monotonic() + grace_s
    left = [process for process in processes if _runs(process)]
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        left = [process for process in left if _runs(process)]
    return left


def describe(process: psutil.Process) -> str:
    """Describe a process in one line: its pid, state and command line."""
    try:
        return f"pid {process.pid} [{process.status()}] {' '.join(process.cmdline())[:200] or process.name()}"
    except psutil.Error:
        return f"pid {process.pid} (ended meanwhile)"


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
