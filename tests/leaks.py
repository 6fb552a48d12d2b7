"""What a test must not leave behind (invariant I10): processes, threads, listening sockets, shared memory, job files.

`Footprint.take()` before, `Footprint.take()` after; what the second has and the first had not is a leak, once it has
had a moment to go away by itself.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

import psutil

from scripts.processes import RUN_MARK, describe, marked_processes

GRACE_S = 3.0
"""How long something that is ending may take to be gone after its test."""

_POLL_S = 0.02
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Footprint:
    """What this process and its descendants hold at one moment, each thing described in a line."""

    processes: dict[tuple[int, float], str]
    threads: dict[int, str]
    listeners: dict[tuple[str, int], str]
    shared_memory: dict[str, str]

    @classmethod
    def take(cls) -> Footprint:
        """Look at everything now."""
        processes = _descendants()
        return cls(
            processes={key: describe(process) for key, process in processes.items()},
            threads=_threads(),
            listeners=_listeners(),
            shared_memory={name: f"/dev/shm/{name}" for name in _names_in(_SHARED_MEMORY)},
        )

    @classmethod
    def take_cheaply(cls) -> Footprint:
        """Look only at what costs microseconds: this process's own children and threads."""
        return cls(processes=_children(), threads=_threads(), listeners={}, shared_memory={})

    def grown_to(self, later: Footprint) -> list[str]:
        """Return a line for each thing that `later` has and this one has not."""
        leaks = [f"process: {later.processes[key]}" for key in later.processes.keys() - self.processes.keys()]
        leaks += [f"thread: {later.threads[key]}" for key in later.threads.keys() - self.threads.keys()]
        leaks += [f"listening socket: {later.listeners[key]}" for key in later.listeners.keys() - self.listeners.keys()]
        segments = later.shared_memory.keys() - self.shared_memory.keys()
        leaks += [
            f"shared memory: {later.shared_memory[name]}" for name in sorted(segments & _unowned_or_ours(segments))
        ]
        return leaks


def wait_until_clean(
    before: Footprint, look: Callable[[], Footprint] = Footprint.take, grace_s: float = GRACE_S
) -> list[str]:
    """Return what still grew since `before` when `grace_s` is over; return at once when nothing did."""
    deadline = time.monotonic() + grace_s
    while leaks := before.grown_to(look()):
        if time.monotonic() >= deadline:
            return leaks
        time.sleep(_POLL_S)
    return []


def files_left_in(home: Path) -> list[str]:
    """Return a line for each temporary file and each socket that was left under the job root `home`."""
    if not home.exists():
        return []
    return [
        f"{'socket' if path.is_socket() else 'temporary file'}: {path}"
        for path in sorted(home.rglob("*"))
        if path.is_socket() or ".tmp" in path.name or path.name.startswith("tmp")
    ]


def _children() -> dict[tuple[int, float], str]:
    """Return this process's children, from the kernel's own lists, one a thread."""
    pids: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            pids += (task / "children").read_text().split()
    return {(int(pid), 0.0): f"pid {pid}" for pid in pids if int(pid) != _resource_tracker_pid()}


def _resource_tracker_pid() -> int | None:
    """Return the pid of Python's own tracker of shared memory: it lives as long as the interpreter, by design."""
    pid: int | None = getattr(resource_tracker._resource_tracker, "_pid", None)
    return pid


def _descendants() -> dict[tuple[int, float], psutil.Process]:
    """Return all descendants: the children's tree, and by the run's mark also those that left it."""
    found = psutil.Process().children(recursive=True)
    found += [process for process in marked_processes(os.environ[RUN_MARK]) if process.pid != os.getpid()]
    result = {}
    for process in found:
        if process.pid == _resource_tracker_pid():
            continue
        try:
            result[(process.pid, float(process.create_time()))] = process
        except psutil.NoSuchProcess:
            continue
    return result


def _threads() -> dict[int, str]:
    """Return the threads that would keep the interpreter from ending, and all of our own."""
    return {
        id(thread): f"{thread.name} (daemon={thread.daemon})"
        for thread in threading.enumerate()
        if not thread.daemon or thread.name.startswith(("elastic", "checkpoint", "storage"))
    }


def _listeners() -> dict[tuple[str, int], str]:
    found = {}
    for connection in psutil.Process().net_connections(kind="inet"):
        if connection.status == psutil.CONN_LISTEN:
            address = (str(connection.laddr.ip), int(connection.laddr.port))
            found[address] = f"{address[0]}:{address[1]}"
    return found


def _names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _unowned_or_ours(names: set[str]) -> set[str]:
    """Return those segments that nobody maps, or that this process maps: another program's own are not our leaks."""
    if not names:
        return set()
    foreign = set()
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            mapped = Path(f"/proc/{process.pid}/maps").read_text(errors="replace")
        except OSError:  # it ended, or is not ours to read
            continue
        foreign |= {name for name in names if f"/dev/shm/{name}" in mapped}
    return names - foreign
