"""Churn for workers as threads: a script of deaths, joins and drains, and the proof from their journals."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from elastic_train.core.records import WorkerRecord, WorkerStatus
from elastic_train.journal.data_proofs import plan_of
from elastic_train.journal.lineage import Finding, check_lineage
from elastic_train.journal.reader import Record
from elastic_train.worker.steps import Step
from tests.unit.worker.harness import Job, Killed, Worker

PATIENCE_S = 20.0


@dataclass
class Gate:
    """Stops workers in the step with this index until it is opened, so that a test can act at a known place."""

    at_step: int
    reached: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    opened: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        self.reached.release()
        assert self.opened.wait(PATIENCE_S)

    def await_workers(self, count: int) -> None:
        for _ in range(count):
            assert self.reached.acquire(timeout=PATIENCE_S)


class Script:
    """What the workers do beside training: stop at gates, die in steps."""

    def __init__(self) -> None:
        self.gates: list[Gate] = []
        self.deaths: dict[tuple[int, str], threading.Event] = {}

    def gate(self, at_step: int) -> Gate:
        self.gates.append(Gate(at_step))
        return self.gates[-1]

    def kill(self, worker_id: str, at_step: int) -> None:
        self.deaths[at_step, worker_id] = threading.Event()

    def __call__(self, worker: Worker, step: Step) -> None:
        for gate in self.gates:
            if step.index == gate.at_step and not gate.opened.is_set():
                gate.wait()
        death = self.deaths.get((step.index, str(worker.worker_id)))
        if death is not None:
            death.set()
            raise Killed


def grow(job: Job, members: list[Worker], train: Callable[[Worker], None], gate: Gate, by: int = 1) -> list[Worker]:
    """Admit new workers after the gate's step; return the members of the new world."""
    gate.await_workers(len(members))
    joiners = job.start(train, by)
    for joiner in joiners:
        job.await_record(joiner, lambda record: record.status is WorkerStatus.READY)
    return change(job, members, [*members, *joiners], gate)


def change(job: Job, members: list[Worker], to: list[Worker], gate: Gate) -> list[Worker]:
    """Go over to another world after the step in which all members wait at the gate."""
    job.propose(to, planned=True)
    job.await_planned(members)
    gate.opened.set()
    job.seal(to, planned=True)
    return to


def lose(job: Job, members: list[Worker], lost: Worker) -> list[Worker]:
    """Wait for a death that the script holds and form a world without that worker."""
    assert lost.join() == -9
    survivors = [member for member in members if member is not lost]
    for survivor in survivors:
        job.await_suspicion(survivor)
    job.form(survivors)
    return survivors


def finish(job: Job, members: list[Worker]) -> None:
    for member in members:
        record = job.await_record(member, _is_over)
        assert record.status is WorkerStatus.FINISHED, record


def _is_over(record: WorkerRecord) -> bool:
    return record.status in (WorkerStatus.FINISHED, WorkerStatus.FAILED)


def records_of(job: Job) -> list[Record]:
    """Return all workers' journals as records."""
    return [
        Record(
            t=0.0,
            wall=0.0,
            kind=record["kind"],
            source=str(worker.worker_id),
            fields=MappingProxyType({name: value for name, value in record.items() if name != "kind"}),
            path=Path(f"{worker.worker_id}.jsonl"),
            line=line,
        )
        for worker in job.workers
        for line, record in enumerate(worker.journal.records)
    ]


def findings_of(job: Job, **options: Any) -> list[Finding]:
    """Return every violation of exactly-once that the journals show."""
    records = records_of(job)
    plans = {record["loop"]: plan_of(record["plan"]) for record in records if record.kind == "loop_started"}
    return check_lineage(records, plans, **options)


class Trained:
    """What the job has trained on: along the lineage, the samples of each step."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[tuple[int, int, str], list[Any]] = {}  # by membership epoch, step and worker

    def add(self, step: Step, worker: Worker, samples: list[Any]) -> None:
        """Count a part of an attempt; of a step that one worker tries several times, the last attempt counts."""
        with self._lock:
            self._parts.setdefault((step._membership_epoch, step.index, str(worker.worker_id)), []).extend(samples)

    def samples(self, job: Job) -> dict[int, list[Any]]:
        """Return the samples of each committed step, sorted."""
        from elastic_train.journal.lineage import lineage

        result: dict[int, list[Any]] = {}
        for committed in lineage(records_of(job)):
            step = committed.transaction[1]
            result[step] = sorted(
                sample
                for (membership_epoch, index, _), samples in self._parts.items()
                if (membership_epoch, index) == (committed.membership_epoch, step)
                for sample in samples
            )
        return result
