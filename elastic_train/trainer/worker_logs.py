"""Follow the log files of all workers: what they print reaches the person who runs the job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from elastic_train.core.records import WorkerId

_CHUNK = 1 << 20
_LONGEST_LINE = 64 << 10


class WorkerLogs:
    """Reads what was added to ``<directory>/<worker>.log`` since it was asked last, by whole lines.

    Undecodable bytes are replaced; a line that grows too long is cut, so that memory stays bounded.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offsets: dict[Path, int] = {}
        self._partial: dict[Path, bytes] = {}

    def poll(self) -> Iterator[tuple[WorkerId, str]]:
        """Yield every line that was completed since the last call."""
        for path in sorted(self._directory.glob("*.log")):
            for line in self._new_lines(path):
                yield WorkerId(path.stem), line

    def finish(self) -> Iterator[tuple[WorkerId, str]]:
        """Yield what is left, also last lines without an end."""
        yield from self.poll()
        for path, rest in self._partial.items():
            if rest:
                yield WorkerId(path.stem), _text(rest)
        self._partial.clear()

    def _new_lines(self, path: Path) -> list[str]:
        offset = self._offsets.get(path, 0)
        try:
            if path.stat().st_size == offset:
                return []
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(_CHUNK)
        except FileNotFoundError:  # removed between the listing and here
            return []
        self._offsets[path] = offset + len(data)
        *lines, rest = (self._partial.get(path, b"") + data).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines.append(rest)
            rest = b""
        self._partial[path] = rest
        return [_text(line) for line in lines]


def _text(line: bytes) -> str:
    """Decode a line; of a progress bar that rewrites it, only what stands last is kept."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
