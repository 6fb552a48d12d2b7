"""Who writes what: the division of a state among writers, by bytes.

Replicated tensors (all writers hold the same) are laid out on one line, cut into chunks, and the line is cut into as
many runs as there are writers. Every writer computes the same cuts from the same shapes, so nobody has to be asked. A
run cuts at most two tensors, and always between chunks; the parts differ by one chunk at most.

Sharded tensors are written by those who hold them; where several hold the same box, it is divided among these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from checkpointing.core.layout import ITEM_NBYTES, Box, chunk_count

DEFAULT_SEGMENT_NBYTES = 256 << 20
PAGE_NBYTES = 4096


@dataclass(frozen=True, slots=True)
class LeafSpec:
    """What a plan has to know of one tensor as this writer holds it.

    Attributes:
        path: Its place in the tree.
        kind: The codec that reads it back: `torch`, `numpy`, ...
        dtype: Of safetensors: `F32`, `BF16`, ...
        shape: Of the whole tensor.
        box: The part that this writer holds.
        copies: How many writers hold this same box; 0 means all of them do.
        copy_index: Which of these this writer is.
    """

    path: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    box: Box
    copies: int = 0
    copy_index: int = 0

    @property
    def item_nbytes(self) -> int:
        """Return the size of an element."""
        return ITEM_NBYTES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Return the size of the box."""
        return self.box.count * ITEM_NBYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of chunks of one tensor's box that one writer writes.

    Attributes:
        leaf: Which tensor, by its number in the tree.
        start: First byte within the box; a multiple of the chunk size.
        stop: One past the last byte.
        body_offset: Where it is staged.
        segment: Which part of the staged bytes it is in; a segment is hashed, and at most written, as one.
    """

    leaf: int
    start: int
    stop: int
    body_offset: int
    segment: int = 0

    @property
    def nbytes(self) -> int:
        """Return its size."""
        return self.stop - self.start


def divide_line(sizes: Sequence[int], parts: int) -> list[int]:
    """Cut a line of items into runs of about equal size.

    Args:
        sizes: The items' sizes, none negative.
        parts: How many runs.

    Returns:
        `parts + 1` rising indices; run p is the items `[cuts[p], cuts[p + 1])`. Each cut is the one nearest to its
        ideal place, so no run is larger than the average by more than the largest item.
    """
    if parts < 1:
        raise ValueError(f"cannot divide among {parts} writers")
    ends = np.concatenate(([0], np.cumsum(np.asarray(sizes, dtype=np.int64))))
    ideal = np.asarray([int(ends[-1]) * part // parts for part in range(1, parts)], dtype=np.int64)
    above = np.minimum(np.searchsorted(ends, ideal), len(ends) - 1)
    below = np.maximum(above - 1, 0)
    cuts = np.where(ideal - ends[below] <= ends[above] - ideal, below, above)
    return [0, *np.maximum.accumulate(cuts).tolist(), len(sizes)]


def plan_pieces(
    leaves: Sequence[LeafSpec],
    rank: int,
    world_size: int,
    chunk_nbytes: int,
    segment_nbytes: int = DEFAULT_SEGMENT_NBYTES,
) -> tuple[Piece, ...]:
    """Return what writer `rank` of `world_size` writes, in the order in which it is staged and written.

    Wider elements come first, so that every tensor of a file is aligned to its own element size. The pieces are put
    into segments: each begins at a page, and only a piece that is larger than a segment is cut.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size}")
    order = sorted(range(len(leaves)), key=lambda index: -leaves[index].item_nbytes)
    runs = list(_replicated_runs([i for i in order if not leaves[i].copies], leaves, (rank, world_size), chunk_nbytes))
    runs += _sharded_runs([i for i in order if leaves[i].copies], leaves, chunk_nbytes)
    runs.sort(key=lambda run: -leaves[run[0]].item_nbytes)
    pieces: list[Piece] = []
    offset = segment = used = 0
    for leaf, start, stop in _cut(runs, segment_nbytes // chunk_nbytes * chunk_nbytes or chunk_nbytes):
        # A tensor has one piece a segment at most, so that the two name the piece.
        if used and (used + stop - start > segment_nbytes or pieces[-1].leaf == leaf):
            segment, used = segment + 1, 0
            offset = -(-offset // PAGE_NBYTES) * PAGE_NBYTES
        pieces.append(Piece(leaf, start, stop, offset, segment))
        offset += stop - start
        used += stop - start
    return tuple(pieces)


def staged_nbytes(pieces: Sequence[Piece]) -> int:
    """Return how much memory pieces are staged in, with the gaps between segments."""
    return pieces[-1].body_offset + pieces[-1].nbytes if pieces else 0


def locate_pieces(wanted: Iterable[Piece], staged: Sequence[Piece]) -> tuple[Piece, ...]:
    """Return pieces with the place where each of them was staged as a part of others.

    Args:
        wanted: The pieces; where two of the others hold parts of one, it is cut.
        staged: Pieces that hold all of them.
    """
    holders: dict[int, list[Piece]] = {}
    for piece in staged:
        holders.setdefault(piece.leaf, []).append(piece)
    located: list[Piece] = []
    for piece in wanted:
        for holder in holders[piece.leaf]:
            start, stop = max(piece.start, holder.start), min(piece.stop, holder.stop)
            if start < stop:
                place = holder.body_offset + start - holder.start
                located.append(Piece(piece.leaf, start, stop, place, holder.segment))
    return tuple(located)


def _cut(runs: Iterable[tuple[int, int, int]], limit: int) -> Iterator[tuple[int, int, int]]:
    for leaf, start, stop in runs:
        for begin in range(start, stop, limit):
            yield leaf, begin, min(begin + limit, stop)


def _replicated_runs(
    order: Sequence[int], leaves: Sequence[LeafSpec], part: tuple[int, int], chunk_nbytes: int
) -> Iterator[tuple[int, int, int]]:
    rank, world_size = part
    counts = [chunk_count(leaves[index].nbytes, chunk_nbytes) for index in order]
    firsts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64))).tolist()
    sizes = np.full(firsts[-1], chunk_nbytes, dtype=np.int64)
    for position, index in enumerate(order):
        if counts[position]:
            sizes[firsts[position + 1] - 1] = leaves[index].nbytes - (counts[position] - 1) * chunk_nbytes
    cuts = divide_line(sizes, world_size)  # type: ignore[arg-type]  # an array is as good as a sequence here
    begin, end = cuts[rank], cuts[rank + 1]
    for position, index in enumerate(order):
        first, last = max(begin, firsts[position]), min(end, firsts[position + 1])
        if first < last:
            start = (first - firsts[position]) * chunk_nbytes
            yield index, start, min((last - firsts[position]) * chunk_nbytes, leaves[index].nbytes)


def _sharded_runs(
    order: Sequence[int], leaves: Sequence[LeafSpec], chunk_nbytes: int
) -> Iterator[tuple[int, int, int]]:
    for position, index in enumerate(order):
        leaf = leaves[index]
        chunks = chunk_count(leaf.nbytes, chunk_nbytes)
        # Whoever gets the larger part changes from tensor to tensor, or the first copy would write all the small ones.
        turn = (leaf.copy_index + position) % leaf.copies
        first, last = chunks * turn // leaf.copies, chunks * (turn + 1) // leaf.copies
        if first < last:
            yield index, first * chunk_nbytes, min(last * chunk_nbytes, leaf.nbytes)
