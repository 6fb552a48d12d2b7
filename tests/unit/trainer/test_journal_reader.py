"""Journal records, as their writers write them, become observations."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

from elastic_train.core.records import Cause, WorkerId, WorkerStatus
from elastic_train.journal import Record
from elastic_train.journal.schema import KINDS
from elastic_train.trainer.journal_reader import JournalReader, how_it_ended
from elastic_train.trainer.observations import (
    FailureSeen,
    Observation,
    PhaseSeen,
    StepSeen,
    WorkerSeen,
    WorldProposed,
    WorldSealed,
)

W1 = WorkerId("w0001")


def _read(kind: str, /, source: str = "w0001", reader: JournalReader | None = None, **fields: Any) -> list[Observation]:
    assert set(KINDS.get(kind, ())) <= fields.keys(), "a record that the schema would refuse proves nothing"
    record = Record(5.0, 1005.0, kind, source, MappingProxyType(fields), Path(f"{source}.jsonl"), 1)
    return list((reader or JournalReader("boot", 900.0)).read(record))


def test_the_life_of_a_worker_is_read() -> None:
    starting = WorkerSeen(5.0, W1, WorkerStatus.STARTING)
    assert _read("worker_started", worker_id="w0001", pid=1, node="n") == [starting]
    assert _read("worker_launched", source="controller", worker_id="w0001") == [starting]
    assert _read("worker_left", membership_epoch=2, reason="drained") == [WorkerSeen(5.0, W1, WorkerStatus.LEAVING)]
    assert _read("worker_finished", membership_epoch=2) == [WorkerSeen(5.0, W1, WorkerStatus.FINISHED)]
    assert _read("worker_exited", source="controller", worker_id="w0001", exit_code=-9, detail="") == [
        WorkerSeen(5.0, W1, None, "killed by SIGKILL")
    ]


def test_a_failure_of_user_code_is_read() -> None:
    status, failure = _read(
        "worker_failed", membership_epoch=2, error_type="ValueError", message="bad", step=7, samples=[448, 456]
    )
    assert status == WorkerSeen(5.0, W1, WorkerStatus.FAILED)
    assert isinstance(failure, FailureSeen)
    assert (failure.failure.error_type, failure.failure.step, failure.failure.samples) == ("ValueError", 7, (448, 456))


def test_worlds_are_read() -> None:
    told: dict[str, Any] = {"membership_epoch": 3, "members": ["w1", "w2"], "cause": "loss", "reason": "w3 was lost"}
    assert _read("world_proposed", **told, planned=False) == [
        WorldProposed(5.0, 3, (WorkerId("w1"), WorkerId("w2")), Cause.LOSS, "w3 was lost", planned=False)
    ]
    assert _read("world_sealed", **told, fence=9, change_s=0.1) == [WorldSealed(5.0, 3)]


def test_a_phase_is_told_when_it_is_entered() -> None:
    reader = JournalReader("boot", 900.0)
    assert _read("transition", reader=reader, event="Tick", phase="running") == [PhaseSeen(5.0, "running", "")]
    assert _read("transition", reader=reader, event="Tick", phase="running") == []
    assert _read("transition", reader=reader, event="WorkerLost", phase="broken", reason="w3 is gone") == [
        PhaseSeen(5.0, "broken", "w3 is gone")
    ]


def test_the_commits_of_all_members_become_one_step() -> None:
    reader = JournalReader("boot", 900.0)
    common: dict[str, Any] = {
        "membership_epoch": 1,
        "loop": "loop-0",
        "step": 4,
        "version": 6,
        "global_samples": 8,
        "step_s": 0.02,
    }
    assert _read("step_committed", "w1", reader, **common, samples=5, metrics={"loss": [10.0, 5.0]}) == []
    assert _read("step_committed", "w2", reader, **common, samples=3, metrics={"loss": [6.0, 3.0]}) == [
        StepSeen(5.0, 4, 6, 1, 8, {"loss": 2.0})
    ]


def test_records_of_another_machine_are_placed_by_their_wall_clock() -> None:
    reader = JournalReader("boot", 900.0)
    assert _read("journal_opened", reader=reader, node="far", pid=1, boot="another boot") == []
    (seen,) = _read("worker_finished", reader=reader, membership_epoch=2)
    assert seen.at == 105.0


def test_unknown_kinds_are_passed_over() -> None:
    assert _read("something_new", x=1) == []


def test_exit_codes_are_put_into_words() -> None:
    assert how_it_ended(None, "import failed") == "import failed"
    assert how_it_ended(None, "") == "never came up"
    assert how_it_ended(-9, "") == "killed by SIGKILL"
    assert how_it_ended(-200, "") == "killed by signal 200"
    assert how_it_ended(1, "") == "exit code 1"
