"""Append records to a journal file."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_log = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Journal:
    """One participant's journal file.

    Each record is one line, handed to the kernel by one write: what was recorded survives the end of the process,
    however sudden (but not the end of the machine: nothing is forced to disk). The file is opened for appending and
    may be opened again under the same name.

    Safe from any thread, and from a signal handler. A process forked from this one is not this participant: there,
    `record` does nothing.

    Args:
        path: The file; its directory is made if missing.
        source: Who writes; stands in every record.
        node: Name of the machine.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, *, source: str, node: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.lost = 0
        """Records that could not be written."""
        self._source = source
        self._pid = os.getpid()
        self._torn = False
        self._lock = threading.RLock()  # reentrant: a signal handler may interrupt a record by another
        self._encode = json.JSONEncoder(separators=(",", ":"), default=_plain).encode
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._torn = not _ends_with_newline(self._fd)
        self.record("journal_opened", node=node, pid=self._pid, boot=_boot_id())

    def record(self, kind: str, /, **fields: Any) -> None:
        """Append one record; never raises. What cannot be written is counted in `lost` and warned of once.

        Args:
            kind: What happened; see `elastic_train.journal.schema`.
            fields: JSON values, or what has an obvious one (numbers of numpy, paths, sets).
        """
        if os.getpid() != self._pid:
            return
        head = {"t": time.monotonic(), "wall": time.time(), "kind": kind, "source": self._source}
        try:
            line = self._encode({**head, **fields, **head}) + "\n"  # the head comes first, and no field replaces it
            self._append(line.encode("utf-8", "backslashreplace"))
        except (OSError, TypeError, ValueError, RecursionError) as error:
            self._lose(kind, error)

    def close(self) -> None:
        """Close the file; later records are dropped. Idempotent."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, line: bytes) -> None:
        with self._lock:
            if self._fd < 0:
                return
            if self._torn:
                line = b"\n" + line  # leave the torn line to itself
            written = os.write(self._fd, line)
            self._torn = written < len(line)
            if self._torn:
                raise OSError(f"{written} of {len(line)} bytes were written")

    def _lose(self, kind: str, error: Exception) -> None:
        self.lost += 1
        if self.lost == 1:
            _log.warning(
                "the journal %s lost a record (%s): %s. Training goes on; what reads the journal will miss records",
                self.path,
                kind,
                error,
            )


def _plain(value: Any) -> Any:
    """Return a JSON value for what has none of its own."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    to_plain = getattr(value, "tolist", None)  # numpy's arrays and scalars
    return to_plain() if callable(to_plain) else str(value)


def _ends_with_newline(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size == 0 or os.pread(fd, 1, size - 1) == b"\n"


def _boot_id() -> str:
    """Name this start of the machine: monotonic times are comparable within it."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:  # not Linux, or a sandbox without /proc
        return ""
