"""The header of a safetensors file (https://github.com/huggingface/safetensors#format).

Eight bytes of little-endian length, JSON, then the tensors' bytes without gaps. We pad the JSON with spaces, which
the format allows, so that the data begin at a multiple of a page: direct I/O and mappings want that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from checkpointing.errors import ForeignObject, Truncated

ALIGNMENT = 4096
_MAX_HEADER_NBYTES = 100_000_000  # what the safetensors library accepts


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file.

    Attributes:
        name: Unique in the file.
        dtype: Of safetensors.
        shape: Its dimensions.
        nbytes: Its size, which is that of dtype and shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def encode_header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a file whose tensors follow each other in this order."""
    described: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for entry in entries:
        described[entry.name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": (offset, offset + entry.nbytes),
        }
        offset += entry.nbytes
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    padded = -(-(len(text) + 8) // ALIGNMENT) * ALIGNMENT - 8
    return padded.to_bytes(8, "little") + text.ljust(padded, b" ")


def header_nbytes(first_bytes: bytes, key: str) -> int:
    """Return the size of the header with its length field, from the first eight bytes of a file.

    Raises:
        Truncated: Fewer bytes than that.
        ForeignObject: They are not a plausible length.
    """
    if len(first_bytes) < 8:
        raise Truncated(key, f"{len(first_bytes)} bytes are no safetensors file")
    length = int.from_bytes(first_bytes[:8], "little")
    if not 2 <= length <= _MAX_HEADER_NBYTES:
        raise ForeignObject(key, f"it does not begin like a safetensors file (header of {length} bytes)")
    return 8 + length


def safe_entry_name(path: str) -> str:
    """Return a tensor's name in a file; the root of a tree and the format's own key need another."""
    return {"": "~", "__metadata__": "~__metadata__"}.get(path, path)
