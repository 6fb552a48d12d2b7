"""What a failed gRPC call means for the caller, and the error of ours that it becomes.

etcd's own errors are told apart by their text, which its clients treat as part of its API
(https://github.com/etcd-io/etcd/blob/v3.5.1/api/v3rpc/rpctypes/error.go).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import grpc

from elastic_train.errors import (
    ConfigurationError,
    CoordinationDenied,
    CoordinationError,
    CoordinationUnavailable,
    LeaseExpired,
)


class Failure(Enum):
    """What to do about a call that failed."""

    NO_ANSWER = "try another member; the request may have been carried out"
    TOKEN = "authenticate again; the request was not carried out"  # noqa: S105 -- tells what to do, holds none
    DENIED = "wrong credentials"
    FORBIDDEN = "this user has no permission for that"
    FULL = "the database is full"
    LEASE_NOT_FOUND = "the lease named in the request is gone"
    LEASE_EXISTS = "a lease of this id was granted already"
    AUTH_NOT_ENABLED = "the cluster asks nobody who they are"
    COMPACTED = "the revision asked for is gone"
    BAD_REQUEST = "the request cannot work as it is"


# Looked for in this order in the text of the status; the first hit counts.
_BY_TEXT = (
    ("invalid auth token", Failure.TOKEN),
    ("revision in header is old", Failure.TOKEN),
    ("user name is empty", Failure.TOKEN),
    ("authentication failed", Failure.DENIED),
    ("permission denied", Failure.FORBIDDEN),
    ("authentication is not enabled", Failure.AUTH_NOT_ENABLED),
    ("requested lease not found", Failure.LEASE_NOT_FOUND),
    ("lease already exists", Failure.LEASE_EXISTS),
    ("database space exceeded", Failure.FULL),
    ("too many requests", Failure.NO_ANSWER),
    ("has been compacted", Failure.COMPACTED),
)
_BY_CODE = {
    grpc.StatusCode.UNAUTHENTICATED: Failure.TOKEN,
    grpc.StatusCode.PERMISSION_DENIED: Failure.FORBIDDEN,
    grpc.StatusCode.INVALID_ARGUMENT: Failure.BAD_REQUEST,
    grpc.StatusCode.OUT_OF_RANGE: Failure.BAD_REQUEST,
    grpc.StatusCode.UNIMPLEMENTED: Failure.BAD_REQUEST,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Failure.BAD_REQUEST,
    grpc.StatusCode.FAILED_PRECONDITION: Failure.BAD_REQUEST,
}


def classify(error: grpc.RpcError) -> Failure:
    """Say what a failed call means. What is not known to be an answer of etcd's counts as none."""
    return classify_text(details_of(error)) or _BY_CODE.get(error.code(), Failure.NO_ANSWER)


def classify_text(text: str) -> Failure | None:
    """Say what the text of an etcd error means, where it is one that matters here."""
    return next((failure for part, failure in _BY_TEXT if part in text), None)


def describe(error: grpc.RpcError) -> str:
    """Return code and details of a failed call in one line."""
    return f"{error.code().name}: {details_of(error)}"


def details_of(error: grpc.RpcError) -> str:
    """Return the text of a failed call."""
    return str(error.details() or "")


def translate(failure: Failure, endpoint: str, text: str) -> CoordinationError | ConfigurationError:
    """Return the error to raise for a failure that another try cannot mend."""
    where = f"etcd at {endpoint}"
    if failure in {Failure.DENIED, Failure.FORBIDDEN, Failure.TOKEN}:
        return CoordinationDenied(
            f"{where} refused this client ({text}). Check user, password and the user's role in the coordination URL."
        )
    if failure is Failure.FULL:
        return CoordinationUnavailable(
            f"{where} takes no writes: its database is full (NOSPACE alarm). Compact and defragment it, raise "
            "--quota-backend-bytes if need be, then `etcdctl alarm disarm`."
        )
    if failure is Failure.LEASE_NOT_FOUND:
        return LeaseExpired(f"{where}: a lease named in this request is gone; nothing was written.")
    return ConfigurationError(
        "coordination request", f"{where} cannot take it ({text})", "Make it smaller or correct it."
    )


def unavailable(reasons: Mapping[str, str], tried_s: float) -> CoordinationUnavailable:
    """Return the error for a deadline that passed, naming each endpoint with what was last heard of it."""
    heard = (
        "; ".join(f"{endpoint} ({reason})" for endpoint, reason in sorted(reasons.items())) or "no endpoint was tried"
    )
    return CoordinationUnavailable(
        f"no etcd endpoint answered within {tried_s:.1f} s: {heard}. Check that etcd runs there and has a quorum."
    )
