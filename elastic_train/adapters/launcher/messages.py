"""What the driver and the warm fork server say to each other: one JSON message a datagram, file descriptors beside it.

A sequenced-packet Unix socket keeps message boundaries, shows the other side's end as an empty read, and carries the
descriptors (pidfds) by which either side names a process without any race for a reused pid.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

MAX_MESSAGE_BYTES = 128 * 1024
"""Longest message; below the default send buffer of a Unix socket."""


@dataclass(frozen=True, slots=True)
class Configure:
    """To the fork server, once: all that its workers have in common."""

    entry: str  # "package.module:function"
    spec: dict[str, Any]
    preload: list[str]
    log_dir: str
    sys_path: list[str]
    pythonpath: str | None  # what PYTHONPATH is to be in the workers; None: unset
    ready_timeout_s: float


@dataclass(frozen=True, slots=True)
class Fork:
    """To the fork server: start one worker."""

    worker_id: str
    worker_index: int


@dataclass(frozen=True, slots=True)
class Ready:
    """From the fork server, once: the modules are imported (but those that `failed`, with why)."""

    failed: dict[str, str]
    threads: list[str]  # names of threads that the imports started; a fork is only safe without any


@dataclass(frozen=True, slots=True)
class Started:
    """From the fork server: the worker's process exists; its pidfd comes with this message."""

    worker_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class Exited:
    """From the fork server: the worker's process is reaped, or never was (then `exit_code` is None)."""

    worker_id: str
    exit_code: int | None
    detail: str


Message = Configure | Fork | Ready | Started | Exited

_TYPES: dict[str, type[Message]] = {cls.__name__: cls for cls in (Configure, Fork, Ready, Started, Exited)}


def encode(message: Message) -> bytes:
    """Encode as JSON.

    Raises:
        TypeError, ValueError: A field holds something that JSON has no words for.
    """
    return json.dumps({"type": type(message).__name__, **asdict(message)}, separators=(",", ":")).encode()


def decode(data: bytes) -> Message:
    """Decode what `encode` made."""
    fields = json.loads(data)
    return _TYPES[fields.pop("type")](**fields)


def send(connection: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send one message, and duplicates of `descriptors` with it.

    Raises:
        OSError: The other side is gone (BrokenPipeError), or the message is too long.
    """
    if descriptors:
        socket.send_fds(connection, [encode(message)], list(descriptors))
    else:
        connection.send(encode(message))


def receive(connection: socket.socket) -> tuple[Message, list[int]] | None:
    """Return the next message with its descriptors, None when the other side has closed.

    Raises:
        BlockingIOError: Nothing has come yet (on a non-blocking socket).
    """
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            continue  # told once where the other side closed with mail unread; what it had sent can still be read
        return (decode(data), descriptors) if data else None
