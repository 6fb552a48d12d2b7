"""A launcher that launches nothing: workers are brought by Kubernetes, Slurm, ssh or a person.

They join with ``elastic-train worker --job NAME``; the job takes in who comes and goes on without who leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

from elastic_train.core.records import WorkerId
from elastic_train.errors import LaunchError
from elastic_train.ports import LauncherSink, WorkerExited


class ExternalLauncher:
    """Starts no workers and ends none: a lost or unwanted one is left out of the world, and fences itself.

    Args:
        hint: What a person can do to bring workers, for messages.
    """

    def __init__(self, hint: str = "start workers with `elastic-train worker`") -> None:
        self._hint = hint
        self._sink: LauncherSink | None = None

    def start(self, sink: LauncherSink) -> None:
        """Keep `sink`.

        Raises:
            LaunchError: Started before.
        """
        if self._sink is not None:
            raise LaunchError("this launcher was started before; make a new one")
        self._sink = sink

    def launch(self, worker_ids: Sequence[WorkerId]) -> None:
        """Report that none of these comes up: `capacity` is 0.

        Raises:
            LaunchError: Not started or closed.
        """
        if self._sink is None:
            raise LaunchError("this launcher is closed or not started")
        for worker_id in worker_ids:
            self._sink(WorkerExited(worker_id, None, f"this job's launcher starts no workers: {self._hint}"))

    def kill(self, worker_id: WorkerId) -> None:
        """Do nothing: the process belongs to who started it."""

    def capacity(self) -> int | None:
        """Return 0."""
        return 0

    def close(self) -> None:
        """Forget the sink."""
        self._sink = None
