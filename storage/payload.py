"""The data of a put: buffers that can be sent again, or a stream that is spooled first."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

    #: What can be put: one buffer, or buffers (also from a generator) that follow each other.
    Data = Buffer | Iterable[Buffer]

#: A stream up to this size is held in memory; a longer one goes through an unlinked file.
SPOOL_MEMORY_NBYTES = 32 * 2**20


class Payload:
    """Hold the bytes of one put as flat read-only views; none is copied.

    A sequence of buffers is kept as it is. Another iterable can be read once only; a backend
    that streams may take it as it comes (:meth:`views`), everyone else calls :meth:`spool`
    first, after which the bytes can be read again by a retry.
    """

    def __init__(self, data: Data) -> None:
        self._views: list[memoryview] | None
        self._stream: Iterator[Buffer] | None = None
        if isinstance(data, str):
            raise TypeError("data is bytes-like or an iterable of bytes-like, not str")
        view = _try_view(data)
        if view is not None:
            self._views = [view]
        elif isinstance(data, list | tuple):
            self._views = [flat_view(item) for item in data]
        elif isinstance(data, Iterable):
            self._views = None
            self._stream = iter(data)
        else:
            raise TypeError(f"data is bytes-like or an iterable of bytes-like, not {type(data).__name__}")

    @property
    def is_replayable(self) -> bool:
        """Tell whether the bytes can be read more than once."""
        return self._views is not None

    @property
    def nbytes(self) -> int:
        """Return the size; only of a replayable payload."""
        return sum(view.nbytes for view in self.buffers)

    @property
    def buffers(self) -> list[memoryview]:
        """Return the parts of a replayable payload."""
        if self._views is None:
            raise RuntimeError("a stream has no buffers before spool()")
        return self._views

    def views(self) -> Iterator[memoryview]:
        """Yield the parts, consuming a stream."""
        if self._views is not None:
            yield from self._views
            return
        stream, self._stream = self._stream, None
        if stream is None:
            raise RuntimeError("the stream was read already")
        for item in stream:
            yield flat_view(item)

    def contiguous(self) -> memoryview:
        """Return a replayable payload as one view; copies only if there are several parts."""
        parts = self.buffers
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def spool(self) -> None:
        """Make a stream replayable: read it to its end, into memory or an unlinked file."""
        if self._views is not None:
            return
        with tempfile.SpooledTemporaryFile(max_size=SPOOL_MEMORY_NBYTES) as spooled:
            for view in self.views():
                spooled.write(view)
            nbytes = spooled.tell()
            if nbytes <= SPOOL_MEMORY_NBYTES:
                spooled.seek(0)
                self._views = [memoryview(spooled.read())]
                return
            spooled.flush()
            # The mapping keeps the unlinked file until the last view of it is gone.
            mapping = mmap.mmap(spooled.fileno(), nbytes, access=mmap.ACCESS_READ)
            self._views = [memoryview(mapping)]


class MappedFile:
    """Map a file read-only, for a put that streams it without reading it into memory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._mapping: mmap.mmap | None = None
        self._view = memoryview(b"")

    def __enter__(self) -> memoryview:
        nbytes = self._file.seek(0, 2)
        if nbytes:  # an empty file cannot be mapped
            self._mapping = mmap.mmap(self._file.fileno(), nbytes, access=mmap.ACCESS_READ)
            self._view = memoryview(self._mapping)
        return self._view

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The mapping itself is not closed: a client's thread may still hold a view of it. It
        # goes with the last reference.
        self._file.close()


def flat_view(data: Buffer) -> memoryview:
    """Return a read-only view of the bytes of a contiguous buffer.

    Raises:
        TypeError: not a buffer, or not contiguous.
    """
    view = _try_view(data)
    if view is None:
        raise TypeError(f"data is bytes-like or an iterable of these, not {type(data).__name__}")
    return view


def _try_view(data: object) -> memoryview | None:
    try:
        view = memoryview(data)  # type: ignore[arg-type]  # that it may be no buffer is the question
    except TypeError:
        return None
    if not view.c_contiguous:
        raise TypeError("the buffer is not contiguous; copy it first")
    if view.nbytes == 0:
        return memoryview(b"")
    return view.toreadonly() if view.format == "B" and view.ndim == 1 else view.cast("B").toreadonly()
