"""Read one large range by several requests at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

#: A remote range of at least two such parts is read by several requests at once.
PART_NBYTES = 16 * 2**20
READS_AT_ONCE = 8

#: Fill a buffer from the given byte of an object on.
ReadPart = Callable[[int, memoryview], None]


class ParallelReader:
    """Keep the threads that read the parts; they start with the first large range."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def reset_after_fork(self) -> None:
        """Forget the parent's threads."""
        self._lock = threading.Lock()
        self._pool = None

    @staticmethod
    def is_worth_it(nbytes: int) -> bool:
        """Tell whether a range of this size is read in parts."""
        return nbytes >= 2 * PART_NBYTES

    def fill(self, read_part: ReadPart, start: int, out: memoryview) -> None:
        """Fill ``out`` from byte ``start`` on; raise the failure of the first part that failed."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="storage-read")
            pool = self._pool
        parts = [
            pool.submit(read_part, start + offset, out[offset : offset + PART_NBYTES])
            for offset in range(0, out.nbytes, PART_NBYTES)
        ]
        # All are waited for, also after a failure: they write into the caller's memory.
        failures = [failure for part in parts if (failure := _failure_of(part, parts)) is not None]
        if failures:
            raise failures[0]

    def close(self) -> None:
        """End the threads."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()


def _failure_of(part: Future[None], parts: list[Future[None]]) -> BaseException | None:
    """Wait for a part; after a failure, call off those that have not begun."""
    if part.cancelled():
        return None
    failure = part.exception()
    if failure is not None:
        for other in parts:
            other.cancel()
    return failure
