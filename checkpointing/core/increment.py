"""Which chunks a save writes, and which it takes from an earlier one.

Chunks are addressed by content: the newest committed manifest says where each of its chunks lies, and a chunk with the
same checksum and size is referred to instead of written. Files of which little is still in use are *retired*: the next
save writes those chunks anew, so that a file that is kept is at least half in use and reading never scatters over many
files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from checkpointing.core.digest import DIGEST_NBYTES
from checkpointing.core.division import Piece
from checkpointing.core.layout import chunk_bounds
from checkpointing.core.manifest import Extent, Manifest, StoredFile

MIN_LIVE_FRACTION = 0.5
MAX_FILES_PER_WRITER = 16

ChunkId = tuple[bytes, int]
"""The checksum and the size of a chunk."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies already."""

    file: StoredFile
    offset: int


class ChunkIndex:
    """Find the chunks of an earlier checkpoint by their content."""

    def __init__(self, places: Mapping[ChunkId, Place] | None = None) -> None:
        self._places = dict(places or {})

    def __len__(self) -> int:
        return len(self._places)

    @classmethod
    def of(cls, manifest: Manifest | None) -> ChunkIndex:
        """Index a manifest, leaving out retired files."""
        places: dict[ChunkId, Place] = {}
        if manifest is not None:
            retired = set(manifest.retired)
            for tensor in manifest.tensors:
                for stored in tensor.boxes:
                    for extent in stored.extents:
                        if extent.file not in retired:
                            places.update(_places_of(extent, manifest))
        return cls(places)

    def find(self, chunk: ChunkId) -> Place | None:
        """Return where a chunk lies, or None if it must be written."""
        return self._places.get(chunk)

    def with_also(self, places: Mapping[ChunkId, Place]) -> ChunkIndex:
        """Return the index with more places, for chunks that it does not have."""
        return ChunkIndex({**places, **self._places}) if places else self

    def without(self, keys: set[str]) -> ChunkIndex:
        """Return the index without the chunks of some files."""
        if not keys:
            return self
        return ChunkIndex({chunk: place for chunk, place in self._places.items() if place.file.key not in keys})


def _places_of(extent: Extent, manifest: Manifest) -> Iterator[tuple[ChunkId, Place]]:
    file = manifest.files[extent.file]
    for start, stop, checksum in extent.chunks(manifest.chunk_nbytes):
        yield (checksum, stop - start), Place(file, extent.file_offset + start - extent.start)


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring chunks of a piece that lie, or will lie, one after the other in one file.

    Attributes:
        piece: The piece's number in the plan.
        start: First byte within the box.
        stop: One past the last.
        digests: The chunks' checksums, joined.
        place: Where it lies already; None if it is to be written.
    """

    piece: int
    start: int
    stop: int
    digests: bytes
    place: Place | None

    @property
    def nbytes(self) -> int:
        """Return its size."""
        return self.stop - self.start


def plan_runs(
    pieces: Sequence[Piece], digests: Sequence[bytes], index: ChunkIndex, chunk_nbytes: int, first: int = 0
) -> list[Run]:
    """Return the runs of all pieces: each maximal stretch of chunks that is written or found in one place.

    Args:
        pieces: The writer's plan.
        digests: For each piece the checksums of its chunks, joined.
        index: What an earlier checkpoint has.
        chunk_nbytes: The chunk size.
        first: The number of the first piece.
    """
    runs: list[Run] = []
    for number, (piece, joined) in enumerate(zip(pieces, digests, strict=True), first):
        if not len(index):  # nothing to find: a piece is a run
            runs.append(Run(number, piece.start, piece.stop, joined, None))
        elif piece.nbytes <= chunk_nbytes:
            runs.append(Run(number, piece.start, piece.stop, joined, index.find((joined, piece.nbytes))))
        else:
            runs.extend(_runs_of(number, piece, joined, index, chunk_nbytes))
    return runs


def _runs_of(number: int, piece: Piece, joined: bytes, index: ChunkIndex, chunk_nbytes: int) -> Iterator[Run]:
    first = 0  # the chunk that the current run begins with
    began: Place | None = None
    expected: tuple[str, int] | None = None  # where the next chunk lies if it belongs to the run
    count = len(joined) // DIGEST_NBYTES

    def run(stop: int) -> Run:
        return Run(
            number,
            piece.start + first * chunk_nbytes,
            min(piece.start + stop * chunk_nbytes, piece.stop),
            joined[first * DIGEST_NBYTES : stop * DIGEST_NBYTES],
            began,
        )

    for i, (start, stop) in enumerate(chunk_bounds(piece.start, piece.stop, chunk_nbytes)):
        place = index.find((joined[i * DIGEST_NBYTES : (i + 1) * DIGEST_NBYTES], stop - start))
        here = None if place is None else (place.file.key, place.offset)
        if i and here != expected:
            yield run(i)
            first = i
        if i == first:
            began = place
        expected = None if place is None else (place.file.key, place.offset + stop - start)
    if count:
        yield run(count)


def find_retired(manifest: Manifest, max_saves: int) -> tuple[int, ...]:
    """Return the numbers of the files that the next save should no longer refer to.

    These are the files that are used by less than `MIN_LIVE_FRACTION`; those that `max_saves` checkpoints have used,
    so that what never changes is not for ever one file whose loss would be the loss of all checkpoints; and, where
    there are more than `MAX_FILES_PER_WRITER` a writer, those that are used least.
    """
    live = [0] * len(manifest.files)
    for tensor in manifest.tensors:
        for stored in tensor.boxes:
            for extent in stored.extents:
                live[extent.file] += extent.stop - extent.start
    retired = {
        number
        for number, file in enumerate(manifest.files)
        if file.saves >= max_saves or live[number] < MIN_LIVE_FRACTION * (file.nbytes - file.header_nbytes)
    }
    by_use = sorted((number for number in range(len(live)) if number not in retired), key=lambda number: live[number])
    excess = len(by_use) - MAX_FILES_PER_WRITER * manifest.world_size
    return tuple(sorted(retired | set(by_use[: max(0, excess)])))
