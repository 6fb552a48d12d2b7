"""Workers as processes of this machine, forked from a warm server that has imported the framework already.

One thread talks to the fork server, waits for everything at once and calls the sink; the public methods only leave
notes for it, or send a signal. See `zygote` for how nothing outlives anything.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import platform
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from elastic_train.adapters.launcher.local_worker import LocalWorker, Stage
from elastic_train.adapters.launcher.messages import MAX_MESSAGE_BYTES, Configure, Exited, Fork, Started, encode
from elastic_train.adapters.launcher.zygote_process import ZygoteProcess
from elastic_train.core.records import WorkerId
from elastic_train.errors import ConfigurationError, LaunchError
from elastic_train.ports import LauncherSink, WorkerExited, WorkerStarted

_log = logging.getLogger(__name__)

_IN_FLIGHT = 64  # requests unanswered at a time: fewer than a socket buffer holds, so that sending never blocks
_ANSWER_S = 5.0  # how long the fork server may take for what costs it milliseconds, before it counts as hung
_CLOSE_S = 3.0


@dataclass(eq=False)
class LocalProcessLauncher:
    """Starts workers by forking a warm process (Linux).

    Each worker calls ``entry({**spec, "worker_id": ..., "worker_index": ...})``, where the index is the smallest that
    no live worker of this launcher has. Its output goes to ``<log_dir>/<worker_id>.log``. A worker whose import of
    `entry` fails, or that does not come to call it in time, is reported with ``exit_code=None``.

    ``OMP_NUM_THREADS`` is 1 in the workers unless the environment sets it. Libraries read it when they are imported,
    which is before a worker's framework adapter can know how many cores it may use: the adapter sets that itself.

    Args:
        entry: ``"package.module:function"``, importable in the workers.
        spec: What all workers are told; plain JSON values.
        preload: Modules to import before forking. One that cannot be imported is left out with a warning.
        log_dir: Where the logs go; made if missing.
        env: Added to this process's environment.
        working_directory: Of the workers; this process's own unless given.
        sys_path: Likewise ``sys.path``.
        ready_timeout_s: How long a forked worker may take until it calls `entry`.
        start_timeout_s: How long the preload may take.
        max_processes: What `capacity` says. None: any number, for cores can be shared.
        node: Name of this machine in events.

    Raises:
        ConfigurationError: `entry` or `spec` cannot be sent to the workers.
    """

    entry: str
    spec: Mapping[str, Any]
    _: KW_ONLY
    preload: Sequence[str] = ()
    log_dir: Path
    env: Mapping[str, str] | None = None
    working_directory: Path = field(default_factory=Path.cwd)
    sys_path: Sequence[str] = field(default_factory=lambda: list(sys.path))
    ready_timeout_s: float = 60.0
    start_timeout_s: float = 300.0
    max_processes: int | None = None
    node: str = field(default_factory=platform.node)

    def __post_init__(self) -> None:
        self._configuration = self._checked_configuration()
        self._lock = threading.Lock()
        self._workers: dict[WorkerId, LocalWorker] = {}
        self._known: set[WorkerId] = set()
        self._zygotes: list[ZygoteProcess] = []  # all but one of them retired
        self._zygote_due = math.inf
        self._selector = selectors.DefaultSelector()
        self._closing = False
        self._wake_fd = -1
        self._thread: threading.Thread | None = None
        self._sink: LauncherSink = lambda _: None

    # ------------------------------------------------------------------ the port

    def start(self, sink: LauncherSink) -> None:
        """Start the fork server and return at once; it imports while the caller goes on.

        Raises:
            LaunchError: Started before, or `log_dir` cannot be made.
        """
        if self._thread is not None:
            raise LaunchError("this launcher was started before; make a new one")
        try:
            self.log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LaunchError(f"the log directory cannot be made: {error}. Give one that can be written to") from error
        self._sink = sink
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watch(self._wake_fd, self._drain_wake_ups)
        # A daemon: a driver that ends without `close` must not hang on it; the fork server ends with the driver.
        self._thread = threading.Thread(target=self._run, name="elastic-launcher", daemon=True)
        self._thread.start()

    def launch(self, worker_ids: Sequence[WorkerId]) -> None:
        """Start a worker for each id, as soon as the fork server is ready.

        Raises:
            LaunchError: Not started, closed, or an id was used before; nothing is launched then.
        """
        with self._lock:
            if self._thread is None or self._closing:
                raise LaunchError(
                    "this launcher is " + ("closed" if self._closing else "not started: call start first")
                )
            used = self._known.intersection(worker_ids)
            if used or len(set(worker_ids)) < len(worker_ids):
                raise LaunchError(f"worker ids are never reused: {sorted(used) or list(worker_ids)}")
            self._known.update(worker_ids)
            for worker_id in worker_ids:
                taken = {worker.index for worker in self._workers.values()}
                index = next(index for index in count() if index not in taken)
                self._workers[worker_id] = LocalWorker(worker_id, index)
        self._wake()

    def kill(self, worker_id: WorkerId) -> None:
        """End a worker for good, stopped or not yet started too; its exit is reported as any other. Unknown: no-op."""
        with self._lock:
            worker = self._workers.get(worker_id)
            if worker is None:
                return
            worker.kill()
        self._wake()

    def terminate(self, worker_id: WorkerId) -> None:
        """Ask a worker to end in its own time (SIGTERM); one that does not run yet is killed. Unknown: no-op."""
        with self._lock:
            worker = self._workers.get(worker_id)
            if worker is not None and worker.stage is Stage.RUNNING:
                worker.signal(signal.SIGTERM)
                return
        self.kill(worker_id)

    def capacity(self) -> int | None:
        """Return `max_processes`."""
        return self.max_processes

    def close(self) -> None:
        """End every worker and the fork server; return when they are gone and every exit is reported. Idempotent."""
        with self._lock:
            self._closing = True
            for worker in self._workers.values():
                worker.kill()
        self._wake()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._selector.close()
            if self._wake_fd >= 0:
                os.close(self._wake_fd)
                self._wake_fd = -1

    # ------------------------------------------------------------------ for tests and chaos

    def pids(self) -> dict[WorkerId, int]:
        """Return the process ids of the workers that run."""
        with self._lock:
            return {worker.worker_id: worker.pid for worker in self._workers.values() if worker.pid}

    def zygote_pid(self) -> int | None:
        """Return the process id of the fork server, None while there is none."""
        current = self._current()
        return current.pid if current is not None else None

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            self._start_zygote()
            while not self._closing:
                self._send_requests()
                self._wait(self._timeout_s())
                self._check_overdue()
        finally:
            self._end_everything()

    def _start_zygote(self) -> ZygoteProcess | None:
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **(self.env or {})}
        environment["PYTHONPATH"] = os.pathsep.join(self._configuration.sys_path)
        try:
            zygote = ZygoteProcess(
                self._configuration, environment, self.working_directory, self.log_dir / "zygote.log"
            )
        except LaunchError as error:
            self._fail_queue(str(error))
            return None
        with self._lock:
            self._zygotes.append(zygote)
        self._zygote_due = time.monotonic() + self.start_timeout_s
        self._watch(zygote.connection.fileno(), lambda: self._hear(zygote))
        self._watch(zygote.pidfd, lambda: self._bury(zygote))
        return zygote

    def _send_requests(self) -> None:
        with self._lock:
            waiting = [worker for worker in self._workers.values() if worker.stage is Stage.QUEUED]
            unanswered = sum(worker.stage is Stage.REQUESTED for worker in self._workers.values())
        for worker in [worker for worker in waiting if worker.killed]:
            waiting.remove(worker)
            self._finish(worker, None, "killed before it was started")
        if not waiting:
            return
        zygote = self._current() or self._start_zygote()
        if zygote is None or not zygote.ready:
            return
        zygote.nudge()
        for worker in waiting[: max(0, _IN_FLIGHT - unanswered)]:
            worker.stage, worker.zygote = Stage.REQUESTED, zygote
            worker.answer_due = time.monotonic() + _ANSWER_S + self.ready_timeout_s
            zygote.request(Fork(worker.worker_id, worker.index))

    def _hear(self, zygote: ZygoteProcess) -> None:
        for message, descriptors in zygote.messages():
            if isinstance(message, Started):
                self._note_start(message, descriptors[0])
            elif isinstance(message, Exited):
                worker = self._workers.get(WorkerId(message.worker_id))
                if worker is not None:  # else it was given up, and that reported, before the fork server answered
                    self._finish(worker, message.exit_code, message.detail)

    def _note_start(self, started: Started, pidfd: int) -> None:
        with self._lock:
            worker = self._workers.get(WorkerId(started.worker_id))
            if worker is not None:
                worker.note_start(started.pid, pidfd)
        if worker is None:  # it was given up while the fork server hung
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            return
        self._watch(pidfd, lambda: self._note_end(worker))
        self._notify(WorkerStarted(worker.worker_id, worker.pid, self.node))

    def _note_end(self, worker: LocalWorker) -> None:
        """Note that a worker's process has ended: its parent, the fork server, is about to say how."""
        self._unwatch(worker.pidfd)
        worker.answer_due = time.monotonic() + _ANSWER_S
        if worker.zygote is not None:
            worker.zygote.nudge()

    def _check_overdue(self) -> None:
        now = time.monotonic()
        overdue = [worker for worker in list(self._workers.values()) if now >= worker.answer_due]
        for worker in overdue:
            if worker.zygote is not None:
                worker.zygote.retired = True  # not killed: that would end the workers that it serves as a parent
            self._finish(worker, None, "the warm fork server does not answer; how the worker fared is unknown")
        current = self._current()
        if current is not None and not current.ready and now >= self._zygote_due:
            current.kill()

    def _bury(self, zygote: ZygoteProcess) -> None:
        """Take note of the end of a fork server, and with it of its workers."""
        self._hear(zygote)
        self._unwatch(zygote.connection.fileno())
        self._unwatch(zygote.pidfd)
        with self._lock:
            self._zygotes.remove(zygote)
            orphans = [worker for worker in self._workers.values() if worker.zygote is zygote]
        obituary = zygote.obituary(zygote.reap())
        for worker in orphans:
            if worker.stage is Stage.RUNNING:
                worker.end_orphan()
                self._finish(worker, -signal.SIGKILL, f"killed, because {obituary}")
            else:
                self._finish(worker, None, obituary)
        if not zygote.ready:
            self._fail_queue(obituary)

    def _end_everything(self) -> None:
        self._fail_queue("the launcher was closed before it was started")
        for zygote in self._zygotes:
            if zygote.ready and not zygote.retired:
                zygote.hang_up()
                zygote.nudge()
            else:
                zygote.kill()
        deadline = time.monotonic() + _CLOSE_S
        while self._zygotes:
            self._wait(max(0.0, deadline - time.monotonic()))
            if time.monotonic() >= deadline:
                deadline = math.inf
                for zygote in self._zygotes:
                    zygote.kill()

    # ------------------------------------------------------------------ its tools

    def _current(self) -> ZygoteProcess | None:
        with self._lock:
            return next((zygote for zygote in self._zygotes if not zygote.retired), None)

    def _finish(self, worker: LocalWorker, exit_code: int | None, detail: str) -> None:
        with self._lock:
            del self._workers[worker.worker_id]
        if worker.pidfd >= 0:
            self._unwatch(worker.pidfd)
            os.close(worker.pidfd)
        self._notify(WorkerExited(worker.worker_id, exit_code, detail))

    def _fail_queue(self, detail: str) -> None:
        for worker in [worker for worker in self._workers.values() if worker.stage is Stage.QUEUED]:
            self._finish(worker, None, detail)

    def _notify(self, event: WorkerStarted | WorkerExited) -> None:
        try:
            self._sink(event)
        except Exception:  # noqa: BLE001 - whatever is wrong with the listener, the workers must not go unwatched
            _log.exception("the launcher's sink failed on %s", event)

    def _timeout_s(self) -> float | None:
        dues = [worker.answer_due for worker in list(self._workers.values())]
        current = self._current()
        if current is not None and not current.ready:
            dues.append(self._zygote_due)
        due = min(dues, default=math.inf)
        return None if due == math.inf else max(0.0, due - time.monotonic())

    def _wait(self, timeout_s: float | None) -> None:
        for key, _ in self._selector.select(None if timeout_s == math.inf else timeout_s):
            handler: Callable[[], None] = key.data
            if self._selector.get_map().get(key.fd) is key:  # else an earlier one of this round has ended its watch
                handler()

    def _watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, handler)

    def _unwatch(self, descriptor: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(descriptor)

    def _wake(self) -> None:
        with self._lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _drain_wake_ups(self) -> None:
        os.eventfd_read(self._wake_fd)

    def _checked_configuration(self) -> Configure:
        if not all(self.entry.partition(":")):
            raise ConfigurationError("entry", f"{self.entry!r} names no function", 'Write "package.module:function"')
        here = str(self.working_directory)
        configuration = Configure(
            entry=self.entry,
            spec=dict(self.spec),
            preload=list(self.preload),
            log_dir=str(self.log_dir.absolute()),
            sys_path=[path or here for path in self.sys_path],
            pythonpath={**os.environ, **(self.env or {})}.get("PYTHONPATH"),
            ready_timeout_s=self.ready_timeout_s,
        )
        try:
            size = len(encode(configuration))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                "spec", f"holds what JSON has no words for ({error})", "Put it in a file"
            ) from error
        if size > MAX_MESSAGE_BYTES:
            raise ConfigurationError(
                "spec", f"has {size} bytes", f"Put what is large in a file (at most {MAX_MESSAGE_BYTES})"
            )
        return configuration
