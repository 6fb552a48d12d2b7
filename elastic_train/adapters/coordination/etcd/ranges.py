"""Key ranges: prefixes as etcd writes them, and the keys that this package keeps for itself."""

from __future__ import annotations

from collections.abc import Iterable

MARKERS = ".commits/"
"""Directory, below a root, of the keys that tell a transaction from one sent again (see `commits`)."""

_HIDDEN = b"/" + MARKERS.encode()


def end_of_prefix(prefix: bytes) -> bytes:
    r"""Return the first key after all keys that begin with `prefix`; ``b"\0"`` is etcd's word for "no end"."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"


def start_of_prefix(prefix: bytes) -> bytes:
    r"""Return the first key that begins with `prefix`; etcd writes the empty key as ``b"\0"``."""
    return prefix or b"\0"


def root_of(key: str) -> str:
    """Return the first two components of a key, as a directory: the part of the tree that belongs to one job."""
    names = [name for name in key.split("/") if name][:2]
    return "/" * key.startswith("/") + "".join(f"{name}/" for name in names)


def is_hidden(key: bytes) -> bool:
    """Say whether a key is this package's own and not the user's."""
    return _HIDDEN in key or key.startswith(_HIDDEN[1:])


def without_markers(prefix: str, roots: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """Return the half-open ranges of all keys that begin with `prefix`, less the markers of these roots."""
    start, end = start_of_prefix(prefix.encode()), end_of_prefix(prefix.encode())
    holes = sorted({f"{root}{MARKERS}".encode() for root in roots if f"{root}{MARKERS}".startswith(prefix)})
    ranges = []
    for hole in holes:
        ranges.append((start, hole))
        start = end_of_prefix(hole)
    return [*ranges, (start, end)]
