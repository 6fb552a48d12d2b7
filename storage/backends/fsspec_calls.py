"""Run an fsspec coroutine from any thread, under a deadline, and translate what filesystems raise."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from storage.backends.http_errors import error_for
from storage.errors import (
    AlreadyExists,
    BackendError,
    ConnectionLost,
    CredentialsExpired,
    NotFound,
    PermissionDenied,
    RequestTimeout,
    StorageError,
    StoreFull,
    TransientError,
    TruncatedBody,
)
from storage.redaction import Scrubber

T = TypeVar("T")

_MAX_DETAIL = 300

_BY_NAME: dict[str, type[StorageError]] = {
    # botocore, aiobotocore
    "NoCredentialsError": PermissionDenied,
    "PartialCredentialsError": PermissionDenied,
    "CredentialRetrievalError": PermissionDenied,
    "TokenRetrievalError": CredentialsExpired,
    "UnauthorizedSSOTokenError": CredentialsExpired,
    "ReadTimeoutError": RequestTimeout,
    "ConnectTimeoutError": RequestTimeout,
    "EndpointConnectionError": ConnectionLost,
    "ConnectionClosedError": ConnectionLost,
    "ProxyConnectionError": ConnectionLost,
    "SSLError": BackendError,  # a certificate that is not trusted stays so
    "HTTPClientError": ConnectionLost,
    "ResponseStreamingError": TruncatedBody,
    "IncompleteReadError": TruncatedBody,
    "FlexibleChecksumError": TransientError,
    # aiohttp
    "ClientPayloadError": TruncatedBody,
    "ServerDisconnectedError": ConnectionLost,
    "ClientConnectionError": ConnectionLost,
    "ClientOSError": ConnectionLost,
    # fsspec
    "FSTimeoutError": RequestTimeout,
}

_BY_ERRNO: dict[int, type[StorageError]] = {
    errno.ENOENT: NotFound,
    errno.ENOTDIR: NotFound,
    errno.EISDIR: NotFound,
    errno.EEXIST: AlreadyExists,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.ENOSPC: StoreFull,
    errno.EDQUOT: StoreFull,
    errno.EBUSY: TransientError,
    errno.ETIMEDOUT: RequestTimeout,
}


def run_on_loop(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Return the result of a coroutine that runs on another thread's loop; cancel it when late.

    Raises:
        TimeoutError: it took longer.
    """
    # Both bounds: the inner one cancels the request; the outer one holds if the loop itself hangs.
    future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, timeout_s), loop)
    try:
        return future.result(timeout_s + 5.0)
    except concurrent.futures.TimeoutError:
        future.cancel()
        raise TimeoutError(f"no answer within {timeout_s:.0f} s") from None


def run_in_thread(call: Callable[[], T], timeout_s: float) -> T:
    """Return the result of a blocking call that nothing can cancel; abandon its thread when it is late.

    Raises:
        TimeoutError: it took longer. It may still end, and take effect, later.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  # handed to the caller's thread, whatever it is
            future.set_exception(error)

    threading.Thread(target=work, name="storage-fsspec-call", daemon=True).start()
    try:
        return future.result(timeout_s)
    except concurrent.futures.TimeoutError:
        if future.done():  # the call itself raised TimeoutError
            raise
        raise TimeoutError(f"no answer within {timeout_s:.0f} s") from None


def call_fsspec(scrubber: Scrubber, call: Callable[[], T], *, if_absent: bool = False) -> T:
    """Return what the call returns, or raise its error translated, scrubbed and without context.

    Raises:
        StorageError: what the file system's error means.
    """
    try:
        return call()
    except StorageError:
        raise
    except Exception as error:  # noqa: BLE001  # fsspec backends raise whatever their clients do; all is translated
        translated = translate(error, scrubber, if_absent=if_absent)
    raise translated


def translate(error: BaseException, scrubber: Scrubber, *, if_absent: bool = False) -> StorageError:
    """Return the storage error that says what a file system's error means."""
    kind, detail = _meaning(error, if_absent=if_absent)
    return kind(scrubber.scrub(detail)[:_MAX_DETAIL])


def _meaning(error: BaseException, *, if_absent: bool) -> tuple[type[StorageError], str]:
    links = _chain(error)
    for link in links:
        response = getattr(link, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return _answer_meaning(response, if_absent=if_absent)
        # Before the status: aiohttp gives a cut body the status 400, which no server sent.
        for base in type(link).__mro__:
            if base.__name__ in _BY_NAME:
                return _BY_NAME[base.__name__], f"{type(link).__name__}: {link}"
        status = getattr(link, "status", None) or getattr(link, "code", None)
        if isinstance(status, int) and 400 <= status < 600:
            return error_for(status, "", if_absent=if_absent), f"HTTP {status}: {link}"
    return _plain_meaning(error), f"{type(error).__name__}: {error}"


def _answer_meaning(response: dict[str, Any], *, if_absent: bool) -> tuple[type[StorageError], str]:
    code = str(response["Error"].get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    kind = error_for(status, code, if_absent=if_absent)
    return kind, f"{code}: {response['Error'].get('Message', '')}"


def _plain_meaning(error: BaseException) -> type[StorageError]:
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return RequestTimeout
    if isinstance(error, ConnectionError | EOFError):
        return ConnectionLost
    if isinstance(error, OSError):
        by_type = {FileNotFoundError: NotFound, FileExistsError: AlreadyExists, PermissionError: PermissionDenied}
        return by_type.get(type(error)) or _BY_ERRNO.get(error.errno or 0, BackendError)
    return BackendError


def _chain(error: BaseException) -> list[BaseException]:
    """Return the error and what caused it, nearest first."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain
