"""Copy bytes without holding the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Below this a plain slice assignment is faster, and holds the GIL for microseconds.
_NUMPY_MIN_NBYTES = 64 * 2**10


def copy_bytes(out: memoryview, data: Buffer) -> None:
    """Copy ``data`` over ``out``, which is of the same size and holds unsigned bytes."""
    if out.nbytes < _NUMPY_MIN_NBYTES:
        out[:] = memoryview(data)
        return
    import numpy as np

    # numpy lets go of the GIL while it copies; a slice assignment does not.
    np.copyto(np.frombuffer(out, dtype=np.uint8), np.frombuffer(memoryview(data), dtype=np.uint8))
