"""S3, Google Cloud Storage and Azure through obstore (the object_store crate): least CPU a byte."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from storage.backends.credentials import Credentials, CredentialSource
from storage.backends.obstore_errors import call_obstore
from storage.backends.signed_reads import read_by_url
from storage.base import Backend, Capabilities, Condition, ObjectInfo
from storage.buffers import copy_bytes
from storage.errors import BackendError, BucketNotFound, CapabilityError, NotFound, RangeNotSatisfiable, TruncatedBody
from storage.redaction import Scrubber

if TYPE_CHECKING:
    from storage.payload import Payload

T = TypeVar("T")

#: Metadata that marks whose conditional put an object is; Azure takes letters only.
TOKEN_ATTRIBUTE = "puttoken"  # noqa: S105  # a name, not a token

# A single request costs half the CPU of parts, which are copied; it is as fast where several objects go at once.
MULTIPART_MIN_NBYTES = 64 * 2**20
PART_NBYTES = 16 * 2**20
PARTS_AT_ONCE = 8

# S3 takes 10,000 parts; GCS and Azure take more.
_MAX_PARTS = 9_000

#: The most that S3 and GCS take in one request. Conditional puts are never split: obstore cannot.
MAX_SINGLE_PUT_NBYTES = 5 * 2**30

#: A request that moves data slower than this is taken for stalled.
MIN_BYTES_PER_S = 2 * 2**20

#: obstore sends a failed part again by itself this often before the whole put is tried again.
_PART_RETRIES = 4

_STREAM_CHUNK_NBYTES = 1 * 2**20

# What object_store says where a server answers a range with status 200, although perhaps with the right bytes.
_ODD_RANGE_ANSWER = "non-partial response"

CAPABILITIES = Capabilities(put_if_absent=True, put_if_match=True, atomic_put=True, durable=True, shared=True)

# obstore's runtime does not survive a fork: a child that uses it hangs.
_used_in: int | None = None


def is_usable_in_this_process() -> bool:
    """Tell whether obstore works here: not in a child of a process that has used it."""
    return _used_in in (None, os.getpid())


@dataclass(frozen=True, slots=True)
class ClientTimeouts:
    """Bound one request of an obstore client.

    Attributes:
        total_s: from connecting to the last byte of the answer.
        idle_s: between two reads of an answer, or None.
        retries: how often the client tries again by itself.
    """

    total_s: float
    idle_s: float | None
    retries: int

    def options(self) -> dict[str, Any]:
        """Return obstore's ``client_options`` for this."""
        options: dict[str, Any] = {
            "timeout": timedelta(seconds=self.total_s),
            "connect_timeout": timedelta(seconds=min(10.0, self.total_s)),
        }
        if self.idle_s is not None:
            options["read_timeout"] = timedelta(seconds=self.idle_s)
        return options

    def retry_config(self) -> dict[str, Any]:
        """Return obstore's ``retry_config`` for this."""
        return {"max_retries": self.retries, "retry_timeout": timedelta(seconds=self.total_s)}


#: Build an obstore store with these time-outs and these credentials.
MakeClient = Callable[[ClientTimeouts, Credentials | None], Any]


class ObstoreBackend(Backend):
    """Keep objects in a bucket through obstore.

    Each request is bounded: ``request_timeout_s`` for the answer to begin, and the bytes it moves at
    :data:`MIN_BYTES_PER_S`. obstore retries only the parts of a multipart put by itself.

    Args:
        make_client: builds an obstore store; called again when the credentials have changed.
        scrubber: cleans the texts of errors.
        request_timeout_s: how long an answer may take.
        credentials: where they are fetched anew, or None if obstore finds its own.
        by_version: whether ``if_match`` needs the object's version (GCS) and not its etag.
        may_ignore_conditions: whether the server is unknown, so that conditional puts are tried first.
    """

    client = "obstore"
    is_remote = True
    records_tokens = True

    def __init__(
        self,
        make_client: MakeClient,
        scrubber: Scrubber,
        *,
        request_timeout_s: float,
        credentials: CredentialSource | None = None,
        by_version: bool = False,
        may_ignore_conditions: bool = False,
    ) -> None:
        self._make_client = make_client
        self._scrubber = scrubber
        self._request_timeout_s = request_timeout_s
        self._credentials = credentials
        self._by_version = by_version
        self.may_ignore_conditions = may_ignore_conditions
        self._lock = threading.Lock()
        self._clients: dict[ClientTimeouts, Any] = {}
        self._clients_hold: Credentials | None = None
        self._bucket_seen = False
        self._reads_by_url = False

    @property
    def capabilities(self) -> Capabilities:
        """Say what this backend guarantees."""
        return CAPABILITIES

    def put(self, key: str, payload: Payload, condition: Condition) -> ObjectInfo:
        """Write an object; in parallel parts if it is large and the put unconditional."""
        import obstore

        nbytes = payload.nbytes
        buffers = payload.buffers
        data: Any = buffers[0] if len(buffers) == 1 else buffers
        if condition.is_unconditional and nbytes >= MULTIPART_MIN_NBYTES:
            part_nbytes = max(PART_NBYTES, -(-nbytes // _MAX_PARTS))
            client = self._client_for(part_nbytes, retries=_PART_RETRIES)
            result = self._call(
                lambda: obstore.put(
                    client, key, data, use_multipart=True, chunk_size=part_nbytes, max_concurrency=PARTS_AT_ONCE
                )
            )
        else:
            result = self._put_at_once(key, data, nbytes, condition)
        return ObjectInfo(key, nbytes, self._etag(result))

    def get(self, key: str) -> bytes:
        """Return the whole object."""
        import obstore

        client = self._reading_client(0)
        return self._call(lambda: obstore.get(client, key).bytes().to_bytes())

    def get_range_into(self, key: str, start: int, out: memoryview) -> None:
        """Fill ``out`` from byte ``start`` on."""
        if not self._reads_by_url:
            try:
                self._stream_range(key, start, out)
            except BackendError as error:
                if _ODD_RANGE_ANSWER not in error.detail:
                    raise
                self._reads_by_url = True
            else:
                return
        self._read_by_url(key, start, out)

    def _read_by_url(self, key: str, start: int, out: memoryview) -> None:
        import obstore

        client = self._client_for(0)
        # Signed for long enough to begin the request.
        lifetime = timedelta(seconds=60.0 + self._request_timeout_s)
        url = self._call(lambda: obstore.sign(client, "GET", key, lifetime))
        read_by_url(url, start, out, timeout_s=self._request_timeout_s)

    def _stream_range(self, key: str, start: int, out: memoryview) -> None:
        import obstore

        stop = start + out.nbytes
        client = self._reading_client(out.nbytes)

        def fetch() -> int:
            result = obstore.get(client, key, options={"range": (start, stop)})
            if result.meta["size"] < stop:
                raise RangeNotSatisfiable(_too_short(result.meta["size"], stop), key=key)
            done = 0
            for chunk in result.stream(min_chunk_size=_STREAM_CHUNK_NBYTES):
                count = len(chunk)
                if done + count > out.nbytes:
                    raise TruncatedBody("more bytes came than were asked for", key=key)
                copy_bytes(out[done : done + count], chunk)
                done += count
            return done

        done = self._call(fetch)
        if done != out.nbytes:
            raise TruncatedBody(f"{done} of {out.nbytes} bytes came", key=key)

    def head(self, key: str) -> ObjectInfo:
        """Describe the object."""
        import obstore

        client = self._client_for(0)
        try:
            meta = self._call(lambda: obstore.head(client, key))
        except BucketNotFound:
            raise
        except NotFound as missing:
            if self._bucket_seen:
                raise
            answer = missing
        else:
            return self._info(key, meta)
        # The answer to HEAD has no body that says what is missing: the bucket or the object.
        self._call(lambda: obstore.get(client, key).meta)
        raise answer

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose key begins with ``prefix``."""
        import obstore

        folder = prefix.rpartition("/")[0]
        client = self._client_for(0)
        pages = iter(obstore.list(client, prefix=folder or None))
        while page := self._call(lambda: next(pages, None)):
            for meta in page:
                if meta["path"].startswith(prefix):
                    yield self._info(meta["path"], meta)

    def delete(self, key: str) -> None:
        """Remove the object."""
        self.delete_many([key])

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove objects, by bulk requests where the protocol has them."""
        import obstore

        client = self._client_for(0)
        paths: Any = keys[0] if len(keys) == 1 else list(keys)
        try:
            self._call(lambda: obstore.delete(client, paths))
        except BucketNotFound:
            raise
        except NotFound:  # GCS and Azure say so; removing what is gone is a success
            if len(keys) > 1:
                for key in keys:
                    self.delete(key)

    def copy(self, src: str, dst: str) -> ObjectInfo:
        """Copy an object on the server."""
        import obstore

        client = self._client_for(PART_NBYTES)
        self._call(lambda: obstore.copy(client, src, dst, overwrite=True))
        return self.head(dst)

    def put_token(self, key: str) -> str | None:
        """Return the token of the put that wrote the object."""
        import obstore

        client = self._client_for(0)
        attributes: Any = self._call(lambda: obstore.get(client, key, options={"head": True}).attributes)
        token = attributes.get(TOKEN_ATTRIBUTE)
        return None if token is None else str(token)

    def request_count(self, nbytes: int) -> int:
        """Say how many parts go at once."""
        if nbytes < MULTIPART_MIN_NBYTES:
            return 1
        return min(PARTS_AT_ONCE, -(-nbytes // PART_NBYTES))

    def refresh_credentials(self) -> bool:
        """Fetch new credentials; the next request makes a client with them."""
        return self._credentials is not None and self._credentials.refresh()

    def _put_at_once(self, key: str, data: Any, nbytes: int, condition: Condition) -> Any:
        import obstore

        if nbytes > MAX_SINGLE_PUT_NBYTES:
            raise CapabilityError(
                f"a conditional put is one request of at most {MAX_SINGLE_PUT_NBYTES} bytes, this has {nbytes}; "
                "put the data unconditionally under a unique key, then a small object that names it",
                key=key,
            )
        mode: Any = "overwrite"
        if condition.if_absent:
            mode = "create"
        elif condition.if_match is not None:
            mode = {"version" if self._by_version else "e_tag": condition.if_match}
        attributes: Any = {TOKEN_ATTRIBUTE: condition.token} if condition.token else None
        client = self._client_for(nbytes)
        return self._call(
            lambda: obstore.put(client, key, data, attributes=attributes, mode=mode, use_multipart=False),
            if_absent=condition.if_absent,
        )

    def _call(self, call: Callable[[], T], *, if_absent: bool = False) -> T:
        try:
            result = call_obstore(self._scrubber, call, if_absent=if_absent)
        except NotFound as error:
            self._bucket_seen = self._bucket_seen or "NoSuchKey" in error.detail
            raise
        self._bucket_seen = True
        return result

    def _client_for(self, nbytes: int, *, retries: int = 0) -> Any:
        """Return a client whose time-out leaves time to move so many bytes."""
        transfer_s = 0.0
        if nbytes:
            # Rounded up to a power of two, so that there are few clients.
            transfer_s = (1 << max(20, (nbytes - 1).bit_length())) / MIN_BYTES_PER_S
        return self._client(ClientTimeouts(self._request_timeout_s + transfer_s, None, retries))

    def _reading_client(self, nbytes: int) -> Any:
        """Return a client that ends when no byte came for a while; of unknown size if 0."""
        transfer_s = (1 << max(20, (nbytes or MAX_SINGLE_PUT_NBYTES).bit_length())) / MIN_BYTES_PER_S
        return self._client(
            ClientTimeouts(self._request_timeout_s + transfer_s, idle_s=self._request_timeout_s, retries=0)
        )

    def _client(self, timeouts: ClientTimeouts) -> Any:
        global _used_in
        _used_in = os.getpid()
        held = self._credentials.current() if self._credentials is not None else None
        with self._lock:
            if held != self._clients_hold:
                self._clients = {}
                self._clients_hold = held
            if timeouts not in self._clients:
                self._clients[timeouts] = self._make_client(timeouts, held)
            return self._clients[timeouts]

    def _etag(self, meta: Any) -> str | None:
        etag: str | None = meta.get("version" if self._by_version else "e_tag")
        return etag

    def _info(self, key: str, meta: Any) -> ObjectInfo:
        return ObjectInfo(key, meta["size"], self._etag(meta), meta["last_modified"].timestamp())


def _too_short(nbytes: int, stop: int) -> str:
    return f"it has {nbytes} bytes, byte {stop} was asked for"
