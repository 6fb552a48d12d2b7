"""Write large buffers to a file without filling the page cache (Linux ``O_DIRECT``)."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

#: Memory, offset and length of a direct write are multiples of this.
ALIGNMENT = 4096

#: Below this a direct write costs more than it saves.
DIRECT_MIN_NBYTES = 1 * 2**20

#: Copied under the GIL at a stretch, so about a millisecond.
BOUNCE_NBYTES = 4 * 2**20

#: Linux writes at most 2 GiB less a page at once.
_MAX_WRITE_NBYTES = 1 * 2**30

_O_DIRECT = getattr(os, "O_DIRECT", 0)


def write_views(fd: int, views: Iterator[memoryview], *, direct: bool) -> None:
    """Write the views to the empty file one after the other.

    With ``direct`` the bytes go from the caller's memory to the device if that memory is aligned,
    else through a small aligned buffer; where the file system has no direct writes, plainly.
    """
    if direct and _set_direct(fd, on=True):
        _DirectWriter(fd).write(views)
        return
    for view in views:
        write_all(fd, view)


def write_all(fd: int, view: memoryview) -> None:
    """Write all bytes of the view; the GIL is free meanwhile."""
    done = 0
    while done < view.nbytes:
        done += os.write(fd, view[done : done + _MAX_WRITE_NBYTES])


def _set_direct(fd: int, *, on: bool) -> bool:
    """Switch direct writes; return false if the file system has none."""
    if not _O_DIRECT:
        return False
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | _O_DIRECT if on else flags & ~_O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


class _DirectWriter:
    """Keep the file position aligned; hold back what does not fill a block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._bounce: memoryview | None = None
        self._held = 0

    def write(self, views: Iterator[memoryview]) -> None:
        for view in views:
            self._take(view)
        self._finish()

    def _take(self, view: memoryview) -> None:
        done = 0
        if not self._held:
            done = self._write_in_place(view)
        while done < view.nbytes:
            bounce = self._buffer()
            count = min(view.nbytes - done, BOUNCE_NBYTES - self._held)
            bounce[self._held : self._held + count] = view[done : done + count]
            self._held += count
            done += count
            if self._held == BOUNCE_NBYTES:
                self._write_blocks(bounce)
                self._held = 0

    def _write_in_place(self, view: memoryview) -> int:
        """Write the whole blocks of an aligned view; return how many bytes that were."""
        whole = view.nbytes - view.nbytes % ALIGNMENT
        if not whole:
            return 0
        try:
            self._write_blocks(view[:whole])
        except OSError as error:
            # EINVAL of the first block: this memory is not aligned, or is no plain memory.
            if error.errno not in (errno.EINVAL, errno.EFAULT):
                raise
            return 0
        return whole

    def _write_blocks(self, blocks: memoryview) -> None:
        done = 0
        while done < blocks.nbytes:
            count = os.write(self._fd, blocks[done : done + _MAX_WRITE_NBYTES])
            done += count
            if count % ALIGNMENT:  # cut short inside a block, as on a nearly full disk
                _set_direct(self._fd, on=False)

    def _finish(self) -> None:
        if self._held:
            # The last part need not fill a block, which only a plain write may do.
            _set_direct(self._fd, on=False)
            write_all(self._fd, self._buffer()[: self._held])

    def _buffer(self) -> memoryview:
        if self._bounce is None:
            self._bounce = memoryview(mmap.mmap(-1, BOUNCE_NBYTES))
        return self._bounce
