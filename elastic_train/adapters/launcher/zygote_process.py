"""The driver's hold on one warm fork server: its process, the socket to it, and what it said."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from elastic_train.adapters.launcher.messages import Configure, Fork, Message, Ready, receive, send
from elastic_train.errors import LaunchError

_log = logging.getLogger(__name__)

_TAIL_BYTES = 2000


class ZygoteProcess:
    """One fork server, started at once and ready some time later (see `ready`).

    It must be made by a thread that lives as long as it should: the kernel ends a fork server that is still importing
    together with the thread that started it.

    Args:
        configuration: What its workers have in common.
        environment: Of the fork server, and so of its workers.
        working_directory: Likewise.
        log_path: Takes its output, appended.

    Raises:
        LaunchError: The process could not be started.
    """

    def __init__(
        self, configuration: Configure, environment: Mapping[str, str], working_directory: Path, log_path: Path
    ) -> None:
        self._log_path = log_path
        self.ready = False
        self.retired = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with log_path.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "elastic_train.adapters.launcher.zygote",
                        str(theirs.fileno()),
                        str(os.getpid()),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=dict(environment),
                    cwd=working_directory,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise LaunchError(f"the warm fork server could not be started: {error}") from error
        finally:
            theirs.close()
        self.connection = ours
        self.pidfd = os.pidfd_open(self._process.pid)  # our own child, not reaped: no race
        ours.setblocking(False)
        with contextlib.suppress(BrokenPipeError):  # it has ended already: its pidfd tells
            send(ours, configuration)

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    def request(self, fork: Fork) -> None:
        """Ask for a worker."""
        with contextlib.suppress(BrokenPipeError):  # it has ended: its pidfd tells, and the request is answered then
            send(self.connection, fork)

    def messages(self) -> Iterator[tuple[Message, list[int]]]:
        """Yield what it has said since the last call."""
        with contextlib.suppress(BlockingIOError):
            while received := receive(self.connection):
                if isinstance(received[0], Ready):
                    self._note_ready(received[0])
                else:
                    yield received

    def nudge(self) -> None:
        """Wake it in case somebody stopped it."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it now; the kernel ends its workers."""
        self._signal(signal.SIGKILL)

    def hang_up(self) -> None:
        """Tell it to end its workers and itself; it still reports their exits."""
        with contextlib.suppress(OSError):  # it has ended
            self.connection.shutdown(socket.SHUT_WR)

    def reap(self) -> int:
        """Wait for its end, which must be under way; free what this object holds and return its exit code."""
        exit_code = self._process.wait()
        self.connection.close()
        os.close(self.pidfd)
        return exit_code

    def obituary(self, exit_code: int) -> str:
        """Return how it ended, with the last lines it wrote."""
        when = "" if self.ready else " before it was ready"
        how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
        tail = self._log_tail()
        return f"the warm fork server {how}{when}" + (f"; its last output:\n{tail}" if tail else "")

    def _log_tail(self) -> str:
        try:
            with self._log_path.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - _TAIL_BYTES))
                return log.read().decode(errors="replace").strip()
        except OSError as error:
            return f"(its log cannot be read: {error})"

    def _note_ready(self, ready: Ready) -> None:
        self.ready = True
        for module, problem in ready.failed.items():
            _log.warning("preload of %s failed, workers start without it: %s", module, problem)
        if ready.threads:
            _log.warning(
                "the preloaded modules started threads (%s): workers forked beside them may hang; "
                "leave the module that starts them out of `preload`",
                ", ".join(ready.threads),
            )

    def _signal(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signum)
