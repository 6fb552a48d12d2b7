"""An HTTP proxy in front of one server that does to requests what a script of faults says."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, assert_never
from urllib.parse import urlsplit

from storage.testing.faults import Corrupt, Fault, LoseAnswer, Refuse, Reset, SlowStart, Stall, Truncate
from storage.testing.http_wire import Request, WireError, read_request, write_response

if TYPE_CHECKING:
    from typing import Self

# RST instead of FIN on close: linger for zero seconds.
_LINGER_ZERO = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Seen:
    """Record one request that came, and the fault that befell it."""

    method: str
    path: str
    fault: Fault | None


class _Break(Exception):
    """End this connection by a RST."""


class FaultProxy:
    """Stand between clients and an HTTP/1.1 server, and misbehave by script.

    Each request takes the first fault of the script that matches it; a fault is used up after its
    ``times``. Without one the request passes unchanged, ``Host`` header and all, so that signatures
    stay valid. Bodies are held in memory.

    Usage::

        with FaultProxy("http://127.0.0.1:9000") as proxy:
            proxy.script([Refuse(method="PUT", times=3), LoseAnswer(path_contains="manifest")])
            store = open_store("s3://bucket", endpoint_url=proxy.url)
    """

    def __init__(self, upstream_url: str, *, port: int = 0) -> None:
        parts = urlsplit(upstream_url)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            raise ValueError(f"need http://host:port, not {upstream_url!r}")
        self._upstream = (parts.hostname, parts.port)
        self._port = port
        self._lock = threading.Lock()
        self._faults: list[list[float]] = []
        self._script: list[Fault] = []
        self._seen: list[Seen] = []
        self._closing = threading.Event()
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        """Return where clients connect to."""
        assert self._listener is not None, "start() first"
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def seen(self) -> list[Seen]:
        """Return the requests that came since the last :meth:`script`."""
        with self._lock:
            return list(self._seen)

    @property
    def unused(self) -> list[Fault]:
        """Return the faults that have befallen fewer requests than they should."""
        with self._lock:
            return [
                fault
                for fault, (_, left) in zip(self._script, self._faults, strict=True)
                if left not in (0, float("inf"))
            ]

    def script(self, faults: Iterable[Fault]) -> None:
        """Replace the script; an empty one heals everything that is not in flight."""
        with self._lock:
            self._script = list(faults)
            self._faults = [[fault.skip, fault.times] for fault in self._script]
            self._seen = []

    def start(self) -> Self:
        """Listen and serve in background threads."""
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=128)
        self._spawn(self._accept)
        return self

    def close(self) -> None:
        """Stop serving, break every connection and join the threads."""
        self._closing.set()
        if self._listener is not None:
            # Waking accept(): closing the descriptor alone would leave it blocked.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Serving

    def _spawn(self, target: object, *args: object) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=args, name="fault-proxy", daemon=True)
        with self._lock:
            self._threads = [known for known in self._threads if known.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with self._lock:
                self._connections.add(connection)
            self._spawn(self._serve, connection)

    def _serve(self, client: socket.socket) -> None:
        upstream = http.client.HTTPConnection(*self._upstream)
        try:
            with client, client.makefile("rb") as reader:
                while not self._closing.is_set():
                    request = read_request(reader, client)
                    if request is None:
                        return
                    self._handle(request, client, upstream)
        except _Break:
            pass  # the socket is closed with a RST by now
        except (OSError, WireError, http.client.HTTPException):
            pass  # the client or the server went away; so does this connection
        finally:
            upstream.close()
            with self._lock:
                self._connections.discard(client)

    def _handle(self, request: Request, client: socket.socket, upstream: http.client.HTTPConnection) -> None:
        fault = self._next_fault(request)
        match fault:
            case Reset():
                self._break(client)
            case Stall(stall_s=stall_s):
                self._wait(stall_s)
                self._break(client)
            case Refuse():
                write_response(client, request, fault.status, _refusal(fault, request))
                return
            case Corrupt(in_request=True, at_byte=at_byte):
                request.body = _flipped(request.body, at_byte)
            case _:
                pass
        answer = _forward(request, upstream)
        match fault:
            case LoseAnswer(stall_s=stall_s):
                self._wait(stall_s)
                self._break(client)
            case Truncate(after_nbytes=after_nbytes):
                write_response(client, request, answer.status, answer, cut_at=after_nbytes)
                self._break(client)
            case Corrupt(in_request=False, at_byte=at_byte):
                answer.body = _flipped(answer.body, at_byte)
            case SlowStart(delay_s=delay_s):
                self._wait(delay_s)
            case Fault() | None:
                pass
            case _:
                assert_never(fault)
        write_response(client, request, answer.status, answer)

    def _next_fault(self, request: Request) -> Fault | None:
        with self._lock:
            chosen = self._choose(request)
            self._seen.append(Seen(request.method, request.path, chosen))
        return chosen

    def _choose(self, request: Request) -> Fault | None:
        for fault, left in zip(self._script, self._faults, strict=True):
            if not left[1] or not fault.matches(request.method, request.path):
                continue
            if left[0]:
                left[0] -= 1
                continue
            left[1] -= 1
            return fault
        return None

    def _wait(self, seconds: float) -> None:
        self._closing.wait(None if seconds == float("inf") else seconds)

    def _break(self, client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        raise _Break


@dataclass(slots=True)
class Answer:
    """Hold a response of the server."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


def _forward(request: Request, upstream: http.client.HTTPConnection) -> Answer:
    upstream.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers:
        if name.lower() not in ("connection", "transfer-encoding", "content-length", "expect"):
            upstream.putheader(name, value)
    upstream.putheader("Content-Length", str(len(request.body)))
    upstream.endheaders(request.body)
    response = upstream.getresponse()
    return Answer(response.status, response.reason, response.getheaders(), response.read())


def _refusal(fault: Refuse, request: Request) -> Answer:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message>"
        f"<Resource>{urlsplit(request.path).path}</Resource></Error>"
    ).encode()
    return Answer(fault.status, fault.code, [("Content-Type", "application/xml")], body)


def _flipped(body: bytes, at_byte: int) -> bytes:
    if not body:
        return body
    flipped = bytearray(body)
    flipped[at_byte % len(body)] ^= 1
    return bytes(flipped)
