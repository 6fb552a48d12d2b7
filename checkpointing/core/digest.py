"""The one checksum of the package: XXH3 with 128 bits.

It finds every accident (a flipped bit, a hole, a cut) at memory speed. It is no defence against someone who forges
bytes on purpose: whoever can write to the store can also write a manifest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from typing_extensions import Buffer

DIGEST_NBYTES = 16


def digest(data: Buffer) -> bytes:
    """Return the checksum of a buffer; releases the GIL for large ones."""
    return xxhash.xxh3_128_digest(data)


def hex_digest(data: Buffer) -> str:
    """Return the checksum of a buffer as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)
