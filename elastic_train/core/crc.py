"""CRC-32 of a whole from the CRC-32s of its pieces: what proves that pieces read by many workers are the whole.

The method is Mark Adler's crc32_combine in zlib: appending zeros to a message is a linear map over GF(2), applied here
by squaring, so a combination costs O(log length).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

_POLYNOMIAL = 0xEDB88320  # of CRC-32 (IEEE 802.3), reflected


def crc32_combine(first: int, second: int, second_nbytes: int) -> int:
    """Return the CRC-32 of two messages, one after the other, from theirs and the length of the second."""
    for power in range(second_nbytes.bit_length()):
        if second_nbytes >> power & 1:
            first = _apply(_append_zeros(power), first)
    return first ^ second


def crc32_join(pieces: Iterable[tuple[int, int]]) -> int:
    """Return the CRC-32 of messages, one after the other, from each one's (CRC-32, nbytes)."""
    whole = 0
    for crc, nbytes in pieces:
        whole = crc32_combine(whole, crc, nbytes)
    return whole


@lru_cache(maxsize=64)
def _append_zeros(power: int) -> tuple[int, ...]:
    """Return the matrix (a column a bit) that appends ``2**power`` zero bytes."""
    if power:
        half = _append_zeros(power - 1)
        return tuple(_apply(half, column) for column in half)
    matrix = (_POLYNOMIAL, *(1 << bit for bit in range(31)))  # one zero bit
    for _ in range(3):
        matrix = tuple(_apply(matrix, column) for column in matrix)
    return matrix


def _apply(matrix: tuple[int, ...], vector: int) -> int:
    result = 0
    for column in matrix:
        if vector & 1:
            result ^= column
        vector >>= 1
    return result
