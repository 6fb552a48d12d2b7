"""Following a journal as it grows."""

from __future__ import annotations

from pathlib import Path

from elastic_train.journal import Journal, JournalTail


def test_a_tail_passes_over_the_kinds_that_are_left_out(tmp_path: Path) -> None:
    with Journal(tmp_path / "w1.jsonl", source="w1", node="n") as journal:
        journal.record("checkpoint_restored", version=1)
        journal.record("worker_finished", membership_epoch=1, note='"kind":"checkpoint_restored"')
    seen = JournalTail(tmp_path, leave_out=frozenset({"checkpoint_restored"})).poll()
    assert [record.kind for record in seen] == ["journal_opened", "worker_finished"]
