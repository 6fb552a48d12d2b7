"""What to read, and where to put it: from any layout in the store to any layout in memory.

Reads are made of whole chunks, because a chunk is what can be verified. A chunk whose bytes are also neighbours at
their destination is read straight into it; the others are read into a scratch buffer and copied from there. Reads that
are neighbours in a file are joined, so that thousands of small tensors are a handful of requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from checkpointing.core.layout import ITEM_NBYTES, Box, row_major_strides, span_within
from checkpointing.core.manifest import Manifest, StoredBox, StoredTensor

READ_NBYTES = 16 << 20
"""The largest single read; also bounds the scratch memory a thread needs."""

JOIN_NBYTES = 1 << 20
"""Smaller reads are joined with their neighbours through a scratch buffer."""


@dataclass(frozen=True, slots=True)
class ChunkRead:
    """A chunk to fetch and verify.

    Attributes:
        file: The file's number in the manifest.
        offset: Within the file.
        nbytes: Its size.
        digest: Its checksum.
        tensor: The tensor's number, for messages.
        start: Where its bytes go: within the target if `gather` is None, else within the gather's scratch buffer.
        gather: The number of the gather that it belongs to, or None.
    """

    file: int
    offset: int
    nbytes: int
    digest: bytes
    tensor: int
    start: int
    gather: int | None = None


@dataclass(frozen=True, slots=True)
class Gather:
    """A copy out of a scratch buffer, once all its chunks are there.

    Attributes:
        tensor: The tensor's number.
        nbytes: The scratch buffer's size.
        source_offset: The first byte to copy within the scratch buffer.
        target_offset: Where it goes within the target.
        shape: Elements along each dimension.
        source_strides: In bytes.
        target_strides: In bytes.
        item_nbytes: The size of an element.
    """

    tensor: int
    nbytes: int
    source_offset: int
    target_offset: int
    shape: tuple[int, ...]
    source_strides: tuple[int, ...]
    target_strides: tuple[int, ...]
    item_nbytes: int

    def copy(self, scratch: np.ndarray, target: np.ndarray) -> None:
        """Copy from the scratch buffer into the target; both are flat bytes."""
        item = np.dtype(f"V{self.item_nbytes}")
        source = _strided(scratch[self.source_offset :], item, self.shape, self.source_strides)
        np.copyto(_strided(target[self.target_offset :], item, self.shape, self.target_strides), source)


def _strided(data: np.ndarray, item: np.dtype, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    return np.ndarray(shape, dtype=item, buffer=data.data, strides=strides)


@dataclass(frozen=True, slots=True)
class Read:
    """One request: bytes of one file that follow each other.

    Attributes:
        file: The file's number.
        offset: Within the file.
        nbytes: Its size.
        chunks: What it is made of, by rising offset, without gaps.
        is_direct: All of it goes to one stretch of one target, and needs no scratch buffer.
    """

    file: int
    offset: int
    nbytes: int
    chunks: tuple[ChunkRead, ...]
    is_direct: bool


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """All reads and gathers of a load."""

    reads: tuple[Read, ...]
    gathers: tuple[Gather, ...]

    @property
    def nbytes(self) -> int:
        """Return how many bytes are read."""
        return sum(read.nbytes for read in self.reads)


def plan_reads(manifest: Manifest, wanted: Mapping[int, Box]) -> ReadPlan:
    """Return how to fetch a box of each of some tensors.

    Args:
        manifest: What is there.
        wanted: The box to fetch, by the tensor's number; the target of each holds just this box.
    """
    chunks: list[ChunkRead] = []
    gathers: list[Gather] = []
    for number, box in wanted.items():
        tensor = manifest.tensors[number]
        for stored in tensor.boxes:
            part = stored.box.intersect(box) if box.sizes else stored.box
            if part is not None and part.count:
                _plan_part(_Part(number, tensor, stored, part, box), manifest.chunk_nbytes, chunks, gathers)
    return ReadPlan(tuple(_join(chunks)), tuple(gathers))


@dataclass(frozen=True, slots=True)
class _Part:
    """The common part of a stored box and a wanted box."""

    number: int
    tensor: StoredTensor
    stored: StoredBox
    part: Box
    target: Box

    @property
    def item_nbytes(self) -> int:
        return ITEM_NBYTES[self.tensor.dtype]


def _plan_part(part: _Part, chunk_nbytes: int, chunks: list[ChunkRead], gathers: list[Gather]) -> None:
    first, last, contiguous = span_within(part.part, part.stored.box)
    target_first, _, target_contiguous = span_within(part.part, part.target)
    item = part.item_nbytes
    if not (contiguous and target_contiguous):
        for band in _bands(part.part, part.stored.box, READ_NBYTES // item):
            _plan_band(part, band, chunk_nbytes, chunks, gathers)
        return
    start, stop = first * item, last * item
    shift = target_first * item - start  # from a byte of the stored box to the same byte of the target
    for chunk, begin, end in _chunks_between(part, start, stop, chunk_nbytes):
        if start <= begin and end <= stop:
            chunks.append(_placed(chunk, begin + shift, None))
            continue
        low, high = max(begin, start), min(end, stop)
        chunks.append(_placed(chunk, 0, len(gathers)))
        gathers.append(
            Gather(part.number, chunk.nbytes, low - begin, low + shift, (high - low,), (1,), (1,), item_nbytes=1)
        )


def _plan_band(part: _Part, band: Box, chunk_nbytes: int, chunks: list[ChunkRead], gathers: list[Gather]) -> None:
    item = part.item_nbytes
    first, last, _ = span_within(band, part.stored.box)
    needed = _chunks_touched(band, part.stored.box, item, chunk_nbytes)
    base: int | None = None
    end_of_scratch = 0
    for chunk, begin, end in _chunks_between(part, first * item, last * item, chunk_nbytes):
        if base is None:
            base = begin
        end_of_scratch = end - base
        if needed is None or begin // chunk_nbytes in needed:
            chunks.append(_placed(chunk, begin - base, len(gathers)))
    assert base is not None  # the manifest was checked: every byte of a box lies in some chunk
    gathers.append(
        Gather(
            tensor=part.number,
            nbytes=end_of_scratch,
            source_offset=first * item - base,
            target_offset=span_within(band, part.target)[0] * item,
            shape=band.sizes,
            source_strides=tuple(stride * item for stride in row_major_strides(part.stored.box.sizes)),
            target_strides=tuple(stride * item for stride in row_major_strides(part.target.sizes)),
            item_nbytes=item,
        )
    )


def _bands(part: Box, outer: Box, max_elements: int) -> Iterator[Box]:
    """Split a part so that each piece spans at most so many elements of the box around it, where that can be."""
    first, last, _ = span_within(part, outer)
    splittable = next((d for d, size in enumerate(part.sizes) if size > 1), None)
    if last - first <= max_elements or splittable is None:
        yield part
        return
    stride = row_major_strides(outer.sizes)[splittable]
    rows = max(1, max_elements // stride) if stride <= max_elements else 1
    for begin in range(0, part.sizes[splittable], rows):
        size = min(rows, part.sizes[splittable] - begin)
        offsets = list(part.offsets)
        sizes = list(part.sizes)
        offsets[splittable] += begin
        sizes[splittable] = size
        yield from _bands(Box(tuple(offsets), tuple(sizes)), outer, max_elements)


def _chunks_touched(band: Box, outer: Box, item_nbytes: int, chunk_nbytes: int) -> set[int] | None:
    """Return the numbers of the chunks that hold an element of the band; None means all of its span."""
    strides = row_major_strides(outer.sizes)
    inner = len(band.sizes)
    run = 1  # elements that follow each other without a gap
    while inner:
        inner -= 1
        run *= band.sizes[inner]
        if band.sizes[inner] != outer.sizes[inner]:
            break
    if strides[max(0, inner - 1)] * item_nbytes <= chunk_nbytes:
        return None  # rows are shorter than chunks: no chunk is left out
    starts = np.zeros(1, dtype=np.int64)
    for dimension in range(inner):
        steps = (np.arange(band.sizes[dimension]) + band.offsets[dimension] - outer.offsets[dimension]) * strides[
            dimension
        ]
        starts = (starts[:, None] + steps[None, :]).ravel()
    for dimension in range(inner, len(band.sizes)):
        starts += (band.offsets[dimension] - outer.offsets[dimension]) * strides[dimension]
    begins, ends = starts * item_nbytes, (starts + run) * item_nbytes - 1
    return {
        number
        for low, high in zip((begins // chunk_nbytes).tolist(), (ends // chunk_nbytes).tolist(), strict=True)
        for number in range(low, high + 1)
    }


def _chunks_between(part: _Part, start: int, stop: int, chunk_nbytes: int) -> Iterator[tuple[ChunkRead, int, int]]:
    """Yield the chunks that hold bytes of `[start, stop)` of the stored box, with their bounds in it."""
    for extent in part.stored.extents:
        if extent.stop <= start or extent.start >= stop:
            continue
        for begin, end, digest in extent.chunks(chunk_nbytes):
            if end > start and begin < stop:
                offset = extent.file_offset + begin - extent.start
                yield ChunkRead(extent.file, offset, end - begin, digest, part.number, 0), begin, end


def _placed(chunk: ChunkRead, start: int, gather: int | None) -> ChunkRead:
    return ChunkRead(chunk.file, chunk.offset, chunk.nbytes, chunk.digest, chunk.tensor, start, gather)


def _join(chunks: Iterable[ChunkRead]) -> Iterator[Read]:
    """Join chunks into reads; a chunk that two parts need is read twice, which is rare and simple."""
    pending: list[ChunkRead] = []
    size = 0
    direct = True
    for chunk in sorted(chunks, key=lambda chunk: (chunk.file, chunk.offset)):
        if pending:
            goes_on = direct and _goes_on(pending[-1], chunk)
            if _adjoins(pending[-1], chunk, size) and (goes_on or _is_worth_joining(chunk, size, direct)):
                direct = goes_on
            else:
                yield Read(pending[0].file, pending[0].offset, size, tuple(pending), direct)
                pending, size, direct = [], 0, True
        pending.append(chunk)
        size += chunk.nbytes
    if pending:
        yield Read(pending[0].file, pending[0].offset, size, tuple(pending), direct)


def _adjoins(last: ChunkRead, chunk: ChunkRead, size: int) -> bool:
    return last.file == chunk.file and last.offset + last.nbytes == chunk.offset and size + chunk.nbytes <= READ_NBYTES


def _goes_on(last: ChunkRead, chunk: ChunkRead) -> bool:
    return last.tensor == chunk.tensor and last.gather == chunk.gather and last.start + last.nbytes == chunk.start


def _is_worth_joining(chunk: ChunkRead, size: int, direct: bool) -> bool:
    # A large direct read stays direct; what is small costs less to copy than to ask for.
    return chunk.nbytes < JOIN_NBYTES and (size < JOIN_NBYTES or not direct)
