"""The warm fork server ("zygote"): a process that has imported what workers need, and forks them.

Run by `LocalProcessLauncher` as ``python -m elastic_train.adapters.launcher.zygote CONTROL_FD DRIVER_PID``. It is one
thread, and stays one: a fork copies the calling thread only, and a lock that another one held would stay locked in the
child for ever. Forking a process that has imported torch takes about 5 ms; importing torch takes seconds.

It never outlives the driver, and its workers never outlive it:

- the driver's end is seen by its pidfd and by the closed control socket; every worker is killed then, with all that it
  forked itself (each worker leads a process group of its own);
- a stopped fork server is woken by the driver's end (PR_SET_PDEATHSIG = SIGCONT) to do so;
- the fork server's own end, however sudden, ends its workers through the kernel (PR_SET_PDEATHSIG = SIGKILL).
"""

from __future__ import annotations

import collections
import contextlib
import gc
import importlib
import os
import select
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from elastic_train.adapters.launcher import child
from elastic_train.adapters.launcher.messages import Configure, Exited, Fork, Message, Ready, Started, receive, send
from elastic_train.adapters.launcher.remains import Remains, kill_children, reap_strays

_MAX_REPORT_BYTES = 4096


@dataclass(slots=True)
class _Worker:
    worker_id: str
    pid: int
    pidfd: int
    report_fd: int  # read end of the pipe on which it says that it stands at its entry point, or why not
    deadline: float  # monotonic, by which it must have said so
    report: bytes = b""
    late: bool = False


class Zygote:
    """Forks workers on request, watches them, and tells the driver at once when one ends.

    Args:
        control: The socket to the driver.
        driver_pidfd: Becomes readable when the driver ends.
        configuration: What the workers have in common.
    """

    def __init__(self, control: socket.socket, driver_pidfd: int, configuration: Configure) -> None:
        self._control = control
        self._driver_pidfd = driver_pidfd
        self._configuration = configuration
        self._workers: dict[int, _Worker] = {}  # by pidfd
        self._remains = Remains()
        self._requests: collections.deque[Fork] = collections.deque()
        self._ending = False
        self._driver_gone = False  # nobody is there to be told
        self._selector = selectors.PollSelector()  # unlike epoll it has no descriptor that a child would share
        control.setblocking(False)
        self._watch(control.fileno(), self._read_requests)
        self._watch(driver_pidfd, self._end_with_driver)

    def serve(self, ready: Ready) -> None:
        """Say that it is ready, and serve until the driver hangs up or ends; then end every worker."""
        self._tell(ready)
        while not self._ending:
            for key, _ in self._selector.select(self._timeout_s()):
                key.data()
            self._end_late_workers()
            self._remains.sweep()
            reap_strays({worker.pid for worker in self._workers.values()})
            if self._requests and not self._ending:  # one a round, so that exits are told in between
                self._fork(self._requests.popleft())
        self._end_all()

    # ------------------------------------------------------------------ the driver's side

    def _read_requests(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while received := receive(self._control):
                message, _ = received
                assert isinstance(message, Fork), message
                self._requests.append(message)
            self._ending = True  # it hung up, and may still listen
            self._unwatch(self._control.fileno())

    def _end_with_driver(self) -> None:
        self._ending = self._driver_gone = True

    def _tell(self, message: Message, *descriptors: int) -> None:
        """Send to the driver; wait where it is slow to read, but not for one that has ended."""
        while not self._driver_gone:
            try:
                send(self._control, message, descriptors)
            except BlockingIOError:
                waiting = select.poll()
                waiting.register(self._control, select.POLLOUT)
                waiting.register(self._driver_pidfd, select.POLLIN)
                if any(descriptor == self._driver_pidfd for descriptor, _ in waiting.poll()):
                    self._end_with_driver()
            except (BrokenPipeError, ConnectionResetError):
                self._end_with_driver()
            else:
                return

    # ------------------------------------------------------------------ workers

    def _fork(self, request: Fork) -> None:
        zygote_pid = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        read_end = write_end = -1
        try:
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            pid = os.fork()
        except OSError as error:
            for descriptor in {read_end, write_end} - {-1}:
                os.close(descriptor)
            self._tell(Exited(request.worker_id, None, f"fork failed: {error}"))
            return
        if pid == 0:
            try:
                self._close_inherited(read_end)
                child.run_worker(request, self._configuration, write_end, zygote_pid)
            finally:
                os._exit(1)  # whatever happens, there is one fork server only
        os.close(write_end)
        pidfd = os.pidfd_open(pid)  # no race: only this process reaps it, so it is at least a zombie still
        worker = _Worker(
            request.worker_id, pid, pidfd, read_end, time.monotonic() + self._configuration.ready_timeout_s
        )
        self._workers[pidfd] = worker
        self._watch(pidfd, lambda: self._reap(worker))
        self._watch(read_end, lambda: self._read_report(worker))
        self._tell(Started(request.worker_id, pid), pidfd)

    def _close_inherited(self, read_end: int) -> None:
        """Close, in the child, what is this process's own."""
        self._control.close()
        for descriptor in (self._driver_pidfd, read_end):
            os.close(descriptor)
        for worker in self._workers.values():
            os.close(worker.pidfd)
            os.close(worker.report_fd)

    def _read_report(self, worker: _Worker) -> None:
        if self._workers.get(worker.pidfd) is not worker:
            return  # reaped in this very round
        try:
            data = os.read(worker.report_fd, _MAX_REPORT_BYTES)
        except BlockingIOError:
            return
        worker.report += data
        if not data:  # every copy of the other end is closed
            self._unwatch(worker.report_fd)

    def _reap(self, worker: _Worker) -> None:
        """Reap a worker that has ended, end whatever it forked, and tell the driver."""
        self._remains.take_over(worker.pid)
        result = os.waitid(os.P_PIDFD, worker.pidfd, os.WEXITED)
        assert result is not None, "waitid without WNOHANG returned nothing"
        self._read_report(worker)
        del self._workers[worker.pidfd]
        for descriptor in (worker.pidfd, worker.report_fd):
            self._unwatch(descriptor)
            os.close(descriptor)
        killed = result.si_code != os.CLD_EXITED
        self._tell(_describe_exit(worker, -result.si_status if killed else result.si_status, self._configuration))

    def _end_late_workers(self) -> None:
        now = time.monotonic()
        for worker in self._workers.values():
            if not worker.report and not worker.late and now >= worker.deadline:
                worker.late = True
                _kill(worker)

    def _timeout_s(self) -> float | None:
        if self._requests:
            return 0.0
        now = time.monotonic()
        timeouts = [w.deadline - now for w in self._workers.values() if not w.report and not w.late]
        sweep_s = self._remains.timeout_s()
        if sweep_s is not None:
            timeouts.append(sweep_s)
        return max(0.0, min(timeouts)) if timeouts else None

    def _end_all(self) -> None:
        workers = list(self._workers.values())
        for worker in workers:
            _kill(worker)
        for worker in workers:
            self._reap(worker)
        self._remains.wait()
        kill_children()

    def _watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, handler)

    def _unwatch(self, descriptor: int) -> None:
        with contextlib.suppress(KeyError):  # not watched any more
            self._selector.unregister(descriptor)


def _kill(worker: _Worker) -> None:
    signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)  # not reaped yet, so it exists


def _describe_exit(worker: _Worker, exit_code: int, configuration: Configure) -> Exited:
    mark, said = worker.report[:1], worker.report[1:].decode(errors="replace")
    log = child.log_path(configuration.log_dir, worker.worker_id)
    if worker.late:
        never = f"did not reach its entry point within {configuration.ready_timeout_s:g} s (log: {log})"
        return Exited(worker.worker_id, None, never)
    if mark == child.FAILED:
        return Exited(worker.worker_id, None, f"{said} (log: {log})")
    if exit_code == 0:
        return Exited(worker.worker_id, 0, "")
    if exit_code < 0:
        said = f"killed by {_signal_name(-exit_code)}"
    return Exited(worker.worker_id, exit_code, f"{said or f'exit code {exit_code}'} (log: {log})")


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # a real-time signal
        return f"signal {signum}"


def preload(modules: list[str]) -> dict[str, str]:
    """Import `modules`; return why for each that could not be."""
    failed = {}
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - a module may raise anything; a worker that needs it will say so
            failed[module] = f"{type(error).__name__}: {error}"
            print(f"preload of {module} failed: {failed[module]}", file=sys.stderr, flush=True)  # noqa: T201 - to the log
    return failed


def extra_threads() -> list[str]:
    """Return the names of this process's threads but the main one, also those that Python does not know."""
    tasks = Path("/proc/self/task")
    return [
        (task / "comm").read_text(errors="replace").strip() for task in tasks.iterdir() if task.name != str(os.getpid())
    ]


def main() -> None:
    """Read the configuration, import, and serve."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    driver_pid = int(sys.argv[2])
    child.die_with_parent(signal.SIGKILL, driver_pid)  # while it imports nobody else would notice
    driver_pidfd = os.pidfd_open(driver_pid)
    child.set_process_name("et-zygote")
    child.adopt_orphans()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # a SIGTERM to the whole service must leave the workers time to drain
    received = receive(control)
    if received is None:
        return
    configuration, _ = received
    assert isinstance(configuration, Configure), configuration
    sys.path[:] = configuration.sys_path
    os.environ.pop("PYTHONPATH", None)
    if configuration.pythonpath is not None:
        os.environ["PYTHONPATH"] = configuration.pythonpath
    failed = preload(configuration.preload)
    gc.collect()
    gc.freeze()  # or a worker's first collection would touch, and so copy, every inherited page
    child.die_with_parent(signal.SIGCONT, driver_pid)  # from now on `serve` sees the driver's end, if it is not stopped
    Zygote(control, driver_pidfd, configuration).serve(Ready(failed, extra_threads()))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking a framework down in order takes longer than all the rest of a close


if __name__ == "__main__":
    main()
