"""Write one writer's part of a save: hash it, leave out what is stored already, put the rest as safetensors files."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from checkpointing.codecs.base import Bytes
from checkpointing.core.digest import DIGEST_NBYTES, digest, hex_digest
from checkpointing.core.division import LeafSpec, Piece
from checkpointing.core.increment import ChunkId, ChunkIndex, Place, Run, plan_runs
from checkpointing.core.layout import chunk_bounds
from checkpointing.core.manifest import Extent, StoredBox, StoredFile
from checkpointing.core.naming import Keys, ManifestName
from checkpointing.core.records import ShardRecord, structure_digest
from checkpointing.core.tensorfile import Entry, encode_header, safe_entry_name
from checkpointing.errors import StateMoved
from storage.store import ObjectStore


@dataclass(frozen=True, slots=True)
class Staged:
    """A state that was copied away from the train loop.

    Attributes:
        step: The step it was taken after.
        fence: The fence it is written under.
        leaves: All tensors of the state, by number.
        pieces: What of them this writer writes.
        body: The pieces' bytes, each at its `body_offset`.
        digests: For each piece the checksums of its chunks, joined, where they are known already; else None.
        absent: Chunks that were not copied, because they are stored already, and where.
        skeleton: The structure and plain values.
        metadata: What the user gave.
        pickled: Paths of pickled values.
        rank: This writer.
        world_size: Of how many.
    """

    step: int
    fence: int
    leaves: tuple[LeafSpec, ...]
    pieces: tuple[Piece, ...]
    body: Bytes
    skeleton: Any
    metadata: dict[str, Any]
    pickled: tuple[str, ...]
    rank: int
    world_size: int
    digests: tuple[bytes | None, ...] = ()
    absent: Mapping[ChunkId, Place] = field(default_factory=dict)

    @property
    def structure(self) -> str:
        """Return the digest of what all writers must agree on."""
        return structure_digest([(leaf.path, leaf.dtype, leaf.shape) for leaf in self.leaves])


@dataclass(frozen=True, slots=True)
class Written:
    """What a writer did.

    Attributes:
        record: What it answers for.
        nbytes: How many bytes it uploaded.
        reused_nbytes: How many it found stored already.
        stable: The pieces of which at least half was stored already, by path and segment.
    """

    record: ShardRecord
    nbytes: int
    reused_nbytes: int
    stable: frozenset[tuple[str, int]]


class Hashing:
    """Hash what was staged, segment by segment, in a thread that runs ahead of whoever writes the segments.

    One thread does 20 GiB/s; more of them would only take cores and the GIL from the train loop.
    """

    def __init__(self, staged: Staged, chunk_nbytes: int) -> None:
        self._staged = staged
        self._chunk_nbytes = chunk_nbytes
        self.seconds = 0.0
        bounds = [number for number, piece in enumerate(staged.pieces) if self._begins_segment(number, piece)]
        self._ranges = list(pairwise([*bounds, len(staged.pieces)]))
        self._pool = ThreadPoolExecutor(1, "checkpoint-hash")
        self._found = [self._pool.submit(self._hash, *bounds) for bounds in self._ranges]

    def __iter__(self) -> Iterator[tuple[int, Sequence[Piece], list[bytes]]]:
        """Yield each segment: its first piece's number, its pieces, and for each its chunks' checksums, joined."""
        for (first, last), found in zip(self._ranges, self._found, strict=True):
            yield first, self._staged.pieces[first:last], found.result()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _begins_segment(self, number: int, piece: Piece) -> bool:
        return not number or self._staged.pieces[number - 1].segment != piece.segment

    def _hash(self, first: int, last: int) -> list[bytes]:
        began = time.perf_counter()
        digests = self._staged.digests or (None,) * len(self._staged.pieces)
        hashed = [digests[number] or self._hash_piece(self._staged.pieces[number]) for number in range(first, last)]
        self.seconds += time.perf_counter() - began
        return hashed

    def _hash_piece(self, piece: Piece) -> bytes:
        body = self._staged.body.data
        base = piece.body_offset - piece.start
        return b"".join(
            digest(body[base + start : base + stop])
            for start, stop in chunk_bounds(piece.start, piece.stop, self._chunk_nbytes)
        )


class Writer:
    """Write parts of saves into a store.

    Args:
        store: Where to.
        keys: The job's keys.
        chunk_nbytes: The chunk size.
        file_nbytes: About how large a file gets: at a segment's end, one of at least half that size is complete.
    """

    def __init__(self, store: ObjectStore, keys: Keys, chunk_nbytes: int, file_nbytes: int) -> None:
        self._store = store
        self._keys = keys
        self._chunk_nbytes = chunk_nbytes
        self._file_nbytes = file_nbytes

    def write(self, staged: Staged, hashing: Hashing, index: ChunkIndex, attempt: int) -> Written:
        """Write what `index` does not have, and return what this writer answers for.

        Args:
            staged: The state.
            hashing: The checksums of its chunks.
            index: What is stored already.
            attempt: Differs where the same bytes must get another name, because the first was taken away.

        Raises:
            StateMoved: A chunk that was not copied because it was stored is not in the index any more.
        """
        placed: list[tuple[Run, Extent, StoredFile]] = []
        new: list[Run] = []
        for first, pieces, digests in hashing:
            for run in plan_runs(pieces, digests, index, self._chunk_nbytes, first):
                if run.place is None:
                    new.append(run)
                else:
                    placed.append((run, _extent(run, run.place.offset), run.place.file))
            if 2 * sum(run.nbytes for run in new) >= self._file_nbytes:
                placed += self._put(staged, new, attempt)
                new = []
        if new:
            placed += self._put(staged, new, attempt)
        return self._report(staged, placed)

    def _report(self, staged: Staged, placed: Sequence[tuple[Run, Extent, StoredFile]]) -> Written:
        files = {file.key: file for _, _, file in placed}
        numbers = {key: number for number, key in enumerate(files)}
        extents: dict[int, list[Extent]] = {}
        reused = [0] * len(staged.pieces)
        for run, extent, file in placed:
            leaf = staged.pieces[run.piece].leaf
            extents.setdefault(leaf, []).append(replace(extent, file=numbers[file.key]))
            if run.place is not None:
                reused[run.piece] += run.nbytes
        record = ShardRecord(
            step=staged.step,
            fence=staged.fence,
            rank=staged.rank,
            world_size=staged.world_size,
            structure=staged.structure,
            files=tuple(files.values()),
            parts={leaf: (StoredBox(staged.leaves[leaf].box, tuple(found)),) for leaf, found in extents.items()},
        )
        stable = {
            (staged.leaves[piece.leaf].path, piece.segment)
            for piece, nbytes in zip(staged.pieces, reused, strict=True)
            if 2 * nbytes >= piece.nbytes
        }
        total = sum(piece.nbytes for piece in staged.pieces)
        return Written(record, total - sum(reused), sum(reused), frozenset(stable))

    def put_record(self, record: ShardRecord) -> None:
        """Publish what this writer answers for, for rank 0 to find."""
        key = self._keys.record(record.fence, record.step, record.rank, record.world_size)
        self._store.put(key, record.to_bytes())

    def refuse(self, staged: Staged, why: str) -> None:
        """Tell rank 0 not to wait for this writer."""
        place = (staged.step, staged.fence, staged.rank, staged.world_size)
        self.put_record(ShardRecord(*place, structure=staged.structure, files=(), parts={}, refusal=why))

    def _put(self, staged: Staged, runs: Sequence[Run], attempt: int) -> list[tuple[Run, Extent, StoredFile]]:
        """Write runs as one file, and return where each of them is."""
        self._refuse_absent(staged, runs)
        entries = [_entry(staged.leaves[staged.pieces[run.piece].leaf], run) for run in runs]
        header = encode_header(
            entries,
            {
                "format": "pt",
                "job": self._keys.job,
                "step": str(staged.step),
                "fence": str(staged.fence),
                "writer": f"{staged.rank} of {staged.world_size}",
                "attempt": str(attempt),
            },
        )
        # Named by its content: the header and the checksums of all chunks stand for it.
        name = hex_digest(header + b"".join(run.digests for run in runs))
        key = self._keys.shard(ManifestName(staged.step, staged.fence, name), staged.rank, staged.world_size)
        buffers = [_page_aligned(header), *_buffers(staged, runs)]
        self._store.put(key, buffers)
        file = StoredFile(key, sum(buffer.nbytes for buffer in buffers), len(header), hex_digest(header))
        placed: list[tuple[Run, Extent, StoredFile]] = []
        offset = len(header)
        for run in runs:
            placed.append((run, _extent(run, offset), file))
            offset += run.nbytes
        return placed

    def _refuse_absent(self, staged: Staged, runs: Sequence[Run]) -> None:
        """Refuse to write chunks that were not copied: their place in memory holds something else."""
        if not staged.absent:
            return
        for run in runs:
            for i, (start, stop) in enumerate(chunk_bounds(run.start, run.stop, self._chunk_nbytes)):
                checksum = run.digests[i * DIGEST_NBYTES : (i + 1) * DIGEST_NBYTES]
                if (checksum, stop - start) in staged.absent:
                    raise StateMoved(
                        "an unchanged part, which was not copied, was removed from the store meanwhile; "
                        "the next save copies all",
                        step=staged.step,
                        fence=staged.fence,
                    )


def _page_aligned(data: bytes) -> memoryview:
    """Return a copy at the beginning of a page: in other memory it would keep all that follows from direct writes."""
    memory = mmap.mmap(-1, len(data))
    memory.write(data)
    return memoryview(memory)


def _extent(run: Run, offset: int) -> Extent:
    """Return where a run lies in its file, whose number is not known yet."""
    return Extent(-1, offset, run.start, run.stop, run.digests)


def _entry(leaf: LeafSpec, run: Run) -> Entry:
    """Return how a run is called in its file: the tensor itself where it is all of it, else a part with its place."""
    name = safe_entry_name(leaf.path)
    if run.nbytes == leaf.nbytes and leaf.box.sizes == leaf.shape:
        return Entry(name, leaf.dtype, leaf.shape, run.nbytes)
    item = leaf.item_nbytes
    if leaf.box.sizes != leaf.shape:
        name += "@" + ",".join(f"{o}+{n}" for o, n in zip(leaf.box.offsets, leaf.box.sizes, strict=True))
        if run.nbytes == leaf.nbytes:
            return Entry(name, leaf.dtype, leaf.box.sizes, run.nbytes)
    return Entry(f"{name}[{run.start // item}:{run.stop // item}]", leaf.dtype, (run.nbytes // item,), run.nbytes)


def _buffers(staged: Staged, runs: Sequence[Run]) -> list[memoryview]:
    """Return the runs' bytes, joined where they are neighbours in memory: usually it is all of the body."""
    body = staged.body.data.toreadonly()
    bounds: list[list[int]] = []
    for run in runs:
        piece = staged.pieces[run.piece]
        start = piece.body_offset + run.start - piece.start
        if bounds and bounds[-1][1] == start:
            bounds[-1][1] = start + run.nbytes
        else:
            bounds.append([start, start + run.nbytes])
    return [body[start:stop] for start, stop in bounds]
