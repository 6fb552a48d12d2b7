"""Entry points for the workers of the launcher's tests."""

import atexit
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any


def _mark(config: dict[str, Any], value: Any = None) -> None:
    """Leave a file that says that the worker came this far; complete as soon as it is there."""
    path = Path(config["out"]) / f"{config['worker_id']}.json"
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(value))
    draft.rename(path)


def return_at_once(config: dict[str, Any]) -> None:
    sys.stdout.write(f"hello from {config['worker_id']}\n")
    sys.stderr.write("and to stderr\n")


def wait_for_the_end(config: dict[str, Any]) -> None:
    _mark(config, os.getpid())
    while True:
        signal.pause()


def exit_as_told(config: dict[str, Any]) -> None:
    sys.exit(config["code"])


def raise_an_error(config: dict[str, Any]) -> None:
    raise RuntimeError("the model is made of cheese")


def describe_itself(config: dict[str, Any]) -> None:
    numpy = sys.modules.get("numpy")
    _mark(
        config,
        {
            "worker_index": config["worker_index"],
            "pid": os.getpid(),
            "session": os.getsid(0),
            "group": os.getpgid(0),
            "cwd": str(Path.cwd()),
            "sys_path": sys.path,
            "environment": dict(os.environ),
            "stdin": str(Path("/proc/self/fd/0").readlink()),
            "descriptors": _open_descriptors(),
            "random": random.random(),
            "numpy_random": numpy.random.random() if numpy else None,
            "torch_random": sys.modules["torch"].rand(1).item() if "torch" in sys.modules else None,
            "threads": len(list(Path("/proc/self/task").iterdir())),
            "preloaded": [name for name in ("torch", "numpy") if name in sys.modules],
        },
    )


def _open_descriptors() -> dict[str, str]:
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[path.name] = str(path.readlink())
        except FileNotFoundError:  # the listing's own
            continue
    return found


def leave_a_grandchild(config: dict[str, Any]) -> None:
    grandchild = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    _mark(config, grandchild.pid)
    if config.get("stay", True):
        signal.pause()
    os._exit(0)  # without a chance to wait for it


def leave_a_stubborn_grandchild(config: dict[str, Any]) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as grandchild:
        assert grandchild.stdout is not None
        grandchild.stdout.readline()
        _mark(config, grandchild.pid)
        signal.pause()


def leave_a_daemon(config: dict[str, Any]) -> None:
    """Fork twice, and end the process between, as daemons do to leave their parents."""
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.setsid()
        daemon = os.fork()
        if daemon == 0:
            signal.pause()
        os.write(write_end, str(daemon).encode())
        os._exit(0)
    _mark(config, int(os.read(read_end, 20)))


def hold_shared_memory(config: dict[str, Any]) -> None:
    memory = shared_memory.SharedMemory(create=True, size=100)
    _mark(config, memory.name)
    signal.pause()


def end_with_unfinished_business(config: dict[str, Any]) -> None:
    """Return while a thread still works and an exit handler waits."""
    out = Path(config["out"])

    def work() -> None:
        time.sleep(0.05)  # outlives the function that started it
        (out / "thread").write_text("done")

    atexit.register((out / "handler").write_text, "done")
    threading.Thread(target=work, daemon=False).start()
    sys.stdout.write("no newline at the end")


def take_a_sigterm_well(config: dict[str, Any]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    _mark(config)
    while True:
        signal.pause()


def print_many_lines(config: dict[str, Any]) -> None:
    for number in range(2000):
        sys.stdout.write(f"line {number}\n")
    _mark(config)
    os.kill(os.getpid(), signal.SIGKILL)
