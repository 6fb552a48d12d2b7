"""The object store that users hold: :class:`ObjectStore`."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from storage.base import Backend, Capabilities, Condition, ObjectInfo
from storage.errors import (
    AlreadyExists,
    CapabilityError,
    NotFound,
    PreconditionFailed,
    StorageError,
    StoreClosed,
    Throttled,
    TransientError,
)
from storage.forking import reset_in_child
from storage.keys import is_valid_key, validate_key, validate_prefix
from storage.payload import MappedFile, Payload
from storage.reading import ParallelReader
from storage.retry import NO_RETRIES, Retrier

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from typing_extensions import Buffer

    from storage.payload import Data

T = TypeVar("T")

_CONDITIONS_IGNORED = (
    "the server ignores the conditions of puts, so that several creators of an object would all win; use another "
    "server, or pass trust_conditions=True if nothing depends on it"
)


class ObjectStore:
    """Keep named, immutable-once-read byte strings in one bucket, directory or process.

    Made by :func:`storage.open_store`. All methods may be called from any thread, and in a child
    after ``fork``. Every method raises only errors of :mod:`storage.errors` (and ``TypeError`` /
    ``ValueError`` for arguments of the wrong kind): besides those listed, ``InvalidKey``,
    ``PermissionDenied``, ``BucketNotFound``, ``StoreFull``, ``StoreClosed``, ``DeadlineExceeded`` and
    ``BackendError``.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        url: str,
        retrier: Retrier = NO_RETRIES,
        remake: Callable[[], Backend] | None = None,
    ) -> None:
        """Wrap a backend.

        Args:
            backend: does the work.
            url: where it is, without credentials.
            retrier: holds the policy and the limit on concurrent requests.
            remake: makes the backend anew for a forked child; None if the same one works there.
        """
        self._current = backend
        self._url = url
        self._retrier = retrier
        self._remake = remake
        self._closed = False
        self._forked = False
        self._inherited: list[Backend] = []
        self._lock = threading.Lock()
        self._reader = ParallelReader()
        self._conditions_hold: bool | None = None
        reset_in_child(self)

    def __repr__(self) -> str:
        return f"<ObjectStore {self._url} by {self._current.client}>"

    def reset_after_fork(self) -> None:
        """Have the next operation in the child make its own clients."""
        self._forked = True
        self._lock = threading.Lock()
        self._reader.reset_after_fork()

    @property
    def url(self) -> str:
        """Return where the store is, without credentials."""
        return self._url

    @property
    def client(self) -> str:
        """Return the name of the client library in use."""
        return self._backend.client

    @property
    def capabilities(self) -> Capabilities:
        """Say what this store guarantees; see also :meth:`probe`."""
        promised = self._backend.capabilities
        if self._conditions_hold is False:
            return dataclasses.replace(promised, put_if_absent=False, put_if_match=False, note=_CONDITIONS_IGNORED)
        return promised

    def probe(self) -> Capabilities:
        """Try conditional puts on a key of its own, and return what the store truly does.

        Done by itself before the first conditional put, where the server is not known to keep conditions: some
        S3-compatible ones accept and ignore them, so that every creator wins.
        """
        key = f"probe-{uuid.uuid4().hex}"
        first = Condition(if_absent=True, token=uuid.uuid4().hex)
        self._put(key, Payload(b"1"), first)
        try:
            attempts = (Condition(if_absent=True), Condition(if_match='"0"'))
            self._conditions_hold = all(self._refuses(key, condition) for condition in attempts)
        finally:
            self.delete(key)
        return self.capabilities

    @property
    def concurrency_limit(self) -> int:
        """Return how many requests may run at once now; the store lowers it when it is throttled."""
        return self._retrier.limiter.limit

    # Writing

    def put(self, key: str, data: Data, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        """Write an object, whole or not at all; large ones in several requests.

        Args:
            key: its name; see :func:`storage.keys.validate_key`.
            data: one contiguous buffer, or buffers that follow each other. Buffers are not
                copied and must not change before this returns. A generator's items are spooled where
                a retry may need them again, so a list of buffers is cheaper.
            if_absent: write only if no object has the key; of several writers one wins.
            if_match: write only over the object with this etag.

        Raises:
            AlreadyExists: ``if_absent``, and another put made the object.
            PreconditionFailed: ``if_match``, and the object has another etag or is gone. Of both, ``maybe_applied``
                is true if a first try went unanswered and may have succeeded, only to be replaced since.
            CapabilityError: the backend cannot guarantee the condition.
            DeadlineExceeded: with ``maybe_applied`` true if a request was sent but never answered.
        """
        validate_key(key)
        if if_absent and if_match is not None:
            raise ValueError("if_absent and if_match exclude each other")
        token = "" if not if_absent and if_match is None else uuid.uuid4().hex
        condition = Condition(if_absent=if_absent, if_match=if_match, token=token)
        payload = Payload(data)
        if self._backend.may_ignore_conditions and not condition.is_unconditional:
            if self._conditions_hold is None:
                self.probe()
            if not self._conditions_hold:
                raise CapabilityError(_CONDITIONS_IGNORED, operation="put", store=self._url, key=key)
        return self._put(key, payload, condition)

    def put_file(
        self,
        key: str,
        path: str | Path,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> ObjectInfo:
        """Write the content of a local file without reading it into memory; like :meth:`put`.

        Raises:
            OSError: the local file cannot be read.
        """
        with MappedFile(Path(path)) as view:
            return self.put(key, view, if_absent=if_absent, if_match=if_match)

    def copy(self, src: str, dst: str) -> ObjectInfo:
        """Copy an object within the store, overwriting ``dst``; on the server where it can.

        Raises:
            NotFound: ``src`` does not exist.
        """
        validate_key(src)
        validate_key(dst)
        return self._run("copy", src, lambda: self._backend.copy(src, dst), writes=True)

    def delete(self, key: str) -> None:
        """Remove an object; succeed if there is none."""
        validate_key(key)
        self._run("delete", key, lambda: self._backend.delete(key), writes=True)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove several objects, by bulk requests where the backend has them.

        Not atomic: on an error some are gone and some are not; calling it again is safe.
        """
        batch = [validate_key(key) for key in keys]
        if batch:
            self._run("delete", batch[0], lambda: self._backend.delete_many(batch), writes=True)

    # Reading

    def get(self, key: str) -> bytes:
        """Return the whole object.

        Raises:
            NotFound: no such object.
        """
        validate_key(key)
        return self._run("get", key, lambda: self._backend.get(key))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Return the bytes of the half-open range ``[start, stop)``; exactly ``stop - start``.

        Raises:
            NotFound: no such object.
            RangeNotSatisfiable: the object ends before ``stop``.
            ValueError: not ``0 <= start <= stop``.
        """
        validate_key(key)
        if not 0 <= start <= stop:
            raise ValueError(f"not a range: [{start}, {stop})")
        if start == stop:
            return b""
        if self._backend.is_remote and self._reader.is_worth_it(stop - start):
            out = bytearray(stop - start)
            self.get_range_into(key, start, out)
            return bytes(out)
        return self._run("get", key, lambda: self._backend.get_range(key, start, stop), nbytes=stop - start)

    def get_range_into(self, key: str, start: int, out: Buffer) -> None:
        """Fill ``out`` with the object's bytes from ``start`` on.

        Files are read straight into it; what comes over a network is copied once.
        After an error the content of ``out`` is undefined.

        Raises:
            NotFound: no such object.
            RangeNotSatisfiable: the object ends before ``out`` is full.
            ValueError: ``start`` is negative, or ``out`` is read-only or not contiguous.
        """
        validate_key(key)
        view = memoryview(out)
        if view.readonly or not view.c_contiguous or start < 0:
            raise ValueError("need a writable contiguous buffer and start >= 0")
        if not view.nbytes:
            return

        def read_part(at: int, part: memoryview) -> None:
            self._run("get", key, lambda: self._backend.get_range_into(key, at, part), nbytes=part.nbytes)

        if self._backend.is_remote and self._reader.is_worth_it(view.nbytes):
            self._reader.fill(read_part, start, view.cast("B"))
        else:
            read_part(start, view.cast("B"))

    def head(self, key: str) -> ObjectInfo:
        """Describe an object.

        Raises:
            NotFound: no such object.
        """
        validate_key(key)
        return self._run("head", key, lambda: self._backend.head(key))

    def exists(self, key: str) -> bool:
        """Tell whether the object exists."""
        try:
            self.head(key)
        except NotFound as missing:
            if type(missing) is not NotFound:  # a missing bucket is not a missing object
                raise
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key begins with the string ``prefix``, ascending by key.

        ``prefix`` need not end at a ``/``. Objects put or deleted meanwhile may or may not appear; foreign ones whose
        names are not valid keys do not.
        """
        validate_prefix(prefix)
        # Read to its end within the attempt, so that a retry yields nothing twice.
        return self._run(
            "list", prefix, lambda: iter([info for info in self._backend.list(prefix) if is_valid_key(info.key)])
        )

    # Life

    def close(self) -> None:
        """Release connections and descriptors; calling it again does nothing."""
        if not self._closed:
            self._closed = True
            self._reader.close()
            # In a child that has not used the store, the connections are the parent's.
            if not self._forked:
                self._current.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Inside

    @property
    def _backend(self) -> Backend:
        if self._forked and self._remake is not None:
            with self._lock:
                if self._forked:
                    # Kept, so that its end here does not close what the parent still uses.
                    self._inherited.append(self._current)
                    self._current = self._remake()
                    self._forked = False
        return self._current

    def _put(self, key: str, payload: Payload, condition: Condition) -> ObjectInfo:
        if self._backend.is_remote:
            payload.spool()
        nbytes = payload.nbytes if payload.is_replayable else 0
        weight = self._backend.request_count(nbytes)
        in_doubt = False  # whether a try went unanswered, and may have taken effect

        def attempt() -> ObjectInfo:
            nonlocal in_doubt
            try:
                return self._backend.put(key, payload, condition)
            except (AlreadyExists, PreconditionFailed) as lost:
                suspicious = in_doubt or self._backend.repeats_requests
                ours = self._recognise(key, payload, condition) if suspicious else None
                if ours is None:
                    lost.maybe_applied = in_doubt
                    raise
                return ours
            except TransientError as error:
                in_doubt = in_doubt or not isinstance(error, Throttled)
                raise

        return self._run("put", key, attempt, writes=True, weight=weight, nbytes=nbytes)

    def _refuses(self, key: str, condition: Condition) -> bool:
        try:
            self._put(key, Payload(b"2"), condition)
        except (AlreadyExists, PreconditionFailed):
            return True
        return False

    def _recognise(self, key: str, payload: Payload, condition: Condition) -> ObjectInfo | None:
        """Return the object if it is the one that an unanswered try of this very put wrote."""
        try:
            if self._backend.records_tokens:
                ours = self._backend.put_token(key) == condition.token
            else:
                ours = self._holds(key, payload)
            return self._backend.head(key) if ours else None
        except NotFound:
            return None

    def _holds(self, key: str, payload: Payload) -> bool:
        if self._backend.head(key).nbytes != payload.nbytes:
            return False
        return self._backend.get(key) == payload.contiguous()

    def _run(  # the one funnel of all operations; private
        self,
        operation: str,
        key: str,
        attempt: Callable[[], T],
        *,
        writes: bool = False,
        weight: int = 1,
        nbytes: int = 0,
    ) -> T:
        if self._closed:
            raise StoreClosed(operation=operation, store=self._url, key=key)
        try:
            return self._retrier.call(
                attempt, refresh=self._backend.refresh_credentials, writes=writes, weight=weight, nbytes=nbytes
            )
        except StorageError as error:
            error.locate(operation=operation, store=self._url, key=key)
            raise
