"""What workers print arrives line by line, whole, and once."""

from __future__ import annotations

from pathlib import Path

from elastic_train.trainer.worker_logs import WorkerLogs


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_lines_arrive_once_and_only_when_they_are_whole(tmp_path: Path) -> None:
    logs = WorkerLogs(tmp_path)
    _append(tmp_path / "w0001.log", b"one\ntw")
    _append(tmp_path / "w0002.log", b"other\n")
    assert list(logs.poll()) == [("w0001", "one"), ("w0002", "other")]
    assert list(logs.poll()) == []
    _append(tmp_path / "w0001.log", b"o\n")
    assert list(logs.poll()) == [("w0001", "two")]


def test_the_end_brings_what_has_no_line_end(tmp_path: Path) -> None:
    logs = WorkerLogs(tmp_path)
    _append(tmp_path / "w0001.log", b"one\nlast words")
    assert list(logs.finish()) == [("w0001", "one"), ("w0001", "last words")]
    assert list(logs.finish()) == []


def test_undecodable_bytes_and_rewritten_lines_do_no_harm(tmp_path: Path) -> None:
    logs = WorkerLogs(tmp_path)
    _append(tmp_path / "w0001.log", b"10%\r50%\r100%\r\n\xff\xfe\n")
    assert [line for _, line in logs.poll()] == ["100%", "\ufffd\ufffd"]


def test_a_line_without_end_is_cut_instead_of_kept_for_ever(tmp_path: Path) -> None:
    logs = WorkerLogs(tmp_path)
    _append(tmp_path / "w0001.log", b"x" * 100_000)
    assert [len(line) for _, line in logs.poll()] == [100_000]


def test_a_directory_that_does_not_exist_yet_has_no_lines(tmp_path: Path) -> None:
    assert list(WorkerLogs(tmp_path / "later").poll()) == []
