# ruff: noqa: SLF001 - s3fs' only door to S3's own requests is `_call_s3`
"""S3 through s3fs: the client that fsspec ships; used where obstore is not installed or not wanted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from storage.backends.credentials import Credentials, CredentialSource
from storage.backends.fsspec_calls import call_fsspec, run_on_loop, translate
from storage.backends.log_scrubbing import scrub_logs
from storage.backends.settings import S3Settings, s3_settings
from storage.base import UNCONDITIONAL, Backend, Capabilities, Condition, ObjectInfo
from storage.buffers import copy_bytes
from storage.errors import (
    BucketNotFound,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    RangeNotSatisfiable,
    TransientError,
    TruncatedBody,
)
from storage.redaction import Scrubber

if TYPE_CHECKING:
    from storage.payload import Payload

T = TypeVar("T")

TOKEN_METADATA = "puttoken"  # noqa: S105  # a name, not a token
MULTIPART_MIN_NBYTES = 32 * 2**20
PART_NBYTES = 16 * 2**20
PARTS_AT_ONCE = 4
_MAX_PARTS = 9_000

#: A failed part is sent again this often before the whole put is tried again.
_PART_RETRIES = 4
_PART_PAUSE_S = 0.1

#: A request that moves data slower than this is taken for stalled.
MIN_BYTES_PER_S = 2 * 2**20

_DELETE_BATCH = 1000  # the most that DeleteObjects takes
_STREAM_CHUNK_NBYTES = 1 * 2**20

CAPABILITIES = Capabilities(put_if_absent=True, put_if_match=True, atomic_put=True, durable=True, shared=True)


def open_s3(bucket: str, prefix: str, options: Mapping[str, Any], scrubber: Scrubber) -> S3fsBackend:
    """Return a backend for an S3 bucket.

    Raises:
        ConfigError: the options are unknown or contradict each other.
    """
    settings = s3_settings(options)
    provider = settings.provider()
    source = CredentialSource(provider, scrubber) if provider is not None else None
    return S3fsBackend(bucket, prefix, settings, scrubber, source)


class S3fsBackend(Backend):
    """Keep objects in an S3 bucket through the client that s3fs sets up.

    The requests themselves are S3's own (``put_object`` and so on), for the conditions and metadata that
    fsspec's interface does not carry. Multipart puts are cut, and aborted on failure, here. s3fs never caches
    listings and never retries.
    """

    client = "s3fs"
    is_remote = True
    records_tokens = True
    repeats_requests = True  # aiohttp does, once, where a connection breaks

    def __init__(
        self, bucket: str, prefix: str, settings: S3Settings, scrubber: Scrubber, source: CredentialSource | None
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._settings = settings
        self.may_ignore_conditions = settings.may_ignore_conditions
        self._scrubber = scrubber
        self._source = source
        self._lock = threading.Lock()
        self._fs: Any = None
        self._fs_holds: Credentials | None = None
        self._pid = os.getpid()
        self._bucket_seen = False

    @property
    def capabilities(self) -> Capabilities:
        """Say what this backend guarantees."""
        return CAPABILITIES

    def put(self, key: str, payload: Payload, condition: Condition) -> ObjectInfo:
        """Write an object; in parallel parts if it is large."""
        nbytes = payload.nbytes
        data = payload.contiguous()
        headers: dict[str, Any] = {}
        if condition.if_absent:
            headers["IfNoneMatch"] = "*"
        elif condition.if_match is not None:
            headers["IfMatch"] = condition.if_match
        metadata = {"Metadata": {TOKEN_METADATA: condition.token}} if condition.token else {}

        async def send(fs: Any) -> Any:
            if nbytes < MULTIPART_MIN_NBYTES:
                return await self._request(fs, "put_object", key, Body=bytes(data), **headers, **metadata)
            return await self._put_parts(fs, key, data, headers, metadata)

        try:
            answer = self._run(send, self._timeout_s(nbytes), condition)
        except BucketNotFound:
            raise
        except NotFound:  # how S3 answers If-Match where there is no object
            raise PreconditionFailed(f"expected etag {condition.if_match}, found none", key=key) from None
        return ObjectInfo(key, nbytes, answer.get("ETag"))

    def get(self, key: str) -> bytes:
        """Return the whole object."""

        async def fetch(fs: Any) -> bytes:
            answer = await self._request(fs, "get_object", key)
            with contextlib.closing(answer["Body"]) as body:
                return bytes(await body.read())

        # Of unknown size, so bounded as the largest that one would read whole.
        return self._run(fetch, self._timeout_s(2**32))

    def get_range_into(self, key: str, start: int, out: memoryview) -> None:
        """Fill ``out`` from byte ``start`` on."""
        stop = start + out.nbytes

        async def fetch(fs: Any) -> None:
            answer = await self._request(fs, "get_object", key, Range=f"bytes={start}-{stop - 1}")
            with contextlib.closing(answer["Body"]) as body:
                size = _full_size(answer)
                if size < stop:
                    raise RangeNotSatisfiable(f"it has {size} bytes, byte {stop} was asked for", key=key)
                done = 0
                async for chunk in body.iter_chunks(_STREAM_CHUNK_NBYTES):
                    if done + len(chunk) > out.nbytes:
                        raise TruncatedBody("more bytes came than were asked for", key=key)
                    copy_bytes(out[done : done + len(chunk)], chunk)
                    done += len(chunk)
            if done != out.nbytes:
                raise TruncatedBody(f"{done} of {out.nbytes} bytes came", key=key)

        self._run(fetch, self._timeout_s(out.nbytes))

    def head(self, key: str) -> ObjectInfo:
        """Describe the object."""
        answer = self._run(lambda fs: self._head(fs, key), self._timeout_s(0))
        return ObjectInfo(key, answer["ContentLength"], answer["ETag"], answer["LastModified"].timestamp())

    def put_token(self, key: str) -> str | None:
        """Return the token of the put that wrote the object."""
        answer = self._run(lambda fs: self._head(fs, key), self._timeout_s(0))
        return dict(answer["Metadata"]).get(TOKEN_METADATA)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose key begins with ``prefix``."""
        more: dict[str, str] = {}
        while True:
            wanted = {"Bucket": self._bucket, "Prefix": self._prefix + prefix, **more}
            answer = self._run(_calling("list_objects_v2", wanted), self._timeout_s(0))
            for item in answer.get("Contents", ()):
                key = item["Key"][len(self._prefix) :]
                yield ObjectInfo(key, item["Size"], item["ETag"], item["LastModified"].timestamp())
            if not answer.get("IsTruncated"):
                return
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        """Remove the object."""
        self._run(lambda fs: self._request(fs, "delete_object", key), self._timeout_s(0))

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove objects, a thousand a request."""
        for first in range(0, len(keys), _DELETE_BATCH):
            batch = [{"Key": self._prefix + key} for key in keys[first : first + _DELETE_BATCH]]
            wanted = {"Bucket": self._bucket, "Delete": {"Objects": batch, "Quiet": True}}
            answer = self._run(_calling("delete_objects", wanted), self._timeout_s(0))
            for refused in answer.get("Errors", ()):
                key = refused["Key"][len(self._prefix) :]
                raise PermissionDenied(self._scrubber.scrub(f"{refused['Code']}: {refused['Message']}"), key=key)

    def copy(self, src: str, dst: str) -> ObjectInfo:
        """Copy an object on the server."""
        source = {"Bucket": self._bucket, "Key": self._prefix + src}
        self._run(lambda fs: self._request(fs, "copy_object", dst, CopySource=source), self._timeout_s(PART_NBYTES))
        return self.head(dst)

    def request_count(self, nbytes: int) -> int:
        """Say how many parts go at once."""
        if nbytes < MULTIPART_MIN_NBYTES:
            return 1
        return min(PARTS_AT_ONCE, -(-nbytes // PART_NBYTES))

    def refresh_credentials(self) -> bool:
        """Fetch new credentials; the next request makes a client with them."""
        return self._source is not None and self._source.refresh()

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            fs, self._fs = self._fs, None
        if fs is not None and os.getpid() == self._pid:
            _close_session(fs)

    # Requests

    async def _put_parts(
        self, fs: Any, key: str, data: memoryview, headers: Mapping[str, Any], metadata: Mapping[str, Any]
    ) -> Any:
        upload = await self._request(fs, "create_multipart_upload", key, **metadata)
        upload_id = upload["UploadId"]
        try:
            parts = await self._send_parts(fs, key, upload_id, data)
            return await self._request(
                fs, "complete_multipart_upload", key, UploadId=upload_id, MultipartUpload={"Parts": parts}, **headers
            )
        except ExceptionGroup as group:
            # The first part's failure is what the store said; the others were called off.
            failure: BaseException = group.exceptions[0]
        except BaseException as error:  # noqa: BLE001  # also when cancelled: parts left behind cost money for ever
            failure = error
        await _quietly(self._request(fs, "abort_multipart_upload", key, UploadId=upload_id))
        raise failure

    async def _send_parts(self, fs: Any, key: str, upload_id: str, data: memoryview) -> Sequence[dict[str, Any]]:
        part_nbytes = max(PART_NBYTES, -(-data.nbytes // _MAX_PARTS))
        gate = asyncio.Semaphore(PARTS_AT_ONCE)

        async def put_part(number: int) -> dict[str, Any]:
            async with gate:
                body = bytes(data[(number - 1) * part_nbytes : number * part_nbytes])
                answer = await self._persist(
                    lambda: self._request(fs, "upload_part", key, UploadId=upload_id, PartNumber=number, Body=body)
                )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(put_part(number)) for number in range(1, -(-data.nbytes // part_nbytes) + 1)]
        return [task.result() for task in tasks]

    async def _persist(self, request: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Send one part, again after transient failures: sending all parts again costs more."""
        from botocore.exceptions import BotoCoreError

        for failures in range(_PART_RETRIES):
            try:
                return await request()
            except (OSError, BotoCoreError) as error:
                if not isinstance(translate(error, self._scrubber), TransientError):
                    raise
            await asyncio.sleep(random.uniform(0.0, _PART_PAUSE_S * 2**failures))
        return await request()

    async def _head(self, fs: Any, key: str) -> Any:
        try:
            return await self._request(fs, "head_object", key)
        except FileNotFoundError:
            if self._bucket_seen:
                raise
        # The answer to HEAD has no body that says what is missing: the bucket or the object.
        await self._request(fs, "get_object", key)
        raise NotFound(key=key)

    async def _request(self, fs: Any, method: str, key: str, **arguments: Any) -> Any:
        return await fs._call_s3(method, Bucket=self._bucket, Key=self._prefix + key, **arguments)

    def _run(
        self,
        request: Callable[[Any], Coroutine[Any, Any, T]],
        timeout_s: float,
        condition: Condition = UNCONDITIONAL,
    ) -> T:
        def call() -> T:
            fs = self._filesystem()
            return run_on_loop(fs.loop, request(fs), timeout_s)

        try:
            result = call_fsspec(self._scrubber, call, if_absent=condition.if_absent)
        except BucketNotFound:
            raise
        except NotFound as missing:
            self._bucket_seen = self._bucket_seen or "NoSuchKey" in missing.detail
            raise
        self._bucket_seen = True
        return result

    def _timeout_s(self, nbytes: int) -> float:
        return self._settings.request_timeout_s + nbytes / MIN_BYTES_PER_S

    def _filesystem(self) -> Any:
        held = self._source.current() if self._source is not None else None
        with self._lock:
            if self._fs is None or held != self._fs_holds:
                # The old one closes its connections by itself when no request needs it any more.
                self._fs = _make_filesystem(self._settings, held)
                scrub_logs(self._scrubber)
                self._fs_holds = held
            return self._fs


def _make_filesystem(settings: S3Settings, held: Credentials | None) -> Any:
    import s3fs

    filesystem = s3fs.S3FileSystem(
        key=held.access_key_id if held else None,
        secret=held.secret_access_key if held else None,
        token=held.session_token if held else None,
        anon=settings.anonymous,
        endpoint_url=settings.endpoint_url,
        client_kwargs={"region_name": settings.region} if settings.region else {},
        config_kwargs={
            "retries": {"total_max_attempts": 1},
            "connect_timeout": min(10.0, settings.request_timeout_s),
            "read_timeout": settings.request_timeout_s,
            "max_pool_connections": 64,
            # Checksums in trailers, which botocore adds by default, are unknown to many S3-compatible servers.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {
                "payload_signing_enabled": settings.signs_payload,
                "addressing_style": "virtual" if settings.virtual_hosted_style else "path",
            },
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    # Retrying is done above, where the deadline is known.
    filesystem.retries = 1
    return filesystem


def _close_session(filesystem: Any) -> None:
    creator = getattr(filesystem, "_s3creator", None)  # set by the first request
    if creator is not None:
        filesystem.close_session(filesystem.loop, creator)


def _full_size(answer: Mapping[str, Any]) -> int:
    """Return the size of the whole object from the answer to a ranged request."""
    total = str(answer.get("ContentRange", "")).rpartition("/")[2]
    return int(total) if total.isdigit() else int(answer["ContentLength"])


def _calling(method: str, arguments: Mapping[str, Any]) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    """Return a request of the bucket, and not of one key."""
    return lambda fs: fs._call_s3(method, **arguments)


async def _quietly(request: Coroutine[Any, Any, Any]) -> None:
    """Await a cleaning request whose own failure matters less than what it follows."""
    with contextlib.suppress(Exception):
        await asyncio.wait_for(asyncio.shield(request), timeout=5.0)
