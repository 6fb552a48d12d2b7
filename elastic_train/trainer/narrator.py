"""Follows the journals and logs of a running job, shows what they say, and remembers it for the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from elastic_train.journal import JournalTail
from elastic_train.trainer.history import History
from elastic_train.trainer.journal_reader import JournalReader
from elastic_train.trainer.observations import Observation, StepSeen
from elastic_train.trainer.progress_model import Happening, ProgressModel
from elastic_train.trainer.reporters import Reporter
from elastic_train.trainer.result import StepMetrics
from elastic_train.trainer.worker_logs import WorkerLogs

OnStep = Callable[[StepMetrics], None]

_NOT_SHOWN = frozenset({"step_read", "evaluation_read"})
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Narrator:
    """Driven by the thread that runs `fit`: `poll` often, `finish` once everything has ended.

    Args:
        model: What is shown; begins when the run began.
        reporter: Shows it.
        journals: Directory of this run's journals.
        logs: Directory of this run's worker logs.
        on_step: The user's callback for every committed step.
    """

    def __init__(
        self, model: ProgressModel, reporter: Reporter, *, journals: Path, logs: Path, on_step: OnStep | None = None
    ) -> None:
        self.model = model
        self.history = History(model.begun_at)
        self._reporter = reporter
        self._tail = JournalTail(journals, leave_out=_NOT_SHOWN)
        self._reader = JournalReader(_BOOT_ID.read_text().strip(), time.time() - time.monotonic())
        self._logs = WorkerLogs(logs)
        self._on_step = on_step

    def poll(self) -> None:
        """Take in what was written since the last call, and show it."""
        for worker_id, line in self._logs.poll():
            self._reporter.worker_line(worker_id, self.model.rank_of(worker_id), line)
        seen = [observation for record in self._tail.poll() for observation in self._reader.read(record)]
        self._tell([*seen, *self._reader.settle()])

    def finish(self) -> None:
        """Take in the rest and leave the last state on the screen."""
        try:
            self.poll()
            self._tell(self._reader.finish())
            for worker_id, line in self._logs.finish():
                self._reporter.worker_line(worker_id, self.model.rank_of(worker_id), line)
        finally:
            self._reporter.close(self.model, time.monotonic())

    def _tell(self, observations: Iterable[Observation]) -> None:
        happenings: list[Happening] = []
        for seen in observations:
            self.history.apply(seen)
            happenings.extend(self.model.apply(seen))
            if isinstance(seen, StepSeen):
                self._call_back(seen)
        self._reporter.update(self.model, time.monotonic(), happenings)

    def _call_back(self, step: StepSeen) -> None:
        on_step, self._on_step = self._on_step, None  # if it raises, the job ends, and it is not called again
        if on_step is not None:
            on_step(self.history.step_metrics(step))
            self._on_step = on_step
