"""The little of HTTP/1.1 that a proxy needs on its client's side."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import BinaryIO, Protocol

_MAX_LINE_NBYTES = 65536


class WireError(Exception):
    """Report a request that is not HTTP/1.1 as expected."""


@dataclass(slots=True)
class Request:
    """Hold a request with its whole body."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes


class ResponseParts(Protocol):
    """Name what :func:`write_response` sends."""

    reason: str
    headers: list[tuple[str, str]]
    body: bytes


def read_request(reader: BinaryIO, client: socket.socket) -> Request | None:
    """Read one request, or return None where the client has closed the connection.

    Raises:
        WireError: the client sent something else.
    """
    start = _line(reader)
    if not start:
        return None
    try:
        method, path, _ = start.split(" ")
    except ValueError:
        raise WireError("not a request line") from None
    headers = []
    while line := _line(reader):
        name, colon, value = line.partition(":")
        if not colon:
            raise WireError("not a header")
        headers.append((name, value.strip()))
    fields = {name.lower(): value for name, value in headers}
    if fields.get("expect", "").lower() == "100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if "chunked" in fields.get("transfer-encoding", "").lower():
        body = _read_chunked(reader)
    else:
        body = _exactly(reader, int(fields.get("content-length", "0")))
    return Request(method, path, headers, body)


def write_response(
    client: socket.socket, request: Request, status: int, answer: ResponseParts, *, cut_at: int | None = None
) -> None:
    """Send a response; with ``cut_at`` only so many bytes of the body that its header announces."""
    fields = {name.lower(): value for name, value in answer.headers}
    length = str(len(answer.body))
    if request.method == "HEAD":
        length = fields.get("content-length", "0")
    head = [f"HTTP/1.1 {status} {answer.reason}"]
    for name, value in answer.headers:
        if name.lower() not in ("connection", "transfer-encoding", "content-length"):
            head.append(f"{name}: {value}")
    if status != 204:
        head.append(f"Content-Length: {length}")
    body = b"" if request.method == "HEAD" else answer.body[:cut_at]
    client.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + body)


def _line(reader: BinaryIO) -> str:
    return reader.readline(_MAX_LINE_NBYTES).decode("latin-1").rstrip("\r\n")


def _exactly(reader: BinaryIO, count: int) -> bytes:
    body = reader.read(count)
    if len(body) != count:
        raise WireError("the request's body was cut")
    return body


def _read_chunked(reader: BinaryIO) -> bytes:
    parts = []
    while count := int(_line(reader).split(";")[0], 16):
        parts.append(_exactly(reader, count))
        _line(reader)
    while _line(reader):  # trailers
        pass
    return b"".join(parts)
