"""Read a byte range by a signed URL, from servers whose answers to ranges the client does not take.

Some S3-compatible servers (``rclone serve s3``) answer a ranged request with the right bytes and
``Content-Range``, but with status 200 instead of 206, which object_store refuses.
"""

from __future__ import annotations

import contextlib
import http.client
import re
from urllib.parse import urlsplit

from storage.backends.http_errors import error_for
from storage.errors import BackendError, ConnectionLost, RangeNotSatisfiable, RequestTimeout, TruncatedBody

_CODE = re.compile(rb"<Code>(\w+)</Code>")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_MAX_READ_NBYTES = 4 * 2**20


def read_by_url(url: str, start: int, out: memoryview, *, timeout_s: float) -> None:
    """Fill ``out`` from byte ``start`` on.

    Args:
        url: signed; it is in no error.
        start: of the range.
        out: of the range's size.
        timeout_s: for connecting, and for each read.

    Raises:
        RangeNotSatisfiable: the object ends before ``out`` is full.
        TransientError: the connection failed, or the answer was cut.
        StorageError: what else the server answered.
    """
    try:
        with contextlib.closing(_connect(url, timeout_s)) as connection:
            parts = urlsplit(url)
            wanted = {"Range": f"bytes={start}-{start + out.nbytes - 1}"}
            connection.request("GET", f"{parts.path}?{parts.query}", headers=wanted)
            _receive(connection.getresponse(), start, out)
            return
    except TimeoutError:
        failure: Exception = RequestTimeout(f"nothing came for {timeout_s:.0f} s")
    except (OSError, http.client.HTTPException) as error:
        failure = ConnectionLost(type(error).__name__)
    raise failure


def _connect(url: str, timeout_s: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=timeout_s)


def _receive(response: http.client.HTTPResponse, start: int, out: memoryview) -> None:
    if response.status >= http.client.BAD_REQUEST:
        code = _CODE.search(response.read())
        raise error_for(response.status, code[1].decode() if code else "")(f"HTTP {response.status}")
    range_sent = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    stop = start + out.nbytes
    if range_sent is None:
        raise BackendError("the server ignores ranges; use another server, or read the object whole")
    if int(range_sent[3]) < stop:
        raise RangeNotSatisfiable(f"it has {range_sent[3]} bytes, byte {stop} was asked for")
    if int(range_sent[1]) != start or int(range_sent[2]) != stop - 1:
        raise BackendError(f"asked for bytes [{start}, {stop}), the server sent {range_sent[0]}")
    done = 0
    while done < out.nbytes:
        count = response.readinto(out[done : done + _MAX_READ_NBYTES])
        if not count:
            raise TruncatedBody(f"{done} of {out.nbytes} bytes came")
        done += count
