"""A real job under test: `fit` in a thread, its journal followed, its processes signalled by pid."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

from elastic_train.errors import UsageError
from elastic_train.journal import JournalTail, Record, read_journal
from elastic_train.journal.data_proofs import plan_of
from elastic_train.journal.lineage import Finding, check_lineage

PATIENCE_S = 60.0
"""How long a condition may take on a slow, shared machine before the test gives up."""

_POLL_S = 0.01


class Trainer(Protocol):
    """What an `ElasticTrainer` has."""

    @property
    def path(self) -> Path:
        """Return the job's directory."""
        ...

    def fit(self) -> Any:
        """Run the job to its end."""
        ...

    def resize(self, workers: int) -> Any:
        """Ask for another number of workers."""
        ...

    def drain(self, worker_id: str) -> Any:
        """Ask one worker to leave."""
        ...

    def stop(self) -> Any:
        """End the job after the current step."""
        ...


class RunningJob:
    """Runs a trainer and waits for what its journal tells. Use as a context manager: leaving it ends the job.

    Attributes:
        records: All journal records seen so far, in order of arrival.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.records: list[Record] = []
        self._tail: JournalTail | None = None
        self._earlier_runs = set(self._runs())
        self._outcome: list[Any] = []
        self._thread = threading.Thread(target=self._fit, name="fit")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self._thread.is_alive():
            try:
                self.trainer.stop()
            except UsageError:  # it has not come so far that it can be stopped, or has just ended
                self._thread.join(_POLL_S)
            else:
                self._thread.join(PATIENCE_S)
            assert time.monotonic() < deadline, "the job does not stop"

    def wait_for(self, what: str, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
        """Wait until `condition` is true of the records; fail with the last of them otherwise.

        Raises:
            AssertionError: It did not become true in time, or the job ended before.
        """
        deadline = time.monotonic() + patience_s
        while True:
            self._poll()
            value = condition()
            if value:
                return value
            if self._outcome and not self._poll():
                last = self._outcome[0]
                raise AssertionError(f"the job ended while the test waited for {what}: {last!r}") from (
                    last if isinstance(last, BaseException) else None
                )
            if time.monotonic() > deadline:
                told = "\n".join(str(record)[:300] for record in self.records[-25:])
                raise AssertionError(f"waited in vain for {what}; the journal ends with:\n{told}")
            time.sleep(_POLL_S)

    def wait_for_step(self, step: int, *, world_size: int | None = None, after: float = 0.0) -> Record:
        """Wait until a step of at least this index is committed (by a world of that size, later than `after`)."""

        def committed() -> Record | None:
            for record in reversed(self.records):
                if record.kind != "step_committed" or record["step"] < step or record.t < after:
                    continue
                if world_size is None or self.world_size(record["membership_epoch"]) == world_size:
                    return record
            return None

        found: Record = self.wait_for(f"step {step} (world size {world_size})", committed)
        return found

    def wait_for_kind(self, kind: str, **fields: Any) -> Record:
        """Wait for a record of this kind with these fields."""

        def found() -> Record | None:
            for record in self.of(kind):
                if all(record.get(name) == value for name, value in fields.items()):
                    return record
            return None

        record: Record = self.wait_for(f"{kind} {fields}", found)
        return record

    def result(self) -> Any:
        """Wait for the end and return the result; raises what `fit` raised."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the job does not end"
        self._poll()
        outcome = self._outcome[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def of(self, kind: str) -> list[Record]:
        """Return the records of a kind."""
        return [record for record in self.records if record.kind == kind]

    @property
    def pids(self) -> dict[str, int]:
        """Return the pid of every worker ever started."""
        return {record["worker_id"]: record["pid"] for record in self.of("worker_started")}

    def ranks(self, membership_epoch: int | None = None) -> list[str]:
        """Return the workers of a membership epoch (default: the newest that anybody formed) by rank."""
        formed = self.of("group_formed")
        if membership_epoch is None:
            membership_epoch = max((record["membership_epoch"] for record in formed), default=0)
        members = {r["rank"]: r.source for r in formed if r["membership_epoch"] == membership_epoch}
        return [members[rank] for rank in sorted(members)]

    def world_size(self, membership_epoch: int) -> int:
        """Return how many workers a membership epoch has."""
        size: int = next(r["world_size"] for r in self.of("group_formed") if r["membership_epoch"] == membership_epoch)
        return size

    def newest_step(self) -> int:
        """Return the newest committed step, -1 before the first."""
        self._poll()
        return max((record["step"] for record in self.of("step_committed")), default=-1)

    def signal(self, worker_id: str, number: signal.Signals = signal.SIGKILL) -> float:
        """Send a signal to a worker; return when (monotonic seconds)."""
        at = time.monotonic()
        os.kill(self.pids[worker_id], number)
        return at

    def findings(self, **options: Any) -> list[Finding]:
        """Return every violation of exactly-once that the finished job's journal shows."""
        (journal,) = set(self._runs()) - self._earlier_runs
        records = read_journal(journal)
        plans = {r["loop"]: plan_of(r["plan"]) for r in records if r.kind == "loop_started"}
        return check_lineage(records, plans, **options)

    def _poll(self) -> int:
        if self._tail is None:
            new_runs = set(self._runs()) - self._earlier_runs
            if not new_runs:
                return 0
            self._tail = JournalTail(new_runs.pop())
        new = self._tail.poll()
        self.records += new
        return len(new)

    def _runs(self) -> list[Path]:
        """Return the journal directories of all runs of the job, this one's too once it has begun."""
        return sorted((self.trainer.path / "journal").glob("run-*"))

    def _fit(self) -> None:
        try:
            self._outcome.append(self.trainer.fit())
        except BaseException as error:  # noqa: BLE001 - handed to whoever calls `result`
            self._outcome.append(error)
