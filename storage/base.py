"""What a backend is, and the values that pass between it and :class:`storage.ObjectStore`.

Users call :class:`storage.store.ObjectStore`; it checks keys, makes payloads replayable, retries and
limits. A backend does one attempt of each operation and translates its client's exceptions.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from storage.payload import Payload


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Describe one stored object.

    Attributes:
        key: its name, relative to the store's root.
        nbytes: its size.
        etag: an opaque token that changes with the content, fit for ``if_match``; None if the
            backend has none.
        modified_at: seconds since 1970 UTC by the store's clock, or None.
    """

    key: str
    nbytes: int
    etag: str | None = None
    modified_at: float | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Say what a backend truly guarantees, not what it accepts.

    Attributes:
        put_if_absent: of any number of concurrent creators exactly one wins.
        put_if_match: compare-and-swap on the etag is atomic.
        atomic_put: an object is visible whole or not at all, also after a crash.
        durable: a put that returned survives the loss of this machine's power.
        shared: other processes see the same objects.
        note: what is missing and what to use instead; empty if nothing is.
    """

    put_if_absent: bool
    put_if_match: bool
    atomic_put: bool
    durable: bool
    shared: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """State what must hold for a put to take effect.

    Attributes:
        if_absent: no object has the key.
        if_match: the object with the key has this etag.
        token: unique to this put, the same over its retries. A backend whose
            ``records_tokens`` is true stores it beside the object, so that a put whose answer
            was lost can be recognised as ours.
    """

    if_absent: bool = False
    if_match: str | None = None
    token: str = ""

    @property
    def is_unconditional(self) -> bool:
        """Tell whether the put may overwrite anything."""
        return not self.if_absent and self.if_match is None


UNCONDITIONAL = Condition()


class Backend(abc.ABC):
    """Do one attempt of each operation against one store.

    Implementations are thread safe, and safe to use in a child after ``fork`` (clients are
    made anew there). Keys are valid when they arrive (:func:`storage.keys.validate_key`).
    They raise only :class:`storage.errors.StorageError`, with the cause scrubbed and not chained.
    """

    #: The name of the client that does the work, for reports: ``"obstore"``.
    client: str = ""

    #: Whether :meth:`put_token` can tell who wrote an object.
    records_tokens: bool = False

    #: Whether the client may silently send a request again whose answer it has not seen. A conditional put can then
    #: lose to itself at its first try; its token tells.
    repeats_requests: bool = False

    #: Whether the server behind a standard protocol may accept conditions and not keep them: they are tried first.
    may_ignore_conditions: bool = False

    #: Whether failures can be transient, so that the store retries and limits requests.
    is_remote: bool = False

    @property
    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """Say what this backend guarantees."""

    @abc.abstractmethod
    def put(self, key: str, payload: Payload, condition: Condition) -> ObjectInfo:
        """Write an object, whole or not at all.

        Raises:
            AlreadyExists: ``condition.if_absent`` and the key exists.
            PreconditionFailed: ``condition.if_match`` and the etag is another.
            CapabilityError: the condition cannot be guaranteed here.
            StorageError: any other of the tree, as all operations may.
        """

    @abc.abstractmethod
    def get(self, key: str) -> bytes:
        """Return the whole object.

        Raises:
            NotFound: no such object.
        """

    @abc.abstractmethod
    def get_range_into(self, key: str, start: int, out: memoryview) -> None:
        """Fill ``out`` (writable, contiguous bytes, not empty) from byte ``start`` of the object.

        Raises:
            NotFound: no such object.
            RangeNotSatisfiable: the object ends before ``out`` is full.
        """

    @abc.abstractmethod
    def head(self, key: str) -> ObjectInfo:
        """Describe the object.

        Raises:
            NotFound: no such object.
        """

    @abc.abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose key begins with ``prefix``, ascending by key."""

    @abc.abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; succeed if there is none."""

    @abc.abstractmethod
    def copy(self, src: str, dst: str) -> ObjectInfo:
        """Copy an object on the server's side, whole or not at all, overwriting ``dst``.

        Raises:
            NotFound: ``src`` does not exist.
        """

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Return the bytes of the half-open range ``[start, stop)``, which is not empty.

        Raises:
            NotFound: no such object.
            RangeNotSatisfiable: the object ends before ``stop``.
        """
        out = bytearray(stop - start)
        self.get_range_into(key, start, memoryview(out))
        return bytes(out)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove several objects; override where the protocol has a bulk request."""
        for key in keys:
            self.delete(key)

    def put_token(self, key: str) -> str | None:
        """Return the token of the put that wrote the object, or None if it recorded none.

        Raises:
            NotFound: no such object.
        """
        raise NotImplementedError(f"{type(self).__name__} records no tokens")

    def request_count(self, nbytes: int) -> int:
        """Say how many requests run at once for a transfer of this size, for the limiter."""
        del nbytes
        return 1

    def refresh_credentials(self) -> bool:
        """Fetch new credentials; return whether there is anything new to try with."""
        return False

    def close(self) -> None:
        """Release connections and descriptors; called once."""
        return


def sorted_by_key(infos: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
    """Yield infos ascending by key, for backends that list in no order."""
    return iter(sorted(infos, key=lambda info: info.key))
