"""Turn journal records into observations. Pure: records in, facts out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from elastic_train.core.records import Cause, Failure, WorkerId, WorkerStatus
from elastic_train.journal import Record
from elastic_train.trainer.observations import (
    CheckpointSeen,
    FailureSeen,
    LoopSeen,
    Observation,
    PhaseSeen,
    StepSeen,
    WorkerSeen,
    WorldProposed,
    WorldSealed,
)
from elastic_train.trainer.step_merger import Measured, StepMerger, StepPart


class JournalReader:
    """Knows what the records of all journals of a run mean together.

    Args:
        boot: Names the start of the machine that the driver runs on (``journal_opened``). Records of another are placed
            in time by their wall clock.
        wall_offset_s: Wall clock minus monotonic clock of the driver.
    """

    def __init__(self, boot: str, wall_offset_s: float) -> None:
        self._boot = boot
        self._wall_offset_s = wall_offset_s
        self._foreign: set[Path] = set()
        self._phase = ""
        self._merger = StepMerger()
        self._readers: dict[str, Callable[[Record, float], Iterator[Observation]]] = {
            "worker_launched": self._worker_starting,
            "worker_started": self._worker_starting,
            "worker_left": self._worker_status(WorkerStatus.LEAVING),
            "worker_finished": self._worker_status(WorkerStatus.FINISHED),
            "worker_failed": self._worker_failed,
            "worker_exited": self._worker_exited,
            "world_proposed": self._world_proposed,
            "world_sealed": lambda record, at: iter([WorldSealed(at, record["membership_epoch"])]),
            "transition": self._transition,
            "job_paused": lambda record, at: self._enter("paused", at, str(record["reason"])),
            "loop_started": lambda record, at: iter([LoopSeen(at, record["total_steps"])]),
            "step_measured": self._step_measured,
            "step_committed": self._step_committed,
            "checkpoint_committed": lambda record, at: iter([CheckpointSeen(at, record["version"], record["key"])]),
        }

    def read(self, record: Record) -> Iterator[Observation]:
        """Yield what one record tells."""
        if record.kind == "journal_opened" and record["boot"] != self._boot:
            self._foreign.add(record.path)
        reader = self._readers.get(record.kind)
        if reader is not None:
            at = record.wall - self._wall_offset_s if record.path in self._foreign else record.t
            yield from reader(record, at)

    def settle(self) -> Iterator[StepSeen]:
        """Yield steps of which a part is missing; call it after each round of reading all journals."""
        return self._merger.settle()

    def finish(self) -> Iterator[StepSeen]:
        """Yield what is left when all journals have ended."""
        return self._merger.finish()

    # ------------------------------------------------------------------ workers

    def _worker_starting(self, record: Record, at: float) -> Iterator[Observation]:
        yield WorkerSeen(at, WorkerId(record["worker_id"]), WorkerStatus.STARTING)

    def _worker_status(self, status: WorkerStatus) -> Callable[[Record, float], Iterator[Observation]]:
        def read(record: Record, at: float) -> Iterator[Observation]:
            yield WorkerSeen(at, WorkerId(record.source), status)

        return read

    def _worker_failed(self, record: Record, at: float) -> Iterator[Observation]:
        worker_id = WorkerId(record.source)
        samples = record["samples"]
        failure = Failure(
            error_type=record["error_type"],
            message=record["message"],
            traceback=record.get("traceback", ""),
            rank=record.get("rank"),
            membership_epoch=record["membership_epoch"],
            step=record["step"],
            samples=None if samples is None else (samples[0], samples[1]),
        )
        yield WorkerSeen(at, worker_id, WorkerStatus.FAILED)
        yield FailureSeen(at, worker_id, failure)

    def _worker_exited(self, record: Record, at: float) -> Iterator[Observation]:
        yield WorkerSeen(at, WorkerId(record["worker_id"]), None, how_it_ended(record["exit_code"], record["detail"]))

    # ------------------------------------------------------------------ worlds and phases

    def _world_proposed(self, record: Record, at: float) -> Iterator[Observation]:
        yield WorldProposed(
            at,
            record["membership_epoch"],
            tuple(WorkerId(member) for member in record["members"]),
            Cause(record["cause"]),
            record["reason"],
            record["planned"],
        )

    def _transition(self, record: Record, at: float) -> Iterator[Observation]:
        event: Any = record["event"]
        if isinstance(event, dict) and event.get("type") == "WorkerReady":
            yield WorkerSeen(at, WorkerId(event["worker_id"]), WorkerStatus.READY)
        yield from self._enter(str(record["phase"]), at, str(record.get("reason", "")))

    def _enter(self, phase: str, at: float, reason: str) -> Iterator[Observation]:
        if phase != self._phase:
            self._phase = phase
            yield PhaseSeen(at, phase, reason)

    # ------------------------------------------------------------------ steps

    def _step_measured(self, record: Record, at: float) -> Iterator[Observation]:
        del at
        self._merger.measure(
            Measured(record["version"] + 1, record["membership_epoch"], record["metrics"], record["losses"])
        )
        yield from ()

    def _step_committed(self, record: Record, at: float) -> Iterator[Observation]:
        part = StepPart(
            at=at,
            step=record["step"],
            version=record["version"],
            membership_epoch=record["membership_epoch"],
            samples=record["samples"],
            global_samples=record["global_samples"],
            metrics={name: (total, weight) for name, (total, weight) in record["metrics"].items()},
            named=record.get("named"),
        )
        yield from self._merger.add(part)


def how_it_ended(exit_code: int | None, detail: str) -> str:
    """Return an exit code in words."""
    if exit_code is None:
        return detail or "never came up"
    if exit_code < 0:
        from signal import Signals

        known = {number.value: number.name for number in Signals}
        return f"killed by {known.get(-exit_code, f'signal {-exit_code}')}"
    return detail or f"exit code {exit_code}"
