"""What happens in a worker between its fork and its entry point, and between its entry point and its end.

Runs in the forked child only. See prctl(2) PR_SET_PDEATHSIG for how a worker is tied to the life of its fork server.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from elastic_train.adapters.launcher.messages import Configure, Fork

ENTERED = b"+"
"""First byte a worker reports when it stands at its entry point."""

FAILED = b"-"
"""First byte a worker reports when it cannot come that far; why follows."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_MAX_REPORT_BYTES = 2000  # below PIPE_BUF: a write that never blocks and is never torn

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(signum: int, parent_pid: int) -> None:
    """Have the kernel send this process `signum` when its parent ends; end now where the parent is gone already."""
    if _libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def set_process_name(name: str) -> None:
    """Name this process as `top` and `ps -o comm` show it (15 bytes at most)."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def run_worker(fork: Fork, configuration: Configure, report_fd: int, parent_pid: int) -> NoReturn:
    """Be the worker: set up the fresh process, call its entry point, end the process."""
    exit_code = 1
    try:
        _detach(parent_pid)
        _redirect_output(log_path(configuration.log_dir, fork.worker_id))
        _renew_randomness()
        set_process_name(f"et-{fork.worker_id}")
        faulthandler.enable()
        exit_code = _call_entry(fork, configuration, report_fd)
        _finish()
    finally:
        os._exit(exit_code)  # interpreter teardown under native threads may crash, and would spoil a good exit code


def log_path(log_dir: str, worker_id: str) -> str:
    """Return the file that takes a worker's output."""
    return f"{log_dir}/{worker_id.replace('/', '_')}.log"


def resolve_entry(entry: str) -> Callable[[dict[str, Any]], object]:
    """Import the function that ``"package.module:function"`` names.

    Raises:
        ImportError, AttributeError: It is not there. Importing runs code, which may raise anything else.
    """
    module, _, name = entry.partition(":")
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    resolved: Callable[[dict[str, Any]], object] = function
    return resolved


def exit_code_of(code: object) -> int:
    """Return the exit status that the interpreter would give to ``SystemExit(code)``."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def _detach(parent_pid: int) -> None:
    """Leave the fork server's session, so that a Ctrl-C in the driver's terminal is the driver's to handle."""
    os.setsid()
    die_with_parent(signal.SIGKILL, parent_pid)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores these three
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _redirect_output(path: str) -> None:
    """Write stdout and stderr to the worker's file: no pipe whose reader could block or die."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # these are TextIOWrapper in a fork server


def _renew_randomness() -> None:
    """Seed the generators that a fork copies (Python's own `random` does this by itself)."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.seed()


def _call_entry(fork: Fork, configuration: Configure, report_fd: int) -> int:
    """Import and call the entry point; return the exit code."""
    try:
        function = resolve_entry(configuration.entry)
    except Exception as error:  # noqa: BLE001 - importing user code may raise anything, and all of it must be told
        traceback.print_exc()
        _report(report_fd, FAILED, f"entry point {configuration.entry!r}: {_describe(error)}")
        return 1
    _report(report_fd, ENTERED, "")
    config = {**configuration.spec, "worker_id": fork.worker_id, "worker_index": fork.worker_index}
    try:
        function(config)
    except SystemExit as leaving:
        if leaving.code is not None and not isinstance(leaving.code, int):
            print(leaving.code, file=sys.stderr)  # noqa: T201 - what the interpreter does with a message to exit with
            _report(report_fd, b"", str(leaving.code))
        return exit_code_of(leaving.code)
    except BaseException as error:  # noqa: BLE001 - the outermost frame of a process: there is nobody above to tell
        traceback.print_exc()
        _report(report_fd, b"", _describe(error))
        return 1
    return 0


def _finish() -> None:
    """End as an interpreter does: non-daemon threads, exit handlers, buffers; in the order of `multiprocessing`."""
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - joining by hand would hang on idle thread pools
    atexit._run_exitfuncs()  # noqa: SLF001 - `os._exit` skips them, and user code relies on them
    sys.stdout.flush()
    sys.stderr.flush()
    _libc.fflush(None)


def _report(descriptor: int, mark: bytes, text: str) -> None:
    os.write(descriptor, (mark + text.encode(errors="replace"))[:_MAX_REPORT_BYTES])


def _describe(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
