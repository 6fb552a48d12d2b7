"""Write one writer's part of a save: hash it, leave out what is stored already, put the rest as a safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from checkpointing.codecs.base import Bytes
from checkpointing.core.digest import digest, hex_digest
from checkpointing.core.division import LeafSpec, Piece
from checkpointing.core.increment import ChunkIndex, Run, plan_runs
from checkpointing.core.layout import chunk_bounds
from checkpointing.core.manifest import Extent, StoredBox, StoredFile
from checkpointing.core.naming import Keys, ManifestName
from checkpointing.core.records import ShardRecord, structure_digest
from checkpointing.core.tensorfile import Entry, encode_header, safe_entry_name
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
    """

    record: ShardRecord
    nbytes: int
    reused_nbytes: int


class Writer:
    """Write parts of saves into a store.

    Args:
        store: Where to.
        keys: The job's keys.
        chunk_nbytes: The chunk size.
    """

    def __init__(self, store: ObjectStore, keys: Keys, chunk_nbytes: int) -> None:
        self._store = store
        self._keys = keys
        self._chunk_nbytes = chunk_nbytes

    def hash(self, staged: Staged) -> list[bytes]:
        """Return for each piece the checksums of its chunks, joined."""
        # One thread does 20 GiB/s; more of them would only take cores and the GIL from the train loop.
        body = staged.body.data
        return [
            b"".join(
                digest(body[piece.body_offset + start - piece.start : piece.body_offset + stop - piece.start])
                for start, stop in chunk_bounds(piece.start, piece.stop, self._chunk_nbytes)
            )
            for piece in staged.pieces
        ]

    def write(self, staged: Staged, digests: Sequence[bytes], index: ChunkIndex, attempt: int) -> Written:
        """Write what `index` does not have, as one file, and return what this writer answers for.

        Args:
            staged: The state.
            digests: What `hash` returned.
            index: What is stored already.
            attempt: Differs where the same bytes must get another name, because the first was taken away.
        """
        runs = plan_runs(staged.pieces, digests, index, self._chunk_nbytes)
        new = [run for run in runs if run.place is None]
        file = self._put(staged, new, attempt) if new else None
        files = {run.place.file.key: run.place.file for run in runs if run.place is not None}
        if file is not None:
            files[file.key] = file
        numbers = {key: number for number, key in enumerate(files)}
        nbytes = sum(run.nbytes for run in new)
        record = ShardRecord(
            step=staged.step,
            fence=staged.fence,
            rank=staged.rank,
            world_size=staged.world_size,
            structure=staged.structure,
            files=tuple(files.values()),
            parts=_parts(staged, runs, file, numbers),
        )
        return Written(record, nbytes, sum(run.nbytes for run in runs) - nbytes)

    def put_record(self, record: ShardRecord) -> None:
        """Publish what this writer answers for, for rank 0 to find."""
        key = self._keys.record(record.fence, record.step, record.rank, record.world_size)
        self._store.put(key, record.to_bytes())

    def refuse(self, staged: Staged, why: str) -> None:
        """Tell rank 0 not to wait for this writer."""
        place = (staged.step, staged.fence, staged.rank, staged.world_size)
        self.put_record(ShardRecord(*place, structure=staged.structure, files=(), parts={}, refusal=why))

    def _put(self, staged: Staged, runs: Sequence[Run], attempt: int) -> StoredFile:
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
        buffers = [memoryview(header), *_buffers(staged, runs)]
        nbytes = sum(buffer.nbytes for buffer in buffers)
        self._store.put(key, buffers)
        return StoredFile(key, nbytes, len(header), hex_digest(header))


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


def _parts(
    staged: Staged, runs: Sequence[Run], file: StoredFile | None, numbers: dict[str, int]
) -> dict[int, tuple[StoredBox, ...]]:
    extents: dict[int, list[Extent]] = {}
    offset = 0 if file is None else file.header_nbytes
    for run in runs:
        piece = staged.pieces[run.piece]
        if run.place is None:
            assert file is not None  # there is a file if anything is new
            extent = Extent(numbers[file.key], offset, run.start, run.stop, run.digests)
            offset += run.nbytes
        else:
            extent = Extent(numbers[run.place.file.key], run.place.offset, run.start, run.stop, run.digests)
        extents.setdefault(piece.leaf, []).append(extent)
    return {leaf: (StoredBox(staged.leaves[leaf].box, tuple(found)),) for leaf, found in extents.items()}
