"""The memory that a state is copied to, so that training can go on while it is written."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from checkpointing.codecs.base import Bytes, Source
from checkpointing.core.division import Piece

_PAGE_NBYTES = 4096
_HUGE_PAGE_NBYTES = 2 << 20
_MIN_SHARE_NBYTES = 4 << 20
"""Less than this is not worth another thread."""


class Arena:
    """A buffer that is kept from save to save: fresh memory costs ten times as much as a copy into warm memory."""

    def __init__(self) -> None:
        self._memory: Bytes = np.empty(0, dtype=np.uint8)

    @property
    def capacity_nbytes(self) -> int:
        """Return its size."""
        return len(self._memory)

    def reserve(self, nbytes: int) -> Bytes:
        """Return the first `nbytes` bytes, touched already; what was in them is lost."""
        if nbytes > len(self._memory):
            # The old memory goes first, or both would be there at once.
            self._memory = np.empty(0, dtype=np.uint8)
            self._memory = _map(nbytes)
        return self._memory[:nbytes]

    def release(self) -> None:
        """Give the memory back."""
        self._memory = np.empty(0, dtype=np.uint8)


def _map(nbytes: int) -> Bytes:
    rounded = -(-nbytes // _HUGE_PAGE_NBYTES) * _HUGE_PAGE_NBYTES
    # Private, because huge pages are seldom allowed for shared memory; and by huge pages, because 4 KiB faults are what
    # costs.
    mapping = mmap.mmap(-1, rounded, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    memory: Bytes = np.frombuffer(mapping, dtype=np.uint8)
    memory[::_PAGE_NBYTES] = 0
    return memory


class Stager:
    """Copy a state into an arena with a few threads.

    Args:
        threads: How many copy, the caller's among them.
    """

    def __init__(self, threads: int = 2) -> None:
        self._threads = max(1, threads)
        self._pool = ThreadPoolExecutor(self._threads - 1, "checkpoint-stage") if threads > 1 else None

    def copy(self, sources: Sequence[Source], pieces: Sequence[Piece], body: Bytes) -> None:
        """Copy every piece to its place in `body`, and return when all are there."""
        shares = split_pieces(pieces, self._threads if len(body) >= self._threads * _MIN_SHARE_NBYTES else 1)
        others = [
            self._pool.submit(_copy_share, sources, share, body) for share in shares[1:] if self._pool is not None
        ]
        _copy_share(sources, shares[0], body)
        for other in others:
            other.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _copy_share(sources: Sequence[Source], share: Sequence[Piece], body: Bytes) -> None:
    for piece in share:
        sources[piece.leaf].copy_into(
            piece.start, piece.stop, body[piece.body_offset : piece.body_offset + piece.nbytes]
        )


def split_pieces(pieces: Sequence[Piece], shares: int) -> list[list[Piece]]:
    """Divide pieces into shares of the same number of bytes, cutting a piece at a page where it must be."""
    total = sum(piece.nbytes for piece in pieces)
    limit = -(-total // shares // _PAGE_NBYTES) * _PAGE_NBYTES or 1
    result: list[list[Piece]] = [[] for _ in range(shares)]
    share, room = 0, limit
    for piece in pieces:
        rest = piece
        while rest.nbytes > room and share + 1 < shares:
            # Page-aligned cuts keep elements whole, for a copy by elements.
            cut = room // _PAGE_NBYTES * _PAGE_NBYTES
            if cut:
                result[share].append(Piece(rest.leaf, rest.start, rest.start + cut, rest.body_offset))
                rest = Piece(rest.leaf, rest.start + cut, rest.stop, rest.body_offset + cut)
            share, room = share + 1, limit
        result[share].append(rest)
        room -= rest.nbytes
    return result
