"""The launcher port: what starts and ends worker processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from elastic_train.core.records import WorkerId


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """The process of a worker runs."""

    worker_id: WorkerId
    pid: int
    node: str


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """The process of a worker is gone. `exit_code` < 0: killed by that signal. None: never came up (see `detail`)."""

    worker_id: WorkerId
    exit_code: int | None
    detail: str = ""


LauncherSink = Callable[[WorkerStarted | WorkerExited], None]


class Launcher(Protocol):
    """Starts and ends worker processes.

    Calls return at once; what happened comes back through the sink (any thread).
    """

    def start(self, sink: LauncherSink) -> None:
        """Make ready to launch; report to `sink` from now on."""
        ...

    def launch(self, worker_ids: Sequence[WorkerId]) -> None:
        """Start a worker process for each id."""
        ...

    def kill(self, worker_id: WorkerId) -> None:
        """End a worker for good (SIGKILL; also if stopped). Unknown or dead: no-op."""

    def capacity(self) -> int | None:
        """Return how many workers this launcher can run at once, None if it does not know."""
        ...

    def close(self) -> None:
        """End every worker and every helper process; return when they are gone."""
