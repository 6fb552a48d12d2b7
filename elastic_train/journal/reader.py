"""Read journals: all at once, or as they grow."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from elastic_train.journal.schema import HEAD, missing_fields

_log = logging.getLogger(__name__)

_PATTERN = "*.jsonl"
_HEAD_NBYTES = 128  # times, kind and source stand first in every line


@dataclass(frozen=True, slots=True)
class Record:
    """One record and where it stands.

    Attributes:
        t: Monotonic seconds of the machine it was written on.
        wall: Seconds since 1970.
        fields: All but the head.
        line: Number in the file, from 1.
    """

    t: float
    wall: float
    kind: str
    source: str
    fields: MappingProxyType[str, Any]
    path: Path
    line: int

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field, or `default` where the record has none of that name."""
        return self.fields.get(name, default)

    def __str__(self) -> str:
        told = " ".join(f"{name}={value!r}" for name, value in self.fields.items())
        return f"{self.path.name}:{self.line}: {self.kind} {told}"


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no record."""

    path: Path
    line: int
    problem: str

    def __str__(self) -> str:
        return f"line {self.line} of {self.path} is no record: {self.problem}"


OnBadLine = Callable[[BadLine], None]


def warn_of(bad: BadLine) -> None:
    """Log a line that is skipped."""
    _log.warning("%s; skipped", bad)


def read_journal(path: Path, on_bad_line: OnBadLine = warn_of) -> list[Record]:
    """Return all records of a journal file, or of all journal files in a directory, in the order of time.

    A last line without its newline was cut off by the end of its writer, or is being written: it is left out.

    Args:
        path: A file, or a directory of ``*.jsonl`` files.
        on_bad_line: Told of every other line that is no record; it is skipped.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        OSError: It cannot be read.
    """
    files = sorted(path.glob(_PATTERN)) if path.is_dir() else [path]
    return _in_time((_File(file).read(on_bad_line) for file in files), set())


class JournalTail:
    """Follows the journal files of a directory as they grow; files that appear later are picked up.

    Args:
        directory: Need not exist yet.
        on_bad_line: See `read_journal`.
        leave_out: Kinds whose records are passed over undecoded: half of what a busy job writes is of one kind.
    """

    def __init__(
        self, directory: Path, on_bad_line: OnBadLine = warn_of, *, leave_out: frozenset[str] = frozenset()
    ) -> None:
        self._directory = directory
        self._on_bad_line = on_bad_line
        self._left_out = [f'"kind":"{kind}"'.encode() for kind in leave_out]
        self._files: dict[Path, _File] = {}
        self._boots: set[str] = set()

    def poll(self) -> list[Record]:
        """Return the records written since the last call, in the order of time; costs a `stat` for each quiet file.

        Raises:
            OSError: A file cannot be read.
        """
        for path in self._directory.glob(_PATTERN):
            if path not in self._files:
                self._files[path] = _File(path, self._left_out)
        return _in_time((file.read(self._on_bad_line) for file in self._files.values()), self._boots)


class _File:
    """One journal file, read as far as it has whole lines."""

    def __init__(self, path: Path, left_out: Sequence[bytes] = ()) -> None:
        self._path = path
        self._left_out = left_out
        self._offset = 0
        self._lines = 0

    def read(self, on_bad_line: OnBadLine) -> Iterator[Record]:
        if self._path.stat().st_size == self._offset:
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for text in whole.split(b"\n")[:-1]:
            self._lines += 1
            if any(mark in text[:_HEAD_NBYTES] for mark in self._left_out):
                continue
            record = _parse(text, self._path, self._lines)
            if isinstance(record, BadLine):
                on_bad_line(record)
            else:
                yield record


def _parse(text: bytes, path: Path, line: int) -> Record | BadLine:
    try:
        decoded = json.loads(text)
    except ValueError as error:
        return BadLine(path, line, str(error))
    if not isinstance(decoded, dict):
        return BadLine(path, line, f"a {type(decoded).__name__}, not an object")
    if not isinstance(decoded.get("kind"), str):
        return BadLine(path, line, "it does not say of what kind")
    missing = missing_fields(decoded)
    if missing:
        return BadLine(path, line, f"a {decoded['kind']} without {', '.join(missing)}")
    t, wall, kind, source = (decoded.pop(name) for name in HEAD)
    if not all(isinstance(time, int | float) for time in (t, wall)) or not isinstance(source, str):
        return BadLine(path, line, f"its {', '.join(HEAD)} have wrong types")
    return Record(t, wall, kind, source, MappingProxyType(decoded), path, line)


def _in_time(files: Iterable[Iterable[Record]], boots: set[str]) -> list[Record]:
    """Merge by time: monotonic where all was written since one start of one machine, else by the wall clock.

    Args:
        files: The records of each file.
        boots: The machine starts known so far; added to.
    """
    records = [record for file in files for record in file]
    boots.update(record["boot"] for record in records if record.kind == "journal_opened")
    one_clock = len(boots) <= 1 and "" not in boots
    return sorted(records, key=lambda record: record.t if one_clock else record.wall)
