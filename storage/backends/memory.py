"""``memory://name``: objects in this process, shared by every store opened under the name."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from storage.base import Backend, Capabilities, Condition, ObjectInfo
from storage.errors import AlreadyExists, NotFound, PreconditionFailed, RangeNotSatisfiable
from storage.payload import Payload

CAPABILITIES = Capabilities(
    put_if_absent=True,
    put_if_match=True,
    atomic_put=True,
    durable=False,
    shared=False,
    note="objects live and die with this process; a forked child sees a copy",
)


@dataclass(slots=True)
class _Object:
    data: bytes
    info: ObjectInfo


@dataclass(slots=True)
class _Space:
    objects: dict[str, _Object] = field(default_factory=dict)
    version: int = 0


_spaces: dict[str, _Space] = {}

# One lock for all spaces, held over a fork so that a child never inherits a half-made change.
_lock = threading.Lock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class MemoryBackend(Backend):
    """Keep objects in a dict of this process."""

    client = "memory"

    def __init__(self, name: str, prefix: str = "") -> None:
        self._prefix = f"{prefix}/" if prefix else ""
        with _lock:
            self._space = _spaces.setdefault(name, _Space())

    @property
    def capabilities(self) -> Capabilities:
        """Say what this backend guarantees."""
        return CAPABILITIES

    def put(self, key: str, payload: Payload, condition: Condition) -> ObjectInfo:
        """Write an object."""
        data = b"".join(payload.views())  # outside the lock: it copies
        with _lock:
            self._check(key, condition)
            return self._store(key, data)

    def get(self, key: str) -> bytes:
        """Return the whole object."""
        return self._find(key).data

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Return the bytes of ``[start, stop)``."""
        data = self._find(key).data
        _check_range(key, data, stop)
        return data[start:stop]

    def get_range_into(self, key: str, start: int, out: memoryview) -> None:
        """Fill ``out`` from byte ``start`` on."""
        data = self._find(key).data
        _check_range(key, data, start + out.nbytes)
        out[:] = memoryview(data)[start : start + out.nbytes]

    def head(self, key: str) -> ObjectInfo:
        """Describe the object."""
        return self._find(key).info

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose key begins with ``prefix``."""
        wanted = self._prefix + prefix
        with _lock:
            found = [
                (full[len(self._prefix) :], stored.info)
                for full, stored in self._space.objects.items()
                if full.startswith(wanted)
            ]
        for key, info in sorted(found):
            yield ObjectInfo(key, info.nbytes, info.etag, info.modified_at)

    def delete(self, key: str) -> None:
        """Remove the object."""
        with _lock:
            self._space.objects.pop(self._prefix + key, None)

    def copy(self, src: str, dst: str) -> ObjectInfo:
        """Copy an object."""
        data = self._find(src).data
        with _lock:
            return self._store(dst, data)

    def _store(self, key: str, data: bytes) -> ObjectInfo:
        self._space.version += 1
        info = ObjectInfo(key, len(data), f"v{self._space.version}", time.time())
        self._space.objects[self._prefix + key] = _Object(data, info)
        return info

    def _check(self, key: str, condition: Condition) -> None:
        present = self._space.objects.get(self._prefix + key)
        if condition.if_absent and present is not None:
            raise AlreadyExists(key=key)
        if condition.if_match is not None:
            etag = present.info.etag if present else None
            if etag != condition.if_match:
                raise PreconditionFailed(f"expected etag {condition.if_match}, found {etag}", key=key)

    def _find(self, key: str) -> _Object:
        with _lock:
            stored = self._space.objects.get(self._prefix + key)
        if stored is None:
            raise NotFound(key=key)
        return stored


def _check_range(key: str, data: bytes, stop: int) -> None:
    if stop > len(data):
        raise RangeNotSatisfiable(f"it has {len(data)} bytes, byte {stop} was asked for", key=key)


def forget(name: str) -> None:
    """Drop all objects under ``memory://name``, for tests."""
    with _lock:
        space = _spaces.pop(name, None)
        if space is not None:
            space.objects.clear()
