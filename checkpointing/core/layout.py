"""Where the bytes of a tensor lie: boxes within it, and the grid of chunks within a box.

A *box* is an axis-parallel part of a tensor: `offsets` and `sizes`, one each a dimension. Its bytes are those of a
C-contiguous array of its own shape. They are cut into *chunks* at multiples of the chunk size, so that the same part of
a state gives the same chunks at every world size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

DEFAULT_CHUNK_NBYTES = 1 << 20

ITEM_NBYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8,
}  # fmt: skip
"""The dtypes of safetensors, and the size of one element."""


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-parallel part of a tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """Return the box that is all of a tensor."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def count(self) -> int:
        """Return the number of elements."""
        return math.prod(self.sizes)

    def is_within(self, shape: Sequence[int]) -> bool:
        """Tell whether a tensor of this shape has the box."""
        return len(self.sizes) == len(shape) == len(self.offsets) and all(
            offset >= 0 and size >= 0 and offset + size <= extent
            for offset, size, extent in zip(self.offsets, self.sizes, shape, strict=True)
        )

    def intersect(self, other: Box) -> Box | None:
        """Return the common part, or None."""
        if self == other:  # the usual case, and the slow one for thousands of tensors
            return self if self.count else None
        offsets = tuple(map(max, self.offsets, other.offsets))
        sizes = tuple(
            min(a + n, b + m) - start
            for a, n, b, m, start in zip(self.offsets, self.sizes, other.offsets, other.sizes, offsets, strict=True)
        )
        return Box(offsets, sizes) if all(size > 0 for size in sizes) else None

    def within(self, outer: Box) -> tuple[slice, ...]:
        """Return the index that selects this box from an array that holds `outer`."""
        return tuple(
            slice(offset - base, offset - base + size)
            for offset, size, base in zip(self.offsets, self.sizes, outer.offsets, strict=True)
        )


def span_within(part: Box, outer: Box) -> tuple[int, int, bool]:
    """Say where the elements of `part` lie among those of `outer`, in row-major order.

    Returns:
        The first element, one past the last, and whether everything between belongs to `part`.
    """
    if part == outer:
        return 0, part.count, True
    strides = row_major_strides(outer.sizes)
    first = sum((a - b) * stride for a, b, stride in zip(part.offsets, outer.offsets, strides, strict=True))
    last = first + sum((size - 1) * stride for size, stride in zip(part.sizes, strides, strict=True))
    return first, last + 1, last + 1 - first == part.count


def row_major_strides(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return how many elements apart neighbours of each dimension are."""
    strides = [1] * len(sizes)
    for dimension in range(len(sizes) - 2, -1, -1):
        strides[dimension] = strides[dimension + 1] * sizes[dimension + 1]
    return tuple(strides)


def covers_exactly(boxes: Sequence[Box], shape: Sequence[int]) -> bool:
    """Tell whether the boxes hold every element of a tensor exactly once."""
    if len(boxes) == 1 and boxes[0].sizes == shape:
        return not any(boxes[0].offsets) and len(boxes[0].offsets) == len(shape)
    if not all(box.is_within(shape) for box in boxes):
        return False
    full = [box for box in boxes if box.count]
    if sum(box.count for box in full) != math.prod(shape):
        return False
    if len(full) <= 1 or not shape:
        return len(full) <= 1
    starts = np.array([box.offsets for box in full])
    stops = starts + np.array([box.sizes for box in full])
    for index in range(len(full) - 1):
        after = slice(index + 1, None)
        overlap = (starts[after] < stops[index]) & (starts[index] < stops[after])
        if bool(overlap.all(axis=1).any()):
            return False
    return True


def chunk_count(nbytes: int, chunk_nbytes: int) -> int:
    """Return how many chunks hold `nbytes`."""
    return -(-nbytes // chunk_nbytes)


def chunk_bounds(start: int, stop: int, chunk_nbytes: int) -> Iterator[tuple[int, int]]:
    """Yield the half-open byte ranges of the chunks of `[start, stop)`; `start` is a multiple of the chunk size."""
    for begin in range(start, stop, chunk_nbytes):
        yield begin, min(begin + chunk_nbytes, stop)
