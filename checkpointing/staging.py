"""The memory that a state is copied to, so that training can go on while it is written."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from checkpointing.codecs.base import Bytes, Source
from checkpointing.core.digest import digest
from checkpointing.core.division import Piece
from checkpointing.core.increment import ChunkId, ChunkIndex, Place
from checkpointing.core.layout import chunk_bounds

_PAGE_NBYTES = 4096
_HUGE_PAGE_NBYTES = 2 << 20
_MIN_SHARE_NBYTES = 4 << 20
"""Less than this is not worth another thread."""


class Arena:
    """A buffer that is kept from save to save: fresh memory costs ten times as much as a copy into warm memory."""

    def __init__(self) -> None:
        self._memory: Bytes = np.empty(0, dtype=np.uint8)

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


@dataclass(frozen=True, slots=True)
class Reuse:
    """What the last save found unchanged, so that the next one need not copy it.

    Attributes:
        index: Where the chunks of the newest checkpoint lie.
        stable: Which pieces were found in it, by path and segment.
    """

    index: ChunkIndex
    stable: frozenset[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did.

    Attributes:
        digests: For each piece the checksums of its chunks, joined, where they were looked at; else None.
        absent: The chunks that were not copied, because they are stored already, and where.
    """

    digests: tuple[bytes | None, ...]
    absent: Mapping[ChunkId, Place]


class Stager:
    """Copy a state into an arena with a few threads.

    A piece that did not change between the last saves is not copied: its chunks are hashed where they lie, which is
    faster, and only those that changed are copied.

    Args:
        chunk_nbytes: The chunk size.
        threads: How many copy, the caller's among them.
    """

    def __init__(self, chunk_nbytes: int, threads: int = 2) -> None:
        self._chunk_nbytes = chunk_nbytes
        self._threads = max(1, threads)
        self._pool = ThreadPoolExecutor(self._threads - 1, "checkpoint-stage") if threads > 1 else None

    def copy(
        self, sources: Sequence[Source], pieces: Sequence[Piece], body: Bytes, reuse: Reuse | None = None
    ) -> Copied:
        """Copy every piece to its place in `body`, except what need not be, and return when all are there."""
        threads = self._threads if len(body) >= self._threads * _MIN_SHARE_NBYTES else 1
        shares = split_pieces(pieces, threads, self._chunk_nbytes)
        copies = [_Share(sources, share, body, reuse, self._chunk_nbytes) for share in shares]
        others = [self._pool.submit(copy.run) for copy in copies[1:] if self._pool is not None]
        copies[0].run()
        for other in others:
            other.result()
        absent: dict[ChunkId, Place] = {}
        looked_at: dict[tuple[int, int], list[bytes]] = {}
        for copy in copies:
            absent.update(copy.absent)
            for part, joined in copy.digests:
                looked_at.setdefault((part.leaf, part.segment), []).append(joined)
        found = [looked_at.get((piece.leaf, piece.segment)) for piece in pieces]
        return Copied(tuple(None if parts is None else b"".join(parts) for parts in found), absent)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


class _Share:
    """What one thread copies."""

    def __init__(
        self, sources: Sequence[Source], pieces: Sequence[Piece], body: Bytes, reuse: Reuse | None, chunk_nbytes: int
    ) -> None:
        self._sources = sources
        self._pieces = pieces
        self._body = body
        self._reuse = reuse
        self._chunk_nbytes = chunk_nbytes
        self.digests: list[tuple[Piece, bytes]] = []
        self.absent: dict[ChunkId, Place] = {}

    def run(self) -> None:
        for piece in self._pieces:
            source = self._sources[piece.leaf]
            data = source.host_bytes() if self._is_stable(source, piece) else None
            if data is None:
                source.copy_into(piece.start, piece.stop, self._home(piece, piece.start, piece.stop))
            else:
                self._copy_what_changed(piece, data)

    def _is_stable(self, source: Source, piece: Piece) -> bool:
        return self._reuse is not None and (source.spec.path, piece.segment) in self._reuse.stable

    def _copy_what_changed(self, piece: Piece, data: Bytes) -> None:
        assert self._reuse is not None  # or no piece would be stable
        view = data.data
        joined: list[bytes] = []
        for start, stop in chunk_bounds(piece.start, piece.stop, self._chunk_nbytes):
            checksum = digest(view[start:stop])
            joined.append(checksum)
            place = self._reuse.index.find((checksum, stop - start))
            if place is None:
                np.copyto(self._home(piece, start, stop), data[start:stop])
            else:
                self.absent[checksum, stop - start] = place
        self.digests.append((piece, b"".join(joined)))

    def _home(self, piece: Piece, start: int, stop: int) -> Bytes:
        base = piece.body_offset - piece.start
        return self._body[base + start : base + stop]


def split_pieces(pieces: Sequence[Piece], shares: int, grain_nbytes: int) -> list[list[Piece]]:
    """Divide pieces into shares of about the same number of bytes, cutting a piece at a multiple of the grain."""
    total = sum(piece.nbytes for piece in pieces)
    limit = -(-total // shares // grain_nbytes) * grain_nbytes or 1
    result: list[list[Piece]] = [[] for _ in range(shares)]
    share, room = 0, limit
    for piece in pieces:
        rest = piece
        while rest.nbytes > room and share + 1 < shares:
            cut = room // grain_nbytes * grain_nbytes
            if cut:
                result[share].append(replace(rest, stop=rest.start + cut))
                rest = replace(rest, start=rest.start + cut, body_offset=rest.body_offset + cut)
            share, room = share + 1, limit
        result[share].append(rest)
        room -= rest.nbytes
    return result
