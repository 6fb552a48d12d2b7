"""What tells samples of a stream apart in the journal: a number made of a sample's key or of its content."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

_LOOK = 64  # leading elements of each part that count: telling samples apart must cost less than reading them
_MASK63 = (1 << 63) - 1


def identity(key: Any) -> int:
    """Return the number of a key that the user gave: itself if it is an integer, else a checksum."""
    if isinstance(key, int):
        return key & _MASK63
    return fingerprint(key)


def fingerprint(sample: Any, crc: int = 0) -> int:
    """Return a checksum of a sample: of its ``__key__`` (webdataset) if it has one, else of its leading content."""
    if isinstance(sample, Mapping):
        if "__key__" in sample:
            return fingerprint(sample["__key__"], crc)
        for name, value in sample.items():
            crc = fingerprint(value, zlib.crc32(str(name).encode(), crc))
        return crc
    if isinstance(sample, list | tuple):
        for value in sample[:_LOOK]:
            crc = fingerprint(value, crc)
        return zlib.crc32(str(len(sample)).encode(), crc)
    if isinstance(sample, bytes | bytearray | memoryview):
        return zlib.crc32(bytes(sample[: _LOOK * 8]), crc)
    if hasattr(sample, "detach"):
        sample = sample.detach().cpu().numpy()
    if isinstance(sample, np.ndarray) and not sample.dtype.hasobject:
        return zlib.crc32(sample.flat[:_LOOK].tobytes(), zlib.crc32(str(sample.shape).encode(), crc))
    if sample is None or isinstance(sample, str | bool | int | float | complex | np.generic):
        return zlib.crc32(repr(sample)[: _LOOK * 8].encode(), crc)
    return zlib.crc32(type(sample).__qualname__.encode(), crc)
