"""What is recorded is what is read; what is not whole or not a record is said."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_train.journal import BadLine, Journal, JournalTail, Record, read_journal

HEAD = '"t":1.0,"wall":2.0'


def lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(text + "\n" for text in texts))
    return path


def told(records: list[Record]) -> list[tuple[str, str]]:
    return [(record.kind, record.source) for record in records]


def notes(path: Path) -> list[Record]:
    return [record for record in read_journal(path) if record.kind == "note"]


def test_a_record_is_read_as_it_was_written_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "w0.jsonl"
    with Journal(path, source="w0", node="n") as journal:
        journal.record("note", text="grüße\n\u2028", values=[1, 2.5, None], shards=(0, 3))
    opened, note = read_journal(path)
    assert (opened.kind, opened["node"], opened["pid"]) == ("journal_opened", "n", os.getpid())
    assert (note.kind, note.source, note.line, note.path) == ("note", "w0", 2, path)
    assert dict(note.fields) == {"text": "grüße\n\u2028", "values": [1, 2.5, None], "shards": [0, 3]}
    assert note.get("missing", 7) == 7
    assert opened.t <= note.t
    assert str(note).startswith("w0.jsonl:2: note text=")


def test_every_line_begins_with_when_what_and_who(tmp_path: Path) -> None:
    with Journal(tmp_path / "w0.jsonl", source="w0", node="n") as journal:
        journal.record("note", kind="of field", source="a field", t=0, last=1)
    line = (tmp_path / "w0.jsonl").read_text().splitlines()[1]
    assert list(json.loads(line)) == ["t", "wall", "kind", "source", "last"]
    assert json.loads(line)["kind"] == "note"
    assert ": " not in line


def test_what_has_an_obvious_json_value_is_written_as_that(tmp_path: Path) -> None:
    with Journal(tmp_path / "w0.jsonl", source="w0", node="n") as journal:
        journal.record("note", a=np.float32(0.5), b=np.arange(2), c={"y", "x"}, d=tmp_path, e=np.int64(3))
    (note,) = notes(tmp_path / "w0.jsonl")
    assert dict(note.fields) == {"a": 0.5, "b": [0, 1], "c": ["x", "y"], "d": str(tmp_path), "e": 3}


def test_what_cannot_be_written_is_counted_and_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    endless: list[object] = []
    endless.append(endless)
    with caplog.at_level(logging.WARNING), Journal(tmp_path / "w0.jsonl", source="w0", node="n") as journal:
        journal.record("note", value=endless)
        journal.record("note", value={(1, 2): "not a key"})
        journal.record("note", value="fine")
        assert journal.lost == 2
    assert len(caplog.records) == 1
    assert [note["value"] for note in notes(tmp_path / "w0.jsonl")] == ["fine"]


def test_a_full_disk_is_survived_and_the_line_it_tore_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_write = os.write
    answers = iter(["whole", "torn", "full", "whole", "whole"])

    def write(fd: int, data: bytes) -> int:
        answer = next(answers)
        if answer == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        return really_write(fd, data[:10] if answer == "torn" else data)

    with Journal(tmp_path / "w0.jsonl", source="w0", node="n") as journal:
        monkeypatch.setattr(os, "write", write)
        for number in range(5):
            journal.record("note", number=number)
        monkeypatch.undo()
        assert journal.lost == 2
    bad: list[BadLine] = []
    records = read_journal(tmp_path / "w0.jsonl", bad.append)
    assert [record["number"] for record in records if record.kind == "note"] == [0, 3, 4]
    assert [one.line for one in bad] == [3]


def test_a_journal_that_is_opened_again_goes_on_behind_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "w0.jsonl"
    path.write_text('{"t":1.0,"wa')
    with Journal(path, source="w0", node="n"):
        pass
    bad: list[BadLine] = []
    assert told(read_journal(path, bad.append)) == [("journal_opened", "w0")]
    assert [(one.path, one.line) for one in bad] == [(path, 1)]


def test_records_after_the_close_are_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "w0.jsonl", source="w0", node="n")
    journal.close()
    journal.close()
    journal.record("note")
    assert journal.lost == 0
    assert notes(tmp_path / "w0.jsonl") == []


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    with Journal(tmp_path / "w0.jsonl", source="w0", node="n") as journal:

        def write() -> None:
            for _ in range(200):
                journal.record("note", text="x" * 300)

        writers = [threading.Thread(target=write) for _ in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    assert [note["text"] for note in notes(tmp_path / "w0.jsonl")] == ["x" * 300] * 800


def test_a_forked_process_is_not_the_participant(tmp_path: Path) -> None:
    with Journal(tmp_path / "w0.jsonl", source="w0", node="n") as journal:
        pid = os.fork()
        if pid == 0:
            try:
                journal.record("note", who="the child")
                journal.close()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        journal.record("note", who="the parent")
    assert [note["who"] for note in notes(tmp_path / "w0.jsonl")] == ["the parent"]


def test_the_journals_of_a_directory_are_merged_by_time(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "a.jsonl", source="a", node="n") as a,
        Journal(tmp_path / "b.jsonl", source="b", node="n") as b,
    ):
        for number in range(6):
            (a, b)[number % 2].record("note", number=number)
    lines(tmp_path / "not-a-journal.txt", "hello")
    assert [note["number"] for note in notes(tmp_path)] == [0, 1, 2, 3, 4, 5]


def test_journals_of_several_machines_are_merged_by_the_wall_clock(tmp_path: Path) -> None:
    opened = '"kind":"journal_opened","node":"n","pid":1'
    lines(tmp_path / "a.jsonl", f'{{"t":900,"wall":1.0,"source":"a",{opened},"boot":"x"}}')
    lines(tmp_path / "b.jsonl", f'{{"t":5,"wall":2.0,"source":"b",{opened},"boot":"y"}}')
    assert [record.source for record in read_journal(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{nonsense", "Expecting property name"),
        ("[1, 2]", "a list, not an object"),
        (f'{{{HEAD},"source":"w"}}', "of what kind"),
        (f'{{{HEAD},"kind":["x"],"source":"w"}}', "of what kind"),
        ('{"wall":2.0,"kind":"note","source":"w"}', "a note without t"),
        (f'{{{HEAD},"kind":"checkpoint_restored","source":"w"}}', "a checkpoint_restored without version"),
        ('{"t":"now","wall":2.0,"kind":"note","source":"w"}', "wrong types"),
        ("", "Expecting value"),
    ],
)
def test_a_line_that_is_no_record_is_named_and_the_rest_is_read(
    tmp_path: Path, text: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = f'{{{HEAD},"kind":"note","source":"w"}}'
    path = lines(tmp_path / "w.jsonl", good, text, good)
    with caplog.at_level(logging.WARNING):
        assert [record.line for record in read_journal(path)] == [1, 3]
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"line 2 of {path}" in message
    assert problem in message


def test_nothing_at_the_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_journal(tmp_path / "missing.jsonl")


@given(st.binary(max_size=200))
def test_no_bytes_at_all_break_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("journal") / "w.jsonl"
    path.write_bytes(data)
    bad: list[BadLine] = []
    records = read_journal(path, bad.append)
    assert len(records) + len(bad) == data.count(b"\n")


def test_a_tail_returns_each_record_once_and_finds_files_that_appear(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    tail = JournalTail(directory)
    assert tail.poll() == []
    with Journal(directory / "a.jsonl", source="a", node="n") as a:
        assert told(tail.poll()) == [("journal_opened", "a")]
        assert tail.poll() == []
        a.record("note")
        with Journal(directory / "b.jsonl", source="b", node="n") as b:
            b.record("note")
            a.record("note")
        assert told(tail.poll()) == [("note", "a"), ("journal_opened", "b"), ("note", "b"), ("note", "a")]
        assert tail.poll() == []


def test_a_tail_waits_for_the_rest_of_a_line_and_counts_lines_on(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    line = f'{{{HEAD},"kind":"note","source":"w"}}\n'
    tail = JournalTail(tmp_path)
    path.write_text(line + line[:20])
    assert [record.line for record in tail.poll()] == [1]
    assert tail.poll() == []
    with path.open("a") as file:
        file.write(line[20:] + line)
    assert [record.line for record in tail.poll()] == [2, 3]


@given(st.lists(st.integers(1, 60), max_size=12))
def test_a_tail_reads_the_same_as_a_reader_however_the_file_grows(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    path = directory / "w.jsonl"
    text = "".join(f'{{"t":{n},"wall":0,"kind":"note","source":"w","n":{n}}}\n' for n in range(8))
    tail = JournalTail(directory)
    seen: list[Record] = []
    with path.open("w") as file:
        for cut in [*cuts, len(text)]:
            file.write(text[:cut])
            file.flush()
            text = text[cut:]
            seen += tail.poll()
    assert seen == read_journal(path)
    assert [record["n"] for record in seen] == list(range(8))
