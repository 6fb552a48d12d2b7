"""What can go wrong between a client and an HTTP server; the script of a :class:`FaultProxy`."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Say which requests something befalls.

    Attributes:
        method: of these only, such as ``"PUT"``; empty for all.
        path_contains: only where the path with its query holds this text.
        skip: let so many matching requests pass first.
        times: befall so many requests; ``math.inf`` for all until the script is replaced.
    """

    method: str = ""
    path_contains: str = ""
    skip: int = 0
    times: float = 1

    def matches(self, method: str, path: str) -> bool:
        """Tell whether a request is of the kind that this fault befalls."""
        return self.method in ("", method) and self.path_contains in path


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset(Fault):
    """Break the connection by a RST before the server sees the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall(Fault):
    """Take the request, and neither forward nor answer it for this long."""

    stall_s: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseAnswer(Fault):
    """Let the server carry out the request, then break the connection, or stay silent."""

    stall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse(Fault):
    """Answer with an error status without asking the server."""

    status: int = 503
    code: str = "SlowDown"
    message: str = "Please reduce your request rate."


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate(Fault):
    """Break the connection in the middle of the answer's body, after so many bytes of it."""

    after_nbytes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupt(Fault):
    """Flip one bit of the answer's body, or of the request's body on its way to the server."""

    at_byte: int = 0
    in_request: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowStart(Fault):
    """Forward the request, but hold the answer back for this long."""

    delay_s: float = 1.0
