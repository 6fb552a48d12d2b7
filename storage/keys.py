"""Which names objects may have: those that every backend stores unchanged."""

from __future__ import annotations

import re

from storage.errors import InvalidKey

#: Directory in which the local backend keeps unfinished files; hidden from listings.
TEMP_SEGMENT = ".storage-tmp"

MAX_KEY_BYTES = 900
MAX_SEGMENT_BYTES = 200

# Letters, digits and the punctuation that S3, GCS, Azure, object_store paths and POSIX file
# systems all take unescaped.
_ODD = re.compile(r"[^A-Za-z0-9!_.'()=+@,:/-]")


def validate_key(key: str) -> str:
    """Return the key if every backend can store it under this very name.

    Raises:
        InvalidKey: it is empty, absolute, too long, has an empty, ``.`` or ``..`` segment, a
            reserved segment, or a character outside ``A-Z a-z 0-9 ! _ . ' ( ) = + @ , : / -``.
    """
    if not isinstance(key, str):
        raise InvalidKey(f"a key is a str, not {type(key).__name__}")
    _check_text(key, key)
    if not key:
        raise InvalidKey("the key is empty")
    for segment in key.split("/"):
        _check_segment(key, segment)
    return key


def is_valid_key(key: str) -> bool:
    """Tell whether :func:`validate_key` takes the key."""
    try:
        validate_key(key)
    except InvalidKey:
        return False
    return True


def validate_prefix(prefix: str) -> str:
    """Return the listing prefix if some valid key could begin with it.

    Raises:
        InvalidKey: no valid key begins with it.
    """
    if not isinstance(prefix, str):
        raise InvalidKey(f"a prefix is a str, not {type(prefix).__name__}")
    _check_text(prefix, prefix)
    for segment in prefix.split("/")[:-1]:
        _check_segment(prefix, segment)
    return prefix


def _check_text(key: str, text: str) -> None:
    if len(text) > MAX_KEY_BYTES:
        raise InvalidKey(f"{len(text)} characters; at most {MAX_KEY_BYTES}", key=key[:60] + "…")
    odd = _ODD.search(text)
    if odd:
        raise InvalidKey(
            f"character {odd.group()!r} at position {odd.start()}; allowed are A-Z a-z 0-9 ! _ . ' ( ) = + @ , : / -",
            key=key,
        )
    if text.startswith("/"):
        raise InvalidKey("keys are relative: leave out the leading '/'", key=key)


def _check_segment(key: str, segment: str) -> None:
    if not segment:
        raise InvalidKey("an empty segment ('//' or a trailing '/')", key=key)
    if segment in (".", ".."):
        raise InvalidKey(f"segment {segment!r} would leave or repeat its directory", key=key)
    if segment.startswith(TEMP_SEGMENT):
        raise InvalidKey(f"segments beginning with {TEMP_SEGMENT!r} are reserved", key=key)
    if len(segment) > MAX_SEGMENT_BYTES:
        raise InvalidKey(f"a segment of {len(segment)} characters; at most {MAX_SEGMENT_BYTES}", key=key)
