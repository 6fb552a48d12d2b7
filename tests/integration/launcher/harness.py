"""What the launcher's tests share: a launcher that records its events, and ways to wait for conditions."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from elastic_train.adapters.launcher.local_process import LocalProcessLauncher
from elastic_train.core.records import WorkerId
from elastic_train.ports import WorkerExited, WorkerStarted

PATIENCE_S = 60.0
ENTRIES = "tests.integration.launcher.entries"


@dataclass
class Events:
    """A sink that keeps what it is told."""

    all: list[WorkerStarted | WorkerExited] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, event: WorkerStarted | WorkerExited) -> None:
        with self._changed:
            self.all.append(event)
            self._changed.notify_all()

    def started(self) -> dict[str, int]:
        with self._changed:
            return {event.worker_id: event.pid for event in self.all if isinstance(event, WorkerStarted)}

    def exits(self, worker_id: str) -> list[WorkerExited]:
        with self._changed:
            return [event for event in self.all if isinstance(event, WorkerExited) and event.worker_id == worker_id]

    def wait_for_start(self, worker_id: str) -> int:
        self._wait(lambda: worker_id in self.started(), f"the start of {worker_id}")
        return self.started()[worker_id]

    def wait_for_exit(self, worker_id: str) -> WorkerExited:
        self._wait(lambda: bool(self.exits(worker_id)), f"the exit of {worker_id}")
        return self.exits(worker_id)[0]

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            with self._changed:
                left = deadline - time.monotonic()
                assert left > 0, f"{what} was not reported; events: {self.all}"
                self._changed.wait(min(left, 0.05))


@dataclass
class Rig:
    """A started launcher, its events and the folder that its workers write to."""

    launcher: LocalProcessLauncher
    events: Events
    out: Path

    def launch(self, *worker_ids: str) -> None:
        self.launcher.launch(ids(*worker_ids))

    def kill(self, worker_id: str) -> None:
        self.launcher.kill(WorkerId(worker_id))

    def marked(self, worker_id: str) -> Any:
        """Wait for a worker's mark and return what it left there."""
        path = self.out / f"{worker_id}.json"
        eventually(path.exists, f"{worker_id} to leave its mark; events: {self.events.all}")
        return json.loads(path.read_text())

    def log(self, worker_id: str) -> str:
        return (self.launcher.log_dir / f"{worker_id}.log").read_text()


@contextmanager
def rig(tmp_path: Path, entry: str, preload: Sequence[str] = (), **options: Any) -> Iterator[Rig]:
    """Yield a started launcher; close it whatever happens."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    spec = {"out": str(out), **options.pop("spec", {})}
    launcher = LocalProcessLauncher(
        entry if ":" in entry else f"{ENTRIES}:{entry}", spec, preload=preload, log_dir=tmp_path / "logs", **options
    )
    events = Events()
    try:
        launcher.start(events)
        yield Rig(launcher, events, out)
    finally:
        launcher.close()


def ids(*names: str) -> list[WorkerId]:
    return [WorkerId(name) for name in names]


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


def is_gone(pid: int) -> bool:
    """Say whether no process, or a mere zombie, has this pid."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def all_gone(pids: Sequence[int]) -> None:
    """Wait until all of these processes have ended."""
    eventually(lambda: all(map(is_gone, pids)), f"all of {pids} to end")
